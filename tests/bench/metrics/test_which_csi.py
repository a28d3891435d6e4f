"""The figures of docs/which_csi.md."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bench.metrics.resampling import MIN_EVENTS
from bench.metrics.skill.metric import skill_scores
from bench.records.uncertainty import smallest_p
from bench.tables.standings import SIGNIFICANCE, corrected_level

PAGE = Path(__file__).resolve().parents[3] / "docs" / "which_csi.md"
COUNTS = {
    "hits": [[90, 0], [1, 0]], "misses": [[10, 0], [9, 0]],
    "false_alarms": [[0, 0], [0, 0]], "correct_negatives": [[0, 100], [90, 100]],
}  # fmt: skip


def _row(name: str) -> str:
    return next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {name} "))


def test_the_page_has_the_computed_scores() -> None:
    correct, upstream = (skill_scores(COUNTS, [16, 219], convention) for convention in ("correct", "upstream"))
    assert math.isnan(correct["csi_219"]) and "undefined" in _row("`csi_219`, `correct`")
    figures = {
        "`csi_16`": correct["csi_16"],
        "`csi_16_per_lead_mean`": correct["csi_16_per_lead_mean"],
        "`csi_219`, `upstream`": upstream["csi_219"],
        "`csi_m`, `correct`": correct["csi_m"],
        "`csi_m`, `upstream`": upstream["csi_m"],
    }
    for name, value in figures.items():
        assert _row(name).endswith(f"| {value:.4f} |"), name
    leads = f"{correct['csi_16_lead_1']:.4f}, {correct['csi_16_lead_2']:.4f}"
    assert leads in _row("`csi_16_lead_1`, `csi_16_lead_2`")
    perfect = {name: [[100]] if name == "hits" else [[0]] for name in COUNTS}
    assert f"{skill_scores(perfect, [16], 'upstream')['bias_16']:.4f}" in PAGE.read_text()


def _table(heading: str) -> dict[int, dict[str, str]]:
    """Returns the cells of a table of the page by events and population, from the lines after a sentence."""
    lines = PAGE.read_text().partition(heading)[2].splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    titles = rows[0]
    first = next((at for at, row in enumerate(rows[1:], start=1) if row[0] == titles[0]), len(rows))
    return {int(row[0]): dict(zip(titles[1:], row[1:], strict=True)) for row in rows[1:first]}


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = PAGE.parents[1] / "tests" / "speed" / "intervals.py"
    spec = importlib.util.spec_from_file_location("bench_intervals", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_intervals"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["csi", "rare", "heavy", "mse", "skewed"])
def test_the_coverage_on_the_page_is_that_of_the_simulation(simulation: ModuleType, name: str) -> None:
    """Repeats the same draws, up to the rounding of another machine."""
    title = simulation.POPULATIONS[name].title
    for events in (5, 10, 20):
        said = float(_table("Share of the 95 % intervals that contain")[events][title].split(" ")[0])
        assert simulation.coverage(name, events, ("ours",))["ours"] == pytest.approx(said, abs=0.0015)
        cell = _table("Share of test sets that tell two equal models apart")[events][title]
        apart = simulation.false_positive_rate(name, events, ("ours",))["ours"]
        assert apart == pytest.approx(float(cell.split(" ")[0]), abs=0.0015)
        wide = simulation.widths(name, events)
        assert _table("Width of the interval relative")[events][title] == f"{wide[0]:.2f}, {wide[1]:.1f}"


def test_the_page_has_every_population_and_number_of_events(simulation: ModuleType) -> None:
    titles = [population.title for population in simulation.POPULATIONS.values()]
    for heading in (
        "Share of the 95 % intervals that contain",
        "Share of test sets that tell two equal models apart",
        "Width of the interval relative",
    ):
        table = _table(heading)
        assert tuple(table) == simulation.EVENTS and all(list(row) == titles for row in table.values())


def test_the_minimum_number_of_events_on_the_page_is_that_of_the_code() -> None:
    assert f"**At least {MIN_EVENTS} events are needed.**" in PAGE.read_text()
    assert f"{smallest_p(5):.2f} with five, {smallest_p(6):.2f} with six" in PAGE.read_text()
    tables = (PAGE.parent / "tables.md").read_text()
    assert f"p < {SIGNIFICANCE}, the third if p < {SIGNIFICANCE} / 3, the fourth if p < {SIGNIFICANCE} / 6" in tables
    assert [SIGNIFICANCE / corrected_level(passed) for passed in (1, 2, 3)] == pytest.approx([1, 3, 6])
