"""Blocks of whole days that are left out in turn."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench
from bench.cli.main import main
from bench.data.sevir.splits import days_of_splits
from bench.errors import ConfigError

FIELDS = {"t_in": 2, "t_out": 2, "folds": 3}


@pytest.fixture
def dated(storms: Path, tmp_path: Path) -> Path:
    """The storms, two on each of five days, the second shortly before midnight."""
    root = tmp_path / "dated"
    root.mkdir()
    (root / "data").symlink_to(storms / "data")
    table = pd.read_csv(storms / "CATALOG.csv")
    hours = pd.to_timedelta([6, 23] * len(table), unit="h")[: len(table)]
    days = pd.to_timedelta([at // 2 for at in range(len(table))], unit="D")
    table["time_utc"] = pd.Timestamp("2020-05-01") + days + hours
    table.to_csv(root / "CATALOG.csv", index=False)
    return root


@given(count=st.integers(3, 60), folds=st.integers(3, 8), val=st.none() | st.integers(1, 9))
def test_each_day_is_tested_once_and_splits_are_disjoint(count: int, folds: int, val: int | None) -> None:
    days = [date(2020, 1, 1) + timedelta(days=3 * number) for number in range(count)]
    tested: list[date] = []
    for fold in range(folds):
        try:
            found = days_of_splits(days, folds, fold, val)
        except ConfigError as error:  # 7 days make no 5 blocks of equal length
            assert "days make" in str(error)
            return
        parts = [found[split] for split in ("train", "val", "test")]
        assert all(parts) and sum(map(len, parts)) == len(frozenset.union(*parts)) == len(days)
        assert val is None or len(found["val"]) <= val
        tested += sorted(found["test"])
    assert tested == days


def test_each_event_is_tested_once_and_splits_share_no_day(dated: Path) -> None:
    tested: list[str] = []
    for fold in range(FIELDS["folds"]):
        task = bench.load_task("radar", dated, fold=fold, **FIELDS)  # type: ignore[arg-type]
        report = task.inspect_data()
        assert not report.problems
        days = {split: set(report.facts["splits"][split]["days"]) for split in ("train", "val", "test")}
        assert not (days["train"] & days["val"] or days["train"] & days["test"] or days["val"] & days["test"])
        assert task.events("test").ids == task.dataset("test").ids
        assert not any(leak.ids or leak.stored_alike for leak in task.leaks)
        tested += task.dataset("test").ids
    assert sorted(tested) == sorted(task.dataset("all").ids)


def test_info_shows_the_days_of_each_split(dated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task.folds=3", "task.fold=0", "task.t_in=2", "task.t_out=2"]
    assert main(["data", "info", "radar", "--root", str(dated), *words]) == 0
    assert "days of test: 2020-05-01" in capsys.readouterr().out
    assert main(["data", "info", "radar", "--root", str(dated), "task.folds=99", "task.fold=0"]) == 2
    assert "days make" in capsys.readouterr().err


def test_fold_options_are_recorded_only_if_used() -> None:
    assert not {"folds", "fold", "val_days"} & bench.load_task("sevir").fields().keys()
    assert bench.load_task("sevir_lr", folds=3, fold=1, val_days=2).fields()["val_days"] == 2
    for name, options, words in (
        ("sevir", {"folds": 3}, "task: folds=3 and fold=None: expected both, or neither"),
        ("sevir", {"val_days": 3}, "needs folds"),
        ("radar", {"folds": 3, "fold": 0, "split_by": "folder"}, "split_by: folds replace them"),
        ("sevir_lr", {"folds": 3, "fold": 0, "val_from": "2019-02-01"}, "val_from: folds replace them"),
    ):
        with pytest.raises(ConfigError, match=words):
            bench.load_task(name, **options)  # type: ignore[arg-type]
