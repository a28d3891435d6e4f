"""NetCDF files of SST as people have them: the right temperatures and months, or one refusal that says what to do."""

from __future__ import annotations

import fcntl
from pathlib import Path

import cftime
import h5py
import numpy as np
import pytest
from enso_trees import write_tree
from scipy.io import netcdf_file
from sst_files import FIRST, LATITUDES, LONGITUDES, SstFile, days_since, temperatures

import bench
from bench.cli.main import main
from bench.data.ersst import Record, read_anomalies, read_record
from bench.errors import DataError

SST = temperatures()
LAND = np.isnan(SST)


def _read(file: SstFile, root: Path) -> Record:
    file.write(root / "sst.mnmean.nc")
    return read_record(root)


def _same(found: Record, atol: float = 1e-4) -> None:
    assert [str(month) for month in found.months] == [str(FIRST + number) for number in range(24)]
    order = np.argsort(found.latitudes), np.argsort(found.longitudes % 360)
    np.testing.assert_allclose(found.latitudes[order[0]], LATITUDES)
    np.testing.assert_allclose((found.longitudes % 360)[order[1]], LONGITUDES)
    assert found.field.dtype == np.float32
    np.testing.assert_allclose(found.field[:, order[0]][:, :, order[1]], SST, atol=atol)  # NaN where NaN


def _filled(value: float, dtype: str = "f4") -> np.ndarray:
    return np.where(LAND, value, SST).astype(dtype)


def _packed(dtype: str, fill: int, scale: float = 0.01, offset: float = 0.0) -> np.ndarray:
    return np.where(LAND, fill, np.rint((np.nan_to_num(SST.astype("f8")) - offset) / scale)).astype(dtype)


FILLS = {
    "float": SstFile(_filled(-9.96921e36), {"_FillValue": np.float32(-9.96921e36)}),
    "missing_value only": SstFile(_filled(-999), {"missing_value": np.float32(-999)}),
    "double for float": SstFile(_filled(-99.99), {"missing_value": np.float64(-99.99)}),
    "double 1e20 for float": SstFile(_filled(1e20), {"_FillValue": np.float64(1e20)}),
    "float for double": SstFile(_filled(np.float64(-9.99e33), "f8"), {"missing_value": np.float32(-9.99e33)}),
    "six digits": SstFile(_filled(9.96920996838687e36), {"_FillValue": np.float64(9.96921e36)}),
    "several": SstFile(
        np.where(np.arange(45)[:, None] % 2, _filled(-999), _filled(-888)), {"missing_value": [-999.0, -888.0]}
    ),
    "two that differ": SstFile(_filled(-999), {"_FillValue": np.float32(1e20), "missing_value": -999.0}),
    "text": SstFile(_filled(-999), {"missing_value": "-999."}),
    "whole number for float": SstFile(_filled(-999), {"missing_value": np.int32(-999)}),
    "the library's own": SstFile(_filled(9.969209968386869e36), {}),
    "double": SstFile(_filled(np.nan, "f8"), {"_FillValue": np.float64("nan")}),
    "big-endian": SstFile(_filled(-999, ">f4"), {"missing_value": -999.0}),
    "valid_range": SstFile(_filled(-999), {"valid_range": np.array([-5, 45], "f4")}),
    "valid_range of doubles": SstFile(_filled(1e20), {"valid_range": [float(np.nanmin(SST)), float(np.nanmax(SST))]}),
    "valid_min": SstFile(_filled(-32768), {"valid_min": -3.0}),
    "valid_max": SstFile(_filled(1e34), {"valid_max": np.float32(50)}),
    "packed": SstFile(_packed("i2", -999), {"_FillValue": np.int16(-999), "scale_factor": 0.01}),
    "packed with offset": SstFile(
        _packed("i2", -32768, 0.001, 15), {"_FillValue": np.int16(-32768), "scale_factor": 0.001, "add_offset": 15.0}
    ),
    "packed, float fill": SstFile(_packed("i2", -999), {"missing_value": -999.0, "scale_factor": np.float32(0.01)}),
    "packed, the library's own": SstFile(_packed("i2", -32767), {"scale_factor": 0.01}),
    "packed, limits of codes": SstFile(
        _packed("i2", -30000), {"valid_range": np.array([-500, 4500], "i2"), "scale_factor": 0.01}
    ),
    "packed, limits of degrees": SstFile(
        _packed("i2", -30000), {"valid_range": np.array([-5, 45], "f4"), "scale_factor": 0.01}
    ),
    "packed in int32": SstFile(_packed("i4", -1, 1e-6), {"_FillValue": np.int32(-1), "scale_factor": 1e-6}),
    "unsigned": SstFile(
        _packed("u2", 65535, 0.0005).view("i2"),
        {"_Unsigned": "true", "_FillValue": np.int16(-1), "scale_factor": 0.0005},
    ),
    "unsigned, limits": SstFile(
        _packed("u2", 65535, 0.0005).view("i2"),
        {"_Unsigned": "true", "valid_range": np.array([0, -2], "i2"), "scale_factor": 0.0005},
    ),
    "scale as an array": SstFile(_packed("i2", -999), {"_FillValue": np.int16(-999), "scale_factor": np.array([0.01])}),
    "kelvin": SstFile(_filled(-999) + np.where(LAND, 0, 273.15).astype("f4"), {"units": "K", "missing_value": -999.0}),
    "kelvin unsaid": SstFile(SST + np.float32(273.15), {}),
    "packed kelvin": SstFile(
        _packed("i2", -32768, 0.01, -273.15 + 300),
        {"_FillValue": np.int16(-32768), "scale_factor": 0.01, "add_offset": 300.0, "units": "kelvin"},
    ),
}


