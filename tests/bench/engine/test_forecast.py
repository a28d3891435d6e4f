"""`earthbench forecast`: coordinates are passed through, members are reproducible, pictures have the named format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from PIL import Image
from torch import nn

import bench
from bench.cli import forecast as forecast_verb
from bench.cli.main import main
from bench.engine.ensembles import Ensemble, draw_members
from bench.engine.forecast import (
    as_dataset,
    case_from_file,
    case_from_split,
    case_of_latest,
    forecast,
    write_netcdf,
)
from bench.errors import ConfigError, ContractError, DataError, RunFailedError
from bench.tables.look import Look
from bench.tables.pictures import draw, panels_of


class Sampler(nn.Module):
    """Members that differ by noise; the control shifts them."""

    def __init__(self, t_out: int = 12) -> None:
        super().__init__()
        self.t_out = t_out

    def forward(self, context):
        return context[:, -1:].expand(-1, self.t_out, -1, -1, -1)

    def sample(self, context, *, members, generator, control=0.0):
        mean = self.forward(context)
        return mean + control + 0.01 * torch.randn((members, *mean.shape), generator=generator)


class Diverging(Sampler):
    def sample(self, context, *, members, generator, control=0.0):
        raise FloatingPointError("lower guide_scale")


@pytest.fixture(scope="module")
def task(storms: Path):
    return bench.load_task("sevir", storms)


def test_a_forecast_is_in_physical_units(task) -> None:
    case = case_from_split(task, "test", 1)
    context, target = task.dataset("test")[1]
    made = forecast(bench.load_model("persistence", task), task, case.context)
    assert torch.equal(made, task.denormalise(context[-1:].expand(1, 12, -1, -1, -1)))
    assert torch.allclose(case.target, task.denormalise(target), atol=1e-4)


def test_members_depend_on_seed_and_control(task) -> None:
    context = case_from_split(task, "test").context
    one, again, other = (forecast(Sampler(), task, context, members=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other) and not torch.equal(one[0], one[1])
    shifted = forecast(Sampler(), task, context, members=3, seed=1, control=0.5)
    assert torch.allclose(shifted - one, torch.full_like(one, 0.5 * 255), atol=1e-2)


def test_the_file_stores_values_lead_times_and_context(task, tmp_path: Path) -> None:
    case, model = case_from_split(task, "test"), Sampler()
    blocks = torch.stack([forecast(model, task, case.context, members=2, control=n) for n in (-1.0, 1.0)])
    path = write_netcdf(as_dataset(case, blocks, task, model, controls=(-1, 1)), tmp_path / "f.nc")
    with xarray.open_dataset(path, engine="h5netcdf", decode_times=False) as content:
        assert content["forecast"].dims == ("control", "member", "lead_time", "y", "x")
        assert np.array_equal(content["forecast"].to_numpy(), blocks[..., 0].numpy())
        assert content["lead_time"].to_numpy().tolist() == [5.0 * k for k in range(1, 13)]
        assert content["context_time"].to_numpy()[-1] == 0 and content["member"].attrs["standard_name"] == "realization"
    again = case_from_file(bench.load_task("sevir", task.data_root), path)
    assert torch.equal(again.context, case.context) and torch.equal(again.target, case.target)
    assert again.cadence_minutes == case.cadence_minutes


def test_the_members_are_those_scored_by_an_evaluation(task) -> None:
    model, index = Sampler(), 3
    context, _ = task.dataset("test")[index]
    drawn = draw_members(model, context[None], torch.tensor([index]), Ensemble(2, seed=5), task.target_shape)
    case = case_from_split(task, "test", index)
    made = forecast(model, task, case.context, members=2, seed=5, sequence=case.sequence)
    assert torch.equal(made, task.denormalise(drawn[:, 0]))


def test_the_file_follows_the_cf_conventions(task, tmp_path: Path) -> None:
    case, model = case_from_split(task, "test"), Sampler()
    blocks = torch.stack([forecast(model, task, case.context, members=2, control=n) for n in (-1.0, 1.0)])
    path = write_netcdf(as_dataset(case, blocks, task, model, controls=(-1, 1)), tmp_path / "f.nc")
    with xarray.open_dataset(path, engine="h5netcdf", decode_times=False) as content:
        assert content.attrs["Conventions"].startswith("CF-") and {"title", "source", "history"} <= set(content.attrs)
        for name, variable in content.variables.items():
            if name == "crs":
                assert "Lambert Azimuthal Equal Area" in variable.attrs["crs_wkt"]
                continue
            assert "units" in variable.attrs and {"long_name", "standard_name"} & set(variable.attrs), name
        assert content["lead_time"].attrs["standard_name"] == "forecast_period"
        assert {content[axis].attrs["axis"] for axis in "xy"} == {"X", "Y"}
        assert content["forecast"].attrs["grid_mapping"] == "crs" and content["x"].attrs["units"] == "m"


def test_each_variable_has_its_units_in_the_file(tmp_path: Path) -> None:
    times = np.datetime64("2024-06-01", "ns") + np.arange(12) * np.timedelta64(6, "h")
    values = np.arange(12 * 4 * 5, dtype=np.float32).reshape(12, 4, 5)
    axes = ("valid_time", "latitude", "longitude")
    fields = {"t2m": (axes, values + 273, {"units": "K"}), "u10": (axes, values, {"units": "m s**-1"})}
    xarray.Dataset(fields, {"valid_time": times}).to_netcdf(tmp_path / "era.nc", engine="h5netcdf")
    task = bench.load_task("grid", tmp_path / "era.nc", variable=["t2m", "u10"], t_in=4, t_out=2)
    model, case = bench.load_model("persistence", task), case_of_latest(task)
    path = write_netcdf(as_dataset(case, forecast(model, task, case.context), task, model), tmp_path / "f.nc")
    with xarray.open_dataset(path) as found:
        assert "units" not in found["forecast"].attrs and "units" not in found["context"].attrs
        for name, (_, expected, attributes) in fields.items():
            one = found["forecast"].sel(channel=name)
            assert one["channel_units"].item() == attributes["units"]
            np.testing.assert_allclose(one[0, 0], expected[-1], atol=1e-3)
        np.testing.assert_array_equal(found["time"], times[-1] + np.array([1, 2]) * np.timedelta64(6, "h"))


def test_unobserved_pixels_are_missing_in_the_file(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).gamma(0.5, 2.0, (24, 8, 10)).astype(np.float32)
    frames[:, 0, :3], frames[20, 4, 4] = np.nan, np.nan
    times = np.datetime64("2024-06-01", "ns") + np.arange(24) * np.timedelta64(300, "s")
    cube = xarray.Dataset({"rain_rate": (("time", "y", "x"), frames, {"units": "mm/h"})}, {"time": times})
    cube.to_netcdf(tmp_path / "rain.nc", engine="h5netcdf")
    task = bench.load_task("grid", tmp_path / "rain.nc", t_in=4, t_out=2)
    model = bench.load_model("persistence", task)
    case = case_of_latest(task)
    path = write_netcdf(as_dataset(case, forecast(model, task, case.context), task, model), tmp_path / "f.nc")
    with xarray.open_dataset(path) as found:
        np.testing.assert_allclose(found["context"], frames[-4:], atol=1e-6)
        assert np.isnan(found["forecast"][..., 0, :3]).all()
        assert np.isfinite(found["forecast"]).sum() == 2 * (8 * 10 - 3)
    again = case_from_file(task, path)
    torch.testing.assert_close(again.context, case.context)
    torch.testing.assert_close(again.observed, case.observed)
    np.save(tmp_path / "infinite.npy", np.full((4, 8, 10), np.inf))
    with pytest.raises(DataError, match="missing values, at frame 0"):
        case_from_file(task, tmp_path / "infinite.npy")


def test_wrong_requests_are_refused(task, tmp_path: Path) -> None:
    context = case_from_split(task, "test").context
    persistence = bench.load_model("persistence", task)
    with pytest.raises(ConfigError, match="deterministic"):
        forecast(persistence, task, context, members=2)
    with pytest.raises(ConfigError, match="members=0"):
        forecast(Sampler(), task, context, members=0)
    with pytest.raises(ConfigError, match="takes no control"):
        forecast(persistence, task, context, control=1.0)
    with pytest.raises(ConfigError, match="sequences 0 to 8"):
        case_from_split(task, "test", 9)
    with pytest.raises(ContractError, match="expected"):
        forecast(Sampler(t_out=3), task, context, members=2)
    with pytest.raises(RunFailedError, match="NaN"):
        forecast(Sampler(), task, context, control=float("nan"))
    with pytest.raises(RunFailedError, match="lower guide_scale"):
        forecast(Diverging(), task, context)
    np.save(tmp_path / "short.npy", np.zeros((3, 32, 32)))
    with pytest.raises(DataError, match=r"expected numbers .* = \(13, 32, 32, 1\)"):
        case_from_file(task, tmp_path / "short.npy")
    (tmp_path / "no.nc").write_text("nothing")
    with pytest.raises(DataError, match="cannot be read"):
        case_from_file(task, tmp_path / "no.nc")


def test_rows_of_a_picture() -> None:
    members = np.stack([np.full((2, 4, 4), value) for value in (10.0, 20.0, 30.0, 40.0)])
    rows = panels_of(np.zeros((3, 4, 4)), np.ones((2, 4, 4)), members, threshold=25)
    assert [row.name for row in rows] == [
        "context", "observed", "member 1", "member 2", "member 3", "mean", "P(≥ 25)",
    ]  # fmt: skip
    assert rows[-2].frames[0, 0, 0] == 25 and rows[-1].frames[0, 0, 0] == 0.5 and rows[0].first == -2
    controlled = panels_of(np.zeros((3, 4, 4)), None, np.stack([members, members]), controls=(-2, 2))
    assert [row.name for row in controlled] == ["context", "n = -2", "n = +2"]


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_the_picture_format_follows_the_suffix(tmp_path: Path, suffix: str) -> None:
    rows = panels_of(np.zeros((2, 8, 8)), None, np.random.default_rng(0).random((2, 3, 8, 8)), threshold=0.5)
    path = draw(tmp_path / f"p{suffix}", rows, look=Look(units="1"), cadence_minutes=5, title="t")
    with Image.open(path) as image:
        assert image.format == suffix[1:].upper()
        assert getattr(image, "n_frames", 1) == (
            5 if suffix == ".gif" else 1
        )  # two of the context, three of the forecast
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_forecast_on_the_command_line(storms: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = ["forecast", "task=sevir", "model=persistence", f"data.root={storms}"]
    assert main([*base, "--out", "a.nc", "--picture", "a.png"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nc", "a.png"]
    beside = ["task.t_in=3", "task.t_out=2", "--beside", "blank,persistence", "--title", "A storm"]
    assert main([*base, "--out", "b.nc", "--picture", "b.gif", *beside]) == 0
    with Image.open("b.gif") as image:
        assert image.info["comment"] == b"A storm"
        assert image.n_frames >= 3 + 2, "and the last one is held, in frames of its own or in one"
        assert image.width > 2.5 * image.height, "four panels side by side"
    assert main([*base, "--all", "limit=2", "--out", "many"]) == 0
    assert sorted(p.name for p in (tmp_path / "many").iterdir()) == ["000000.nc", "000001.nc"]
    capsys.readouterr()
    for arguments, words in (
        ([*base, "--picture", "a.jpeg"], "ends in"),
        ([*base, "--control", "a"], "expected numbers"),
        ([*base, "--members", "0"], "members=0: expected at least 1"),
        ([*base, "--all", "--picture", "a.png"], "--all makes many"),
        ([*base, "--colours", "cividis"], "give --picture"),
        ([*base, "--beside", "persistence"], "give --picture"),
        ([*base, "--title", "A storm"], "give --picture"),
        ([*base, "--picture", "a.png", "--beside", "unet"], "without, e.g. persistence"),
        ([*base, "--picture", "a.png", "--colours", "civdis"], "cividis"),
        (["forecast", "model=unet", f"data.root={storms}"], "checkpoint=FILE"),
        (["forecast", "model=persistence"], "nothing to forecast from"),
        ([*base, "--input", "nowhere.npy"], "cannot be read"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_a_forecast_with_outliers_warns(storms: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    usual = forecast_verb._forecast
    monkeypatch.setattr(forecast_verb, "_forecast", lambda *given: 1000 * usual(*given))
    words = ["forecast", "task=sevir", "model=persistence", f"data.root={storms}", "device=cpu", "--out", "a.nc"]
    assert main(words) == 0
    assert "times as much as what was observed before: outliers dominate its errors" in capsys.readouterr().err
