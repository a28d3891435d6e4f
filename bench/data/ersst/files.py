"""Monthly sea-surface temperature from NetCDF files of NOAA and others.

Source: Huang et al. 2017, Extended Reconstructed Sea Surface Temperature version 5 (ERSSTv5), 2-degree monthly means,
as one file of NOAA's Physical Sciences Laboratory (`sst.mnmean.nc`) or one file per month of NOAA's NCEI
(`ersst.v5.YYYYMM.nc`).  Other files with time, latitude, longitude and temperatures or anomalies are also read,
including those of ocean models, see docs/data.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.data.area_means import area_means, binned_means
from bench.data.ersst.axes import ANOMALIES, Grid, find_axes, find_field, read_areas, read_grid, surface
from bench.data.netcdf import months_of, open_netcdf, text
from bench.data.plausibility import SST, SST_ANOMALY, Plausible, refuse_implausible
from bench.errors import DataError, counted, did_you_mean, one_message

_NAMED_BY_MONTH = re.compile(r"ersst\.v\d\w?\.((?:18|19|20)\d\d)(0[1-9]|1[0-2])\.nc")
_KELVIN, _COLDEST_KELVIN = 273.15, 200.0


@dataclass(frozen=True)
class Record:
    """Months without a gap: absolute temperatures or anomalies on their original grid."""

    months: np.ndarray
    """`(T,)`, datetime64[M]."""
    field: np.ndarray
    """Float32 degrees, NaN on land: `(T,H,W)`, or `(T,J,I)` or `(T,P)` if the grid is not rectilinear."""
    grid: Grid
    files: tuple[str, ...]
    kind: Plausible
    """`SST` or `SST_ANOMALY`."""
    areas: np.ndarray | None = None
    """Areas of the cells of a grid that is not rectilinear, if a file has them."""

    @property
    def latitudes(self) -> np.ndarray:
        """Returns the centres of rows `(H,)`, or of cells."""
        return self.grid.latitudes

    @property
    def longitudes(self) -> np.ndarray:
        """Returns the centres of columns `(W,)`, or of cells."""
        return self.grid.longitudes

    def means(self, latitude_edges: np.ndarray, longitude_edges: np.ndarray) -> np.ndarray:
        """Returns means over other cells `(T,n,m)`, float64, NaN if less than half of a cell is known.

        Args:
            latitude_edges: Lower and upper edge of rows, `(n,2)`.
            longitude_edges: Western and eastern edge of columns, `(m,2)`.
        """
        edges = (latitude_edges, longitude_edges)
        if self.grid.rectilinear:
            return area_means(self.field, self.latitudes, self.longitudes, *edges)
        areas = None if self.areas is None else self.areas.ravel()
        by_cell = self.field.reshape(len(self.field), -1)
        return binned_means(by_cell, self.latitudes.ravel(), self.longitudes.ravel(), *edges, areas=areas)


def record_files(root: Path) -> list[Path]:
    """Returns the NetCDF files of a folder by name, without hidden ones such as macOS's `._sst.mnmean.nc`."""
    return [path for path in sorted(root.glob("*.nc")) if not path.name.startswith(".")]


def read_record(root: Path, variable: str | None = None) -> Record:
    """Returns the record of a folder, in order of time.

    Args:
        root: Folder with NetCDF files.
        variable: Variable of the temperatures; None to detect it by its name or `standard_name`.

    Raises:
        DataError: lists the problems of the files.
    """
    files = record_files(root)
    parts = [part for path in files if (part := read_file(path, variable)) is not None]
    if not parts:
        raise DataError(_why_no_record(root, files, variable))
    first = parts[0]
    problems = [
        f"{part.files[0]}: another grid than {first.files[0]}"
        for part in parts[1:]
        if not (_same(part.latitudes, first.latitudes) and _same(part.longitudes, first.longitudes))
        or part.grid.rectilinear != first.grid.rectilinear
    ]
    problems += [
        f"{part.files[0]}: {part.kind.what}, but {first.files[0]} has {first.kind.what}"
        for part in parts[1:]
        if part.kind != first.kind
    ]
    if problems:
        raise DataError(one_message(f"the data under {root} has {counted(len(problems), 'problem')}:", problems))
    months = np.concatenate([part.months for part in parts])
    order = np.argsort(months, kind="stable")
    months = months[order]
    steps = np.diff(months).astype(np.int64)
    if (steps != 1).any():
        at = int(np.flatnonzero(steps != 1)[0])
        names = np.repeat([part.files[0] for part in parts], [len(part.months) for part in parts])[order]
        raise DataError(
            f"{root}: expected every month once, found {months[at + 1]} right after {months[at]} "
            f"({' and '.join(dict.fromkeys(names[at : at + 2].tolist()))}). "
            "Months must come from one file each; `cdo monmean IN.nc OUT.nc` makes monthly means of daily ones."
        )
    field = np.concatenate([part.field for part in parts])[order]
    names_of_files = tuple(part.files[0] for part in parts)
    areas = None if first.grid.rectilinear else _areas(root, files, first.grid, field)
    return Record(months, field, first.grid, names_of_files, first.kind, areas)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, equal_nan=True)


