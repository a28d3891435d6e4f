"""The folds of a training in a table of runs: one row, scored on the forecasts of all folds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from official import as_official, trained_with

from bench.config import compose, stored
from bench.records import write_record
from bench.records.schema import MetricStatistics, RunRecord, StatisticsPart
from bench.records.statistics import compact, content_sha256
from bench.report import build
from bench.tables import load_table
from bench.tables.cells import TableData, table_data

CASES = {0: 1.0 + np.arange(12.0), 1: 100.0 + np.arange(6.0)}
"""Squared errors of each fold, which has as many cases as it likes."""


def _run(measured: RunRecord, fold: int, seed: int, more: float = 0.0, made: int = 0) -> RunRecord:
    config = stored(compose(["task=sevir", "model=unet", "task.folds=2", f"task.fold={fold}", f"seed={seed}"]))
    values = CASES[fold] + seed + more
    arrays = compact({"mse.error_sum": values[:, None], "mse.pixel_count": np.ones((values.size, 1), np.int64)})
    metric = MetricStatistics(family="errors", options={"score": "mse", "scale": 1.0, "convention": "upstream"})
    assert measured.data is not None
    return as_official(
        measured,
        run_id=f"2026-{made}-{seed}-{fold}",
        seed=seed,
        config=config,
        task=measured.task.model_copy(update={"fields": {**measured.task.fields, "folds": 2, "fold": fold}}),
        data=measured.data.model_copy(update={"fingerprint": str(fold) * 64, "sequence_count": values.size}),
        model=measured.model.model_copy(update={"name": "unet", "parameters": 7}),
        checkpoint_sha256=f"{seed}{fold}{made}".ljust(64, "0"),
        training=trained_with({}),
        scores={"mse": float(values.mean())},
        scores_per_lead={},
        undefined={},
        statistics=StatisticsPart(
            kind="event", unit_count=values.size, units_sha256=f"fold {fold}", metrics={"mse": metric},
            content_sha256=content_sha256(arrays),
        ),
    ).with_arrays(arrays)  # fmt: skip


def _contents(records: list[RunRecord]) -> TableData:
    return table_data(load_table("runs/sevir"), None, records)


def test_folds_form_one_row_of_pooled_scores_averaged_over_seeds(measured: RunRecord) -> None:
    records = [_run(measured, fold, seed) for seed in (0, 1) for fold in CASES]
    contents = _contents(records)
    (block,) = contents.blocks
    assert "2 folds together, 18 sequences" in block.title and "task.fold=" not in block.title
    mse = next(cell for cell in block.cells if cell.column == "mse")
    of_all = np.concatenate([*CASES.values()]).mean()
    assert mse.ours == pytest.approx(1e3 * (of_all + 0.5)) and len(mse.run_ids) == 2
    assert contents.run_ids(mse) == ["2026-0-0-0", "2026-0-0-1", "2026-0-1-0", "2026-0-1-1"]


def test_the_newest_run_of_a_fold_is_used_per_training(measured: RunRecord) -> None:
    again = _run(measured, 1, 0, more=9.0, made=1)
    contents = _contents([_run(measured, 0, 0), _run(measured, 1, 0), again])
    (mse,) = [cell for cell in contents.blocks[0].cells if cell.column == "mse"]
    assert contents.run_ids(mse) == ["2026-0-0-0", again.run_id]


def test_incomplete_folds_are_separate_blocks(measured: RunRecord) -> None:
    records = [_run(measured, 0, 0), _run(measured, 0, 1), _run(measured, 1, 1)]
    titles = [block.title for block in _contents(records).blocks]
    assert len(titles) == 2 and sum("folds together" in title for title in titles) == 1
    torn = [_run(measured, fold, 0).model_copy(update={"statistics": None}).with_arrays(None) for fold in CASES]
    assert len(_contents(torn).blocks) == 2, "scores without their sums cannot be formed together"


def test_the_page_lists_each_run_of_a_row(measured: RunRecord, tmp_path: Path) -> None:
    for record in (_run(measured, fold, seed) for seed in (0, 1) for fold in CASES):
        write_record(record, tmp_path / "results")
    build(tmp_path / "results", tmp_path / "site")
    page = (tmp_path / "site/table-runs_sevir.html").read_text(encoding="utf-8")
    assert page.count('class="board"') == 1 and "4 single runs" in page
    assert re.findall(r"<td>(seed \d, fold \d)</td>", page) == [
        f"seed {seed}, fold {fold}" for seed in (0, 1) for fold in CASES
    ]
