"""Observed sea-surface temperature by month, from NetCDF files as NOAA publishes them, on the grid of ICAR-ENSO.

Source: Huang et al. 2017, Extended Reconstructed Sea Surface Temperature version 5 (ERSSTv5), 2-degree monthly means,
as one file of NOAA's Physical Sciences Laboratory (`sst.mnmean.nc`) or one file per month of NOAA's NCEI
(`ersst.v5.YYYYMM.nc`).  Other files with time, latitude, longitude and temperatures or anomalies are read alike;
docs/data.md says which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bench.data.area_means import area_means, cell_edges
from bench.data.icar_enso.dataset import CROP, LATITUDES, LONGITUDES
from bench.data.netcdf import Variables, decoded, find, months_of, open_netcdf, text
from bench.data.plausibility import SST, SST_ANOMALY, Plausible, refuse_implausible
from bench.errors import DataError, counted, one_message

if TYPE_CHECKING:
    from xarray import Variable

Box = Literal["exact", "papers"]
NINO34_DEGREES = ((-5.0, 5.0), (190.0, 240.0))
"""5 S..5 N, 170..120 W."""
PAPERS_BOX = (slice(10, 13), slice(38, 49))
"""The same on the 5-degree grid as the papers take it: cells centred 5 S..5 N and 190..240 E, of one weight each."""
_ANOMALIES = ("sst_anomaly", "ssta", "sstanom", "anom")
# Names in order of preference, lower case, and standard names of CF.
_FIELDS = (
    ("sst", "tos", "sea_surface_temperature", *_ANOMALIES),
    ("sea_surface_temperature", "sea_surface_temperature_anomaly", "sea_surface_foundation_temperature"),
)
_TIME = (("time",), ("time",))
_LATITUDE = (("lat", "latitude", "nav_lat", "tlat"), ("latitude",))
_LONGITUDE = (("lon", "longitude", "nav_lon", "tlong"), ("longitude",))
_NORTH, _EAST = (re.compile(rf"(1|deg(ree)?s?_?({towards})?)?") for towards in ("n|north", "e|east"))
"""Units of latitude and of longitude; many files have none."""
_REGRID = "cdo remapbil,r180x89 IN.nc OUT.nc"
_NAMED_BY_MONTH = re.compile(r"ersst\.v\d\w?\.((?:18|19|20)\d\d)(0[1-9]|1[0-2])\.nc")
_KELVIN, _COLDEST_KELVIN = 273.15, 200.0
_HALF = 0.5
"""A 5-degree cell is sea where at least half of its area has a temperature."""


@dataclass(frozen=True)
class Record:
    """Months without a gap: absolute temperatures or anomalies, on whatever grid they came."""

    months: np.ndarray
    """`(T,)`, datetime64[M]."""
    field: np.ndarray
    """`(T,H,W)`, float32 degrees, NaN on land."""
    latitudes: np.ndarray
    longitudes: np.ndarray
    files: tuple[str, ...]
    kind: Plausible
    """`SST` or `SST_ANOMALY`."""


@dataclass(frozen=True)
class Anomalies:
    """Departures from the mean of each calendar month over a base period."""

    months: np.ndarray
    """`(T,)`, datetime64[M]."""
    sst: np.ndarray
    """5-degree area means `(T,24,72)`, float32 K, 0 on land."""
    sea: np.ndarray
    """`(24,72)`: cells that are known in every month."""
    nino34: dict[Box, np.ndarray]
    """Monthly Nino3.4 index `(T,)`, float64 K: area mean of the exact box on the grid of the files, and the papers'."""
    files: tuple[str, ...]


