"""Pictures of forecasts: times in the task's unit, formats, colours, and leads that are equally far apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bench import registry
from bench.api import MONTH_MINUTES, Palette
from bench.errors import ConfigError
from bench.tables.durations import TimeAxis
from bench.tables.look import Look, colouring, levels_of
from bench.tables.pictures import PRINT_DPI, PRINT_WIDTH, Panel, _wrapped, draw, shown_frames


@pytest.mark.parametrize(
    ("axis", "step", "leads"),
    [
        (TimeAxis.of(5), "5 min", ("-5 min", "0 min", "+5 min", "+10 min")),
        (TimeAxis.of(MONTH_MINUTES), "1 month", ("-1 month", "0 months", "+1 month", "+2 months")),
        (TimeAxis.of(3 * MONTH_MINUTES), "3 months", ("-3 months", "0 months", "+3 months", "+6 months")),
        (TimeAxis.of(1, timeless=True), "1 frame", ("-1 frame", "0 frames", "+1 frame", "+2 frames")),
        (TimeAxis.of(43_830), "43830 min", ("-43830 min", "0 min", "+43830 min", "+87660 min")),
        (TimeAxis.of(60), "1 h", ("-1 h", "0 h", "+1 h", "+2 h")),
        (TimeAxis.of(90), "90 min", ("-90 min", "0 min", "+90 min", "+180 min")),
        (TimeAxis.of(1440), "1 day", ("-1 day", "0 days", "+1 day", "+2 days")),
        (TimeAxis.of(2.5), "2.5 min", ("-2.5 min", "0 min", "+2.5 min", "+5 min")),
    ],
)
def test_times_have_the_unit_of_the_frames(axis: TimeAxis, step: str, leads: tuple[str, ...]) -> None:
    assert axis.text() == step and axis.leads(-1, 4) == leads


@pytest.mark.parametrize(
    ("task", "unit"),
    [("nbody_mnist", "frame"), ("moving_mnist", "frame"), ("icar_enso", "month"), ("enso_ersst", "month"),
     ("sevir", "min")],
)  # fmt: skip
def test_every_task_has_a_time_unit(task: str, unit: str) -> None:
    found = registry.find("task", task).load()
    made = found() if task != "sevir" else None
    cadence = made.cadence_minutes if made else found.nominal_cadence
    assert TimeAxis.of(cadence, timeless=found.timeless).unit == unit


@pytest.mark.parametrize("count", range(1, 30))
def test_shown_leads_are_evenly_spaced_and_include_the_last(count: int) -> None:
    shown = shown_frames(count)
    assert shown[-1] == count - 1 and len(shown) <= 6 and min(shown) >= 0
    assert len(set(np.diff(shown).tolist())) <= 1


@pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_stills_have_print_quality(tmp_path: Path, ending: str, begins: bytes) -> None:
    rows = [Panel("context", np.zeros((2, 24, 48)), first=-1), Panel("forecast", np.ones((3, 24, 48)))]
    look = Look.of_name("enso_ersst", "cividis")
    path = draw(tmp_path / f"p.{ending}", rows, look=look, cadence_minutes=MONTH_MINUTES, title="t")
    content = path.read_bytes()
    assert content.startswith(begins)
    if ending == "png":
        with Image.open(path) as image:
            assert round(image.info["dpi"][0]) == PRINT_DPI


@pytest.mark.parametrize("rows", [2, 7])
@pytest.mark.parametrize("size", [(16, 16), (24, 48), (384, 384)])
def test_a_still_has_page_width_and_a_dot_per_cell(tmp_path: Path, rows: int, size: tuple) -> None:
    panels = [Panel("context", np.zeros((6, *size)), first=-5)]
    panels += [Panel(f"optical_flow_blurred {k}", np.zeros((6, *size))) for k in range(rows - 1)]
    path = draw(tmp_path / "p.png", panels, look=Look.of_name("radar"), cadence_minutes=5, title="t")
    with Image.open(path) as image:
        assert image.width / image.info["dpi"][0] == pytest.approx(PRINT_WIDTH, abs=0.05)
        assert image.width >= 6 * size[1] and image.height > rows * size[0] / 2


def test_text_in_a_pdf_is_truetype(tmp_path: Path) -> None:
    rows = [Panel("context", np.zeros((2, 16, 16)), first=-1), Panel("forecast", np.ones((3, 16, 16)))]
    path = draw(tmp_path / "p.pdf", rows, look=Look(), cadence_minutes=5, title="t")
    content = path.read_bytes()
    assert b"/Type3" not in content and b"/FontFile2" in content


def test_registered_names_wrap_at_underscores() -> None:
    assert _wrapped("earthformer_no_global", 16) == "earthformer no\nglobal"


@pytest.mark.parametrize(
    ("colours", "values", "ends"),
    [
        (None, (0, 200), "neither"),
        (None, (-9, 255), "max"),
        ("cividis", (0, 200), "neither"),
        ("cividis", (0, 300), "max"),
        ("cividis", (-9, 300), "both"),
    ],
)
def test_a_colour_bar_has_arrows_only_where_values_lie_beyond_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colours: str | None, values: tuple[float, float], ends: str
) -> None:
    drawn = []
    colorbar = Figure.colorbar
    monkeypatch.setattr(Figure, "colorbar", lambda *a, **how: drawn.append(made := colorbar(*a, **how)) or made)
    frames = np.linspace(*values, 2 * 16 * 16).reshape(2, 16, 16)
    rows = [Panel("context", frames, first=-1), Panel("forecast", frames)]
    draw(tmp_path / "p.png", rows, look=Look.of_name("sevir", colours), cadence_minutes=5, title="t")
    assert [bar.extend for bar in drawn] == [ends]


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_long_title_is_wrapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    titles: list[str] = []
    suptitle = Figure.suptitle
    monkeypatch.setattr(Figure, "suptitle", lambda f, text, **how: titles.append(text) or suptitle(f, text, **how))
    rows = [Panel("context", np.zeros((2, 8, 8)), first=-1), Panel("forecast", np.zeros((2, 8, 8)))]
    draw(tmp_path / f"p.{ending}", rows, look=Look(), cadence_minutes=5, title=" ".join(["word"] * 60))
    assert all(len(line) <= 14 * PRINT_WIDTH for title in titles for line in title.splitlines())
    assert titles[0].split()[:60] == ["word"] * 60


def test_an_animation_keeps_colours_that_are_rare_in_its_frames(tmp_path: Path) -> None:
    frames = np.zeros((3, 64, 64))
    rows = [Panel("context", frames, first=-2), Panel("forecast", frames), Panel("P", frames, probability=True)]
    path = draw(tmp_path / "p.gif", rows, look=Look.of_name("sevir"), cadence_minutes=5, title="t")
    with Image.open(path) as image:
        seen = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    for colour in Look.of_name("sevir").palette.colours[:-1]:  # all of the colour bar, but its arrow
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        assert np.abs(seen - wanted).max(1).min() <= 8, colour


def test_computed_levels_cover_all_values() -> None:
    for palette, kind in ((Palette(), "neither"), (Palette("RdBu_r", (-1.0, 0.0, 1.0)), "both")):
        _, norm = colouring(palette, palette.levels or levels_of([np.array([0.0, 35.0])]))
        assert norm.extend == kind


@pytest.mark.parametrize(
    ("least", "greatest", "expected"),
    [(11.532, 20.041, (11, 12, 20, 21)), (0.0, 1.0, (0, 0.1, 0.9, 1.0)), (250.0, 250.0, (250, 250.1, 250.9, 251))],
)
def test_levels_are_round_numbers_that_span_the_values(least: float, greatest: float, expected: tuple) -> None:
    levels = levels_of([np.array([least, np.nan, greatest])])
    assert (*levels[:2], *levels[-2:]) == pytest.approx(expected)


def test_named_colours_keep_the_levels_and_unknown_ones_are_named() -> None:
    own = Look.of_name("sevir")
    other = own.coloured("cividis")
    assert other.palette.levels == own.palette.levels and other.palette.colours == "cividis"
    with pytest.raises(ConfigError, match="cividis"):
        own.coloured("cividiss")
    assert Look.of_name("a_task_of_nobody").units == ""
