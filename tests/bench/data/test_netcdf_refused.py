"""NetCDF files of SST that cannot be read correctly: one error that says what to do."""

from __future__ import annotations

import fcntl
from pathlib import Path

import h5py
import numpy as np
import pytest
from sst_files import (
    EVERY_CELL,
    LATITUDES,
    LONGITUDES,
    SST,
    SstFile,
    assert_same,
    days_since,
    filled,
    on_axes,
    one_month,
    packed,
)

import bench
from bench.cli.main import main
from bench.data.ersst.anomalies import BasePeriod, anomalies_of
from bench.data.ersst.files import read_record
from bench.errors import DataError

_CURVED = EVERY_CELL[0] + np.sin(EVERY_CELL[1] / 20), EVERY_CELL[1] + np.cos(EVERY_CELL[0] / 20)
_ANOMALIES = SST - np.float32(15)
_SHUFFLED = np.random.default_rng(0).permutation(len(LATITUDES))


def _with(index: tuple[int, int, int], value: float) -> np.ndarray:
    changed = SST.copy()
    changed[index] = value
    return changed


REFUSED = {
    "an undeclared fill value": (SstFile(filled(-999), {}), r"sst: expected sea-surface temperature within -5\.\.45"),
    "one cell": (SstFile(_with((3, 4, 50), 99)), r"found 99 at 1960-04, lat -72, lon 200 \(of .* 1 are outside"),
    "1e20": (SstFile(filled(1e20), {"missing_value": 1e30}), "found 1e\\+20 at 1960-01, lat -88, lon 20"),
    "infinity": (SstFile(_with((0, 0, 0), np.inf)), "found inf at 1960-01, lat -88, lon 0"),
    "packed, its scale lost": (SstFile(packed("i2", -999), {"_FillValue": np.int16(-999)}), "expected sea-surface"),
    "anomalies beyond 20 K": (SstFile(SST + np.float32(10), {}, "ssta"), r"temperature anomaly within -20\.\.20 K"),
    "fahrenheit": (SstFile(attributes={"units": "degF"}), "expected degrees Celsius or kelvin, found units 'degF'"),
    "metres": (SstFile(attributes={"units": "m"}), "expected degrees Celsius or kelvin"),
    "no value": (SstFile(filled(np.nan) * np.nan), "found only missing values"),
    "text": (SstFile(np.full(SST.shape, b"x")), "sst: expected numbers, found"),
    "a scale of 0": (SstFile(packed("i2", 0), {"scale_factor": 0.0}), "scale_factor: expected one finite number"),
    "a scale that is none": (SstFile(packed("i2", 0), {"scale_factor": "x"}), "attribute scale_factor"),
    "limits turned round": (SstFile(attributes={"valid_range": [45.0, -5.0]}), "valid_range: expected a lower and"),
    "a fill value that is none": (SstFile(attributes={"missing_value": "land"}), "missing_value: expected numbers"),
    "several levels": (
        SstFile(np.stack([SST, SST], 1), dims=("time", "lev", "lat", "lon")), r"expected \(time, lat, lon\).*sellevidx"
    ),
    "latitudes without order": (
        on_axes(LATITUDES[_SHUFFLED], LONGITUDES), r"degrees that ascend or descend.*`cdo remapbil,r180x89 IN"
    ),
    "latitudes by row, longitudes by cell": (
        SstFile(dims=("time", "y", "x"), axes={"lat": (("y",), LATITUDES), "nav_lon": (("y", "x"), _CURVED[1])}),
        r"nav_lon: expected degrees, of rows and columns or of every cell, found shape \(45, 90\).*cdo remapbil",
    ),
    "radians": (SstFile(axis_attributes={"lat": {"units": "radians"}}), "lat: expected degrees.*in 'radians'"),
    "degrees west": (SstFile(axis_attributes={"lon": {"units": "degrees_west"}}), "lon: expected degrees"),
    "missing latitudes": (on_axes(np.where(LATITUDES > 80, np.nan, LATITUDES), LONGITUDES), "lat: expected degrees"),
    "two that could be it": (
        SstFile(name="a", attributes={"standard_name": "sea_surface_temperature"}, axes={
            "lat": (("lat",), LATITUDES), "lon": (("lon",), LONGITUDES), "b": (("time", "lat", "lon"), SST)
        }, axis_attributes={"b": {"standard_name": "sea_surface_skin_temperature"}}),
        "expected one sea-surface temperature, found a, b. Set task.variable=a",
    ),
    "latitudes beyond the pole": (on_axes(LATITUDES + 4, LONGITUDES), "expected degrees"),
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
def test_ambiguous_files_are_refused(tmp_path: Path, file: SstFile, message: str) -> None:
    path = file.write(tmp_path / "sst.mnmean.nc")
    with pytest.raises(DataError, match=message) as caught:
        read_record(tmp_path)
    assert str(path if "every month" not in message and "right after" not in message else tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


class TestSeveralFiles:
    def test_a_file_name_with_another_month_is_refused(self, tmp_path: Path) -> None:
        one_month(0).write(tmp_path / "ersst.v5.196001.nc"), one_month(2).write(tmp_path / "ersst.v5.196002.nc")
        with pytest.raises(DataError, match=r"196002\.nc: time: expected 1960-02, as the file is named, found 1960-03"):
            read_record(tmp_path)

    def test_gaps_and_repeated_months_name_the_files(self, tmp_path: Path) -> None:
        one_month(0).write(tmp_path / "a.nc"), one_month(2).write(tmp_path / "b.nc")
        with pytest.raises(DataError, match=r"found 1960-03 right after 1960-01 \(a.nc and b.nc\)"):
            read_record(tmp_path)
        one_month(0).write(tmp_path / "b.nc")
        with pytest.raises(DataError, match=r"found 1960-01 right after 1960-01 \(a.nc and b.nc\)"):
            read_record(tmp_path)

    def test_anomalies_and_temperatures_are_not_concatenated(self, tmp_path: Path) -> None:
        one_month(0).write(tmp_path / "a.nc")
        other = one_month(1, name="sst_anomaly")
        other.sst = _ANOMALIES[[1]]
        other.write(tmp_path / "b.nc")
        with pytest.raises(
            DataError, match=r"b\.nc: sea-surface temperature anomaly, but a\.nc has sea-surface temperature"
        ):
            read_record(tmp_path)

    def test_kelvin_and_celsius_files_are_combined(self, tmp_path: Path) -> None:
        for number in range(24):
            file = one_month(number)
            file.sst = file.sst + np.float32(273.15 * (number % 2))
            file.write(tmp_path / f"{number:02d}.nc")
        assert_same(read_record(tmp_path))

    def test_a_month_without_values_is_refused(self, tmp_path: Path) -> None:
        sst = SST.copy()
        sst[7] = np.nan
        SstFile(sst).write(tmp_path / "sst.nc")
        with pytest.raises(DataError, match="in every month, found 1 months without: 1960-08"):
            anomalies_of(tmp_path, BasePeriod.years(1960, 1961))


@pytest.mark.parametrize("kind", ["undeclared fill", "no record", "link to nowhere", "a folder"])
@pytest.mark.parametrize("verb", ["info", "check"])
def test_the_command_line_refuses_with_exit_code_2(tmp_path: Path, capsys, kind: str, verb: str) -> None:
    path = tmp_path / "sst.nc"
    if kind == "undeclared fill":
        SstFile(filled(-999), {}).write(path)
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
    """Links, virtual arrays and holes would be read as zeros instead of temperatures."""

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
    def test_unwritten_arrays_are_not_read_as_zeros(self, tmp_path: Path, kind: str, message: str) -> None:
        path = SstFile().write(tmp_path / "sst.nc")
        with h5py.File(path, "r+") as file:
            self._array(file, kind, tmp_path)
        with pytest.raises(DataError, match=message):
            anomalies_of(tmp_path, BasePeriod.years(1960, 1961))

    @pytest.mark.parametrize("axis", ["time", "sst"])
    def test_sizes_beyond_any_memory_are_refused(self, tmp_path: Path, axis: str) -> None:
        path = SstFile().write(tmp_path / "sst.nc")
        with h5py.File(path, "r+") as file:
            shape = (2_000_000_000,) if axis == "time" else (24, 45, 90, 2_000_000)
            attributes = dict(file[axis].attrs)
            del file[axis]
            file.create_dataset(axis, shape, "f8", chunks=(1,) * len(shape))
            file[axis].attrs.update({key: attributes[key] for key in ("units",) if key in attributes})
        with pytest.raises(DataError, match=r"values are declared|expected \(time, lat, lon\)"):
            read_record(tmp_path)

    def test_a_file_open_for_writing_elsewhere(self, tmp_path: Path) -> None:
        path = SstFile().write(tmp_path / "sst.nc")
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            assert_same(read_record(tmp_path))

    def test_constant_temperatures_are_a_problem(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        SstFile(np.full_like(SST, 20)).write(tmp_path / "sst.nc")
        task = bench.load_task("enso_ersst", tmp_path, base_from=1960, base_to=1961)
        assert any(
            "expected temperatures that vary" in said for said in task.describe_data(read_everything=True).problems
        )
