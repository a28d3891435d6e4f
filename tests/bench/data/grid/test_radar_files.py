"""Radar archives converted to a cube by pySTEPS' importers, for a synthetic ODIM archive."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray
from scipy import ndimage

from bench.cli.main import main
from bench.data.grid import radar_files
from bench.data.grid.radar_events import ConvertRadarEvents, side_by_side
from bench.data.grid.radar_files import ConvertRadarFiles
from bench.data.grid.radar_frames import Frame, lattice_of, read_frame, time_in_name
from bench.data.sevir.codes import vil_codes
from bench.errors import DataError
from bench.tasks import load_task

SIZE = (6, 8)
PROJECTION = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=0 +y_0=0 +units=m +ellps=WGS84"


def write_odim(path: Path, codes: np.ndarray) -> None:
    """Writes rain rates in ODIM_H5 2.2: code 0 is no rain, 255 no data, otherwise code / 10 mm/h."""
    with h5py.File(path, "w") as file:
        file.attrs["Conventions"] = np.bytes_("ODIM_H5/V2_2")
        what = file.create_group("what")
        what.attrs.update({"object": np.bytes_("COMP"), "date": np.bytes_("20180824"), "time": np.bytes_("180000"),
                           "source": np.bytes_("ORG:247"), "version": np.bytes_("H5rad 2.2")})  # fmt: skip
        corners = {"LL": (10.0, 55.0), "UL": (10.0, 55.108), "LR": (10.25, 55.0), "UR": (10.25, 55.108)}
        places = {f"{c}_{k}": v for c, (lon, lat) in corners.items() for k, v in (("lon", lon), ("lat", lat))}
        file.create_group("where").attrs.update(
            {"projdef": np.bytes_(PROJECTION), "xsize": SIZE[1], "ysize": SIZE[0], "xscale": 2000.0, "yscale": 2000.0,
             **places}
        )  # fmt: skip
        data = file.create_group("dataset1/data1")
        data.create_dataset("data", data=codes)
        data.create_group("what").attrs.update(
            {"quantity": np.bytes_("RATE"), "gain": 0.1, "offset": 0.0, "nodata": 255.0, "undetect": 0.0}
        )
        start = {"startdate": np.bytes_("20180824"), "starttime": np.bytes_("180000"),
                 "enddate": np.bytes_("20180824"), "endtime": np.bytes_("181500")}  # fmt: skip
        file.create_group("dataset1/what").attrs.update(start)


def codes_of(number: int) -> np.ndarray:
    codes = np.random.default_rng(number).integers(0, 200, SIZE).astype(np.uint8)
    codes[0, :2] = 255
    return codes


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "odim"
    folder.mkdir()
    for number in range(20):
        minutes = 15 * (number + (number >= 10))  # one file is missing
        write_odim(folder / f"T_20180824{18 + minutes // 60 % 6:02d}{minutes % 60:02d}00.hdf", codes_of(number))
    return folder


@pytest.mark.parametrize(
    ("name", "time"),
    [
        ("RAD_NL25_RAP_5min_201008260155.h5", "2010-08-26T01:55"),
        ("T_PAAH21_C_EUOC_20180824181500.hdf", "2018-08-24T18:15"),
        ("201609281705_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz", "2016-09-28T17:05"),
        ("AQC151351545F_00005.801.gif", "2015-05-15T15:45"),
        ("PrecipRate_00.00_20190610-000200.grib2", "2019-06-10T00:02"),
        ("310_20180616_120000.prcp-c5.nc", "2018-06-16T12:00"),
        ("radar.h5", None),
        ("radar_209913990000.h5", None),
    ],
)
def test_times_are_read_from_file_names(name: str, time: str | None) -> None:
    assert time_in_name(name) == (None if time is None else np.datetime64(time, "s"))


def test_an_archive_is_converted_to_a_cube_that_keeps_the_gap(archive: Path, tmp_path: Path) -> None:
    words = ["--reader", "odim_hdf5", "--in", f"{archive}/*.hdf", "--out", str(tmp_path / "rain.zarr")]
    assert main(["data", "convert", "radar_files", "grid", *words]) == 0
    task = load_task("grid", tmp_path / "rain.zarr", t_in=2, t_out=2, data_units="mm/h")
    assert task.cadence_minutes == 15
    assert len(task.cube) == 20
    assert len(task.cube.axis.breaks) == 1
    frames = task.cube.read(0, 20)[..., 0]
    for number in (0, 9, 10, 19):
        codes = codes_of(number)
        np.testing.assert_allclose(frames[number], np.where(codes == 255, np.nan, codes / 10), atol=1e-5)
    y, x = task.cube.grid.coordinates
    assert y is not None and x is not None
    assert y[0] > y[-1] and x[0] < x[-1]
    assert "laea" in task.cube.grid.mapping["proj4"]


def test_a_stopped_conversion_resumes(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "rain.zarr"
    verb = ConvertRadarFiles(reader="odim_hdf5", inputs=f"{archive}/*.hdf", out=out)
    broken = sorted(archive.glob("*.hdf"))[17]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(DataError, match="1 of 20 files cannot be used"):
        verb.run(lambda *_: None)
    assert not out.exists()
    broken.write_bytes(content)
    read: list[str] = []

    def counted(path: Path, *rest: object, **options: object) -> object:
        read.append(path.name)
        return read_frame(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(radar_files, "read_frame", counted)
    verb.run(lambda *_: None)
    assert len(read) == 1 + 4  # the first, for the grid, and the second block
    np.testing.assert_allclose(load_task("grid", out).cube.read(17, 18)[0, 2:, :, 0], codes_of(17)[2:] / 10, atol=1e-5)
    with pytest.raises(DataError, match="already exists"):
        verb.run(lambda *_: None)


def test_unconvertible_archives_are_refused(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(*words: str) -> str:
        assert main(["data", "convert", "radar_files", "grid", *words]) == 2
        return str(capsys.readouterr().err)

    out = ["--out", str(tmp_path / "rain.zarr")]
    assert "no file" in refused("--reader", "odim_hdf5", "--in", f"{archive}/*.nothing", *out)
    assert "not a file that knmi_hdf5 reads" in refused("--reader", "knmi_hdf5", "--in", f"{archive}/*", *out)
    assert "ends in .zarr" in refused("--reader", "odim_hdf5", "--in", f"{archive}/*", "--out", "rain.nc")
    assert "no pixel" in refused("--reader", "odim_hdf5", "--in", f"{archive}/*", *out, "--extent=-9,-8,-9,-8")
    assert "--reader" in refused("--in", f"{archive}/*", *out)
    (archive / "radar.h5").touch()
    assert "have no time" in refused("--reader", "odim_hdf5", "--in", f"{archive}/*", *out)
    (archive / "radar.h5").unlink()
    (archive / "Z_20180824180000.hdf").touch()
    assert "1 times have two files" in refused("--reader", "odim_hdf5", "--in", f"{archive}/*", *out)
    assert not (tmp_path / "rain.zarr").exists()


def test_xarray_opens_the_store(archive: Path, tmp_path: Path) -> None:
    ConvertRadarFiles(reader="odim_hdf5", inputs=f"{archive}/*.hdf", out=tmp_path / "rain.zarr").run(lambda *_: None)
    with xarray.open_zarr(tmp_path / "rain.zarr", consolidated=False) as found:
        assert set(found.coords) == {"time", "y", "x"}
        assert np.isnan(found["rain_rate"].values[:, 0, :2]).all()
        assert not np.isnan(found["rain_rate"].values[:, 1:]).any()
    assert not list(tmp_path.glob(".*"))


def codes_of_rates(rates: np.ndarray) -> np.ndarray:
    return vil_codes(200.0 * np.asarray(rates, np.float64) ** 1.6)


@pytest.mark.parametrize(
    ("rate", "code"),
    # by hand: 38.9 ln(VIL) + 83.9 with VIL = 3.44e-6 (200 R^1.6)^(4/7) 4500, below code 18 the line 90.66 VIL + 2
    [(0.0, 0), (0.1, 6), (1.0, 40), (10.0, 121), (100.0, 203), (1e4, 254), (np.nan, 255)],
)
def test_rain_rates_are_encoded_as_vil(rate: float, code: int) -> None:
    assert codes_of_rates(np.array([[rate]])).tolist() == [[code]]


@pytest.mark.parametrize(
    ("reflectivity", "code"), [(17.3, 16), (29.7, 74), (41.2, 133), (46.5, 160), (50.6, 181), (58.0, 219)]
)
def test_sevir_thresholds_are_near_common_reflectivity_levels(reflectivity: float, code: int) -> None:
    assert abs(int(vil_codes(np.array([[10 ** (reflectivity / 10)]]))[0, 0]) - code) <= 1


def test_codes_are_monotone_in_the_rain_rate() -> None:
    codes = vil_codes(10 ** (np.arange(-10, 70, 0.01) / 10)).astype(int)
    assert (np.diff(codes) >= 0).all()
    assert set(codes.tolist()) == {0, *range(6, 255)}


def test_an_archive_is_converted_to_events_for_task_radar(archive: Path, tmp_path: Path) -> None:
    words = ["--reader", "odim_hdf5", "--in", f"{archive}/*.hdf", "--out", str(tmp_path / "tree")]
    assert main(["data", "convert", "radar_files", "radar", *words, "--frames", "8", "--size", "6"]) == 0
    fields = {"t_in": 4, "t_out": 4, "admit_missing": True, "mask_missing": True}
    task = load_task("radar", tmp_path / "tree", **fields)
    report = task.inspect_data(read_everything=True)
    assert not report.problems
    assert report.facts["events"] == 2  # 10 frames before the gap, 10 behind it
    assert (task.cadence_minutes, task.pixel_kilometres) == (15, pytest.approx(2, rel=0.01))
    context = task.dataset("all").stored(1)[0][..., 0].numpy()
    expected = codes_of_rates(np.where(codes_of(10) == 255, np.nan, codes_of(10) / 10))[::-1, 1:7]
    np.testing.assert_array_equal(context[0], expected)
    assert main(["data", "convert", "radar_files", "radar", *words, "--frames", "8", "--size", "6"]) == 2
    (tmp_path / "tree").rename(tmp_path / "old")
    assert main(["data", "convert", "radar_files", "radar", *words, "--frames", "11", "--size", "6"]) == 2
    assert main(["data", "convert", "radar_files", "radar", *words, "--frames", "8", "--size", "7"]) == 2


def test_a_nowcast_of_events_has_their_times_and_places(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--reader", "odim_hdf5", "--in", f"{archive}/*.hdf"]
    assert main(["data", "convert", "radar_files", "grid", *words, "--out", "rain.zarr"]) == 0
    words += ["--frames", "8", "--size", "6", "--out", "tree"]
    assert main(["data", "convert", "radar_files", "radar", *words]) == 0
    fields = ["task.t_in=4", "task.t_out=3", "task.admit_missing=true", "task.mask_missing=true"]
    command = ["forecast", "task=radar", *fields, "data.root=tree", "model=persistence", "--latest"]
    assert main([*command, "--out", "nowcast.nc", "--picture", "nowcast.png"]) == 0
    with xarray.open_dataset("nowcast.nc") as found, xarray.open_zarr("rain.zarr", consolidated=False) as cube:
        np.testing.assert_array_equal(found["time_of_context"], cube["time"][14:18])  # 8 of 10 behind the gap
        np.testing.assert_allclose(found["x"], cube["x"][1:7], atol=1e-3)
        np.testing.assert_allclose(found["y"], cube["y"][::-1], atol=1e-3)
        assert found["crs"].attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"


def write_rainfields(path: Path, start: np.datetime64, rates: np.ndarray) -> None:
    """Accumulations of 6 minutes on Albers' projection, axes in km, as the Bureau of Meteorology has them."""
    height, width = rates.shape
    albers = {"grid_mapping_name": "albers_conical_equal_area", "longitude_of_central_meridian": 145.0,
              "latitude_of_projection_origin": -37.8, "standard_parallel": [-18.0, -36.0]}  # fmt: skip
    times = {"start_time": start, "valid_time": start + np.timedelta64(360, "s")}
    xarray.Dataset(
        {
            "precipitation": (("y", "x"), (rates / 10).astype(np.float32), {"units": "kg m-2"}),
            "proj": ((), np.int8(0), albers),
            **{name: ((), moment) for name, moment in times.items()},
        },
        {
            "x": ("x", np.arange(width) + 0.5, {"units": "km", "valid_min": 0.0, "valid_max": float(width)}),
            "y": ("y", -np.arange(height) - 0.5, {"units": "km", "valid_min": -float(height), "valid_max": 0.0}),
        },
    ).to_netcdf(path, engine="h5netcdf", encoding={"precipitation": {"_FillValue": -1.0}})


