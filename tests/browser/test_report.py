"""The report in a real browser: it sorts, filters and slides, says nothing on the console and asks no network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TABLE = "table-earthformer_sevir.html"


class Watched:
    """A page, and what it should never do."""

    def __init__(self, browser: Any, site: Path, width: int, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **options)
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


def _labels(page: Any) -> list[str]:
    return [text.split("\n")[0].strip() for text in page.locator(".leaderboard tbody tr:visible th").all_inner_texts()]


def _expect(page: Any, first: list[str]) -> None:
    """The first rows are these, at the latest in some seconds: tables sort after the click has been handled."""
    for _ in range(100):
        if _labels(page)[: len(first)] == first:
            return
        page.wait_for_timeout(100)
    assert _labels(page)[: len(first)] == first


def test_every_page_opens_without_a_word_and_fits_its_width(watched: Watched, site: Path) -> None:
    for path in sorted(site.parent.glob("*.html")):
        page = watched.open(path.name)
        assert page.title() and page.locator("h1").count() == 1
        sideways = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert sideways <= 0, f"{path.name} is {sideways} pixels too wide"
        for link in page.locator("a[href$='.html']").all():
            assert (site.parent / str(link.get_attribute("href"))).is_file()


def test_a_heading_sorts_and_rows_without_a_figure_stay_below(watched: Watched) -> None:
    page = watched.open(TABLE)
    heading = page.locator("th[data-key=csi_m]").first
    heading.click()
    _expect(page, ["Earthformer", "ConvLSTM", "PredRNN"])
    heading.click()
    _expect(page, ["Persistence", "UNet", "PredRNN"])
    assert set(_labels(page)[5:]) == {"PhyDNet", "E3D-LSTM", "Rainformer", "Earthformer w/o global"}
    page.locator("th[data-key=mse]").first.click()
    _expect(page, ["Earthformer"])  # lower errors first


def test_published_figures_sort_by_themselves(watched: Watched) -> None:
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


def test_charts_are_drawn_and_change_with_their_choice(watched: Watched) -> None:
    page = watched.open(TABLE)
    titles = page.locator(".chart h3").all_inner_texts()
    assert {"By lead time", "By threshold", "Score against cost"} <= set(titles)
    lead = page.locator(".chart").first
    assert lead.locator(".scatterlayer .trace").count() >= 5 * 2, "a curve and its interval for each of five models"
    before = lead.locator(".plot").get_attribute("aria-label")
    lead.locator("select").select_option("mse")
    assert lead.locator(".plot").get_attribute("aria-label") != before


def test_the_best_beyond_chance_is_bold_and_the_next_underlined(watched: Watched) -> None:
    page = watched.open(TABLE)
    column = page.locator(".leaderboard tbody tr")
    best = [row.locator("th").inner_text() for row in column.all() if row.locator("td:nth-child(4) .best").count()]
    second = [row.locator("th").inner_text() for row in column.all() if row.locator("td:nth-child(4) .second").count()]
    assert best == ["Earthformer"] and second == ["ConvLSTM"]


def test_the_slider_moves_every_picture(watched: Watched) -> None:
    page = watched.open("gallery.html")
    assert page.locator(".scene").count() == 1 and page.locator(".frame").count() == 7
    frame = page.locator(".frame").nth(2)
    before = frame.evaluate("e => e.style.backgroundPosition")
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert page.locator(".when").inner_text() == "+25 min"
    assert frame.evaluate("e => e.style.backgroundPosition") != before
    assert "+25 min" in str(frame.get_attribute("aria-label"))
    assert slider.get_attribute("aria-valuetext") == "+25 min"
    loaded = page.evaluate(
        "Promise.all([...document.querySelectorAll('.frame')].map((e) => new Promise((done) => { const i = new Image();"
        " i.onload = () => done(i.naturalWidth); i.onerror = () => done(0);"
        " i.src = e.style.backgroundImage.slice(5, -2); })))"
    )
    assert min(loaded) > 0


def test_names_from_records_are_text(watched: Watched) -> None:
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


def test_the_keyboard_reaches_the_content_and_the_headings(watched: Watched) -> None:
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
