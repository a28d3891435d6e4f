"""The time axis of a cube: its cadence, and the stretches without a gap."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from bench.api import MONTH_MINUTES, cadence_text
from bench.data.netcdf import decoded, text
from bench.errors import DataError

if TYPE_CHECKING:
    from xarray import Variable

_TOLERANCE = 0.1
"""Tolerance as a share of the cadence: radar scans start a few seconds early or late."""
_MIN_REGULAR_SHARE = 0.5
_MAX_IRREGULAR_SHARE = 0.05
"""Shares of the steps: the least that must equal the cadence, and the most that may not be a multiple of it."""
_MONTH_DAYS = (28, 31)


@dataclass(frozen=True)
class TimeAxis:
    """The times of a cube, in order."""

    times: np.ndarray
    """`(T,)` datetime64[s]."""
    cadence_minutes: float
    breaks: np.ndarray
    """Numbers of the frames after a gap, ascending, without 0."""

    @property
    def gaps(self) -> list[str]:
        """Returns every gap in words."""
        return [f"{self.times[at - 1]} to {self.times[at]}" for at in self.breaks]

    def stretches(self, first: int, last: int) -> list[tuple[int, int]]:
        """Returns the stretches `(first, last + 1)` of frames without a gap within a range of frames."""
        inside = [int(at) for at in self.breaks if first < at < last]
        edges = [first, *inside, last]
        return [(a, b) for a, b in pairwise(edges) if b > a]


def decoded_times(variable: Variable, source: str) -> np.ndarray:
    """Returns the times of a variable, datetime64[s] `(T,)`.

    Args:
        variable: As stored, with the attributes `units` and possibly `calendar`.
        source: File and variable, for messages.

    Raises:
        DataError: it has no CF units of time, or its calendar has days that the standard calendar lacks.
    """
    if variable.dtype.kind == "M":
        return np.atleast_1d(variable.to_numpy()).astype("datetime64[s]")
    units, calendar = text(variable, "units"), text(variable, "calendar", "standard").strip().lower()
    if not re.match(r"\s*\w+\s+since\s", units):
        raise DataError(
            f"{source}: expected times of CF such as 'minutes since 2020-01-01', found units {units!r}. In xarray: "
            "data.assign_coords(time=pandas.date_range(...)).to_netcdf(...)"
        )
    import cftime

    stamps = np.atleast_1d(decoded(variable, source, np.float64))
    if not np.isfinite(stamps).all():
        raise DataError(f"{source}: {int((~np.isfinite(stamps)).sum())} of {stamps.size} times are missing")
    try:
        dates = np.atleast_1d(cftime.num2date(stamps, units, calendar))
        parts = [f"{d.year:04d}-{d.month:02d}-{d.day:02d}T{d.hour:02d}:{d.minute:02d}:{d.second:02d}" for d in dates]
        return np.array(parts, "datetime64[s]")
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise DataError(
            f"{source}: times in units {units!r} and calendar {calendar!r} cannot be put on the standard calendar "
            f"({' '.join(str(error).split())}). `cdo -r -setcalendar,standard copy IN.nc OUT.nc` rewrites them."
        ) from error


def time_axis(times: np.ndarray, source: str) -> TimeAxis:
    """Returns a time axis with its cadence, the most frequent step, and its gaps.

    Args:
        times: datetime64[s] `(T,)`.
        source: File and variable, for messages.

    Raises:
        DataError: there is only one frame, times descend or repeat, or there is no common cadence.
    """
    if len(times) < 2:
        raise DataError(
            f"{source}: expected at least 2 frames, found {len(times)}: no cadence, and nothing to forecast"
        )
    steps = np.diff(times).astype(np.int64)
    name = source.rpartition(": ")[2]
    if (steps < 0).all():
        raise DataError(
            f"{source}: expected ascending times, found descending ones from {times[0]} to {times[-1]}. In xarray: "
            f"data.sortby({name!r})"
        )
    for wrong, what, cure in (
        (steps == 0, "is repeated", f"drop_duplicates({name!r})"),
        (steps < 0, "comes after a later one", f"sortby({name!r})"),
    ):
        if wrong.any():
            at = int(np.argmax(wrong)) + 1
            raise DataError(
                f"{source}: expected times that ascend, found {int(wrong.sum())} that do not: {times[at]} (frame {at}) "
                f"{what}. In xarray: data.{cure}"
            )
    days = steps / 86_400
    if np.mean((days >= _MONTH_DAYS[0]) & (days <= _MONTH_DAYS[1])) > _MIN_REGULAR_SHARE and len(np.unique(steps)) > 1:
        months = times.astype("datetime64[M]").astype(np.int64)
        return TimeAxis(times, MONTH_MINUTES, np.flatnonzero(np.diff(months) != 1) + 1)
    values, counts = np.unique(steps, return_counts=True)
    cadence = int(values[np.argmax(counts)])
    multiple = np.rint(steps / cadence)
    off = np.abs(steps - multiple * cadence) > _TOLERANCE * cadence
    regular = (multiple == 1) & ~off
    if regular.mean() < _MIN_REGULAR_SHARE or off.mean() > _MAX_IRREGULAR_SHARE:
        most = sorted(zip(counts, values, strict=True), reverse=True)[:4]
        found = ", ".join(f"{cadence_text(value / 60)} ({count / len(steps):.0%})" for count, value in most)
        raise DataError(
            f"{source}: expected frames at one cadence, but for gaps; found steps of {found}. In xarray: "
            f"data.resample({name}={f'{cadence}s'!r}).nearest(tolerance=...), or select the frames of one cadence"
        )
    return TimeAxis(times, cadence / 60, np.flatnonzero(~regular) + 1)
