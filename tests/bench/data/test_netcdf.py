"""NetCDF files of SST in all common forms are read correctly: values, months, grids."""

from __future__ import annotations

from pathlib import Path

import cftime
import h5py
import numpy as np
import pytest
from enso_trees import write_tree
from sst_files import (
    EVERY_CELL,
    FIRST,
    LAND,
    LATITUDES,
    LONGITUDES,
    SST,
    SstFile,
    assert_same,
    days_since,
    every_cell,
    filled,
    on_axes,
    one_month,
    packed,
    read,
)

from bench.data.ersst.anomalies import BasePeriod, anomalies_of
from bench.data.ersst.files import read_record
from bench.errors import DataError

FILLS = {
    "float": SstFile(filled(-9.96921e36), {"_FillValue": np.float32(-9.96921e36)}),
    "missing_value only": SstFile(filled(-999), {"missing_value": np.float32(-999)}),
    "double for float": SstFile(filled(-99.99), {"missing_value": np.float64(-99.99)}),
    "double 1e20 for float": SstFile(filled(1e20), {"_FillValue": np.float64(1e20)}),
    "float for double": SstFile(filled(np.float64(-9.99e33), "f8"), {"missing_value": np.float32(-9.99e33)}),
    "six digits": SstFile(filled(9.96920996838687e36), {"_FillValue": np.float64(9.96921e36)}),
    "several": SstFile(
        np.where(np.arange(45)[:, None] % 2, filled(-999), filled(-888)), {"missing_value": [-999.0, -888.0]}
    ),
    "two that differ": SstFile(filled(-999), {"_FillValue": np.float32(1e20), "missing_value": -999.0}),
    "text": SstFile(filled(-999), {"missing_value": "-999."}),
    "whole number for float": SstFile(filled(-999), {"missing_value": np.int32(-999)}),
    "the library's own": SstFile(filled(9.969209968386869e36), {}),
    "double": SstFile(filled(np.nan, "f8"), {"_FillValue": np.float64("nan")}),
    "big-endian": SstFile(filled(-999, ">f4"), {"missing_value": -999.0}),
    "valid_range": SstFile(filled(-999), {"valid_range": np.array([-5, 45], "f4")}),
    "valid_range of doubles": SstFile(filled(1e20), {"valid_range": [float(np.nanmin(SST)), float(np.nanmax(SST))]}),
    "valid_min": SstFile(filled(-32768), {"valid_min": -3.0}),
    "valid_max": SstFile(filled(1e34), {"valid_max": np.float32(50)}),
    "packed": SstFile(packed("i2", -999), {"_FillValue": np.int16(-999), "scale_factor": 0.01}),
    "packed with offset": SstFile(
        packed("i2", -32768, 0.001, 15), {"_FillValue": np.int16(-32768), "scale_factor": 0.001, "add_offset": 15.0}
    ),
    "packed, float fill": SstFile(packed("i2", -999), {"missing_value": -999.0, "scale_factor": np.float32(0.01)}),
    "packed, the library's own": SstFile(packed("i2", -32767), {"scale_factor": 0.01}),
    "packed, limits of codes": SstFile(
        packed("i2", -30000), {"valid_range": np.array([-500, 4500], "i2"), "scale_factor": 0.01}
    ),
    "packed, limits of degrees": SstFile(
        packed("i2", -30000), {"valid_range": np.array([-5, 45], "f4"), "scale_factor": 0.01}
    ),
    "packed in int32": SstFile(packed("i4", -1, 1e-6), {"_FillValue": np.int32(-1), "scale_factor": 1e-6}),
    "unsigned": SstFile(
        packed("u2", 65535, 0.0005).view("i2"),
        {"_Unsigned": "true", "_FillValue": np.int16(-1), "scale_factor": 0.0005},
    ),
    "unsigned, limits": SstFile(
        packed("u2", 65535, 0.0005).view("i2"),
        {"_Unsigned": "true", "valid_range": np.array([0, -2], "i2"), "scale_factor": 0.0005},
    ),
    "scale as an array": SstFile(packed("i2", -999), {"_FillValue": np.int16(-999), "scale_factor": np.array([0.01])}),
    "kelvin": SstFile(filled(-999) + np.where(LAND, 0, 273.15).astype("f4"), {"units": "K", "missing_value": -999.0}),
    "kelvin unsaid": SstFile(SST + np.float32(273.15), {}),
    "packed kelvin": SstFile(
        packed("i2", -32768, 0.01, -273.15 + 300),
        {"_FillValue": np.int16(-32768), "scale_factor": 0.01, "add_offset": 300.0, "units": "kelvin"},
    ),
}


@pytest.mark.parametrize("file", FILLS.values(), ids=FILLS)
def test_fill_values_packing_and_valid_limits(tmp_path: Path, file: SstFile) -> None:
    assert_same(read(file, tmp_path))


