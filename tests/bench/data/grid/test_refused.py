"""Cubes that cannot be used: each gives one message with what was found and what to type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from bench.cli.main import main
from bench.data.plausibility import refuse_constant
from bench.errors import ConfigError, DataError
from bench.tasks import load_task

START = np.datetime64("2024-06-01T00:00:00", "ns")
MINUTES = np.timedelta64(60, "s")


def cube(times: Any = None, *, frames: int = 24, values: Any = None, units: str = "mm/h") -> xarray.Dataset:
    times = START + 5 * MINUTES * np.arange(frames) if times is None else times
    if values is None:
        values = np.random.default_rng(0).gamma(0.5, 2.0, (len(times), 8, 10)).astype(np.float32)
    return xarray.Dataset({"rain_rate": (("time", "y", "x"), values, {"units": units})}, {"time": times})


def without_times() -> xarray.Dataset:
    return cube().drop_vars("time")


def of_no_time() -> xarray.Dataset:
    return xarray.Dataset({"rain_rate": (("level", "y", "x"), np.ones((24, 8, 10), np.float32))})


def irregular() -> xarray.Dataset:
    return cube(START + MINUTES * np.cumsum(np.random.default_rng(0).choice([5, 7, 11], 24)))


def alternating() -> xarray.Dataset:
    return cube(START + MINUTES * np.cumsum(np.tile([5, 8], 12)))


def two_variables() -> xarray.Dataset:
    return cube().assign(temperature=cube()["rain_rate"] + 10)


def one_frame() -> xarray.Dataset:
    return cube(frames=1)


def descending() -> xarray.Dataset:
    return cube().isel(time=slice(None, None, -1))


def duplicate() -> xarray.Dataset:
    return cube(START + 5 * MINUTES * np.array([*range(12), 11, *range(12, 23)]))


def out_of_order() -> xarray.Dataset:
    return cube(START + 5 * MINUTES * np.array([*range(11), 12, 11, *range(13, 24)]))


def four_dimensions() -> xarray.Dataset:
    return cube().expand_dims(level=[850, 500], axis=1)


def undeclared_fill() -> xarray.Dataset:
    values = np.ones((24, 8, 10), np.float32)
    values[3, 2, 1] = 9e36
    return cube(values=values)


def short() -> xarray.Dataset:
    return cube(frames=12)


REFUSED = [
    (without_times, "has no times"),
    (of_no_time, "no dimension of time"),
    (irregular, "one cadence"),
    (alternating, "one cadence"),
    (two_variables, r"2 variables on a grid: rain_rate, temperature.*task\.variable=rain_rate"),
    (one_frame, "expected at least 2 frames, found 1"),
    (descending, r"descending.*sortby\('time'\)"),
    (duplicate, r"2024-06-01T00:55:00 \(frame 12\) is repeated.*drop_duplicates"),
    (out_of_order, "comes after a later one"),
    (four_dimensions, r"4 dimensions.*isel\(level=0\)"),
    (short, "12 frames; a window needs 20"),
]


@pytest.mark.parametrize("ending", ["nc", "zarr"])
@pytest.mark.parametrize(("made", "said"), REFUSED, ids=[made.__name__ for made, _ in REFUSED])
def test_a_file_that_is_not_a_cube_is_refused(made: Any, said: str, ending: str, tmp_path: Path) -> None:
    path = write(made(), tmp_path / f"rain.{ending}")
    with pytest.raises(DataError, match=said) as error:
        load_task("grid", path).dataset("train")
    assert str(path) in str(error.value)


def test_the_command_line_gives_one_message(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(descending(), tmp_path / "rain.nc")
    for command in (["data", "info"], ["data", "check"]):
        assert main([*command, "grid", "--root", str(path)]) == 2
        said = capsys.readouterr().err
        assert said.count("descending") == 1
        assert "Traceback" not in said


def test_a_cube_of_nan_is_refused(tmp_path: Path) -> None:
    path = write(cube(values=np.full((24, 8, 10), np.nan, np.float32)), tmp_path / "rain.nc")
    task = load_task("grid", path, t_in=2, t_out=2)
    with pytest.raises(DataError, match="all are NaN"):
        _ = task.normalisations
    with pytest.raises(DataError, match="only missing values"):
        refuse_constant(task.dataset("test"))
    assert any("all values are NaN" in problem for problem in task.inspect_data().problems)


def test_a_split_without_a_known_value_is_a_problem(tmp_path: Path) -> None:
    values = np.random.default_rng(0).gamma(0.5, 2.0, (24, 8, 10)).astype(np.float32)
    values[:18] = np.nan
    task = load_task("grid", write(cube(values=values), tmp_path / "rain.nc"), t_in=2, t_out=1)
    (problem,) = task.inspect_data(read_everything=True).problems
    assert "split train: rain_rate is NaN in all of 17 frames" in problem


def test_an_undeclared_fill_value_is_refused(tmp_path: Path) -> None:
    task = load_task("grid", write(undeclared_fill(), tmp_path / "rain.zarr"), t_in=2, t_out=2)
    with pytest.raises(DataError, match="fill value"):
        task.dataset("train").stored(2)
    assert any("fill value" in problem for problem in task.inspect_data(read_everything=True).problems)


def test_wrong_units_are_refused(tmp_path: Path) -> None:
    small = write(cube(units="kg m-2 s-1"), tmp_path / "rain.nc")
    with pytest.raises(DataError, match=r"expected units 'mm/h'.*found 'kg m-2 s-1'"):
        load_task("grid", small, data_units="mm/h", t_in=2, t_out=2).dataset("train")
    with pytest.raises(ConfigError, match="expected units mm/h or dBZ, found 'kg m-2 s-1'"):
        _ = load_task("grid", small, scale="dbz", t_in=2, t_out=2).normalisations
    reflectivity = np.random.default_rng(0).normal(0, 20, (24, 8, 10)).astype(np.float32)
    decibels = write(cube(values=reflectivity, units="dBZ"), tmp_path / "dbz.nc")
    with pytest.raises(DataError, match="log1p takes values >= 0"):
        _ = load_task("grid", decibels, scale="log1p", t_in=2, t_out=2).normalisations
    rates = write(
        cube(values=np.full((24, 8, 10), 1e-4, np.float32) * np.arange(24)[:, None, None]), tmp_path / "si.nc"
    )
    found = load_task("grid", rates, thresholds=[0.5, 2], t_in=2, t_out=2).inspect_data()
    assert any("no value of all frames reaches a threshold" in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"variable": "rain"}, "no variable 'rain'.*rain_rate"),
        ({"static": ["height"]}, "no such variable"),
        ({"box": [0, 9, 0, 10]}, "within frames of 8x10"),
        ({"crop": [8, 11]}, "at most the 8x10 pixels"),
        ({"split_by": "place"}, "at least 3 crops side by side"),
        ({"random_crop": True}, "needs crop="),
        ({"val_from": "2024-06-02", "test_from": "2024-06-01"}, "is after"),
        ({"val_from": "2024-06-01T00:00+02:00"}, "expected UTC"),
        ({"normalisation": [[0, 1], [0, 1]]}, "for each of 1 channels"),
    ],
)
def test_wrong_options_are_refused(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = write(cube(), tmp_path / "rain.nc")
    with pytest.raises((DataError, ConfigError), match=said):
        _ = load_task("grid", path, t_in=2, t_out=2, **fields).dataset("train")[0]


@pytest.mark.parametrize("root", ["none.nc", "none/*.nc", "empty"])
def test_a_missing_or_empty_root_is_refused(root: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"not there|found nothing"):
        load_task("grid", tmp_path / root).dataset("train")


@pytest.mark.parametrize(("name", "content"), [("rain.nc", b"GRIB of some kind"), ("CATALOG.csv", b"id,file\n")])
def test_a_file_of_another_format_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: it is neither NetCDF nor Zarr.*to_netcdf") as refused:
        load_task("grid", tmp_path / name).dataset("train")
    assert "engine" not in str(refused.value)


def write(dataset: xarray.Dataset, path: Path) -> Path:
    if path.suffix == ".zarr":
        dataset.to_zarr(path, consolidated=False)
    else:
        dataset.to_netcdf(path, engine="h5netcdf")
    return path
