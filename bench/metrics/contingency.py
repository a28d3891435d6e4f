"""Counts of hits, misses, false alarms and correct negatives: exact integers, at the speed of memory."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bench.metrics.frames import rows_by_lead

# A value this near an integer is that integer: mends float32 un-scaling (218.99998 -> 219), not half precision.
INTEGER_TOLERANCE = 5e-5
_TOP_CODE = 255


def count_events(
    forecast: Tensor,
    target: Tensor,
    thresholds: tuple[float, ...],
    *,
    integer_rule: bool,
    missing_value: float | None,
) -> Tensor:
    """Returns int64 counts `(T, K, 4)`: hits, misses, false alarms, correct negatives per lead and threshold.

    An event is a value >= the threshold.  A pair with NaN on either side counts nowhere; an infinity is a number.

    Args:
        forecast: Physical values `(B,T,H,W,C)` of any dtype.
        target: The verifying values, same shape.
        thresholds: K thresholds.
        integer_rule: Take a value within 5e-5 of an integer for that integer before comparing.
        missing_value: A target of this value counts nowhere.
    """
    # Comparing bytes is four times as fast as comparing floats, and exact where all thresholds are codes:
    # for an integer T >= 1, x >= T exactly when floor(x) >= T.
    as_codes = all(float(t).is_integer() and 1 <= t <= _TOP_CODE for t in thresholds)
    as_codes = as_codes and (not integer_rule or _float32_shift(thresholds) is not None)
    if forecast.device.type != "cpu" or target.device.type != "cpu":
        return _count_on_device(forecast, target, thresholds, integer_rule, missing_value)
    counts = np.zeros((forecast.shape[1], len(thresholds), 4), np.int64)
    for lead, row, truth in rows_by_lead(forecast, target):
        row, truth, pairs = _without_missing(row, truth, integer_rule, missing_value)
        if as_codes:
            shift = _float32_shift(thresholds) if integer_rule else None
            counts[lead] += _count_row(_codes(row, shift), _codes(truth, shift), thresholds, pairs)
        else:
            counts[lead] += _count_row(_exact(row, integer_rule), _exact(truth, integer_rule), thresholds, pairs)
    return torch.from_numpy(counts)


def _without_missing(
    row: np.ndarray, truth: np.ndarray, integer_rule: bool, missing_value: float | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the pixels where both sides are known, and how many they are."""
    # The minimum of a row with a NaN is NaN: one pass without a temporary tells that there is none.
    keep = None
    for side in (row, truth):
        if side.dtype.kind == "f" and np.isnan(side.min()):
            known = ~np.isnan(side)
            keep = known if keep is None else keep & known
    if missing_value is not None:
        tolerance = INTEGER_TOLERANCE if integer_rule and truth.dtype.kind == "f" else 0
        if (
            truth.max(initial=-np.inf if truth.dtype.kind == "f" else 0) >= missing_value - tolerance
            or keep is not None
        ):
            with np.errstate(invalid="ignore"):
                known = np.abs(truth.astype(np.float64) - missing_value) > tolerance
            keep = known if keep is None else keep & known
    if keep is None:
        return row, truth, row.size
    return row[keep], truth[keep], int(np.count_nonzero(keep))


def _codes(values: np.ndarray, shift: np.float32 | None) -> np.ndarray:
    """Returns uint8 codes whose comparison with the thresholds equals that of the values.

    Args:
        values: A flat row.
        shift: Added to floats first, for the integer rule: only what lies just below an integer is moved by the rule
            in a way that a >= comparison sees.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        return np.clip(values, 0, _TOP_CODE).astype(np.uint8)
    if shift is not None:
        values = values + (shift if values.dtype == np.float32 else INTEGER_TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.clip(values, 0, _TOP_CODE).astype(np.uint8)


@lru_cache(maxsize=32)
def _float32_shift(thresholds: tuple[float, ...]) -> np.float32 | None:
    """Returns what to add to float32 values so that `floor(x + shift) >= T` is the integer rule, for each T exactly.

    The sum is rounded to float32, so 5e-5 itself would admit some values that are 5.3e-5 away.  With u the spacing
    just below T and k the number of spacings within the tolerance, any shift in [(k - 1/2) u, (k + 1/2) u) is exact;
    there may be none that suits all thresholds, and then None is returned.
    """
    low, high = 0.0, math.inf
    for threshold in thresholds:
        spacing = float(np.float32(threshold) - np.nextafter(np.float32(threshold), np.float32(0)))
        within = math.floor(INTEGER_TOLERANCE / spacing)
        low, high = max(low, (within - 0.5) * spacing), min(high, (within + 0.5) * spacing)
    return np.float32((low + high) / 2) if low < high else None


def _exact(values: np.ndarray, integer_rule: bool) -> np.ndarray:
    if not integer_rule or values.dtype.kind != "f":
        return values
    wide = values.astype(np.float64)
    nearest = np.rint(wide)
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(wide - nearest) <= INTEGER_TOLERANCE, nearest, wide)


def _count_row(row: np.ndarray, truth: np.ndarray, thresholds: tuple[float, ...], pairs: int) -> np.ndarray:
    counts = np.empty((len(thresholds), 4), np.int64)
    for k, threshold in enumerate(thresholds):
        level = row.dtype.type(threshold) if row.dtype == np.uint8 else threshold
        forecast_events = row >= level
        target_events = truth >= level
        forecast_count = np.count_nonzero(forecast_events)
        target_count = np.count_nonzero(target_events)
        hits = np.count_nonzero(np.logical_and(forecast_events, target_events, out=forecast_events))
        misses, false_alarms = target_count - hits, forecast_count - hits
        counts[k] = hits, misses, false_alarms, pairs - hits - misses - false_alarms
    return counts


def _count_on_device(
    forecast: Tensor,
    target: Tensor,
    thresholds: tuple[float, ...],
    integer_rule: bool,
    missing_value: float | None,
) -> Tensor:
    """The same counts where the tensors are; one reduction per threshold, no transfer of fields."""
    target = target.to(forecast.device)
    sides = [_exact_on_device(side, integer_rule) for side in (forecast, target)]
    keep = ~(torch.isnan(sides[0]) | torch.isnan(sides[1]))
    if missing_value is not None:
        keep &= sides[1] != missing_value
    over = (0, 2, 3, 4)
    pairs = keep.sum(over)
    counts = torch.empty(forecast.shape[1], len(thresholds), 4, dtype=torch.int64, device=forecast.device)
    for k, threshold in enumerate(thresholds):
        forecast_events, target_events = (sides[0] >= threshold) & keep, (sides[1] >= threshold) & keep
        hits = (forecast_events & target_events).sum(over)
        misses, false_alarms = target_events.sum(over) - hits, forecast_events.sum(over) - hits
        counts[:, k] = torch.stack([hits, misses, false_alarms, pairs - hits - misses - false_alarms], -1)
    return counts


def _exact_on_device(values: Tensor, integer_rule: bool) -> Tensor:
    if not values.is_floating_point():
        return values.float()
    if not integer_rule:
        return values
    wide = values.double()
    return torch.where((wide - wide.round()).abs() <= INTEGER_TOLERANCE, wide.round(), wide)
