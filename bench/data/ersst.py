"""Observed sea-surface temperature by month, from NetCDF files as NOAA publishes them, on the grid of ICAR-ENSO.

Source: Huang et al. 2017, Extended Reconstructed Sea Surface Temperature version 5 (ERSSTv5), 2-degree monthly means,
as one file of NOAA's Physical Sciences Laboratory (`sst.mnmean.nc`) or one file per month of NOAA's NCEI
(`ersst.v5.YYYYMM.nc`).  Other files with `time`, `lat`, `lon` and `sst` or `sst_anomaly` are read alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.data.area_means import area_means, cell_edges
from bench.data.icar_enso import CROP, LATITUDES, LONGITUDES, open_netcdf
from bench.errors import DataError, one_message

Box = Literal["exact", "papers"]
NINO34_DEGREES = ((-5.0, 5.0), (190.0, 240.0))
"""5 S..5 N, 170..120 W."""
PAPERS_BOX = (slice(10, 13), slice(38, 49))
"""The same on the 5-degree grid as the papers take it: cells centred 5 S..5 N and 190..240 E, of one weight each."""
_NAMES = ("sst", "sst_anomaly")
_UNITS = re.compile(r"(days|hours) since (\d{1,4})-(\d{1,2})-(\d{1,2})")
_CALENDARS = ("standard", "gregorian", "proleptic_gregorian")
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
    cells = _departures(area_means(*grid, *edges, least_share=_HALF), months, base)
    sea = np.isfinite(cells).all(0)
    sst = np.where(sea, cells, 0)
    boxes = [np.array([bounds]) for bounds in NINO34_DEGREES]
    exact = _departures(area_means(*grid, *boxes), months, base)[:, 0, 0]
    if not (np.isfinite(exact).all() and sea[PAPERS_BOX].all()):
        raise DataError(f"{root}: expected temperatures in the Nino3.4 box in every month, found months without")
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


def read_record(root: Path) -> Record:
    """Returns the record of a folder, in order of time.

    Raises:
        DataError: lists what is wrong with the files.
    """
    parts = [part for path in sorted(root.glob("*.nc")) if (part := read_file(path)) is not None]
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
    if problems:
        raise DataError(one_message(f"the data under {root} has {len(problems)} problems:", problems))
    months = np.concatenate([part.months for part in parts])
    order = np.argsort(months, kind="stable")
    months = months[order]
    steps = np.diff(months).astype(np.int64)
    if (steps != 1).any():
        at = int(np.flatnonzero(steps != 1)[0])
        raise DataError(f"{root}: expected every month once, found {months[at + 1]} right after {months[at]}")
    field = np.concatenate([part.field for part in parts])[order]
    return Record(months, field, first.latitudes, first.longitudes, tuple(part.files[0] for part in parts))


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other)


def read_file(path: Path) -> Record | None:
    """Returns a file's record; None where it has none (ICAR-ENSO's own files have rows of years, not a time).

    Raises:
        DataError: it cannot be read, or its axes do not fit together.
    """
    with open_netcdf(path) as variables:
        name = next((name for name in _NAMES if name in variables), None)
        if name is None or any(axis not in variables for axis in ("time", "lat", "lon")):
            return None
        months = _months(path, variables["time"])
        latitudes, longitudes = (np.array(variables[axis][:], np.float64) for axis in ("lat", "lon"))
        variable = variables[name]
        wanted = (len(months), len(latitudes), len(longitudes))
        # NCEI's files have a level of depth, of which there is one
        if tuple(size for size in variable.shape if size != 1) != tuple(size for size in wanted if size != 1):
            raise DataError(f"{path}: {name}: expected (time, lat, lon) {wanted}, found {tuple(variable.shape)}")
        field = _decoded(variable).reshape(wanted)
    return Record(months, field, latitudes, longitudes, (path.name,))


def _decoded(variable: Any) -> np.ndarray:
    """Returns a variable's values by the CF conventions: float32, NaN where missing."""
    attributes = _attributes(variable)
    stored = np.asarray(variable[:])
    values = stored.astype(np.float32)
    for key in ("_FillValue", "missing_value"):
        for missing in np.ravel(attributes.get(key, ())):
            values[stored == missing] = np.nan
    scale, offset = (float(np.ravel(attributes.get(key, default))[0]) for key, default in _PACKING)
    return values if (scale, offset) == (1, 0) else (values * scale + offset).astype(np.float32)


_PACKING = (("scale_factor", 1.0), ("add_offset", 0.0))


def _months(path: Path, variable: Any) -> np.ndarray:
    attributes = _attributes(variable)
    units, calendar = (_text(attributes.get(key, "standard")) for key in ("units", "calendar"))
    match = _UNITS.match(units)
    if not match or calendar not in _CALENDARS:
        raise DataError(
            f"{path}: time: expected 'days since YEAR-MONTH-DAY' of the Gregorian calendar, found {units!r}, "
            f"{calendar!r}"
        )
    unit, year, month, day = match.group(1), *(int(part) for part in match.groups()[1:])
    start = np.datetime64(f"{year:04d}-{month:02d}-{day:02d}", "h")
    hours = np.rint(np.array(variable[:], np.float64) * (24 if unit == "days" else 1)).astype(np.int64)
    return (start + hours.astype("timedelta64[h]")).astype("datetime64[M]")


def _attributes(variable: Any) -> Mapping[str, Any]:
    attributes: Mapping[str, Any] = variable.attrs if hasattr(variable, "attrs") else variable._attributes
    return attributes


def _text(value: Any) -> str:
    value = np.ravel(value)[0]
    return value.decode() if isinstance(value, bytes) else str(value)


def cropped(sst: np.ndarray) -> np.ndarray:
    """Returns 5-degree fields `(T,24,72)` within 95..330 degrees east, `(T,24,48)`, as ICAR-ENSO is cropped."""
    return np.ascontiguousarray(sst[..., CROP])
