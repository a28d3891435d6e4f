"""Scores of all folds together are those of one evaluation over all windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bench
from bench.data.ersst.synthetic import sst_record
from bench.errors import ConfigError
from bench.metrics.enso.metric import index_scores, nino34_index
from bench.records.pooling import pooled
from bench.records.schema import RunRecord
from bench.tables.columns import OCEAN
from bench.tables.render import load_table
from bench.tables.runs import with_scores_there
from bench.tables.variants import comparable_key

WINDOW = {"t_in": 4, "t_out": 3, "folds": 4, "scale": "kelvin"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sst")
    sst_record(12, 1960, "sst").to_netcdf(root / "sst.nc", engine="h5netcdf")
    return root


@pytest.fixture(scope="module")
def folds(root: Path) -> list[RunRecord]:
    tasks = [bench.load_task("enso_ersst", root, fold=fold, **WINDOW) for fold in range(4)]
    return [bench.evaluate("persistence", task, device="cpu") for task in tasks]


def test_pooled_scores_equal_those_of_all_windows(root: Path, folds: list[RunRecord]) -> None:
    found = pooled(folds)
    counts = [record.data.sequence_count for record in folds if record.data is not None]
    for score in ("mse", "mae", "mse_ocean"):
        expected = np.average([record.scores[score] for record in folds], weights=counts)
        assert found.scores[score] == pytest.approx(expected, rel=1e-12)
    sides: list[list[np.ndarray]] = [[], []]
    for fold in range(4):
        data = bench.load_task("enso_ersst", root, fold=fold, **WINDOW).dataset("test")
        for context, _, label in (data.stored(at) for at in range(len(data))):
            sides[0].append(nino34_index(context[None, -1:].expand(-1, 3, -1, -1, -1), "exact")[0].numpy())
            sides[1].append(label.numpy())
    again = index_scores(np.stack(sides[0]), np.stack(sides[1]), "correct")
    for score in ("c_nino34_m", "rmse_nino34", "c_nino34_lead_1"):
        assert found.scores[score] == pytest.approx(again[score], abs=1e-9)
    assert found.unit_count == sum(record.statistics.unit_count for record in folds if record.statistics is not None)
    assert pooled(folds[:1]).scores["mse"] == folds[0].scores["mse"]


def test_incompatible_runs_are_not_pooled(folds: list[RunRecord]) -> None:
    without = folds[1].model_copy(update={"statistics": None})
    with pytest.raises(ConfigError, match="no statistics per event"):
        pooled([folds[0], without])
    assert folds[1].statistics is not None
    metrics = {name: how for name, how in folds[1].statistics.metrics.items() if name != "mae"}
    fewer = folds[1].model_copy(update={"statistics": folds[1].statistics.model_copy(update={"metrics": metrics})})
    with pytest.raises(ConfigError, match="scored by other metrics"):
        pooled([folds[0], fewer.with_arrays({k: v for k, v in folds[1].arrays.items() if not k.startswith("mae.")})])
    with pytest.raises(ConfigError, match="found none"):
        pooled([])


def test_runs_with_and_without_season_are_comparable(root: Path, folds: list[RunRecord]) -> None:
    task = bench.load_task("enso_ersst", root, fold=0, calendar=True, **WINDOW)
    seasonal = bench.evaluate("climatology", task, device="cpu")
    assert comparable_key(seasonal) == comparable_key(folds[0]) != comparable_key(folds[1])


def test_ocean_columns_appear_if_a_run_has_them(folds: list[RunRecord]) -> None:
    table, keys = load_table("runs/enso_ersst"), {column.key for column in OCEAN}
    shown = [{column.key for column in with_scores_there(table, records).columns} for records in ([], folds)]
    assert not keys & shown[0] and keys | {"skill_mse_ocean"} <= shown[1]
