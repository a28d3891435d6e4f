"""Anomalies of a record on the grid of ICAR-ENSO, from the mean of each calendar month over a base period."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from bench.data.area_means import cell_edges
from bench.data.ersst.files import read_record, record_files
from bench.data.icar_enso.dataset import CROP, LATITUDES, LONGITUDES
from bench.data.plausibility import SST_ANOMALY, refuse_implausible
from bench.errors import DataError

Box = Literal["exact", "papers"]
NINO34_DEGREES = ((-5.0, 5.0), (190.0, 240.0))
"""5 S..5 N, 170..120 W."""
PAPERS_BOX = (slice(10, 13), slice(38, 49))
"""The papers' version on the 5-degree grid: cells centred within 5 S..5 N and 190..240 E, equally weighted."""
YEAR = 12
Months = tuple[np.datetime64, np.datetime64]
"""A stretch of months: the first, and the first one after it, datetime64[M]."""
_Files = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class BasePeriod:
    """The months that the mean of each calendar month is taken over."""

    stretches: tuple[Months, ...]

    @classmethod
    def years(cls, first: int, last: int) -> BasePeriod:
        """Returns whole years, both included."""
        return cls(((np.datetime64(f"{first:04d}-01", "M"), np.datetime64(f"{last:04d}-12", "M") + 1),))

    def __str__(self) -> str:
        """Returns it in words: 1961-1990, or 1961-01..1990-06."""
        plain = self.plain()
        return ("-" if isinstance(plain[0], int) else ", ").join(map(str, plain))

    def plain(self) -> list[int] | list[str]:
        """Returns the first and the last year if it consists of whole years, else its stretches, as JSON types."""
        if len(self.stretches) == 1:
            first, end = self.stretches[0]
            if str(first).endswith("-01") and str(end).endswith("-01"):
                return [int(str(first)[:4]), int(str(end - 1)[:4])]
        return [f"{first}..{end - 1}" for first, end in self.stretches]

    def among(self, months: np.ndarray) -> np.ndarray:
        """Returns which of some months belong to it, bool `(T,)`."""
        inside = np.zeros(len(months), bool)
        for first, end in self.stretches:
            inside |= (months >= first) & (months < end)
        return inside

    @property
    def count(self) -> int:
        """Returns its number of months."""
        return sum(int((end - first).astype(int)) for first, end in self.stretches)


@dataclass(frozen=True)
class MonthlyMeans:
    """Monthly means of a record, before subtracting a climatology."""

    months: np.ndarray
    """`(T,)`, datetime64[M]."""
    cells: np.ndarray
    """5-degree area means `(T,24,72)`, float64 degrees, NaN on land."""
    box: np.ndarray
    """Area mean of the exact Nino3.4 box on the grid of the files, `(T,)`, float64 degrees."""
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


def monthly_means(root: Path, variable: str | None = None) -> MonthlyMeans:
    """Returns the means of a folder's record, cached until a file changes.

    Args:
        root: Folder with NetCDF files.
        variable: Variable of the temperatures, see `read_record`.

    Raises:
        DataError: there is no record, files are inconsistent, or a month is missing.
    """
    return _monthly_means(root, variable, _files(root))


def anomalies_of(root: Path, base: BasePeriod, variable: str | None = None) -> Anomalies:
    """Returns the anomalies of a folder, which the splits of a run share.

    Args:
        root: Folder with NetCDF files.
        base: The base period.
        variable: Variable of the temperatures, see `read_record`.

    Raises:
        DataError: as `monthly_means`, or the base period is not covered, or the Nino3.4 box has missing temperatures.
    """
    return _anomalies(root, base, variable, _files(root))


def read_anomalies(root: Path, base_from: int, base_to: int, variable: str | None = None) -> Anomalies:
    """Returns the anomalies of a folder from the mean of whole years, `base_from` to `base_to`: see `anomalies_of`."""
    return anomalies_of(root, BasePeriod.years(base_from, base_to), variable)


def cropped(sst: np.ndarray) -> np.ndarray:
    """Returns 5-degree fields `(...,24,72)` within 95..330 degrees east, `(...,24,48)`, as ICAR-ENSO is cropped."""
    return np.ascontiguousarray(sst[..., CROP])


def _files(root: Path) -> _Files:
    return tuple((path.name, path.stat().st_mtime_ns if path.exists() else 0) for path in record_files(root))


@lru_cache(maxsize=2)
def _monthly_means(root: Path, variable: str | None, files: _Files) -> MonthlyMeans:
    record = read_record(root, variable)
    cells = record.means(cell_edges(LATITUDES, what="lat"), cell_edges(LONGITUDES, what="lon"))
    south_north, west_east = (np.array([bounds]) for bounds in NINO34_DEGREES)
    return MonthlyMeans(record.months, cells, record.means(south_north, west_east)[:, 0, 0], record.files)


@lru_cache(maxsize=4)
def _anomalies(root: Path, base: BasePeriod, variable: str | None, files: _Files) -> Anomalies:
    record = _monthly_means(root, variable, files)
    months, inside = record.months, base.among(record.months)
    if inside.sum() != base.count or not base.count:
        raise DataError(
            f"{root}: base period {'..'.join(map(str, base.plain()))}: the record has {months[0]}..{months[-1]}. "
            "Set task.base_from and task.base_to."
        )
    cells = _departures(record.cells, months, inside)
    refuse_implausible(
        cells,
        SST_ANOMALY,
        f"{root}: anomalies from {base}",
        lambda at: f"{months[at[0]]}, lat {LATITUDES[at[1]]}, lon {LONGITUDES[at[2]]}",
    )
    sea = np.isfinite(cells).all(0)
    exact = _departures(record.box, months, inside)
    if not (np.isfinite(exact).all() and sea[PAPERS_BOX].all()):
        without = months[~(np.isfinite(record.box) & np.isfinite(record.cells[:, *PAPERS_BOX]).all((1, 2)))]
        raise DataError(
            f"{root}: expected temperatures in the Nino3.4 box in every month, found {len(without)} months without: "
            f"{', '.join(map(str, without[:5]))}"
        )
    sst = np.where(sea, cells, 0)
    indices: dict[Box, np.ndarray] = {"exact": exact, "papers": sst[:, *PAPERS_BOX].mean((1, 2))}
    return Anomalies(months, sst.astype(np.float32), sea, indices, record.files)


def _departures(values: np.ndarray, months: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Returns values minus the mean of their calendar month over the base period, float64."""
    calendar = calendar_months(months)
    result = np.empty(values.shape)
    for month in range(YEAR):
        of_month = calendar == month
        result[of_month] = values[of_month] - values[of_month & base].mean(0)
    return result


def calendar_months(months: np.ndarray | Sequence[np.datetime64]) -> np.ndarray:
    """Returns the month within the year, 0 for January, of datetime64[M] `(T,)`."""
    numbers: np.ndarray = np.asarray(months).astype("datetime64[M]").astype(np.int64) % YEAR
    return numbers
