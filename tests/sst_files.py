"""Files of monthly SST in all common forms: one record, written in many ways with different metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy.io import netcdf_file

from bench.data.ersst.files import Record, read_record

LATITUDES, LONGITUDES = np.arange(-88, 89, 4.0), np.arange(0, 360, 4.0)
_COAST = (LONGITUDES >= 20) & (LONGITUDES <= 40)
FIRST = np.datetime64("1960-01")


def temperatures(months: int = 24) -> np.ndarray:
    """Degrees Celsius `(T,45,90)`, whole hundredths, float32; NaN on land and, in one month, somewhere at sea."""
    season = 5 * np.sin(np.arange(months) * np.pi / 6)[:, None, None]
    noise = np.random.default_rng(0).normal(0, 1, (months, len(LATITUDES), len(LONGITUDES)))
    sst = (15 + season + noise).round(2).astype(np.float32)
    sst[:, :, _COAST] = np.nan
    sst[5, 3, 50] = np.nan
    return sst


def days_since(start: str, months: int = 24) -> np.ndarray:
    """Days from a date to the first day of each month, in the proleptic Gregorian calendar."""
    stamps = (FIRST + np.arange(months)).astype("datetime64[D]")
    return (stamps - np.datetime64(start)).astype(np.float64)


@dataclass
class SstFile:
    """The contents of a file; tests change parts of it."""

    sst: np.ndarray = field(default_factory=temperatures)
    """As stored."""
    attributes: dict[str, Any] = field(default_factory=lambda: {"units": "degC", "_FillValue": np.float32("nan")})
    name: str = "sst"
    dims: tuple[str, ...] = ("time", "lat", "lon")
    time: np.ndarray = field(default_factory=lambda: days_since("1800-01-01"))
    time_attributes: dict[str, Any] = field(default_factory=lambda: {"units": "days since 1800-1-1 00:00:00"})
    axes: dict[str, tuple[tuple[str, ...], np.ndarray]] = field(
        default_factory=lambda: {"lat": (("lat",), LATITUDES), "lon": (("lon",), LONGITUDES)}
    )
    axis_attributes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def variables(self) -> dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]:
        axes = {name: (dims, values, self.axis_attributes.get(name, {})) for name, (dims, values) in self.axes.items()}
        time = (("time",)[: self.time.ndim], self.time, self.time_attributes)
        return {"time": time, **axes, self.name: (self.dims, self.sst, self.attributes)}

    def write(self, path: Path) -> Path:
        """Writes NetCDF 4 with dimensions and only the given attributes; no library adds any."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            variables = self.variables()
            sizes = {
                dim: size
                for dims, values, _ in variables.values()
                for dim, size in zip(dims, values.shape, strict=True)
            }
            for dim in sizes:
                values = variables[dim][1] if dim in variables else np.zeros(sizes[dim], "f4")
                file[dim] = values
                file[dim].make_scale(
                    dim if dim in variables else "This is a netCDF dimension but not a netCDF variable."
                )
            for name, (dims, values, attributes) in variables.items():
                if name not in file:
                    file[name] = values
                if name not in sizes:
                    for number, dim in enumerate(dims):
                        file[name].dims[number].attach_scale(file[dim])
                file[name].attrs.update(attributes)
        return path

    def write_classic(self, path: Path, version: int = 1) -> Path:
        """Writes the classic format, version 1 or 2 (64-bit offsets)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with netcdf_file(path, "w", version=version) as file:
            variables = self.variables()
            for dims, values, _ in variables.values():
                for dim, size in zip(dims, values.shape, strict=True):
                    if dim not in file.dimensions:
                        file.createDimension(dim, size)
            for name, (dims, values, attributes) in variables.items():
                variable = file.createVariable(name, values.dtype.newbyteorder(">"), dims)
                variable[...] = values
                for key, value in attributes.items():
                    setattr(variable, key, value)
        return path


SST = temperatures()
LAND = np.isnan(SST)


def read(file: SstFile, root: Path) -> Record:
    """Returns the record of a folder with this file in it."""
    file.write(root / "sst.mnmean.nc")
    return read_record(root)


def assert_same(found: Record, atol: float = 1e-4) -> None:
    """Compares a record with `SST`, whatever the direction and the first meridian of its grid."""
    assert [str(month) for month in found.months] == [str(FIRST + number) for number in range(24)]
    order = np.argsort(found.latitudes), np.argsort(found.longitudes % 360)
    np.testing.assert_allclose(found.latitudes[order[0]], LATITUDES)
    np.testing.assert_allclose((found.longitudes % 360)[order[1]], LONGITUDES)
    assert found.field.dtype == np.float32
    np.testing.assert_allclose(found.field[:, order[0]][:, :, order[1]], SST, atol=atol)  # NaN where NaN


def filled(value: float, dtype: str = "f4") -> np.ndarray:
    """Returns `SST` with a value on land."""
    return np.where(LAND, value, SST).astype(dtype)


def packed(dtype: str, fill: int, scale: float = 0.01, offset: float = 0.0) -> np.ndarray:
    """Returns `SST` as integer codes, with one on land."""
    return np.where(LAND, fill, np.rint((np.nan_to_num(SST.astype("f8")) - offset) / scale)).astype(dtype)


def on_axes(latitudes: np.ndarray, longitudes: np.ndarray, sst: np.ndarray = SST, **changes: object) -> SstFile:
    return SstFile(sst=sst, axes={"lat": (("lat",), latitudes), "lon": (("lon",), longitudes)}, **changes)


def every_cell(latitudes: np.ndarray, longitudes: np.ndarray) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    return {"nav_lat": (("y", "x"), latitudes), "nav_lon": (("y", "x"), longitudes)}


EVERY_CELL = np.broadcast_to(LATITUDES[:, None], SST.shape[1:]), np.broadcast_to(LONGITUDES, SST.shape[1:])


def one_month(number: int, **changes: object) -> SstFile:
    return SstFile(SST[[number]], time=days_since("1800-01-01")[[number]], **changes)