def test_float_files_are_read_bit_identically(tmp_path: Path) -> None:
    found = read(SstFile(filled(-9.96921e36), {"missing_value": np.float32(-9.96921e36)}), tmp_path)
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
    assert_same(read(file, tmp_path))


def test_time_stamps_at_the_end_of_their_bounds(tmp_path: Path) -> None:
    ends = days_since("1800-01-01", 25)
    file = SstFile(time=ends[1:], time_attributes={"units": "days since 1800-01-01", "bounds": "time_bnds"})
    file.axes |= {"time_bnds": (("time", "nv"), np.stack([ends[:-1], ends[1:]], -1))}
    assert_same(read(file, tmp_path))


def _turned(latitude: str = "lat", longitude: str = "lon", **changes: object) -> SstFile:
    axes = {latitude: ((latitude,), LATITUDES), longitude: ((longitude,), LONGITUDES)}
    return SstFile(axes=axes, dims=("time", latitude, longitude), **changes)


GRIDS = {
    "latitude and longitude": _turned("latitude", "longitude", name="tos"),
    "upper case": _turned("LAT", "LON", name="SST"),
    "known by standard names": _turned(
        "Y", "X", name="field", attributes={"standard_name": "sea_surface_temperature"},
        axis_attributes={"Y": {"standard_name": "latitude"}, "X": {"standard_name": "longitude"}},
    ),
    "north first": on_axes(LATITUDES[::-1], LONGITUDES, SST[:, ::-1]),
    "from 180 W": on_axes(LATITUDES, LONGITUDES - 180, np.roll(SST, 45, -1)),
    "jumping at 180": on_axes(LATITUDES, (LONGITUDES + 180) % 360 - 180),
    "first column twice": on_axes(LATITUDES, np.append(LONGITUDES, 360), SST[:, :, [*range(90), 0]]),
    "float32 axes": on_axes(LATITUDES.astype("f4"), LONGITUDES.astype("f4")),
    "units of CF": SstFile(axis_attributes={"lat": {"units": "degrees_north"}, "lon": {"units": "degreeE"}}),
    "time last": SstFile(SST.transpose(1, 2, 0), dims=("lat", "lon", "time")),
    "longitude before latitude": SstFile(SST.transpose(0, 2, 1), dims=("time", "lon", "lat")),
    "a level": SstFile(SST[:, None], dims=("time", "lev", "lat", "lon")),
    "a level last": SstFile(SST[..., None], dims=("time", "lat", "lon", "zlev")),
    "every cell's degrees, of a regular grid": SstFile(dims=("time", "y", "x"), axes=every_cell(*EVERY_CELL)),
    "descending time": SstFile(SST[::-1], time=days_since("1800-01-01")[::-1]),
    "unsorted time": SstFile(np.roll(SST, 5, 0), time=np.roll(days_since("1800-01-01"), 5)),
}  # fmt: skip


@pytest.mark.parametrize("file", GRIDS.values(), ids=GRIDS)
def test_names_axis_orders_and_grids(tmp_path: Path, file: SstFile) -> None:
    found = read(file, tmp_path)
    assert_same(found)
    reference = read(SstFile(), tmp_path / "reference")
    assert found.field.shape == reference.field.shape
    one, other = (anomalies_of(root, BasePeriod.years(1960, 1961)) for root in (tmp_path, tmp_path / "reference"))
    np.testing.assert_allclose(one.sst, other.sst, atol=1e-5)
    np.testing.assert_allclose(one.nino34["exact"], other.nino34["exact"], atol=1e-6)


@pytest.mark.parametrize("version", [1, 2])
def test_the_classic_format(tmp_path: Path, version: int) -> None:
    file = SstFile(
        packed("i2", -999), {"missing_value": np.int16(-999), "scale_factor": 0.01}, time=days_since("1800-01-01")
    )
    file.write_classic(tmp_path / "sst.nc", version)
    assert_same(read_record(tmp_path))


def test_the_64_bit_classic_format_is_refused_with_a_conversion(tmp_path: Path) -> None:
    (tmp_path / "sst.nc").write_bytes(b"CDF\5" + bytes(60))
    with pytest.raises(DataError, match=r"sst\.nc: .*CDF5.*nccopy -k nc4"):
        read_record(tmp_path)


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
    assert_same(read_record(tmp_path))


def test_file_order_and_unrelated_files_do_not_matter(tmp_path: Path) -> None:
    for number in range(24):
        one_month(number).write(tmp_path / f"{(7 * number) % 24:02d}.nc")
    write_tree(tmp_path, "SODA", [2])
    with h5py.File(tmp_path / "mask.nc", "w") as file:
        file["lsmask"] = np.zeros((45, 90))
    assert_same(read_record(tmp_path))


def test_a_time_without_a_dimension(tmp_path: Path) -> None:
    for number in range(24):
        stamp = days_since("1800-01-01")[number]
        SstFile(SST[number], dims=("lat", "lon"), time=np.asarray(stamp)).write(tmp_path / f"{number:02d}.nc")
    assert_same(read_record(tmp_path))
