"""Windows of a cube: values, gaps, splits, crops, missing pixels, identity."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray

from bench.api import MONTH_MINUTES
from bench.data.grid.synthetic import rain_cube, write_cube
from bench.data.sequences import events_of
from bench.errors import DataError
from bench.tasks import load_task

FRAMES, SIZE, GAP = 60, (24, 30), 5


@pytest.fixture(scope="module")
def cube() -> xarray.Dataset:
    return rain_cube(FRAMES, SIZE, gap=GAP, seed=1)


def zarr(data: xarray.Dataset, folder: Path) -> Path:
    write_cube(data, folder / "rain.zarr")
    return folder / "rain.zarr"


def netcdf(data: xarray.Dataset, folder: Path) -> Path:
    write_cube(data, folder / "rain.nc")
    return folder / "rain.nc"


def packed(data: xarray.Dataset, folder: Path) -> Path:
    encoding = {"rain_rate": {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -1}}
    data.to_netcdf(folder / "packed.nc", engine="h5netcdf", encoding=encoding)
    return folder / "packed.nc"


def glob_of_files(data: xarray.Dataset, folder: Path) -> Path:
    for number, first in enumerate(range(0, FRAMES, 7)):  # names in another order than times
        data.isel(time=slice(first, first + 7)).to_netcdf(folder / f"{9 - number}.nc", engine="h5netcdf")
    return folder / "*.nc"


def folder_of_files(data: xarray.Dataset, folder: Path) -> Path:
    return glob_of_files(data, folder).parent


def turned(data: xarray.Dataset, folder: Path) -> Path:
    data.transpose("x", "time", "y").to_netcdf(folder / "turned.nc", engine="h5netcdf")
    return folder / "turned.nc"


FORMS = [zarr, netcdf, packed, glob_of_files, folder_of_files, turned]


@pytest.mark.parametrize("form", FORMS)
def test_windows_equal_the_cube_in_every_storage_format(
    form: Callable[[xarray.Dataset, Path], Path], cube: xarray.Dataset, tmp_path: Path
) -> None:
    task = load_task("grid", form(cube, tmp_path), t_in=3, t_out=4, stride=2)
    windows = task.dataset("all")
    values = cube["rain_rate"].values
    half = FRAMES // 2  # the gap is in the middle: windows of each half by itself
    starts = [*range(0, half - 6, 2), *range(half, FRAMES - 6, 2)]
    assert len(windows) == len(starts)
    for index in (0, 5, len(starts) // 2, -1):
        context, target = windows.stored(index)
        expected = values[starts[index] : starts[index] + 7, ..., None]
        np.testing.assert_allclose(torch.cat([context, target]).numpy(), expected, atol=1e-5)
    assert task.cadence_minutes == 5
    assert task.physical_units == "mm/h"


def test_fingerprints_do_not_depend_on_the_file_format(cube: xarray.Dataset, tmp_path: Path) -> None:
    paths = [
        form(cube, made) for form in (zarr, netcdf, glob_of_files) if (made := tmp_path / form.__name__).mkdir() is None
    ]
    tasks = [load_task("grid", path, t_in=3, t_out=4) for path in paths]
    assert len({task.data_fingerprint("test") for task in tasks}) == 1
    assert len({task.data_fingerprint(split) for task in tasks[:1] for split in ("train", "val", "test", "all")}) == 4
    other = cube.copy(deep=True)
    other["rain_rate"].values[-1, 3, 3] += 1
    (tmp_path / "other").mkdir()
    changed = load_task("grid", netcdf(other, tmp_path / "other"), t_in=3, t_out=4)
    assert changed.data_fingerprint("test") != tasks[0].data_fingerprint("test")
    assert changed.data_fingerprint("train") == tasks[0].data_fingerprint("train")


def test_splits_by_date_share_no_frame(cube: xarray.Dataset, tmp_path: Path) -> None:
    times = cube["time"].values
    path = netcdf(cube, tmp_path)
    task = load_task("grid", path, t_in=2, t_out=2, val_from=str(times[20]), test_from=str(times[40]))
    counts = {split: len(task.dataset(split)) for split in ("train", "val", "test")}
    # 20 frames each; the gap cuts validation into 10 and 10
    assert counts == {"train": 17, "val": 14, "test": 17}
    ids = [set(task.dataset(split).ids) for split in ("train", "val", "test")]
    assert not ids[0] & ids[1] | ids[1] & ids[2] | ids[0] & ids[2]
    assert not task.leaks
    by_default = load_task("grid", path, t_in=2, t_out=2)
    assert [len(by_default.dataset(split).ids) for split in ("train", "val", "test")] == [42, 9, 9]


def test_splits_by_place_have_disjoint_columns(cube: xarray.Dataset, tmp_path: Path) -> None:
    task = load_task("grid", netcdf(cube, tmp_path), t_in=2, t_out=2, split_by="place", crop=[12, 5])
    places = {split: task.sequences(split).places for split in ("train", "val", "test")}
    columns = {split: {place.column for place in found} for split, found in places.items()}
    assert columns == {"train": {0, 5, 10, 15}, "val": {20}, "test": {25}}
    assert task.input_shape == (2, 12, 5, 1)
    first = task.dataset("test").stored(0)[0][..., 0].numpy()
    np.testing.assert_array_equal(first, cube["rain_rate"].values[:2, :12, 25:30])
    assert not any(leak.ids for leak in task.leaks)


def test_crops_tile_the_frame_or_are_random(cube: xarray.Dataset, tmp_path: Path) -> None:
    path = netcdf(cube, tmp_path)
    options: dict[str, Any] = {"t_in": 2, "t_out": 2, "box": [2, 24, 0, 30], "crop": [10, 12]}
    task = load_task("grid", path, **options)
    assert [(p.row, p.column) for p in task.sequences("test").places] == [(3, 3), (13, 3), (3, 15), (13, 15)]
    again = load_task("grid", path, **options, random_crop=True)
    assert len(again.dataset("train")) == len(task.dataset("train"))
    windows = again.sequences("train")
    places = {(place.row, place.column) for place, _ in map(windows.where, range(len(windows)))}
    assert len(places) > 20
    assert all(2 <= row <= 14 and 0 <= column <= 18 for row, column in places)
    assert windows.where(3) == again.sequences("train").where(3)
    assert again.sequences("test").places == task.sequences("test").places


def test_resampling_blocks_share_no_frame(cube: xarray.Dataset, tmp_path: Path) -> None:
    task = load_task("grid", netcdf(cube, tmp_path), t_in=3, t_out=2)
    data = task.dataset("all")
    events = events_of(data.source.units, window=5, used=len(data))
    assert events.kind == "block"
    per_half = FRAMES // 2 - 4
    assert events.of_sequence.tolist() == [at // 5 for at in range(per_half)] + [6 + at // 5 for at in range(per_half)]


def test_monthly_data_have_a_cadence_of_one_month(tmp_path: Path) -> None:
    times = np.array([f"2000-{m:02d}-15" for m in range(1, 13)] + ["2001-02-15", "2001-03-15"], "datetime64[ns]")
    values = np.random.default_rng(0).normal(size=(14, 4, 6)).astype(np.float32)
    data = xarray.Dataset({"sst": (("time", "lat", "lon"), values, {"units": "degC"})}, {"time": times})
    data.to_netcdf(tmp_path / "sst.nc", engine="h5netcdf")
    task = load_task("grid", tmp_path / "sst.nc", t_in=2, t_out=1)
    assert task.cadence_minutes == pytest.approx(43_829.1)
    assert task.cube.axis.gaps == ["2000-12-15T00:00:00 to 2001-02-15T00:00:00"]


@pytest.mark.parametrize("calendar", ["noleap", "360_day", "julian", "proleptic_gregorian"])
def test_months_of_any_calendar_are_read(calendar: str, tmp_path: Path) -> None:
    times = xarray.date_range("1999-01-01", periods=36, freq="MS", calendar=calendar, use_cftime=True)
    values = np.random.default_rng(0).normal(size=(36, 4, 6)).astype(np.float32)
    sst = xarray.Dataset({"tos": (("time", "lat", "lon"), values, {"units": "degC"})}, {"time": times})
    sst.to_netcdf(tmp_path / "sst.nc", engine="h5netcdf")
    task = load_task("grid", tmp_path / "sst.nc", t_in=3, t_out=3)
    assert task.cadence_minutes == MONTH_MINUTES and not len(task.cube.axis.breaks)
    assert str(task.cube.axis.times[25]).startswith("2001-02")


def test_days_outside_the_standard_calendar_are_refused(tmp_path: Path) -> None:
    times = xarray.date_range("1999-01-01", periods=90, freq="D", calendar="360_day", use_cftime=True)
    sst = xarray.Dataset({"tos": (("time", "lat", "lon"), np.ones((90, 4, 6), np.float32))}, {"time": times})
    sst.to_netcdf(tmp_path / "sst.nc", engine="h5netcdf")
    with pytest.raises(DataError, match=r"calendar '360_day' cannot be put on the standard calendar.*setcalendar"):
        load_task("grid", tmp_path / "sst.nc").dataset("train")


def test_static_fields_follow_the_variables_as_channels(cube: xarray.Dataset, tmp_path: Path) -> None:
    height = np.arange(SIZE[0] * SIZE[1], dtype=np.float32).reshape(SIZE)
    data = cube.assign(warmth=cube["rain_rate"] * 2 + 280, height=(("y", "x"), height))
    task = load_task(
        "grid", netcdf(data, tmp_path), t_in=2, t_out=1, variable=["rain_rate", "warmth"], static=["height"]
    )
    assert task.input_shape == (2, *SIZE, 3)
    assert task.target_shape == (1, *SIZE, 2)
    context, target = task.dataset("train").stored(0)
    np.testing.assert_array_equal(context[1, ..., 2].numpy(), height)
    np.testing.assert_allclose(target[..., 1].numpy(), target[..., 0].numpy() * 2 + 280, rtol=1e-6)
    seen = task.to_context(context)
    assert float(seen[..., 2].mean()) == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(task.denormalise(task.normalise(target)).numpy(), target.numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scale", ["linear", "log1p", "dbz", "zscore"])
def test_scales_round_trip(scale: str, cube: xarray.Dataset, tmp_path: Path) -> None:
    task = load_task("grid", netcdf(cube, tmp_path), t_in=2, t_out=2, scale=scale)
    rates = torch.tensor([0.0, 0.1, 1.0, 12.5, 60.0]).reshape(1, 5, 1)
    back = task.denormalise(task.normalise(rates))
    np.testing.assert_allclose(back.numpy(), rates.numpy(), rtol=1e-4, atol=1e-5)
    missing = torch.tensor([[[float("nan")]]])
    assert float(task.to_context(missing)) == 0
    assert torch.isnan(task.normalise(missing)).all()
    assert not task.context_known(missing).any()


def test_closed_forms_of_the_scales(tmp_path: Path) -> None:
    values = np.zeros((20, 4, 5), np.float32)
    values[:10] = 7.0  # the training half
    values[3, 1, 1] = 0.0
    values[15:] = 1000.0
    times = np.datetime64("2024-01-01", "ns") + np.arange(20) * np.timedelta64(300, "s")
    data = xarray.Dataset({"rain": (("time", "y", "x"), values, {"units": "mm/h"})}, {"time": times})
    data.to_netcdf(tmp_path / "rain.nc", engine="h5netcdf")
    options: dict[str, Any] = {"t_in": 1, "t_out": 1, "val_from": str(times[10]), "test_from": str(times[15])}

    def found(scale: str) -> tuple[float, float]:
        return load_task("grid", tmp_path / "rain.nc", scale=scale, **options).normalisations[0]

    assert found("linear") == (0.0, 7.0)
    assert found("log1p") == pytest.approx((0.0, np.log(8.0)))
    assert found("dbz") == (0.0, 60.0)
    mean, share = 7 * 199 / 200, 199 / 200
    assert found("zscore") == pytest.approx((mean, 7 * np.sqrt(share * (1 - share))))


def test_workers_and_processes_open_their_own_files(cube: xarray.Dataset, tmp_path: Path) -> None:
    windows = load_task("grid", zarr(cube, tmp_path), t_in=2, t_out=2).sequences("train")
    windows.stored(0)
    again = pickle.loads(pickle.dumps(windows))
    assert torch.equal(again.stored(3)[0], windows.stored(3)[0]) or torch.isnan(windows.stored(3)[0]).any()


def test_a_url_is_read_like_a_path(cube: xarray.Dataset) -> None:
    cube.to_zarr("memory://cubes/rain.zarr", consolidated=False)
    task = load_task("grid", "memory://cubes/rain.zarr", t_in=2, t_out=2)
    np.testing.assert_array_equal(task.dataset("all").stored(0)[0][..., 0].numpy(), cube["rain_rate"].values[:2])


@pytest.mark.parametrize("form", [netcdf, glob_of_files])
@pytest.mark.parametrize("chosen", [range(FRAMES), [0, 5, 6, 7, 30, 59], []])
def test_chunked_reads_equal_frame_by_frame_reads(
    cube: xarray.Dataset, tmp_path: Path, form: Callable[..., Path], chosen: list[int]
) -> None:
    source = load_task("grid", form(cube, tmp_path), t_in=2, t_out=2).cube
    rows, columns = slice(3, 20), slice(2, 9)
    found = list(source.frames(chosen, rows, columns))
    assert len(found) == len(chosen)
    for at, values in zip(chosen, found, strict=True):
        np.testing.assert_array_equal(values, source.read(at, at + 1, rows, columns)[0])


def test_a_truncated_file_is_named(cube: xarray.Dataset, tmp_path: Path) -> None:
    path = zarr(cube, tmp_path)
    task = load_task("grid", path, t_in=2, t_out=2)
    chunk = next(file for file in sorted(path.glob("rain_rate/c/**/*")) if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(DataError, match=r"rain_rate: frames .* cannot be read"):
        task.dataset("train").stored(0)


def test_info_reports_frames_ranges_and_gaps(cube: xarray.Dataset, tmp_path: Path) -> None:
    task = load_task("grid", netcdf(cube, tmp_path), t_in=2, t_out=2, thresholds=[0.5, 10])
    report = task.inspect_data(read_everything=True)
    values = cube["rain_rate"].values
    known = values[np.isfinite(values)]
    assert not report.problems
    assert report.lines[1].endswith(f"{FRAMES} frames of 24x30, every 5 min")
    facts = report.facts
    assert facts["ranges"]["rain_rate"]["missing"] == pytest.approx(np.isnan(values).mean())
    assert facts["share_at_or_above"] == pytest.approx({"0.5": np.mean(known >= 0.5), "10": np.mean(known >= 10)})
    assert facts["gaps"] == [
        f"{cube.time.values[29].astype('datetime64[s]')} to {cube.time.values[30].astype('datetime64[s]')}"
    ]
    assert {split: count["sequences"] for split, count in facts["splits"].items()} == {
        split: len(task.dataset(split)) for split in ("train", "val", "test", "all")
    }
    assert not report.remarks


def test_info_advises_rechunking_of_slow_files(
    cube: xarray.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cube(cube, Path("rain.nc"), frames_per_chunk=40)
    (remark,) = load_task("grid", "rain.nc", t_in=2, t_out=2).inspect_data().remarks
    assert remark.startswith("40 frames are stored together, and each window of 4 unpacks them all")
    exec(f"import xarray; xarray.{remark.partition('in xarray: ')[2]}")
    other = load_task("grid", "other.zarr", t_in=2, t_out=2)
    assert other.cube.chunk == 4 and not other.inspect_data().remarks
    np.testing.assert_array_equal(other.cube.read(0, FRAMES)[..., 0], cube["rain_rate"].values)


@pytest.mark.parametrize("options", [{}, {"split_by": "place", "crop": [8, 5]}, {"crop": [8, 8], "random_crop": True}])
def test_the_task_keeps_its_contract(options: dict[str, Any], cube: xarray.Dataset, tmp_path: Path) -> None:
    from bench.tasks.grid import Grid
    from bench.testing import check_task

    check_task(Grid, data_root=netcdf(cube, tmp_path), t_in=2, t_out=3, **options)


def test_storms_as_a_cube_have_the_scores_of_task_sevir(storms: Path, tmp_path: Path) -> None:
    """Events are stretches of time with gaps between them; codes are scored by the rules of the cube's task."""
    import bench
    from bench.data.sevir.dataset import SevirSequences
    from bench.engine.evaluate import EvaluationSettings, evaluate_with_sample
    from bench.engine.trainer import trainer_device

    source = SevirSequences(storms, t_in=25, t_out=24, stride=49)
    frames = [torch.cat(source.stored(at)).numpy()[..., 0] for at in range(len(source))]
    times = [np.datetime64("2020-01-01", "ns") + np.timedelta64(day, "D") for day in range(len(frames))]
    steps = np.arange(49) * np.timedelta64(300, "s")
    data = xarray.Dataset(
        {"vil": (("time", "y", "x"), np.concatenate(frames).astype(np.float32))},
        {"time": np.concatenate([time + steps for time in times])},
    )
    data.to_netcdf(tmp_path / "vil.nc", engine="h5netcdf")
    thresholds = [16.0, 74.0, 133.0]
    grid = load_task("grid", tmp_path / "vil.nc", t_in=13, t_out=12, stride=12, thresholds=thresholds)
    sevir = load_task("sevir", storms)
    ours = bench.evaluate("persistence", grid, "all").scores
    rules = {"skill": {"convention": "correct", "thresholds": thresholds, "missing_value": None}}
    rules["mse"] = {"convention": "correct", "scale": 1.0}
    settings = EvaluationSettings(where=trainer_device("cpu"), split="all", added_metrics=rules)
    described = {"config": {}, "config_fingerprint": "0" * 64, "seed": 0}
    theirs, _ = evaluate_with_sample(bench.load_model("persistence", sevir), sevir, settings, described)
    assert theirs.data.sequence_count == len(grid.dataset("all"))
    for key in ("csi_m", "csi_16", "csi_74", "csi_133", "hss_m"):
        assert theirs.scores[f"{key}_own"] == ours[key]
    # differences of codes that were divided by 255 and multiplied again
    assert theirs.scores["mse_own"] == pytest.approx(ours["mse"], rel=1e-5)
