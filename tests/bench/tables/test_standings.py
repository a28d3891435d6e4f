"""Bold marks: the best row and those that are not significantly worse, over events and over seeds."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from official import as_official, trained_with
from scipy import stats

import bench
from bench.cli.main import main
from bench.records import write_record
from bench.records.schema import MetricStatistics, RunRecord, StatisticsPart
from bench.records.statistics import compact, content_sha256
from bench.tables import load_table
from bench.tables.cells import Block, table_data
from bench.tables.definitions import Column, Table
from bench.tables.render import render
from bench.tables.standings import seeds_p_value, why_no_mark

TABLE = Table(
    name="board",
    title="Made",
    task="sevir",
    columns=(
        Column(key="mse", label="MSE", better="lower", digits=3),
        Column(key="fvd", label="FVD", better="lower"),
        Column(key="training_s", label="Training", better="lower"),
    ),
)
WEATHER = np.random.default_rng(0).exponential(size=200) + 1


def _run(
    measured: RunRecord, name: str, errors: np.ndarray, *, seed: int = 0, trained: bool = True, **scores: float
) -> RunRecord:
    """A run with the given squared errors per event."""
    arrays = compact({"mse.error_sum": errors[:, None], "mse.pixel_count": np.ones((len(errors), 1), np.int64)})
    metric = MetricStatistics(family="errors", options={"score": "mse", "scale": 1.0, "convention": "upstream"})
    part = StatisticsPart(
        kind="event", unit_count=len(errors), units_sha256=f"{len(errors)} events", metrics={"mse": metric},
        content_sha256=content_sha256(arrays),
    )  # fmt: skip
    changes = {
        "checkpoint_sha256": hashlib.sha256(f"{name} {seed}".encode()).hexdigest() if trained else None,
        "statistics": part, "seed": seed, "run_id": f"2026-{name}-{seed}", "scores": {"mse": errors.mean(), **scores},
        "scores_per_lead": {}, "undefined": {}, "training": trained_with({}) if trained else None,
        "model": measured.model.model_copy(update={"name": name, "parameters": int(trained)}),
    }  # fmt: skip
    return as_official(measured, **changes).with_arrays(arrays)


def _marks(records: list[RunRecord], column: str = "mse") -> dict[str, int | None]:
    return {cell.model: cell.mark for cell in _block(records).cells if cell.column == column}


def _block(records: list[RunRecord]) -> Block:
    (block,) = table_data(TABLE, None, records).blocks
    return block


def _noise(number: int, count: int) -> np.ndarray:
    return np.random.default_rng(number).normal(0, 0.3, count)


def test_the_best_is_marked_if_significantly_better(measured: RunRecord) -> None:
    w = WEATHER[:40]
    records = [_run(measured, name, w + gap) for name, gap in (("unet", 0.0), ("convlstm", 0.2), ("predrnn", 0.4))]
    assert _marks(records) == {"unet": 1, "convlstm": 2, "predrnn": None}
    text = render(TABLE, records)
    assert re.search(r"unet[^|]*\| +\*\*\d", text) and re.search(r"convlstm[^|]*\| +\*\d", text)
    assert "bold: the best, and each row that is not worse beyond chance" in text
    assert r"\textbf{" in render(TABLE, records, "latex") and "<strong>" in render(TABLE, records, "html")
    assert _marks(records, "training_s") == dict.fromkeys(("unet", "convlstm", "predrnn")), (
        "no chance to test in a cost"
    )


def test_rows_not_significantly_worse_share_the_mark(measured: RunRecord) -> None:
    w = WEATHER[:40]
    close = w + 0.01 + _noise(1, 40)
    records = [_run(measured, "unet", w), _run(measured, "convlstm", close), _run(measured, "predrnn", w + 0.5)]
    assert bench.compare(records[0], records[1], "mse").p_value > 0.05
    assert _marks(records) == {"unet": 1, "convlstm": 1, "predrnn": 2}
    assert {cell.model: cell.rank for cell in _block(records).cells if cell.column == "mse"} == {
        "unet": 1, "convlstm": 2, "predrnn": None,
    }, "the order as printed is not a test"  # fmt: skip


def test_nothing_is_marked_without_significant_differences(measured: RunRecord) -> None:
    w = WEATHER[:40]
    records = [_run(measured, "unet", w), _run(measured, "convlstm", w + 0.01 + _noise(1, 40))]
    assert set(_marks(records).values()) == {None}
    assert "no best is marked: no row is worse than the best beyond chance, or that cannot be tested" in " ".join(
        _block(records).absences
    )


def test_excluded_rows_are_listed_if_nothing_is_marked(measured: RunRecord) -> None:
    w = WEATHER[:40]
    records = [_run(measured, "unet", w), _run(measured, "convlstm", w + 0.01 + _noise(1, 40))]
    cells = _block(records).cells
    beaten = replace(cells[0], row_key="beaten", rank=None, beats_reference=False)
    told = "; rows that do not beat the best trivial reference take no part"
    assert why_no_mark((*cells, beaten), records) == why_no_mark(cells, records) + told


def test_ties_as_printed_always_share_the_mark(measured: RunRecord) -> None:
    w = WEATHER[:40]
    records = [_run(measured, "unet", w), _run(measured, "convlstm", w + 1e-6), _run(measured, "predrnn", w + 0.5)]
    assert bench.compare(records[0], records[1], "mse").p_value < 0.05
    assert _marks(records) == {"unet": 1, "convlstm": 1, "predrnn": 2}


def test_marks_need_six_events(measured: RunRecord) -> None:
    five, six = ([_run(measured, "unet", WEATHER[:n]), _run(measured, "convlstm", WEATHER[:n] + 1)] for n in (5, 6))
    assert set(_marks(five).values()) == {None}
    remarks = "\n".join(_block(five).absences)
    assert "with 5 events no p-value of a permutation test is below 0.0625" in remarks
    assert (
        "no intervals: 5 events, and an interval needs 10 or more" in remarks
        and "[" not in render(TABLE, five).partition("trained rows")[0].partition("Training")[2].partition("\n- ")[0]
    )
    assert _marks(six) == {"unet": 1, "convlstm": 2}
    assert any(remark.startswith("no intervals: 6 events") for remark in _block(six).absences)


def test_lower_ranks_need_smaller_p_values(measured: RunRecord) -> None:
    """A p-value of 1/16 to 1/32 with six events is enough for the second place, but not for the third."""
    w = WEATHER[:6]
    close = w + np.array([0.3, -0.2, 0.1, -0.2, 0.1, 0.0])
    two = [_run(measured, "unet", w), _run(measured, "predrnn", w + 0.5)]
    assert _marks(two) == {"unet": 1, "predrnn": 2}
    three = [*two, _run(measured, "convlstm", close)]
    assert set(_marks(three).values()) == {None}


def test_equal_models_are_rarely_marked(measured: RunRecord) -> None:
    marked = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        records = [_run(measured, f"m{model}", WEATHER[:15] + rng.normal(0, 0.3, 15)) for model in range(6)]
        marked += any(_marks(records).values())
    assert marked <= 6, "5 % promised; best against any other, without correction, marks half of them"


def test_records_without_statistics_are_not_marked(measured: RunRecord, tmp_path: Path) -> None:
    w = WEATHER[:40]
    records = [_run(measured, "unet", w), _run(measured, "convlstm", w + 1), _run(measured, "predrnn", w + 2)]
    assert _marks([records[0], records[1].with_arrays(None), records[2]]) == dict.fromkeys(
        ("unet", "convlstm", "predrnn")
    ), "what cannot be tested may be as good"
    assert _marks([*records[:2], records[2].with_arrays(None)])["unet"] == 1, "it lies below a row that is worse"
    other_options = records[1].model_copy(
        update={"statistics": records[1].statistics.model_copy(update={"units_sha256": "x"})}
    )
    assert set(_marks([records[0], other_options]).values()) == {None}, "other events"
    path = write_record(records[0].sealed(), tmp_path)
    path.with_suffix(".npz").write_bytes(b"PK")
    torn = records[0].with_arrays(path.with_suffix(".npz"))
    assert set(_marks([torn, records[1]]).values()) == {None}, "verify names it; the table is made without"


def test_marks_need_agreeing_seeds(measured: RunRecord) -> None:
    w = WEATHER
    other = [_run(measured, "convlstm", w + 0.3, seed=seed) for seed in range(3)]
    steady = [_run(measured, "unet", w + gap, seed=seed) for seed, gap in enumerate((0.0, 0.01, 0.02))]
    assert _marks([*steady, *other]) == {"unet": 1, "convlstm": 2}
    wide = [_run(measured, "unet", w + gap, seed=seed) for seed, gap in enumerate((-0.7, 0.1, 0.6))]
    assert bench.records.uncertainty.paired_p_values(wide, other, ["mse"])["mse"] < 0.05
    assert set(_marks([*wide, *other]).values()) == {None}


def test_a_score_without_statistics_per_event_is_judged_by_seeds(measured: RunRecord) -> None:
    w = WEATHER[:40]
    low = [_run(measured, "unet", w, seed=seed, fvd=10 + 0.1 * seed) for seed in range(3)]
    high = [_run(measured, "convlstm", w, seed=seed, fvd=20 + 0.1 * seed) for seed in range(3)]
    assert _marks([*low, *high], "fvd") == {"unet": 1, "convlstm": 2}
    assert set(_marks([low[0], *high], "fvd").values()) == {None}, "one run tells nothing of its seeds"


def test_seeds_are_compared_by_students_and_welchs_t_tests(measured: RunRecord) -> None:
    a, b = [1.0, 1.2, 1.3], [1.5, 1.9, 2.4]
    runs = [[_run(measured, "unet", WEATHER[:3], seed=i, fvd=v) for i, v in enumerate(side)] for side in (a, b)]
    assert seeds_p_value(*runs, "fvd") == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-9)
    single = seeds_p_value(runs[0], runs[1][:1], "fvd")
    assert single == pytest.approx(stats.ttest_ind(a, b[:1]).pvalue, rel=1e-9)
    fixed = _run(measured, "persistence", WEATHER[:3], trained=False, fvd=1.5)
    assert seeds_p_value(runs[0], [fixed], "fvd") == pytest.approx(stats.ttest_1samp(a, 1.5).pvalue, rel=1e-9)
    assert seeds_p_value(runs[0][:1], runs[1][:1], "fvd") is None


def test_explain_gives_the_reason_for_a_missing_interval(
    measured: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(measured, tmp_path)
    assert main(["explain", "runs/sevir", "persistence", "csi_m", "--results", str(tmp_path)]) == 0
    assert "interval    none: 3 events, and an interval needs 10 or more" in capsys.readouterr().out
    assert main(["table", "runs/sevir", "--results", str(tmp_path)]) == 0
    assert "- no intervals: 3 events, and an interval needs 10 or more" in capsys.readouterr().out


def test_pooled_folds_have_enough_events_for_an_interval(
    committed_results: Path,
) -> None:
    table = load_table("runs/enso_ersst")
    records = bench.read_records(committed_results, table.task)[0]
    folds = table_data(table, None, records).blocks
    assert any(cell.interval is not None for block in folds for cell in block.cells)
    for block in table_data(table, None, [one for one in records if one.config["task"].get("fold") == 0]).blocks:
        assert all(cell.interval is None for cell in block.cells)
        assert any(remark.startswith("no intervals: ") for remark in block.absences)
