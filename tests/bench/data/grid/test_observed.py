"""Observed data read as a user's cube have the scores of their own task."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

import bench
from bench.data.ersst.anomalies import cropped, read_anomalies
from bench.data.sevir.dataset import SevirSequences
from bench.engine.evaluate import EvaluationSettings, evaluate_with_sample
from bench.engine.trainer import trainer_device

THRESHOLDS = [16.0, 74.0, 133.0, 160.0]


@pytest.mark.slow
def test_radar_of_the_contiguous_states(observed: Path, tmp_path: Path) -> None:
    """Events become stretches of time a day apart; both sides use the conventions of the cube's task."""
    root = observed / "radar_conus" / "val"
    source = SevirSequences(root, t_in=18, t_out=18, stride=36)
    frames = np.concatenate([torch.cat(source.stored(at)).numpy()[..., 0] for at in range(len(source))])
    days = np.datetime64("2019-06-10", "ns") + np.arange(len(source)) * np.timedelta64(1, "D")
    times = (days[:, None] + np.arange(36) * np.timedelta64(120, "s")).ravel()
    cube = xarray.Dataset({"vil": (("time", "y", "x"), frames.astype(np.float32), {"units": "code"})}, {"time": times})
    cube.to_zarr(tmp_path / "vil.zarr", consolidated=False)
    grid = bench.load_task("grid", tmp_path / "vil.zarr", t_in=13, t_out=12, stride=11, thresholds=THRESHOLDS)
    radar = bench.load_task("radar", root, t_in=13, t_out=12, stride=11)
    assert grid.cadence_minutes == radar.cadence_minutes == 2
    ours = bench.evaluate("persistence", grid, "all").scores
    rules = {
        "skill": {"convention": "correct", "thresholds": THRESHOLDS, "missing_value": None},
        **{name: {"convention": "correct", "scale": 1.0} for name in ("mse", "mae")},
    }
    settings = EvaluationSettings(where=trainer_device("cpu"), split="all", added_metrics=rules)
    described = {"config": {}, "config_fingerprint": "0" * 64, "seed": 0}
    theirs, _ = evaluate_with_sample(bench.load_model("persistence", radar), radar, settings, described)
    assert theirs.data.sequence_count == len(grid.dataset("all")) == 2 * len(source)
    skill = [key for key in ours if key.startswith(("csi_", "pod_", "far_", "hss_", "bias_"))]
    assert {"csi_m", "csi_16", "csi_160"} <= set(skill)
    for key in skill:
        assert theirs.scores[f"{key}_own"] == pytest.approx(ours[key], abs=1e-12, nan_ok=True), key
    for key in ("mse", "mae"):  # codes were divided by 255 and multiplied again
        assert theirs.scores[f"{key}_own"] == pytest.approx(ours[key], rel=1e-5)


def test_sea_surface_temperature(observed: Path, tmp_path: Path) -> None:
    """The anomalies of `enso_ersst`, on its grid, 0 on land as there, with its dates and windows."""
    found = read_anomalies(observed / "sst", 1961, 1990)
    cube = xarray.Dataset(
        {"sst": (("time", "lat", "lon"), cropped(found.sst), {"units": "K"})},
        {"time": found.months.astype("datetime64[ns]")},
    )
    cube.to_netcdf(tmp_path / "sst.nc", engine="h5netcdf")
    dates = {"val_from": date(1990, 1, 1), "test_from": date(2000, 1, 1)}
    grid = bench.load_task("grid", tmp_path / "sst.nc", t_in=12, t_out=14, **dates)
    enso = bench.load_task("enso_ersst", observed / "sst", scale="kelvin", **dates)
    ours, theirs = bench.evaluate("persistence", grid), bench.evaluate("persistence", enso)
    assert ours.data.sequence_count == theirs.data.sequence_count == 204 - 26 + 1
    for key in [key for key in ours.scores if key.startswith(("mse", "mae"))]:
        assert ours.scores[key] == pytest.approx(theirs.scores[key], rel=1e-5), key
    assert {"mse", "mae"} <= set(ours.scores)
