"""Detection of a cube's dimensions time, y and x, and of the location of its pixels.

Source: NetCDF Climate and Forecast (CF) conventions 1.11, sections 4 (coordinate types), 5.2 (two-dimensional latitude
and longitude) and 5.6 (grid mappings).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.data.netcdf import Variables, decoded, text
from bench.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from xarray import Variable

_AXES = {
    "time": ("time", "valid_time", "t", "date", "datetime"),
    "y": ("y", "lat", "latitude", "yc", "south_north", "northing", "row", "rows", "nlat", "rlat"),
    "x": ("x", "lon", "longitude", "xc", "west_east", "easting", "column", "columns", "col", "nlon", "rlon"),
}
_STANDARD_NAMES = {
    "time": ("time",),
    "y": ("projection_y_coordinate", "latitude", "grid_latitude"),
    "x": ("projection_x_coordinate", "longitude", "grid_longitude"),
}
_DEGREES = re.compile(r"degrees?_?(north|east|n|e)", re.IGNORECASE)
"""Units of CF."""


@dataclass(frozen=True)
class Grid:
    """The horizontal grid of a cube."""

    size: tuple[int, int]
    names: tuple[str, str]
    """Names of the dimensions y and x."""
    coordinates: tuple[np.ndarray | None, np.ndarray | None]
    """Coordinates of y `(H,)` and x `(W,)`, float64, if the cube has them."""
    attributes: tuple[dict[str, Any], dict[str, Any]]
    """Attributes of these coordinates."""
    mapping: dict[str, Any] = field(default_factory=dict)
    """Attributes of the CF grid mapping, if there is one."""
    auxiliary: dict[str, tuple[np.ndarray, dict[str, Any]]] = field(default_factory=dict)
    """Latitudes and longitudes on (y, x), float64 `(H,W)`, and their attributes, if the grid is curvilinear."""

    @property
    def tag(self) -> str:
        """Returns six hexadecimal digits that identify the grid."""
        content = hashlib.sha256(repr((self.size, sorted(map(str, self.mapping.items())))).encode())
        for axis in self.coordinates:
            content.update(b"none" if axis is None else np.ascontiguousarray(axis, np.float64).tobytes())
        return content.hexdigest()[:6]

    @property
    def from_north(self) -> bool:
        """Returns whether the first row is the northernmost."""
        y = self.coordinates[0]
        return y is not None and len(y) > 1 and bool(y[0] > y[-1])


def only_variable(variables: Variables, source: str) -> str:
    """Returns the only variable with three or more dimensions.

    Raises:
        DataError: there is none, or there are several.
    """
    fields = [name for name, found in variables.items() if sum(size > 1 for size in found.shape) >= 3]
    fields = fields or [name for name, found in variables.items() if found.ndim >= 3]
    if len(fields) == 1:
        return fields[0]
    if not fields:
        known = ", ".join(f"{name}{found.dims}" for name, found in variables.items()) or "none"
        raise DataError(f"{source}: expected a variable on (time, y, x), found {known}")
    fields = sorted(fields)
    raise DataError(
        f"{source}: {len(fields)} variables on a grid: {', '.join(fields)}. Say which one is forecast: "
        f"task.variable={fields[0]}, or several: task.variable=[{','.join(fields[:2])}]"
    )


def dimensions_of(variables: Variables, name: str, source: str) -> tuple[str, str, str]:
    """Returns the dimensions (time, y, x) of a variable.

    Raises:
        DataError: there is no such variable, or it has other dimensions.
    """
    if name not in variables:
        fields = [one for one, found in variables.items() if found.ndim >= 2]
        raise DataError(f"{source}: no variable {name!r}. {did_you_mean(name, fields)}")
    variable = variables[name]
    wide = [str(dim) for dim, size in variable.sizes.items() if size > 1]
    role = {dim: _role(variables, dim) for dim in map(str, variable.dims)}
    time = next((dim for dim, found in role.items() if found == "time"), None)
    if time is None:
        raise DataError(
            f"{source}: {name} has no dimension of time among {tuple(role)}. Expected (time, y, x) with a coordinate "
            "`time`; in xarray: data.expand_dims('time') or data.rename(...), with times"
        )
    space = [dim for dim in role if dim != time and (dim in wide or role[dim] in ("y", "x"))]
    if len(space) > 2:
        extra = next((dim for dim in space if role[dim] is None), space[0])
        raise DataError(
            f"{source}: {name} has {len(space) + 1} dimensions {tuple(variable.dims)}; expected (time, y, x). Choose "
            f"one {extra}; in xarray: data.isel({extra}=0)"
        )
    if len(space) < 2:
        raise DataError(f"{source}: {name} has the dimensions {tuple(variable.dims)}; expected (time, y, x)")
    y, x = space
    if role[y] == "x" or role[x] == "y":
        y, x = x, y
    return time, y, x


def _role(variables: Variables, dim: str) -> str | None:
    """Returns the axis of a dimension: time, y, x or None if unknown; by its coordinate's attributes, then by name."""
    found = variables.get(dim)
    if found is not None:
        if text(found, "axis").upper() in ("T", "Y", "X"):
            return {"T": "time", "Y": "y", "X": "x"}[text(found, "axis").upper()]
        if found.dtype.kind == "M" or " since " in text(found, "units"):
            return "time"
        for role, names in _STANDARD_NAMES.items():
            if text(found, "standard_name") in names:
                return role
    return next((role for role, names in _AXES.items() if dim.lower() in names), None)