@pytest.mark.parametrize("file", FILLS.values(), ids=FILLS)
def test_fill_values_packing_and_limits(tmp_path: Path, file: SstFile) -> None:
    _same(_read(file, tmp_path))


def test_the_bits_of_a_float_file_are_kept(tmp_path: Path) -> None:
    found = _read(SstFile(_filled(-9.96921e36), {"missing_value": np.float32(-9.96921e36)}), tmp_path)
    assert np.array_equal(found.field, SST, equal_nan=True)


def _times(units: str, calendar: str, day: int = 15, dtype: str = "f8") -> SstFile:
    dates = [cftime.datetime(1960 + month // 12, month % 12 + 1, day, calendar=calendar) for month in range(24)]
    stamps = np.asarray(cftime.date2num(dates, units, calendar)).astype(dtype)
    return SstFile(time=stamps, time_attributes={"units": units, "calendar": calendar})


TIMES = {
    "hours": _times("hours since 1-1-1 00:00:0.0", "standard", 1),
    "minutes": _times("minutes since 1854-01-01 00:00", "360_day"),
    "seconds": _times("seconds since 1970-01-01", "gregorian", 1),
    "float32 seconds": _times("seconds since 1900-01-01", "standard", 1, "f4"),
    "float32 days": _times("days since 1800-01-01", "standard", 1, "f4"),
    "integers": _times("days since 1960-01-01", "proleptic_gregorian", 1, "i4"),
    "mixed calendar from the year 1": _times("days since 1-1-1", "standard", 28),
    "mixed calendar, first days": _times("days since 0001-01-01 00:00:00", "gregorian", 1),
    "julian": _times("days since 1850-01-01", "julian", 28),
    "noleap": _times("days since 0001-01-01", "noleap", 1),
    "365_day": _times("days since 1850-01-01", "365_day", 28),
    "all_leap": _times("days since 1850-01-01", "all_leap", 1),
    "360_day": _times("days since 1850-01-01", "360_day", 30),
    "upper case": SstFile(time_attributes={"units": "Days Since 1800-01-01 00:00:00", "calendar": "GREGORIAN"}),
    "one day": SstFile(time_attributes={"units": "day since 1800-01-01T00:00:00Z"}),
    "months": SstFile(time=np.arange(24), time_attributes={"units": "months since 1960-01-01", "calendar": "standard"}),
    "middles of months": SstFile(
        time=np.arange(24) + 0.5, time_attributes={"units": "months since 1960-01-01", "calendar": "360"}
    ),
    "packed": SstFile(
        time=(days_since("1960-01-01") * 2).astype("i2"),
        time_attributes={"units": "days since 1960-01-01", "scale_factor": 0.5},
    ),
}


@pytest.mark.parametrize("file", TIMES.values(), ids=TIMES)
def test_units_and_calendars_of_time(tmp_path: Path, file: SstFile) -> None:
    _same(_read(file, tmp_path))


def test_stamps_at_the_end_of_their_bounds(tmp_path: Path) -> None:
    ends = days_since("1800-01-01", 25)
    file = SstFile(time=ends[1:], time_attributes={"units": "days since 1800-01-01", "bounds": "time_bnds"})
    file.axes |= {"time_bnds": (("time", "nv"), np.stack([ends[:-1], ends[1:]], -1))}
    _same(_read(file, tmp_path))


def _turned(latitude: str = "lat", longitude: str = "lon", **changes: object) -> SstFile:
    axes = {latitude: ((latitude,), LATITUDES), longitude: ((longitude,), LONGITUDES)}
    return SstFile(axes=axes, dims=("time", latitude, longitude), **changes)


def _axes(latitudes: np.ndarray, longitudes: np.ndarray, sst: np.ndarray = SST, **changes: object) -> SstFile:
    return SstFile(sst=sst, axes={"lat": (("lat",), latitudes), "lon": (("lon",), longitudes)}, **changes)


def _every_cell(latitudes: np.ndarray, longitudes: np.ndarray) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    return {"nav_lat": (("y", "x"), latitudes), "nav_lon": (("y", "x"), longitudes)}


_FULL = np.broadcast_to(LATITUDES[:, None], SST.shape[1:]), np.broadcast_to(LONGITUDES, SST.shape[1:])
GRIDS = {
    "latitude and longitude": _turned("latitude", "longitude", name="tos"),
    "upper case": _turned("LAT", "LON", name="SST"),
    "known by standard names": _turned(
        "Y", "X", name="field", attributes={"standard_name": "sea_surface_temperature"},
        axis_attributes={"Y": {"standard_name": "latitude"}, "X": {"standard_name": "longitude"}},
    ),
    "north first": _axes(LATITUDES[::-1], LONGITUDES, SST[:, ::-1]),
    "from 180 W": _axes(LATITUDES, LONGITUDES - 180, np.roll(SST, 45, -1)),
    "jumping at 180": _axes(LATITUDES, (LONGITUDES + 180) % 360 - 180),
    "first column twice": _axes(LATITUDES, np.append(LONGITUDES, 360), SST[:, :, [*range(90), 0]]),
    "float32 axes": _axes(LATITUDES.astype("f4"), LONGITUDES.astype("f4")),
    "units of CF": SstFile(axis_attributes={"lat": {"units": "degrees_north"}, "lon": {"units": "degreeE"}}),
    "time last": SstFile(SST.transpose(1, 2, 0), dims=("lat", "lon", "time")),
    "longitude before latitude": SstFile(SST.transpose(0, 2, 1), dims=("time", "lon", "lat")),
    "a level": SstFile(SST[:, None], dims=("time", "lev", "lat", "lon")),
    "a level last": SstFile(SST[..., None], dims=("time", "lat", "lon", "zlev")),
    "every cell's degrees, of a regular grid": SstFile(dims=("time", "y", "x"), axes=_every_cell(*_FULL)),
    "descending time": SstFile(SST[::-1], time=days_since("1800-01-01")[::-1]),
    "unsorted time": SstFile(np.roll(SST, 5, 0), time=np.roll(days_since("1800-01-01"), 5)),
}  # fmt: skip


@pytest.mark.parametrize("file", GRIDS.values(), ids=GRIDS)
def test_names_orders_and_grids(tmp_path: Path, file: SstFile) -> None:
    found = _read(file, tmp_path)
    _same(found)
    reference = _read(SstFile(), tmp_path / "reference")
    assert found.field.shape == reference.field.shape
    one, other = (read_anomalies(root, 1960, 1961) for root in (tmp_path, tmp_path / "reference"))
    np.testing.assert_allclose(one.sst, other.sst, atol=1e-5)
    np.testing.assert_allclose(one.nino34["exact"], other.nino34["exact"], atol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
def test_the_classic_format(tmp_path: Path, version: int) -> None:
    file = SstFile(
        _packed("i2", -999), {"missing_value": np.int16(-999), "scale_factor": 0.01}, time=days_since("1800-01-01")
    )
    file.write_classic(tmp_path / "sst.nc", version)
    _same(read_record(tmp_path))


def test_the_classic_format_of_64_bits_says_how_to_convert_it(tmp_path: Path) -> None:
    (tmp_path / "sst.nc").write_bytes(b"CDF\5" + bytes(60))
    with pytest.raises(DataError, match=r"sst\.nc: .*CDF5.*nccopy -k nc4"):
        read_record(tmp_path)


def _month(number: int, **changes: object) -> SstFile:
    return SstFile(SST[[number]], time=days_since("1800-01-01")[[number]], **changes)


@pytest.mark.parametrize("old", [range(24), range(12), range(0)], ids=["old", "mixed", "new"])
def test_nceis_files_by_month(tmp_path: Path, old: range) -> None:
    for number in range(24):
        month = str(FIRST + number)
        file = SstFile(SST[[number]][:, None], {"_FillValue": np.float32(-999)}, dims=("time", "lev", "lat", "lon"))
        file.axes |= {"lev": (("lev",), np.zeros(1))}
        file.time = np.zeros(1) if number in old else days_since("1854-01-15")[[number]] + 14
        file.time_attributes = {"units": "days since 1854-01-15", "calendar": "gregorian"}
        if number in old:
            file.time_attributes = {"units": f"minutes since {month}-01 00:00", "calendar": "360_day"}
        file.write(tmp_path / f"ersst.v5.{month.replace('-', '')}.nc")
    (tmp_path / "._ersst.v5.196001.nc").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / ".DS_Store").write_bytes(b"\x00")
    _same(read_record(tmp_path))


def test_files_in_any_order_and_others_beside_them(tmp_path: Path) -> None:
    for number in range(24):
        _month(number).write(tmp_path / f"{(7 * number) % 24:02d}.nc")
    write_tree(tmp_path, "SODA", [2])
    with h5py.File(tmp_path / "mask.nc", "w") as file:
        file["lsmask"] = np.zeros((45, 90))
    _same(read_record(tmp_path))


def test_a_time_without_a_dimension(tmp_path: Path) -> None:
    for number in range(24):
        stamp = days_since("1800-01-01")[number]
        SstFile(SST[number], dims=("lat", "lon"), time=np.asarray(stamp)).write(tmp_path / f"{number:02d}.nc")
    _same(read_record(tmp_path))


_CURVED = _FULL[0] + np.sin(_FULL[1] / 20), _FULL[1] + np.cos(_FULL[0] / 20)
_ANOMALIES = SST - np.float32(15)


def _with(index: tuple[int, int, int], value: float) -> np.ndarray:
    changed = SST.copy()
    changed[index] = value
    return changed


REFUSED = {
    "an undeclared fill value": (SstFile(_filled(-999), {}), r"sst: expected sea-surface temperature within -5\.\.45"),
    "one cell": (SstFile(_with((3, 4, 50), 99)), r"found 99 at 1960-04, lat -72, lon 200 \(of .* 1 are outside"),
    "1e20": (SstFile(_filled(1e20), {"missing_value": 1e30}), "found 1e\\+20 at 1960-01, lat -88, lon 20"),
    "infinity": (SstFile(_with((0, 0, 0), np.inf)), "found inf at 1960-01, lat -88, lon 0"),
    "packed, its scale lost": (SstFile(_packed("i2", -999), {"_FillValue": np.int16(-999)}), "expected sea-surface"),
    "anomalies beyond 20 K": (SstFile(SST + np.float32(10), {}, "ssta"), r"temperature anomaly within -20\.\.20 K"),
    "fahrenheit": (SstFile(attributes={"units": "degF"}), "expected degrees Celsius or kelvin, found units 'degF'"),
    "metres": (SstFile(attributes={"units": "m"}), "expected degrees Celsius or kelvin"),
    "no value": (SstFile(_filled(np.nan) * np.nan), "found no value that is known"),
    "text": (SstFile(np.full(SST.shape, b"x")), "sst: expected numbers, found"),
    "a scale of 0": (SstFile(_packed("i2", 0), {"scale_factor": 0.0}), "scale_factor: expected one finite number"),
    "a scale that is none": (SstFile(_packed("i2", 0), {"scale_factor": "x"}), "attribute scale_factor"),
    "limits turned round": (SstFile(attributes={"valid_range": [45.0, -5.0]}), "valid_range: expected a lower and"),
    "a fill value that is none": (SstFile(attributes={"missing_value": "land"}), "missing_value: expected numbers"),
    "several levels": (
        SstFile(np.stack([SST, SST], 1), dims=("time", "lev", "lat", "lon")), r"expected \(time, lat, lon\).*sellevidx"
    ),
    "a curvilinear grid": (
        SstFile(dims=("time", "y", "x"), axes=_every_cell(*_CURVED)),
        r"nav_lat: expected one axis.*`cdo remapbil,r180x89 IN\.nc OUT\.nc`",
    ),
    "an uneven grid": (_axes(LATITUDES + np.sin(LATITUDES), LONGITUDES), "evenly spaced degrees.*cdo remapbil"),
    "radians": (
        SstFile(axis_attributes={"lat": {"units": "radians"}}), "lat: expected one axis of degrees.*in 'radians'"
    ),
    "degrees west": (SstFile(axis_attributes={"lon": {"units": "degrees_west"}}), "lon: expected one axis of degrees"),
    "missing latitudes": (_axes(np.where(LATITUDES > 80, np.nan, LATITUDES), LONGITUDES), "lat: expected one axis"),
    "latitudes beyond the pole": (_axes(LATITUDES + 4, LONGITUDES), "expected degrees"),
    "years": (SstFile(time_attributes={"units": "years since 1960-01-01"}), "expected times of CF.*cdo -r"),
    "dates as numbers": (SstFile(time_attributes={"units": "day as %Y%m%d.%f"}), "expected times of CF"),
    "no units of time": (SstFile(time_attributes={}), "expected times of CF"),
    "an unknown calendar": (
        SstFile(time_attributes={"units": "days since 1800-1-1", "calendar": "mayan"}), "expected times of CF.*'mayan'"
    ),
    "a year 0": (SstFile(time_attributes={"units": "days since 0000-01-01"}), "expected times of CF"),
    "times out of bounds": (SstFile(time=days_since("1800-01-01") * 1e30), "expected times of CF"),
    "missing times": (SstFile(time=np.where(np.arange(24) == 5, np.nan, days_since("1800-01-01"))), "missing times"),
    "a month twice": (
        SstFile(time=days_since("1800-01-01")[[0, 1, 2, 3, 3, *range(5, 24)]]), "found 1960-04 right after 1960-04"
    ),
    "days": (SstFile(time=days_since("1800-01-01")[0] + np.arange(24.0)), "every month once.*cdo monmean"),
    "no month": (SstFile(SST[:0], time=days_since("1800-01-01")[:0]), "time: expected months, found none"),
    "another shape": (SstFile(SST[:, :, :89], dims=("time", "lat", "x")), r"expected \(time, lat, lon\) \(24, "),
}  # fmt: skip


@pytest.mark.parametrize(("file", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_right_is_refused(tmp_path: Path, file: SstFile, message: str) -> None:
    path = file.write(tmp_path / "sst.mnmean.nc")
    with pytest.raises(DataError, match=message) as caught:
        read_record(tmp_path)
    assert str(path if "every month" not in message and "right after" not in message else tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


class TestSeveralFiles:
    def test_a_name_that_says_another_month(self, tmp_path: Path) -> None:
        _month(0).write(tmp_path / "ersst.v5.196001.nc"), _month(2).write(tmp_path / "ersst.v5.196002.nc")
        with pytest.raises(DataError, match=r"196002\.nc: time: expected 1960-02, as the file is named, found 1960-03"):
            read_record(tmp_path)

    def test_a_gap_and_a_month_twice_name_the_files(self, tmp_path: Path) -> None:
        _month(0).write(tmp_path / "a.nc"), _month(2).write(tmp_path / "b.nc")
        with pytest.raises(DataError, match=r"found 1960-03 right after 1960-01 \(a.nc and b.nc\)"):
            read_record(tmp_path)
        _month(0).write(tmp_path / "b.nc")
        with pytest.raises(DataError, match=r"found 1960-01 right after 1960-01 \(a.nc and b.nc\)"):
            read_record(tmp_path)

    def test_anomalies_do_not_go_on_where_temperatures_end(self, tmp_path: Path) -> None:
        _month(0).write(tmp_path / "a.nc")
        other = _month(1, name="sst_anomaly")
        other.sst = _ANOMALIES[[1]]
        other.write(tmp_path / "b.nc")
        with pytest.raises(
            DataError, match=r"b\.nc: sea-surface temperature anomaly, but a\.nc has sea-surface temperature"
        ):
            read_record(tmp_path)

    def test_kelvin_and_degrees_go_together(self, tmp_path: Path) -> None:
        for number in range(24):
            file = _month(number)
            file.sst = file.sst + np.float32(273.15 * (number % 2))
            file.write(tmp_path / f"{number:02d}.nc")
        _same(read_record(tmp_path))

    def test_a_month_without_any_value(self, tmp_path: Path) -> None:
        sst = SST.copy()
        sst[7] = np.nan
        SstFile(sst).write(tmp_path / "sst.nc")
        with pytest.raises(DataError, match="in every month, found 1 months without: 1960-08"):
            read_anomalies(tmp_path, 1960, 1961)


@pytest.mark.parametrize("kind", ["undeclared fill", "no record", "link to nowhere", "a folder"])
@pytest.mark.parametrize("verb", ["info", "check"])
def test_the_command_line_refuses_with_exit_code_2(tmp_path: Path, capsys, kind: str, verb: str) -> None:
    path = tmp_path / "sst.nc"
    if kind == "undeclared fill":
        SstFile(_filled(-999), {}).write(path)
    elif kind == "no record":
        SstFile(name="precip").write(path)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "gone.nc")
    assert main(["data", verb, "enso_ersst", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "sst.nc" in error and "Traceback" not in error


class TestArraysThatAreNotThere:
    """Links, virtual arrays and holes would read as zeros: none of it is temperatures."""

    def _array(self, file: h5py.File, kind: str, folder: Path) -> None:
        values, attributes = file["sst"][:], dict(file["sst"].attrs)
        del file["sst"], attributes["DIMENSION_LIST"]
        if kind == "link":
            with h5py.File(folder / "other.h5", "w") as other:
                other["sst"] = values
            file["sst"] = h5py.ExternalLink("other.h5", "sst")
            return
        if kind == "virtual":
            layout = h5py.VirtualLayout(values.shape, "f4")
            layout[:12] = h5py.VirtualSource("gone.h5", "sst", (12, *values.shape[1:]))
            file.create_virtual_dataset("sst", layout)
        elif kind == "raw bytes":
            file.create_dataset("sst", values.shape, "f4", external=[(str(folder / "raw"), 0, values.nbytes)])
        elif kind in ("holes", "missing"):
            fill = np.float32(-999 if kind == "missing" else 0)
            chunks = (1, *values.shape[1:])
            file.create_dataset("sst", values.shape, "f4", chunks=chunks, fillvalue=fill)[:20] = values[:20]
            attributes["missing_value"] = -999.0
        file["sst"].attrs.update(attributes)

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("link", "sst lies in another file"),
            ("virtual", "sst lies in another file"),
            ("raw bytes", "sst lies in another file"),
            ("holes", "expected 24 chunks, found 20: the file was not written to its end"),
            ("missing", "found 4 months without: 1961-09"),
        ],
    )
    def test_no_zeros_without_a_word(self, tmp_path: Path, kind: str, message: str) -> None:
        path = SstFile().write(tmp_path / "sst.nc")
        with h5py.File(path, "r+") as file:
            self._array(file, kind, tmp_path)
        with pytest.raises(DataError, match=message):
            read_anomalies(tmp_path, 1960, 1961)

    @pytest.mark.parametrize("axis", ["time", "sst"])
    def test_more_than_any_memory_holds(self, tmp_path: Path, axis: str) -> None:
        path = SstFile().write(tmp_path / "sst.nc")
        with h5py.File(path, "r+") as file:
            shape = (2_000_000_000,) if axis == "time" else (24, 45, 90, 2_000_000)
            attributes = dict(file[axis].attrs)
            del file[axis]
            file.create_dataset(axis, shape, "f8", chunks=(1,) * len(shape))
            file[axis].attrs.update({key: attributes[key] for key in ("units",) if key in attributes})
        with pytest.raises(DataError, match=r"values are declared|expected \(time, lat, lon\)"):
            read_record(tmp_path)

    def test_a_file_that_somebody_else_holds_open_for_writing(self, tmp_path: Path) -> None:
        path = SstFile().write(tmp_path / "sst.nc")
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _same(read_record(tmp_path))

    def test_the_same_in_every_year(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        SstFile(np.full_like(SST, 20)).write(tmp_path / "sst.nc")
        task = bench.load_task("enso_ersst", tmp_path, base_from=1960, base_to=1961)
        assert any(
            "expected temperatures that vary" in said for said in task.describe_data(read_everything=True).problems
        )


class TestIcarEnso:
    """Packing, fill values and implausible numbers in the competition's layout."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        write_tree(tmp_path / "plain", "SODA", [5])
        return tmp_path

    def _changed(self, tree: Path, change) -> Path:
        (tree / "other").mkdir()
        for name, key in (("SODA_train.nc", "sst"), ("SODA_label.nc", "nino")):
            with h5py.File(tree / "plain" / name) as plain, h5py.File(tree / "other" / name, "w") as other:
                for axis in ("lat", "lon"):
                    if axis in plain:
                        other[axis] = plain[axis][:]
                stored, attributes = change(plain[key][:])
                other[key] = stored
                other[key].attrs.update(attributes)
        return tree / "other"

    @pytest.mark.parametrize(
        "change",
        [
            lambda values: (np.rint(values / 0.001).astype("i2"), {"scale_factor": 0.001}),
            lambda values: (np.rint((values - 2) / 0.001).astype(">i2"), {"scale_factor": 0.001, "add_offset": 2.0}),
            lambda values: (values.astype("f8"), {"_FillValue": np.float64("nan")}),
            lambda values: (values, {"missing_value": 1e20}),
        ],
        ids=["packed", "with offset, big-endian", "double", "fill value"],
    )
    def test_the_same_scores(self, tree: Path, change) -> None:
        roots = tree / "plain", self._changed(tree, change)
        first, second = (bench.load_task("icar_enso", root).dataset("all") for root in roots)
        for one, other in zip(first.stored(3), second.stored(3), strict=True):
            np.testing.assert_allclose(one, other, atol=6e-4)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda values: (np.rint(values / 0.001).astype("i2"), {}), r"sst: expected .* within -20\.\.20 K, found"),
            (lambda values: (values + 300, {}), r"at month \d+ of record SODA, lat -?\d+, lon \d+"),
            (lambda values: (np.where(values == values.max(), 1e20, values).astype("f4"), {"missing_value": 1e20}),
             "expected finite sst, found 1 others in record SODA, the first at month"),
            (lambda values: (values, {"scale_factor": [1.0, 2.0]}), "scale_factor: expected one finite number"),
        ],
        ids=["its scale lost", "kelvin", "missing", "two scales"],
    )  # fmt: skip
    def test_what_no_anomaly_has_is_refused(self, tree: Path, capsys, change, message: str) -> None:
        root = self._changed(tree, change)
        with pytest.raises(DataError, match=message):
            bench.load_task("icar_enso", root).dataset("all")
        assert main(["data", "check", "icar_enso", "--root", str(root)]) == 2
        assert "Traceback" not in capsys.readouterr().err

    def test_labels_in_another_unit(self, tree: Path) -> None:
        root = self._changed(tree, lambda values: (values if values.ndim == 4 else values * 100, {}))
        with pytest.raises(DataError, match=r"SODA_label.nc: nino: expected .* within -20\.\.20 K.* of record SODA \("):
            bench.load_task("icar_enso", root).dataset("all")


@pytest.mark.parametrize("verb", ["evaluate", "run"])
def test_a_split_of_one_value_is_refused(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat").mkdir()
    write_tree(tmp_path / "flat", "SODA", [5])
    with h5py.File(tmp_path / "flat" / "SODA_train.nc", "r+") as file:
        file["sst"][:] = 0
    words = [verb, "task=icar_enso", "model=persistence", "split=all", f"data.root={tmp_path / 'flat'}", "device=cpu"]
    assert main([*words, "progress=false"]) == 2
    assert "expected targets that vary, found 0 everywhere in 59 sequences" in capsys.readouterr().err
    assert not list(tmp_path.rglob("results/**/*.json"))


class TestForecast:
    """`earthbench forecast --input`: a context from somebody's NetCDF file."""

    def _write(self, path: Path, context: np.ndarray, **attributes: object) -> Path:
        with h5py.File(path, "w") as file:
            file["context"] = context
            file["context"].attrs.update(attributes)
        return path

    @pytest.fixture
    def context(self) -> np.ndarray:
        return np.random.default_rng(0).normal(0, 1, (12, 24, 48)).round(3).astype("f4")

    def test_packed_and_classic_contexts(self, tmp_path: Path, context: np.ndarray) -> None:
        from bench.running.forecasting import case_from_file

        task = bench.load_task("icar_enso")
        codes = np.rint(context * 1000).astype("i2")
        packed = case_from_file(task, self._write(tmp_path / "packed.nc", codes, scale_factor=0.001))
        np.testing.assert_allclose(packed.context[..., 0], context, atol=1e-5)
        with netcdf_file(tmp_path / "classic.nc", "w") as file:
            for name, size in zip("tyx", context.shape, strict=True):
                file.createDimension(name, size)
            file.createVariable("context", "f4", ("t", "y", "x"))[:] = context
        assert np.array_equal(case_from_file(task, tmp_path / "classic.nc").context[..., 0], context)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda values: values + 300,
                r"expected .* within -20\.\.20 K, found .* at frame \d+, row \d+, column \d+",
            ),
            (lambda values: np.where(values > 3, np.nan, values), "missing values, at frame"),
        ],
        ids=["kelvin", "missing"],
    )
    def test_contexts_that_no_model_can_read(self, tmp_path: Path, context: np.ndarray, change, message: str) -> None:
        from bench.running.forecasting import case_from_file

        with pytest.raises(DataError, match=message):
            case_from_file(bench.load_task("icar_enso"), self._write(tmp_path / "x.nc", change(context)))
