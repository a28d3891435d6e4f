"""Detection of a file's temperature variable and its axes: by name, by CF attributes, by units."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.data.area_means import cell_edges
from bench.data.netcdf import Variables, decoded, find, text
from bench.errors import DataError

if TYPE_CHECKING:
    from xarray import Variable

ANOMALIES = ("sst_anomaly", "ssta", "sstanom", "anom")
# Names in order of preference, lower case, and standard names of CF.
_FIELD_NAMES = ("sst", "tos", "sea_surface_temperature", *ANOMALIES)
_FIELD_STANDARD_NAMES = (
    "sea_surface_temperature",
    "sea_surface_temperature_anomaly",
    "sea_surface_foundation_temperature",
    "sea_surface_skin_temperature",
    "sea_surface_subskin_temperature",
)
_REGRID = "cdo remapbil,r180x89 IN.nc OUT.nc"


@dataclass(frozen=True)
class _Axis:
    names: tuple[str, ...]
    standard_name: str
    units: re.Pattern[str]
    """Units that identify the axis by themselves."""


_TIME = _Axis(("time",), "time", re.compile(r"\s*\w+\s+since\s.*"))
_LATITUDE = _Axis(("lat", "latitude", "nav_lat", "tlat"), "latitude", re.compile(r"deg(ree)?s?_?n(orth)?"))
_LONGITUDE = _Axis(("lon", "longitude", "nav_lon", "tlong"), "longitude", re.compile(r"deg(ree)?s?_?e(ast)?"))
_NORTH, _EAST = (re.compile(rf"(1|deg(ree)?s?_?({towards})?)?") for towards in ("n|north", "e|east"))
"""Units of latitude and of longitude; many files have none."""


@dataclass(frozen=True)
class Grid:
    """Centres of cells, degrees, float64."""

    latitudes: np.ndarray
    """Of the rows `(H,)` of a rectilinear grid, else of every cell, `(J,I)` or `(P,)`."""
    longitudes: np.ndarray
    dims: tuple[Any, ...]
    """Names of the field's dimensions on the grid."""
    rectilinear: bool
    """Whether rows have one latitude and columns one longitude."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the sizes of a field on it."""
        return (len(self.latitudes), len(self.longitudes)) if self.rectilinear else self.latitudes.shape

    def place(self, at: tuple[int, ...]) -> str:
        """Returns where a cell is, in words."""
        row, column = (at[0], at[1]) if self.rectilinear else (at, at)
        return f"lat {self.latitudes[row]:g}, lon {self.longitudes[column]:g}"


def find_field(path: Path, variables: Variables, wanted: str | None) -> str | None:
    """Returns the name of the temperature variable, or None if the file has none.

    Args:
        path: For messages.
        variables: Variables of the file.
        wanted: The name, if given; no other variable is then accepted.

    Raises:
        DataError: several could be it.
    """
    if wanted is not None:
        return wanted if wanted in variables else None
    if name := find(variables, _FIELD_NAMES):
        return name
    able = [name for name, one in variables.items() if text(one, "standard_name").lower() in _FIELD_STANDARD_NAMES]
    if len(able) > 1:
        raise DataError(
            f"{path}: expected one sea-surface temperature, found {', '.join(able)}. Set task.variable={able[0]}"
        )
    return able[0] if able else None


def find_axes(variables: Variables, field: str) -> tuple[str, str, str] | None:
    """Returns the variables of a field's time, latitude and longitude, or None if one is missing.

    Axes along the field's dimensions and those in its attribute `coordinates` come first.
    """
    of_field = [*map(str, variables[field].dims), *text(variables[field], "coordinates").split()]
    own = {name: variables[name] for name in of_field if name in variables}
    rest = {name: one for name, one in variables.items() if name not in own and name != field}
    found = [_find_axis(own, axis) or _find_axis(rest, axis) for axis in (_TIME, _LATITUDE, _LONGITUDE)]
    return None if None in found else tuple(found)  # type: ignore[return-value] # three names


def _find_axis(variables: Variables, axis: _Axis) -> str | None:
    by_units = (name for name, one in variables.items() if axis.units.fullmatch(text(one, "units").lower()))
    return find(variables, axis.names, (axis.standard_name,)) or next(by_units, None)