def _why_no_record(root: Path, files: list[Path], variable: str | None) -> str:
    """Returns why a folder has no record."""
    if variable is None:
        found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        return (
            f"{root}: expected NetCDF files with sst (or sst_anomaly), time, lat and lon, such as sst.mnmean.nc; found "
            f"{found}. `earthbench data fetch enso_ersst --out DIR` downloads it; task.variable=NAME reads another "
            "variable."
        )
    have: dict[str, None] = {}
    for path in files:
        with open_netcdf(path) as variables:
            have |= dict.fromkeys(name for name in variables if len(variables[name].dims) > 1)
    return (
        f"{root}: expected a variable {variable!r} (task.variable) with time, latitude and longitude in its NetCDF "
        f"files. {did_you_mean(variable, have)}"
    )


def _areas(root: Path, files: list[Path], grid: Grid, field: np.ndarray) -> np.ndarray | None:
    """Returns the areas of a grid's cells from the first file that has them, or None.

    Raises:
        DataError: a cell with temperatures has none.
    """
    for path in files:
        with open_netcdf(path) as variables:
            areas = read_areas(path, variables, grid)
        if areas is None:
            continue
        areas = np.where(areas > 0, areas, np.nan)
        without = int((np.isfinite(field).any(0) & ~np.isfinite(areas)).sum())
        if without:
            raise DataError(
                f"{path}: expected areas of all cells with temperatures, found {without} cells without. Cells are "
                f"weighted by the cosine of their latitude if {root} has no areas."
            )
        return areas
    return None


def read_file(path: Path, variable: str | None = None) -> Record | None:
    """Returns a file's record, or None if it has none (ICAR-ENSO's files have rows of years instead of times).

    Args:
        path: A NetCDF file.
        variable: Variable of the temperatures; None to detect it by its name or `standard_name`.

    Raises:
        DataError: it cannot be read, its axes are inconsistent, or its values are not sea-surface temperatures.
    """
    with open_netcdf(path) as variables:
        name = find_field(path, variables, variable)
        axes = find_axes(variables, name) if name is not None else None
        if name is None or axes is None:
            return None
        time, latitude, longitude = axes
        months = months_of(path, variables, time)
        if not len(months):
            raise DataError(f"{path}: {time}: expected months, found none")
        _check_month_in_name(path, months)
        grid = read_grid(path, variables, name, latitude, longitude)
        dims = (*variables[time].dims[:1], *grid.dims)
        field = surface(path, name, variables[name], dims, (len(months), *grid.shape))
        source = f"{path}: {name}"
        said = " ".join((text(variables[name], "standard_name"), text(variables[name], "long_name"))).lower()
        kind = SST_ANOMALY if name.lower() in ANOMALIES or "anomal" in said else SST
        field = _in_degrees(field, text(variables[name], "units"), kind, source)
    if not np.isfinite(field).any():
        raise DataError(f"{source}: expected {kind.what} of {months[0]}..{months[-1]}, found only missing values")
    refuse_implausible(field, kind, source, lambda at: f"{months[at[0]]}, {grid.place(at[1:])}")
    if grid.rectilinear:  # a repeated column would count twice
        once = int((np.abs(grid.longitudes - grid.longitudes[0]) < 360 - 1e-3).sum())
        grid, field = replace(grid, longitudes=grid.longitudes[:once]), field[..., :once]
    return Record(months, field, grid, (path.name,), kind)


def _check_month_in_name(path: Path, months: np.ndarray) -> None:
    named = _NAMED_BY_MONTH.fullmatch(path.name)
    if named and [str(month) for month in months] != [f"{named[1]}-{named[2]}"]:
        raise DataError(
            f"{path}: time: expected {named[1]}-{named[2]}, as the file is named, found {months[0]}..{months[-1]}"
        )


def _in_degrees(field: np.ndarray, units: str, kind: Plausible, source: str) -> np.ndarray:
    """Returns degrees Celsius, or K for anomalies; kelvin is detected by values, because units are often missing."""
    unit = re.sub(r"deg(rees?)?|scale|[\s_°]", "", units.lower())
    if unit not in ("", "c", "celsius", "centigrade", "k", "kelvin"):
        raise DataError(f"{source}: expected degrees Celsius or kelvin, found units {units!r}")
    if kind is SST and np.nanmin(field, initial=np.inf) > _COLDEST_KELVIN:
        return field - np.float32(_KELVIN)
    return field
