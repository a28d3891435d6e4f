"""A cube from the command line: run, added metrics, rescore, table, forecast of the newest frames."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from bench.cli.main import main
from bench.data.grid.synthetic import rain_cube, write_cube

TASK = [
    "task=grid", "task.variable=rain_rate", "task.t_in=3", "task.t_out=2", "task.thresholds=[0.5,2]",
    "task.scale=log1p",
]  # fmt: skip
QUIET = ["progress=false", "device=cpu", "picture=false"]
UNET = ["model=unet", "model.channels=[4,4]", "model.center_channels=4"]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_cube(rain_cube(60, (22, 30), seed=3), tmp_path / "rain.zarr")


def record_of(model: str, which: int = -1) -> dict[str, Any]:
    return json.loads(sorted(Path("results/runs/grid", model).glob("*.json"))[which].read_text())


def test_added_metrics_have_their_own_keys_and_change_no_others(capsys: pytest.CaptureFixture) -> None:
    words = ["run", *TASK, "data.root=rain.zarr", "model=persistence", *QUIET]
    assert main(words) == 0
    added = ["evaluate.metrics.skill.thresholds=[0.5]", "evaluate.metrics.coarse={metric: skill, pool: 2}"]
    assert main([*words, *added, "evaluate.metrics.frames.scale=60"]) == 0
    plain, more = record_of("persistence", 0), record_of("persistence")
    if "csi_m_own" in plain["scores"]:  # of one second, ids are in any order
        plain, more = more, plain
    assert {key: more["scores"][key] for key in plain["scores"]} == plain["scores"]
    assert more["scores"]["csi_0.5_own"] == more["scores"]["csi_m_own"] == plain["scores"]["csi_0.5"]
    assert {"csi_m_pool2_coarse", "ssim_own", "mse_own"} <= set(more["scores"])
    assert set(more["conventions"]) == {*plain["conventions"], "skill@own", "skill@coarse", "frames@own"}
    assert more["conventions"]["skill@coarse"]["thresholds"] == [0.5, 2]
    assert main(["verify"]) == 0
    capsys.readouterr()
    assert main(["table", "runs/grid"]) == 0
    table = capsys.readouterr().out
    assert table.count("## ") == 1  # they are comparable
    assert "CSI-0.5" in table and "MSE" in table and "own" not in table and "coarse" not in table


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluate.metrics.skil.thresholds=[1]", "evaluate.metrics.skil: unknown metric 'skil'. Did you mean 'skill'"),
        ("evaluate.metrics.skill.pools=2", "evaluate.metrics.skill: "),
        ("evaluate.metrics.skill.thresholds=[]", "expected one or more finite numbers"),
        ("evaluate.metrics.a-b={metric: skill}", "evaluate.metrics"),
        ("evaluate.metrics=skill", "evaluate.metrics"),
    ],
)
def test_invalid_added_metrics_are_refused_before_training(
    override: str, said: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["run", *TASK, "data.root=rain.zarr", *UNET, *QUIET, override]) == 2
    assert said in capsys.readouterr().err
    assert not list(Path().glob("results/runs/**/*.json"))


def test_weights_are_rescored_and_forecast_past_the_end(capsys: pytest.CaptureFixture) -> None:
    assert main(["run", *TASK, "data.root=rain.zarr", *UNET, "train.max_steps=2", *QUIET]) == 0
    first, said = record_of("unet"), capsys.readouterr().out
    (command,) = [line.strip() for line in said.splitlines() if "earthbench forecast" in line]
    assert main(shlex.split(command)[1:]) == 0  # the next command that the run prints
    assert xarray.open_dataset("forecast.nc")["forecast"].shape == (1, 2, 22, 30)
    path = f"results/runs/grid/unet/{first['run_id']}.json"
    assert main(["rescore", path, "evaluate.metrics.skill.thresholds=[1,3]"]) == 0
    (again,) = [found for at in (0, 1) if (found := record_of("unet", at))["run_id"] != first["run_id"]]
    assert {key: again["scores"][key] for key in first["scores"]} == first["scores"]
    assert {"csi_1_own", "csi_3_own"} <= set(again["scores"])
    assert again["checkpoint_sha256"] == first["checkpoint_sha256"]
    assert main(["rescore", first["run_id"], "train.lr=1"]) == 2
    assert main(["rescore", "20200101T000000Z-0000000000-0000", "evaluate.metrics.mse.scale=2"]) == 2
    checkpoint = next(Path("outputs").rglob("last.ckpt"))
    capsys.readouterr()

    # the newest frames alone, as a service's folder has them: the scale is that of the weights
    whole = xarray.open_zarr("rain.zarr", consolidated=False)
    whole.isel(time=slice(-3, None)).to_netcdf("live.nc", engine="h5netcdf")
    forecast = ["forecast", *TASK, *UNET, f"checkpoint={checkpoint}", "device=cpu", "--latest"]
    assert main([*forecast, "data.root=live.nc", "--out", "live_forecast.nc"]) == 0
    assert main([*forecast, "data.root=rain.zarr", "--out", "forecast.nc"]) == 0
    with xarray.open_dataset("forecast.nc") as found, xarray.open_dataset("live_forecast.nc") as live:
        np.testing.assert_array_equal(found["forecast"].values, live["forecast"].values)
        end = whole["time"].values[-1]
        assert found["forecast_reference_time"].values == end
        np.testing.assert_array_equal(found["time"].values, end + np.timedelta64(300, "s") * np.array([1, 2]))
        np.testing.assert_array_equal(found["time_of_context"].values, whole["time"].values[-3:])
        for name in ("y", "x"):
            np.testing.assert_array_equal(found[name].values, whole[name].values)
            assert found[name].attrs["units"] == "m"
        assert found["forecast"].shape == (1, 2, 22, 30)
        assert found["forecast"].attrs["units"] == "mm/h"
        assert found["crs"].attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"
    whole.close()


def test_a_live_folder_with_too_few_frames_is_refused(capsys: pytest.CaptureFixture) -> None:
    whole = xarray.open_zarr("rain.zarr", consolidated=False)
    whole.isel(time=slice(-2, None)).to_netcdf("live.nc", engine="h5netcdf")
    whole.close()
    assert main(["forecast", *TASK, "data.root=live.nc", "model=persistence", "--latest"]) == 2
    assert "2 of the 3 that a context needs" in capsys.readouterr().err


def test_each_variable_is_scored_in_its_own_units() -> None:
    whole = xarray.open_zarr("rain.zarr", consolidated=False).load()
    whole.assign(warmth=whole["rain_rate"] * 3).to_netcdf("two.nc", engine="h5netcdf")
    words = [word for word in TASK if "variable" not in word]
    assert (
        main(["run", *words, "task.variable=[rain_rate,warmth]", "data.root=two.nc", "model=persistence", *QUIET]) == 0
    )
    assert main(["run", *TASK, "data.root=two.nc", "model=persistence", *QUIET]) == 0
    both, one = record_of("persistence", 0)["scores"], record_of("persistence")["scores"]
    if "mse_warmth" in one:
        both, one = one, both
    assert {key: both[key] for key in one} == pytest.approx(one)
    assert both["mse_warmth"] == pytest.approx(9 * one["mse"], rel=1e-4)
    assert main(["verify"]) == 0


def test_a_curvilinear_grid_keeps_its_latitudes_and_longitudes() -> None:
    whole = xarray.open_zarr("rain.zarr", consolidated=False).load().drop_vars(["x", "y", "crs"])
    del whole["rain_rate"].attrs["grid_mapping"]
    j, i = np.meshgrid(np.arange(22.0), np.arange(30.0), indexing="ij")
    turned = whole.assign_coords(
        nav_lat=(("y", "x"), 50 + j / 10 + i / 100, {"units": "degrees_north", "standard_name": "latitude"}),
        nav_lon=(("y", "x"), 5 + i / 10 - j / 100, {"units": "degrees_east"}),
        warmth=(("y", "x"), i, {"units": "degree_Celsius"}),
    )
    turned.to_netcdf("turned.nc", engine="h5netcdf")
    words = [*TASK, "task.box=[2,20,0,30]", "data.root=turned.nc", "model=persistence"]
    assert main(["forecast", *words, "--latest", "--picture", "nowcast.png"]) == 0
    with xarray.open_dataset("forecast.nc") as found:
        assert {"nav_lat", "nav_lon"} <= set(found["forecast"].coords) and "warmth" not in found
        np.testing.assert_array_equal(found["nav_lat"], turned["nav_lat"][2:20])


def test_monthly_forecasts_step_by_calendar_months() -> None:
    times = np.arange("2001-02", "2003-02", dtype="M8[M]").astype("M8[D]") - 1  # stamped with their last day
    values = np.random.default_rng(0).normal(0, 1, (24, 4, 6)).astype(np.float32)
    cube = xarray.Dataset({"anomaly": (("time", "y", "x"), values, {"units": "K"})}, {"time": times.astype("M8[ns]")})
    cube.to_netcdf("months.nc", engine="h5netcdf")
    words = ["task=grid", "task.t_in=3", "task.t_out=2", "data.root=months.nc", "model=persistence"]
    assert main(["forecast", *words, "--latest"]) == 0
    with xarray.open_dataset("forecast.nc") as found:
        np.testing.assert_array_equal(found["time"], np.array(["2003-01-31", "2003-02-28"], "M8[ns]"))
        np.testing.assert_array_equal(found["time_of_context"], times[-3:].astype("M8[ns]"))


def test_latest_needs_dates(capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "make", "moving_mnist", "--out", "digits", "--train", "1", "--val", "1", "--test", "1"]) == 0
    assert main(["forecast", "task=moving_mnist", "data.root=digits", "model=persistence", "--latest"]) == 2
    assert "--sequence N" in capsys.readouterr().err