def read_anomalies(root: Path, base_from: int, base_to: int) -> Anomalies:
    """Returns the anomalies of a folder's record.

    Args:
        root: Folder with NetCDF files.
        base_from: First year of the base period.
        base_to: Its last year.

    Raises:
        DataError: no file with a record, files that do not fit together, a gap, or a base period that is not covered.
    """
    record = read_record(root)
    months = record.months
    base = (months >= np.datetime64(f"{base_from:04d}-01")) & (months <= np.datetime64(f"{base_to:04d}-12"))
    if base.sum() != 12 * (base_to - base_from + 1) or base_to < base_from:
        raise DataError(
            f"{root}: base period {base_from}..{base_to}: the record has {months[0]}..{months[-1]}. "
            "Set task.base_from and task.base_to."
        )
    grid = (record.field, record.latitudes, record.longitudes)
    edges = cell_edges(LATITUDES, what="lat"), cell_edges(LONGITUDES, what="lon")
    means = area_means(*grid, *edges, least_share=_HALF)
    cells = _departures(means, months, base)
    refuse_implausible(
        cells,
        SST_ANOMALY,
        f"{root}: anomalies from {base_from}-{base_to}",
        lambda at: f"{months[at[0]]}, lat {LATITUDES[at[1]]}, lon {LONGITUDES[at[2]]}",
    )
    sea = np.isfinite(cells).all(0)
    sst = np.where(sea, cells, 0)
    boxes = [np.array([bounds]) for bounds in NINO34_DEGREES]
    box = area_means(*grid, *boxes)
    exact = _departures(box, months, base)[:, 0, 0]
    if not (np.isfinite(exact).all() and sea[PAPERS_BOX].all()):
        without = months[~(np.isfinite(box[:, 0, 0]) & np.isfinite(means[:, *PAPERS_BOX]).all((1, 2)))]
        raise DataError(
            f"{root}: expected temperatures in the Nino3.4 box in every month, found {len(without)} months without: "
            f"{', '.join(map(str, without[:5]))}"
        )
    indices: dict[Box, np.ndarray] = {"exact": exact, "papers": sst[:, *PAPERS_BOX].mean((1, 2))}
    return Anomalies(months, sst.astype(np.float32), sea, indices, record.files)


def _departures(values: np.ndarray, months: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Returns values less the mean of their calendar month over the base period, float64."""
    calendar = months.astype("datetime64[M]").astype(np.int64) % 12
    result = np.empty(values.shape)
    for month in range(12):
        of_month = calendar == month
        result[of_month] = values[of_month] - values[of_month & base].mean(0)
    return result


def record_files(root: Path) -> list[Path]:
    """Returns the NetCDF files of a folder, by name; hidden ones, such as macOS's `._sst.mnmean.nc`, are none."""
    return [path for path in sorted(root.glob("*.nc")) if not path.name.startswith(".")]


def read_record(root: Path) -> Record:
    """Returns the record of a folder, in order of time.

    Raises:
        DataError: lists what is wrong with the files.
    """
    parts = [part for path in record_files(root) if (part := read_file(path)) is not None]
    if not parts:
        found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{root}: expected NetCDF files with sst (or sst_anomaly), time, lat and lon, such as sst.mnmean.nc; found "
            f"{found}. `earthbench data fetch enso_ersst --out DIR` downloads it."
        )
    first = parts[0]
    problems = [
        f"{part.files[0]}: another grid than {first.files[0]}"
        for part in parts[1:]
        if not (_same(part.latitudes, first.latitudes) and _same(part.longitudes, first.longitudes))
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
    files = tuple(part.files[0] for part in parts)
    return Record(months, field, first.latitudes, first.longitudes, files, first.kind)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other)


def read_file(path: Path) -> Record | None:
    """Returns a file's record; None where it has none (ICAR-ENSO's own files have rows of years, not a time).

    Raises:
        DataError: it cannot be read, its axes do not fit together, or its values are no sea-surface temperatures.
    """
    with open_netcdf(path) as variables:
        name = find(variables, *_FIELDS)
        axes = [find(variables, *wanted) for wanted in (_TIME, _LATITUDE, _LONGITUDE)]
        if name is None or None in axes:
            return None
        time, latitude, longitude = (str(axis) for axis in axes)
        variable = variables[name]
        months = months_of(path, variables, time)
        if not len(months):
            raise DataError(f"{path}: {time}: expected months, found none")
        _hold_to_its_name(path, months)
        latitudes, longitudes, dims = _grid(path, variables, latitude, longitude)
        field = _field(path, name, variable, (*variables[time].dims[:1], *dims), (months, latitudes, longitudes))
        source = f"{path}: {name}"
        said = " ".join((text(variable, "standard_name"), text(variable, "long_name"))).lower()
        kind = SST_ANOMALY if name.lower() in _ANOMALIES or "anomal" in said else SST
        field = _in_degrees(field, text(variable, "units"), kind, source)
    if not np.isfinite(field).any():
        raise DataError(f"{source}: expected {kind.what} of {months[0]}..{months[-1]}, found no value that is known")
    refuse_implausible(
        field,
        kind,
        source,
        lambda at: f"{months[at[0]]}, lat {latitudes[at[1]]:g}, lon {longitudes[at[2]]:g}",
    )
    once = int((np.abs(longitudes - longitudes[0]) < 360 - 1e-3).sum())  # a column that comes again would count twice
    return Record(months, field[..., :once], latitudes, longitudes[:once], (path.name,), kind)


