"""NetCDF files with any metadata: the written temperatures are read, or one error says why not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import cftime
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sst_files import SstFile, temperatures

from bench.data.ersst.files import read_record
from bench.errors import EarthbenchError

_SLOW = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
_SST = temperatures()[:, ::3, ::3]
_LAND = np.isnan(_SST)
_LATITUDES, _LONGITUDES = np.arange(-88, 89, 12.0), np.arange(0, 360, 12.0)
_MONTHS = [(1960 + number // 12, number % 12 + 1) for number in range(24)]

_CALENDARS = st.sampled_from(
    ["standard", "gregorian", "proleptic_gregorian", "julian", "noleap", "365_day", "all_leap", "366_day", "360_day"]
)
_TYPES = st.sampled_from(["i2", ">i2", "i4", "u2", "f4", ">f4", "f8"])
_FILLS = st.sampled_from([-32768, -999, -99.99, 32767, 65535, 1e20, -9.96921e36, np.nan])
_EPOCHS = st.sampled_from(["1-1-1", "1800-01-01", "1950-03-30 12:00"])
_WORDS = st.sampled_from(
    ["units", "calendar", "scale_factor", "add_offset", "_FillValue", "missing_value", "valid_range", "valid_min",
     "valid_max", "_Unsigned", "bounds", "standard_name", "long_name"]
)  # fmt: skip
_TEXTS = st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=12)
_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.floats(), st.floats(width=32).map(np.float32), st.integers(-(2**31), 2**31 - 1), _TEXTS,
    st.lists(st.floats(), min_size=1, max_size=3), st.sampled_from(["true", "K", "degC", "360_day", "days since 1-1-1"])
)  # fmt: skip


@st.composite
def _sound(draw: st.DrawFn) -> tuple[SstFile, float]:
    """Returns a file that follows the conventions, and half of its last stored digit."""
    stored, attributes, step = _SST.astype("f8"), {}, 1e-5
    kind, fill = np.dtype(draw(_TYPES)), draw(_FILLS)
    kelvin = draw(st.booleans())
    if kelvin:
        stored, attributes["units"] = stored + 273.15, draw(st.sampled_from(["K", "kelvin", ""]))
    if kind.kind in "iu":
        info = np.iinfo(kind)
        scale, offset = draw(st.sampled_from([0.01, 0.002, 0.05])), draw(st.sampled_from([0.0, 15.0, 273.15, -2.0]))
        fill = int(fill) if np.isfinite(fill) and fill == int(fill) and info.min <= fill <= info.max else int(info.max)
        codes = np.rint((stored - offset) / scale)
        if not info.min < np.nanmin(codes) <= np.nanmax(codes) < info.max or (codes == fill).any():
            scale, offset = 0.05, float(np.nanmin(stored)) - 1
            codes = np.rint((stored - offset) / scale)
            fill = int(info.max)
        attributes |= {"scale_factor": scale, "add_offset": offset}
        stored, step = codes, scale / 2 + 1e-4
    else:
        step = 1e-4
    stored = np.where(_LAND, fill, stored).astype(kind)
    if kind.str[1:] == "u2" and draw(st.booleans()):
        stored, attributes["_Unsigned"] = stored.view("i2"), "true"
    written = draw(st.sampled_from(["own type", "double", "single"]))
    value = {"own type": stored.dtype.type(fill) if kind.kind == "f" else fill, "double": np.float64(fill),
             "single": np.float32(fill)}[written]  # fmt: skip
    attributes[draw(st.sampled_from(["_FillValue", "missing_value"]))] = value
    calendar = draw(_CALENDARS)
    units = f"{draw(st.sampled_from(['days', 'hours', 'Minutes', 'SECONDS']))} since {draw(_EPOCHS)}"
    dates = [cftime.datetime(*month, draw(st.integers(1, 28)), calendar=calendar) for month in _MONTHS]
    time = np.asarray(cftime.date2num(dates, units.lower(), calendar), np.float64)
    file = SstFile(stored, attributes, draw(st.sampled_from(["sst", "tos", "SST"])), time=time)
    file.time_attributes = {"units": units, "calendar": draw(st.sampled_from([calendar, calendar.upper()]))}
    order = np.array(draw(st.permutations(range(24)))) if draw(st.booleans()) else np.arange(24)
    rows, columns = _LATITUDES, _LONGITUDES
    stored, file.time = stored[order], time[order]
    if draw(st.booleans()):
        rows, stored = rows[::-1], stored[:, ::-1]
    if draw(st.booleans()):
        columns, stored = columns - 180, np.roll(stored, 15, -1)
    names = draw(st.sampled_from([("lat", "lon"), ("latitude", "longitude"), ("nav_lat", "nav_lon")]))
    file.axes = {name: ((name,), values) for name, values in zip(names, (rows, columns), strict=True)}
    dims = draw(st.permutations(["time", *names]))
    file.dims = tuple(dims)
    file.sst = stored.transpose([["time", *names].index(dim) for dim in dims])
    return file, step


def _write(file: SstFile, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    file.write(folder / "sst.nc")
    return folder


@_SLOW
@given(_sound())
def test_a_file_that_follows_the_cf_conventions_is_read_correctly(tmp_path: Path, drawn: tuple[SstFile, float]) -> None:
    file, step = drawn
    found = read_record(_write(file, tmp_path / "data"))
    assert [str(month) for month in found.months] == [f"{year}-{month:02d}" for year, month in _MONTHS]
    field = found.field[:, np.argsort(found.latitudes)][:, :, np.argsort(found.longitudes % 360)]
    np.testing.assert_allclose(field, _SST, atol=step, rtol=0)


@_SLOW
@given(_sound(), st.lists(st.tuples(st.sampled_from(["sst", "time", "lat"]), _WORDS, _VALUES), min_size=1, max_size=3))
def test_any_attribute_is_understood_or_gives_one_error(tmp_path: Path, drawn: tuple[SstFile, float], changes) -> None:
    file, _ = drawn
    latitude = next(iter(file.axes))
    for where, word, value in changes:
        {"sst": file.attributes, "time": file.time_attributes, "lat": file.axis_attributes.setdefault(latitude, {})}[
            where
        ][word] = value
    try:
        found = read_record(_write(file, tmp_path / "data"))
    except EarthbenchError as error:
        assert str(error).strip()
        return
    known = found.field[np.isfinite(found.field)]
    assert known.min() >= -20 and known.max() <= 45, "whatever was read, it is temperatures"


@_SLOW
@given(st.data())
def test_mutated_bytes_are_read_or_give_one_error(tmp_path: Path, data: st.DataObject) -> None:
    file = SstFile()
    path = tmp_path / "data" / "sst.nc"
    classic = data.draw(st.booleans())
    file.attributes = {"units": "degC"}
    (file.write_classic if classic else file.write)(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(content), 20_000) - 1))
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))]))
    try:
        read_record(path.parent)
    except EarthbenchError as error:
        assert str(error).strip()