def time_variable(variables: Variables, dim: str, source: str) -> Variable:
    """Returns the times of a dimension: its coordinate, or another variable along it with CF units of time.

    Raises:
        DataError: there are none.
    """
    if dim in variables and variables[dim].ndim <= 1:
        return variables[dim]
    along = [found for found in variables.values() if found.dims == (dim,) and " since " in text(found, "units")]
    if along:
        return along[0]
    raise DataError(
        f"{source}: dimension {dim!r} has no times. In xarray: data.assign_coords({dim}=pandas.date_range(START, "
        "periods=..., freq='5min'))"
    )


def grid_of(variables: Variables, name: str, dimensions: tuple[str, str, str]) -> Grid:
    """Returns the horizontal grid of a variable on the dimensions (time, y, x)."""
    variable, axes = variables[name], dimensions[1:]
    coordinates, attributes = [], []
    for dim in axes:
        found = variables.get(dim)
        known = found is not None and found.ndim == 1 and found.dtype.kind in "iuf"
        coordinates.append(decoded(found, f"{name}: {dim}", np.float64) if known and found is not None else None)
        attributes.append(_plain(found.attrs) if known and found is not None else {})
    mapping = variables.get(text(variable, "grid_mapping"))
    size = variable.sizes[axes[0]], variable.sizes[axes[1]]
    auxiliary = {
        str(one): (decoded(found.transpose(*axes), f"{name}: {one}", np.float64), _plain(found.attrs))
        for one, found in variables.items()
        if set(found.dims) == set(axes) and one not in axes and _is_place(found)
    }
    return Grid(size, axes, (coordinates[0], coordinates[1]), (attributes[0], attributes[1]),
                _plain(mapping.attrs) if mapping is not None else {}, auxiliary)  # fmt: skip


def _is_place(variable: Variable) -> bool:
    """Returns whether a variable is a latitude or longitude, by its `standard_name` or units."""
    known = text(variable, "standard_name") in ("latitude", "longitude")
    return variable.dtype.kind in "iuf" and (known or bool(_DEGREES.fullmatch(text(variable, "units"))))


def _plain(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Returns attributes that can be written back: texts and numbers, without those of packing."""
    left_out = ("_FillValue", "missing_value", "DIMENSION_LABELS", "bounds")
    found = {}
    for key, value in attributes.items():
        plain = value.decode(errors="replace") if isinstance(value, bytes) else value
        plain = plain.tolist() if isinstance(plain, np.ndarray | np.generic) else plain
        if key not in left_out and isinstance(plain, str | int | float | list):
            found[str(key)] = plain
    return found