def read_grid(path: Path, variables: Variables, field: str, latitude: str, longitude: str) -> Grid:
    """Returns the grid that two variables describe.

    Args:
        path: For messages.
        variables: Variables of the file.
        field: Variable on the grid.
        latitude: Degrees north, of rows or of every cell.
        longitude: Degrees east, of columns or of every cell.

    Raises:
        DataError: they are not degrees, or match neither rows and columns nor individual cells.
    """
    rows, columns = (decoded(variables[axis], f"{path}: {axis}", np.float64) for axis in (latitude, longitude))
    dims = (*variables[latitude].dims[:1], *variables[longitude].dims[-1:])
    if rows.ndim == columns.ndim == 2 and (rows == rows[:, :1]).all() and (columns == columns[:1]).all():
        rows, columns = rows[:, 0], columns[0]  # a rectilinear grid, stored cell by cell
    by_cell = variables[latitude].dims == variables[longitude].dims and rows.shape == columns.shape
    # without names of dimensions, those of equal size have the same name
    by_cell = by_cell and (rows.ndim == 2 or (dims[0] == dims[-1] and variables[field].dims.count(dims[0]) == 1))
    for name, found, degrees in ((latitude, rows, _NORTH), (longitude, columns, _EAST)):
        units = text(variables[name], "units").lower()
        known = np.isfinite(found)  # ocean models may have no coordinates on land
        fits = known.any() if by_cell else found.ndim == 1 and known.all()
        if not fits or not degrees.fullmatch(units):
            what = f"shape {found.shape}" + (f" in {units!r}" if units else "")
            raise DataError(
                f"{path}: {name}: expected degrees, of rows and columns or of every cell, found {what}. "
                f"`{_REGRID}` makes a grid in latitude and longitude."
            )
    if np.nanmax(np.abs(rows), initial=0) > 90 + 1e-3 or np.nanmax(np.abs(columns), initial=0) > 720:
        raise DataError(f"{path}: {latitude}, {longitude}: expected degrees, found {rows[:3]}, {columns[:3]}")
    if by_cell:
        return Grid(rows, columns, tuple(variables[latitude].dims), rectilinear=False)
    columns = np.unwrap(columns, period=360)  # 178, -180 becomes 178, 180
    try:
        cell_edges(rows, what=latitude), cell_edges(columns, what=longitude)
    except DataError as error:
        raise DataError(f"{path}: {error}. `{_REGRID}` makes such a grid.") from error
    return Grid(rows, columns, dims, rectilinear=True)


def read_areas(path: Path, variables: Variables, grid: Grid) -> np.ndarray | None:
    """Returns the areas of a grid's cells, float64 of its shape, or None if the file has none.

    Raises:
        DataError: they belong to another grid.
    """
    name = find(variables, ("areacello",), ("cell_area",))
    if name is None:
        return None
    areas = decoded(variables[name], f"{path}: {name}", np.float64).squeeze()
    if areas.shape != grid.shape:
        raise DataError(f"{path}: {name}: expected the areas of {grid.shape} cells, found {areas.shape}")
    return areas


def surface(path: Path, name: str, variable: Variable, dims: tuple[Any, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Returns the field with axes ordered by dimension names if possible, else as stored; a single level is dropped.

    Args:
        path: For messages.
        name: Name of the variable.
        variable: As stored.
        dims: Names of time and of the grid's dimensions.
        shape: Their sizes.

    Raises:
        DataError: it has other dimensions.
    """
    if len(set(dims)) == len(shape) and set(dims) <= set(variable.dims):
        others = [dim for dim in variable.dims if dim not in dims]
        variable = variable.transpose(*dims, *others)
    # NCEI's files have a single level of depth
    if tuple(size for size in variable.shape if size != 1) != tuple(size for size in shape if size != 1):
        raise DataError(
            f"{path}: {name}: expected (time, lat, lon) {shape}, found {tuple(variable.shape)}. "
            "`cdo sellevidx,1 IN.nc OUT.nc` takes the surface of several levels."
        )
    return decoded(variable, f"{path}: {name}").reshape(shape)
