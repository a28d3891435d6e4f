"""The report in a real browser: sorting, filtering, sliding; no console messages and no network requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_picture import OUT, photograph

from bench.report.plots import INPUTS

TABLE = "table-earthformer_sevir.html"


class Watched:
    """A page with its console messages, errors and requests, which should be empty."""

    def __init__(self, browser: Any, site: Path, width: int, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        self.page.set_default_timeout(180_000)  # nothing here tests speed, and the machine may be busy
        self.complaints: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._asked)
        self.site = site.parent

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(f"asked the network for {request.url}")

    def open(self, name: str) -> Any:
        self.page.goto((self.site / name).as_uri())
        if name.startswith("table-"):
            self.page.wait_for_function(
                "document.querySelectorAll('.board').length === document.querySelectorAll('.board[data-ready]').length"
            )
        return self.page


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def watched(browser: Any, site: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    watched = Watched(browser, site, request.param)
    yield watched
    watched.page.close()
    assert watched.complaints == []


@pytest.fixture(params=[1440, 390], ids=["desktop", "phone"])
def real(browser: Any, committed: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """The same of the committed results."""
    watched = Watched(browser, committed, request.param)
    yield watched
    watched.page.close()
    assert watched.complaints == []


def _labels(within: Any) -> list[str]:
    return [text.strip() for text in within.locator(".leaderboard tbody tr:visible th a").all_inner_texts()]


def _expect(page: Any, first: list[str], within: Any = None) -> None:
    """Checks the first rows within some seconds, because tables sort after the click has been handled."""
    for _ in range(100):
        if _labels(within or page)[: len(first)] == first:
            return
        page.wait_for_timeout(100)
    assert _labels(within or page)[: len(first)] == first


def _check_page(watched: Watched, page: Any) -> None:
    assert page.title() and page.locator("h1").count() == 1
    sideways = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert sideways <= 0, f"{sideways} pixels too wide"
    hrefs = page.evaluate("[...document.links].map((link) => link.getAttribute('href'))")
    for href in {one for one in hrefs if not one.startswith(("#", "https:"))}:
        assert (watched.site / href).is_file(), href
    anchors = [one for one in hrefs if one.startswith("#")]
    assert page.evaluate("(all) => all.every((one) => document.getElementById(one.slice(1)))", anchors)
    load = "Promise.all([...document.images].map((one) => { one.loading = 'eager'; return one.decode(); }))"
    page.evaluate(f"async () => {{ await {load}; }}")


def test_every_page_opens_without_console_messages_and_fits_its_width(watched: Watched) -> None:
    for path in sorted(watched.site.glob("*.html")):
        with _naming(path.name):
            _check_page(watched, watched.open(path.name))


@pytest.mark.parametrize("pages", ["table-boards_*", "table-earthformer_*", "table-prediff_*", "table-runs_*", "[!t]*"])
def test_every_committed_page_fits_and_its_controls_work(real: Watched, pages: str) -> None:
    paths = sorted(real.site.glob(f"{pages}.html"))
    assert paths
    for path in paths:
        with _naming(path.name):
            page = real.open(path.name)
            _check_page(real, page)
            _choose_each_side(page)
            _use_every_control(page)


@contextmanager
def _naming(page: str) -> Iterator[None]:
    """Adds the page to the message of a failure."""
    try:
        yield
    except Exception as error:
        error.add_note(f"on {page}")
        raise


def _choose_each_side(page: Any) -> None:
    """Every value of a switch can be selected, in any order, one at a time, and the table shows it."""
    for board in page.locator(".board:has(.switch)").all():
        for side in ("difference", "ours", "published", "difference", "published", "ours"):
            board.get_by_label(side, exact=True).check()
            assert board.locator(".switch input:checked").count() == 1
            assert board.locator("table.leaderboard").get_attribute("data-side") == side
            shown = {one: board.locator(f".leaderboard td > .{one}:visible").count() for one in ("difference", "ours")}
            assert bool(shown["difference"]) == (side == "difference") and bool(shown["ours"]) == (side == "ours")


def _use_every_control(page: Any) -> None:
    for details in page.locator("details").all():
        details.locator("summary").click()
        assert details.get_attribute("open") is not None
    for board in page.locator(".board").all():
        heads = board.locator(".leaderboard thead tr").nth(1)
        for box in board.locator(".group").all():
            before = heads.locator("th:visible").count()
            box.uncheck()
            assert heads.locator("th:visible").count() < before
            box.check()
            assert heads.locator("th:visible").count() == before
        rows = board.locator(".leaderboard tbody tr")
        count = rows.count()
        board.get_by_role("searchbox").fill("unet | persist")
        assert 0 <= rows.count() <= count
        board.get_by_role("searchbox").fill("")
        assert rows.count() == count
        for head in heads.locator("th:visible").all():
            head.click(force=True)  # whether it was met shows at once: no need to wait until it lies still
            page.wait_for_function("(head) => head.hasAttribute('aria-sort')", arg=head.element_handle())
        for select in board.locator(".chart select").all():
            plot = select.locator("xpath=ancestor::article").locator(".plot")
            told = set()
            values = select.locator("option").evaluate_all("(all) => all.map((one) => one.value)")
            for value in values:
                select.select_option(value)
                told.add(plot.get_attribute("aria-label"))
            assert len(told) == len(values), "each choice draws something else"
    page.get_by_role("button", name="Switch between light and dark").click()
    page.get_by_role("button", name="Switch between light and dark").click()


def test_every_control_of_a_filled_table_works(watched: Watched) -> None:
    page = watched.open(TABLE)
    _choose_each_side(page)
    _use_every_control(page)


def test_chart_labels_do_not_overlap(real: Watched) -> None:
    overlaps = """(selector) => [...document.querySelectorAll('.plot')].flatMap((plot) => {
        const boxes = [...plot.querySelectorAll(selector)].map((e) => e.getBoundingClientRect()).filter((b) => b.width);
        const card = plot.getBoundingClientRect();
        return boxes.flatMap((a, i) => [
            ...(a.right > card.right + 1 || a.left < card.left - 1 ? [`outside: ${a.left} ${a.right}`] : []),
            ...boxes.slice(i + 1).filter((b) => a.left < b.right - 1 && b.left < a.right - 1 &&
                Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 5).map((b) => `${a.top} ${b.top}`)]);
    })"""
    for name in ("table-runs_radar.html", "table-runs_enso_ersst.html", "table-runs_nbody_mnist.html", TABLE):
        page = real.open(name)
        page.wait_for_selector(".chart .textpoint text, .chart .annotation-text", state="attached")
        page.wait_for_timeout(500)
        for selector in (".textpoint text", ".annotation-text"):
            assert page.evaluate(overlaps, selector) == [], f"{name}: {selector}"


def test_the_score_is_on_the_first_screen_of_a_phone(real: Watched) -> None:
    page = real.open("table-runs_radar.html")
    head = page.locator("th[data-key=csi_m]").first
    box = head.bounding_box()
    assert box and box["x"] + box["width"] <= page.viewport_size["width"]


def test_the_url_keeps_the_settings(real: Watched) -> None:
    page = real.open("table-runs_radar.html")
    board = page.locator(".board").first
    every = _labels(board)
    words = f"{every[-1]} | {every[1]}"
    place = board.locator("th[data-key=mse]").evaluate("(head) => [...head.parentNode.children].indexOf(head)")
    errors = board.locator(".leaderboard tbody tr").evaluate_all(
        "(rows, at) => rows.map((row) => [row.dataset.label, +row.querySelectorAll('td')[at].dataset.ours])", place
    )
    found = [label for label, _ in sorted(errors, key=lambda one: one[1]) if every[-1] in label or every[1] in label]
    board.get_by_role("searchbox").fill(words)
    board.get_by_label("Cost", exact=True).uncheck()
    board.locator("th[data-key=mse]").click()
    _expect(page, found, board)
    address = page.url
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector(".board[data-ready]")
    board = page.locator(".board").first
    _expect(page, found, board)
    assert _labels(board) == found and not board.get_by_label("Cost", exact=True).is_checked()
    assert board.get_by_role("searchbox").input_value() == words


def test_hovering_a_row_highlights_its_line(real: Watched) -> None:
    page = real.open("table-runs_radar.html")
    page.wait_for_selector(".chart .scatterlayer .trace", state="attached")
    page.wait_for_timeout(300)
    dimmed = """document.querySelectorAll('.chart')[0].querySelectorAll(".trace[style*='0.15']").length"""
    assert page.evaluate(dimmed) == 0
    page.locator(".leaderboard tbody tr").first.hover()
    assert page.evaluate(dimmed) == page.evaluate("data[0].lead[0].curves.length") - 1 > 5


def test_a_heading_sorts_with_empty_rows_last(watched: Watched) -> None:
    page = watched.open(TABLE)
    heading = page.locator("th[data-key=csi_m]").first
    heading.click()
    _expect(page, ["Earthformer", "ConvLSTM", "PredRNN"])
    heading.click()
    _expect(page, ["Persistence", "UNet", "PredRNN"])
    assert set(_labels(page)[5:]) == {"PhyDNet", "E3D-LSTM", "Rainformer", "Earthformer w/o global"}
    page.locator("th[data-key=mse]").first.click()
    _expect(page, ["Earthformer"])  # lower errors first


def test_published_figures_sort_separately(watched: Watched) -> None:
    page = watched.open(TABLE)
    page.get_by_label("published", exact=True).first.check()
    page.locator("th[data-key=csi_m]").first.click()
    _expect(page, ["Earthformer", "Earthformer w/o global", "ConvLSTM"])
    assert page.locator(".leaderboard .ours:visible").count() == 0


def test_search_and_column_groups(watched: Watched) -> None:
    page = watched.open(TABLE)
    page.get_by_role("searchbox").first.fill("lstm")
    _expect(page, ["ConvLSTM", "E3D-LSTM"])
    assert len(_labels(page)) == 2
    page.get_by_role("searchbox").first.fill("")
    before = page.locator(".leaderboard thead tr").nth(1).locator("th:visible").count()
    page.get_by_label("CSI", exact=True).first.uncheck()
    assert before - page.locator(".leaderboard thead tr").nth(1).locator("th:visible").count() == 7


def test_charts_change_with_the_selected_score(watched: Watched) -> None:
    page = watched.open(TABLE)
    titles = page.locator(".chart h3").all_inner_texts()
    assert {"By lead time", "By threshold", "Score against cost"} <= set(titles)
    lead = page.locator(".chart").first
    assert lead.locator(".scatterlayer .trace").count() >= 5 * 2, "a curve and its interval for each of five models"
    before = lead.locator(".plot").get_attribute("aria-label")
    lead.locator("select").select_option("mse")
    assert lead.locator(".plot").get_attribute("aria-label") != before


def test_the_significantly_best_is_bold_and_the_second_underlined(watched: Watched) -> None:
    page = watched.open(TABLE)
    column = page.locator(".leaderboard tbody tr")
    best = [row.locator("th a").inner_text() for row in column.all() if row.locator("td:nth-child(2) .best").count()]
    second = [
        row.locator("th a").inner_text() for row in column.all() if row.locator("td:nth-child(2) .second").count()
    ]
    assert best == ["Earthformer"] and second == ["ConvLSTM"]


def test_the_slider_updates_every_picture(watched: Watched) -> None:
    page = watched.open("gallery.html")
    assert page.locator(".scene").count() == 2 and page.locator(".frame").count() == 2 * 7
    frame = page.locator(".frame").nth(2)
    before = frame.evaluate("e => e.style.backgroundPosition")
    slider = page.get_by_role("slider").first
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.locator(".when").first.inner_text() == "+25 min"
    assert frame.evaluate("e => e.style.backgroundPosition") != before
    assert "+25 min" in str(frame.get_attribute("aria-label"))
    assert slider.get_attribute("aria-valuetext") == "+25 min"
    loaded = page.evaluate(
        "Promise.all([...document.querySelectorAll('.frame')].map((e) => new Promise((done) => { const i = new Image();"
        " i.onload = () => done(i.naturalWidth); i.onerror = () => done(0);"
        " i.src = e.style.backgroundImage.slice(5, -2); })))"
    )
    assert min(loaded) > 0
    errors, values = page.locator(".scale.errors").first, frame.evaluate("e => e.style.backgroundImage")
    assert not errors.is_visible() and "RMSE" in page.locator(".score").nth(2).inner_text()
    page.get_by_label("Forecast minus target").first.check()
    assert errors.is_visible() and "difference" in frame.evaluate("e => e.style.backgroundImage")
    page.get_by_label("Forecast minus target").first.uncheck()
    assert frame.evaluate("e => e.style.backgroundImage") == values
    page.get_by_role("button", name="Play").first.click()
    page.get_by_role("button", name="Pause").first.click()


def test_names_from_records_are_escaped(watched: Watched) -> None:
    page = watched.open("table-runs_sevir.html")
    assert "<script>window.hurt=1</script>" in page.locator(".leaderboard").first.inner_text()
    assert page.evaluate("window.hurt") is None


def test_dark_and_light(browser: Any, site: Path) -> None:
    watched = Watched(browser, site, 1280, color_scheme="dark")
    page = watched.open("index.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("button", name="Switch between light and dark").click()
    light = page.evaluate(ground)
    assert dark != light and light == "rgb(255, 255, 255)"
    watched.open("models.html")
    assert page.evaluate(ground) == light, "the choice is kept from page to page"
    page.close()
    assert watched.complaints == []


def test_content_and_headings_are_reachable_by_keyboard(watched: Watched) -> None:
    page = watched.open(TABLE)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('th')?.dataset.key") == "csi_m":
            break
    else:
        pytest.fail("no heading is reached by Tab")
    page.keyboard.press("Enter")
    _expect(page, ["Earthformer"])


def test_a_partial_run_is_named_but_not_shown(watched: Watched) -> None:
    page = watched.open(TABLE)
    page.get_by_text("records are not shown").click()
    assert page.get_by_text("partial runs").first.is_visible()


def test_the_screenshot_in_the_documentation_is_reproducible(browser: Any, committed: Path, tmp_path: Path) -> None:
    photograph(browser, committed.parent, tmp_path / OUT.name)
    with Image.open(tmp_path / OUT.name) as taken, Image.open(OUT) as shown:
        assert taken.size == shown.size and taken.info[INPUTS] == shown.info[INPUTS], (
            f"{OUT.name} is stale; make it again: python tests/report_picture.py"
        )