def _hold_to_its_name(path: Path, months: np.ndarray) -> None:
    named = _NAMED_BY_MONTH.fullmatch(path.name)
    if named and [str(month) for month in months] != [f"{named[1]}-{named[2]}"]:
        raise DataError(
            f"{path}: time: expected {named[1]}-{named[2]}, as the file is named, found {months[0]}..{months[-1]}"
        )


def _grid(
    path: Path, variables: Variables, latitude: str, longitude: str
) -> tuple[np.ndarray, np.ndarray, tuple[Any, ...]]:
    """Returns centres of rows and columns, degrees, float64, and the names of the two dimensions."""
    rows, columns = (decoded(variables[axis], f"{path}: {axis}", np.float64) for axis in (latitude, longitude))
    dims = (*variables[latitude].dims[:1], *variables[longitude].dims[-1:])
    if rows.ndim == columns.ndim == 2 and (rows == rows[:, :1]).all() and (columns == columns[:1]).all():
        rows, columns = rows[:, 0], columns[0]  # a regular grid, every cell's degrees written out
    for name, found, degrees in ((latitude, rows, _NORTH), (longitude, columns, _EAST)):
        units = text(variables[name], "units").lower()
        if found.ndim != 1 or not np.isfinite(found).all() or not degrees.fullmatch(units):
            what = f"shape {found.shape}" + (f" in {units!r}" if units else "")
            raise DataError(
                f"{path}: {name}: expected one axis of degrees, so that the grid is regular in latitude and longitude; "
                f"found {what}. `{_REGRID}` makes one."
            )
    if np.abs(rows).max(initial=0) > 90 + 1e-3 or np.abs(columns).max(initial=0) > 720:
        raise DataError(f"{path}: {latitude}, {longitude}: expected degrees, found {rows[:3]}, {columns[:3]}")
    columns = np.unwrap(columns, period=360)  # 178, -180 go on as 178, 180
    try:
        cell_edges(rows, what=latitude), cell_edges(columns, what=longitude)
    except DataError as error:
        raise DataError(f"{path}: {error}. `{_REGRID}` makes such a grid.") from error
    return rows, columns, dims


def _field(
    path: Path, name: str, variable: Variable, dims: tuple[Any, ...], axes: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> np.ndarray:
    """Returns the field `(T,H,W)`; by the names of its dimensions where they tell, else by their order."""
    wanted = tuple(len(axis) for axis in axes)
    if len(set(dims)) == 3 and set(dims) <= set(variable.dims):
        others = [dim for dim in variable.dims if dim not in dims]
        variable = variable.transpose(*dims, *others)
    # NCEI's files have a level of depth, of which there is one
    if tuple(size for size in variable.shape if size != 1) != tuple(size for size in wanted if size != 1):
        raise DataError(
            f"{path}: {name}: expected (time, lat, lon) {wanted}, found {tuple(variable.shape)}. "
            "`cdo sellevidx,1 IN.nc OUT.nc` takes the surface of several levels."
        )
    return decoded(variable, f"{path}: {name}").reshape(wanted)


def _in_degrees(field: np.ndarray, units: str, kind: Plausible, source: str) -> np.ndarray:
    """Returns degrees Celsius, or K of an anomaly; kelvin is known by the values, for units are often left out."""
    unit = re.sub(r"deg(rees?)?|scale|[\s_°]", "", units.lower())
    if unit not in ("", "c", "celsius", "centigrade", "k", "kelvin"):
        raise DataError(f"{source}: expected degrees Celsius or kelvin, found units {units!r}")
    if kind is SST and np.nanmin(field, initial=np.inf) > _COLDEST_KELVIN:
        return field - np.float32(_KELVIN)
    return field


def cropped(sst: np.ndarray) -> np.ndarray:
    """Returns 5-degree fields `(T,24,72)` within 95..330 degrees east, `(T,24,48)`, as ICAR-ENSO is cropped."""
    return np.ascontiguousarray(sst[..., CROP])