def test_rainfields_are_converted_to_a_cube_and_events(tmp_path: Path) -> None:
    rates = np.random.default_rng(0).gamma(0.5, 4.0, (6, 8, 10)).astype(np.float32)
    rates[:, 0, 0] = np.nan
    for number, frame in enumerate(rates):
        name = f"310_20180616_{1200 + 6 * number}00.prcp-c6.nc"
        write_rainfields(tmp_path / name, np.datetime64("2018-06-16T12:00", "ns"), frame)
    words = ["--reader", "bom_netcdf", "--in", f"{tmp_path}/*.nc"]
    assert main(["data", "convert", "radar_files", "grid", *words, "--out", str(tmp_path / "rain.zarr")]) == 0
    cube = load_task("grid", tmp_path / "rain.zarr", t_in=2, t_out=2, data_units="mm/h").cube
    assert cube.axis.cadence_minutes == 6
    np.testing.assert_allclose(cube.read(0, 6)[..., 0], rates, rtol=1e-5)
    assert cube.grid.coordinates[1] is not None and cube.grid.coordinates[1][0] == 500
    words += ["--out", str(tmp_path / "tree"), "--frames", "6", "--size", "8"]
    assert main(["data", "convert", "radar_files", "radar", *words]) == 0
    fields = {"t_in": 3, "t_out": 3, "admit_missing": True, "mask_missing": True}
    codes = load_task("radar", tmp_path / "tree", **fields).dataset("all").stored(0)[0][..., 0]
    np.testing.assert_array_equal(codes, codes_of_rates(rates[:3, ::-1, 1:9]))


