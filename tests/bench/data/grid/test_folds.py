"""Folds of a cube by time, and areas of its cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray

import bench
from bench.errors import ConfigError
from bench.tasks import load_task

FRAMES, SIZE, GAP = 61, (6, 8), 20


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames every 5 minutes, two of which are missing after frame 20; latitudes from the north."""
    times = np.datetime64("2020-01-01") + np.arange(FRAMES + 2) * np.timedelta64(5, "m")
    times = np.delete(times, [GAP + 1, GAP + 2])
    field = np.random.default_rng(0).random((FRAMES, *SIZE)).astype("f4")
    axes = {"time": times, "lat": ("lat", 50.0 - np.arange(SIZE[0]), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(8.0), {"units": "degrees_east"})}  # fmt: skip
    path = tmp_path_factory.mktemp("folds") / "cube.nc"
    data = xarray.Dataset({"rain": (("time", "lat", "lon"), field, {"units": "mm/h"})}, coords=axes)
    data.to_netcdf(path, engine="h5netcdf")
    return path


def test_folds_test_every_frame_once_and_no_window_crosses_a_border(root: Path) -> None:
    tested: list[str] = []
    for fold in range(4):
        task = load_task("grid", root, t_in=2, t_out=2, folds=4, fold=fold)
        parts = {split: task.dataset(split).source for split in ("train", "val", "test")}
        assert not task.leaks
        for windows in parts.values():
            steps = [np.diff(windows.cube.axis.times[s : s + 4]) for s in windows.starts]
            assert (np.concatenate(steps) == np.timedelta64(300, "s")).all(), (
                "no window reaches over a gap or a block that is left out"
            )
        tested += parts["test"].ids
        normalisation = task.taken_from_training()["normalisation"][0]
        values = parts["train"].cube.read(0, FRAMES)[parts["train"].frames]
        np.testing.assert_allclose(normalisation, [values.mean(), values.std()], rtol=1e-4)
    assert len(tested) == len(set(tested)) == FRAMES


def test_fold_options_are_recorded_only_if_used(root: Path) -> None:
    plain, fold = (load_task("grid", root, t_in=2, t_out=2, **options) for options in ({}, {"folds": 3, "fold": 0}))
    assert not {"folds", "fold"} & plain.fields().keys() and fold.fields()["folds"] == 3
    for options, words in (
        ({"folds": 3}, "expected both, or neither"),
        ({"folds": 3, "fold": 0, "split_by": "place"}, "split_by: folds replace them"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_task("grid", root, **options)


def test_a_fold_without_windows_is_refused_with_the_reason(root: Path) -> None:
    task = load_task("grid", root, t_in=10, t_out=10, folds=4, fold=0)
    assert "Of its 16 frames" in task.dataset("test").why_empty


def test_errors_are_area_weighted_where_rows_have_latitudes(root: Path) -> None:
    task = load_task("grid", root, t_in=2, t_out=2, box=(1, 5, 0, 8))
    area = task.cell_weights()["area"]
    np.testing.assert_allclose(area, np.repeat(np.cos(np.deg2rad(50.0 - np.arange(1, 5)))[:, None], 8, 1))
    assert load_task("grid", root, t_in=2, t_out=2, crop=(4, 4)).cell_weights() == {}
    metric = bench.load_metric("mse", convention="correct", scale=1.0, weights=["area"])
    _, target = (part[None] for part in task.dataset("test").stored(0))
    metric.update(target * 0, target, cells=task.cell_weights())
    expected = (target[..., 0].double().numpy() ** 2 * area).sum() / (2 * area.sum())
    assert metric.compute()["mse"] == pytest.approx(expected, rel=1e-6)
