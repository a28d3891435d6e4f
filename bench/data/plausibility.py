"""Plausible ranges of each field, for all tasks and readers.

An undeclared fill value, packed numbers read raw, or kelvin taken for degrees all give implausible values.  Readers
refuse them at the source; a run refuses a split that is empty or has the same value everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import DataError

if TYPE_CHECKING:
    from bench.tasks.task import NormalisedSequences


@dataclass(frozen=True)
class Plausible:
    """The plausible values of a field; NaN means missing and is ignored."""

    what: str
    low: float
    high: float
    units: str = ""

    def __str__(self) -> str:
        """Returns the range as text for messages."""
        return f"{self.what} within {self.low:g}..{self.high:g} {self.units}".rstrip()


SST = Plausible("sea-surface temperature", -5, 45, "degC")
SST_ANOMALY = Plausible("sea-surface temperature anomaly", -20, 20, "K")
"""ICAR-ENSO's extremes are -16.5 and 10.2 K, those of ERSST below 10 K."""
VIL_CODE = Plausible("VIL code", 0, 255)


def refuse_implausible(
    values: np.ndarray, expected: Plausible, source: str, place: Callable[[tuple[int, ...]], str]
) -> None:
    """Refuses an array with implausible values.

    Args:
        values: In physical units, NaN where missing.
        expected: Their plausible range.
        source: The file, and the variable in it.
        place: Returns the place of an array index in words.

    Raises:
        DataError: names the source, the worst value and its place.
    """
    problem = implausible(values, expected, source, place)
    if problem:
        raise DataError(problem)


def implausible(
    values: np.ndarray, expected: Plausible, source: str, place: Callable[[tuple[int, ...]], str]
) -> str | None:
    """Returns the message of `refuse_implausible`, for readers that list all problems; None if there is none."""
    if not values.size:
        return None
    # fmax and fmin ignore NaN, and need no copy of the array
    low, high = float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))
    if math.isnan(low) or (expected.low <= low and high <= expected.high):
        return None
    worst = high if high - expected.high > expected.low - low else low
    index = tuple(int(part) for part in np.argwhere(values == worst)[0])
    wrong = int(((values < expected.low) | (values > expected.high)).sum())
    return (
        f"{source}: expected {expected}, found {worst:g} at {place(index)} (of {values.size:,} values, {wrong:,} are "
        "outside). Is a fill value undeclared, or are the units different?"
    )


def refuse_empty(data: NormalisedSequences) -> None:
    """Refuses a split without sequences.

    Raises:
        DataError: the split is empty; the message names the folder.
    """
    if not len(data):
        raise DataError(
            f"split {data.split!r} of task {data.task.name!r} has no sequences under {data.task.data_root}. "
            f"{data.why_empty}`earthbench data info` shows what each split has; split=all takes everything."
        )


def refuse_constant(data: NormalisedSequences) -> None:
    """Refuses a split whose targets are constant; usually reads one sequence only.

    Raises:
        DataError: all targets of the split have the same value, or none at all.
    """
    low, high = math.inf, -math.inf
    for index in range(len(data)):
        target = data.task.to_target(data.stored(index)[1]).numpy()
        known = target[np.isfinite(target)]
        if known.size:
            low, high = min(low, float(known.min())), max(high, float(known.max()))
        if high > low:
            return
    if len(data):
        found = f"{low:g} everywhere" if low == high else "only missing values"
        raise DataError(
            f"split {data.split!r} of task {data.task.name!r} under {data.task.data_root}: expected targets that vary, "
            f"found {found} in {len(data)} sequences. Is the data set complete? `earthbench data check` reads it all."
        )