@pytest.mark.parametrize(
    ("projection", "expected"),
    [
        ("+proj=stere +lat_0=90 +a=6378.137 +b=6356.752 +x_0=2 +y_0=0", "+a=6378137 +b=6356752 +x_0=2000 +y_0=0"),
        ("+proj=stere +lat_0=90 +a=6378137 +b=6356752 +x_0=2 +units=km", "+a=6378137 +b=6356752 +x_0=2 +units=m"),
    ],
)
def test_kilometres_are_converted_to_metres(projection: str, expected: str) -> None:
    corners = {"x1": 0.0, "x2": 8.0, "y1": -6.0, "y2": 0.0, "cartesian_unit": "km", "projection": projection}
    lattice = lattice_of(SIZE, corners)
    assert lattice.units == "m" and lattice.projection == f"+proj=stere +lat_0=90 {expected}"
    np.testing.assert_allclose(lattice.x, 1000 * np.arange(8) + 500)
    np.testing.assert_allclose(lattice.y, -1000 * np.arange(6) - 500)


def test_events_are_converted_by_several_processes_and_resume(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {}
    for workers in (1, 2):
        out = tmp_path / f"tree{workers}"
        verb = ConvertRadarEvents(
            reader="odim_hdf5", inputs=f"{archive}/*.hdf", out=out, frames=5, size=6, workers=workers
        )
        seen: list[tuple[int, int]] = []
        verb.run(lambda what, done, total: seen.append((done, total)))  # noqa: B023
        assert seen == [(n, 20) for n in range(1, 21)]
        with h5py.File(next(out.rglob("*.h5"))) as file:
            made[workers] = file["vil"][:], (out / "CATALOG.csv").read_bytes()
    np.testing.assert_array_equal(made[1][0], made[2][0])
    assert made[1][1] == made[2][1]
    broken = sorted(archive.glob("*.hdf"))[12]
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    again = verb.model_copy(update={"out": tmp_path / "again", "workers": 1})
    with pytest.raises(DataError, match="1 of 20 files cannot be used"):
        again.run(lambda *_: None)
    broken.write_bytes(content)
    read: list[str] = []

    def counted(path: Path, *rest: object, **options: object) -> object:
        read.append(path.name)
        return read_frame(path, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(radar_files, "read_frame", counted)
    again.run(lambda *_: None)
    assert len(read) == 1 + 5  # the first, for the grid, and the event that was not whole
    with h5py.File(next((tmp_path / "again").rglob("*.h5"))) as file:
        np.testing.assert_array_equal(file["vil"][:], made[1][0])
    assert not list(tmp_path.glob(".*")) and not list((tmp_path / "again").rglob("*.npy"))


@pytest.mark.parametrize("seed", range(5))
def test_adjacent_squares_are_complete_and_disjoint(seed: int) -> None:
    draws = np.random.default_rng(seed)
    seen = ndimage.binary_opening(draws.random((30, 41)) < 0.97, iterations=1)
    taken = np.zeros_like(seen, int)
    for row, column in side_by_side(seen, 5):
        square = np.s_[row : row + 5, column : column + 5]
        assert taken[square].shape == (5, 5) and seen[square].all()
        taken[square] += 1
    assert taken.max() == 1
    assert len(side_by_side(np.ones((30, 41), bool), 5)) == 6 * 8
    assert side_by_side(np.zeros((30, 41), bool), 5) == []


def test_an_archive_is_split_into_places_without_missing_pixels(archive: Path, tmp_path: Path) -> None:
    words = ["--reader", "odim_hdf5", "--in", f"{archive}/*.hdf", "--frames", "5", "--size", "2"]
    assert main(["data", "convert", "radar_files", "radar", *words, "--out", str(tmp_path / "all"), "--places"]) == 0
    task = load_task("radar", tmp_path / "all", t_in=3, t_out=2)
    ids, times = task.dataset("all").ids, task.events("all").times
    assert len(ids) == len(set(ids)) > len(set(times or ())) == 4
    assert not task.inspect_data(read_everything=True).problems
    places = [task.coordinates("all", at) for at in range(len(ids))]
    assert all(place is not None for place in places)
    corners = {(round(place.y[0]), round(place.x[0])) for place in places if place is not None}
    assert len(corners) == len(ids) // 4
    side = 2 * 1990  # metres: two pixels, the corners of the file in degrees of three digits
    assert all(abs(y - v) >= side or abs(x - u) >= side for y, x in corners for v, u in corners - {(y, x)})
    few = ["--places", "--echo", "100", "--out", str(tmp_path / "few")]
    assert main(["data", "convert", "radar_files", "radar", *words, *few]) == 0
    rainy = load_task("radar", tmp_path / "few", t_in=3, t_out=2).dataset("all")
    assert 0 < len(rainy) < len(ids)
    assert all(np.mean(np.concatenate(rainy.stored(at)) >= 16) == 1 for at in range(len(rainy)))
    none = ["--places", "--echo", "100", "--size", "6", "--out", str(tmp_path / "none")]
    assert main(["data", "convert", "radar_files", "radar", *words, *none]) == 2
    assert main(["data", "convert", "radar_files", "radar", *words, "--echo", "1", "--out", str(tmp_path / "x")]) == 2


def test_codes_use_the_z_r_relation_of_the_importer(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swiss(*arguments: object, **options: object) -> Frame:
        return dataclasses.replace(read_frame(*arguments, **options), z_r=(316.0, 1.5))  # type: ignore[arg-type]

    monkeypatch.setattr(radar_files, "read_frame", swiss)
    words = ["--reader", "odim_hdf5", "--in", f"{archive}/*.hdf", "--out", str(tmp_path / "tree"), "--size", "6"]
    assert main(["data", "convert", "radar_files", "radar", *words, "--frames", "8"]) == 0
    task = load_task("radar", tmp_path / "tree", t_in=4, t_out=4, admit_missing=True)
    rates = np.where(codes_of(10) == 255, np.nan, codes_of(10) / 10)[::-1, 1:7]
    np.testing.assert_array_equal(task.dataset("all").stored(1)[0][0, ..., 0], vil_codes(316.0 * rates**1.5))
