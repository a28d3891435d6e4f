"""Counts of hits, misses, false alarms and correct negatives: exact integers, at the speed of memory."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bench.metrics.pairs import rows_of

# Values this near an integer are rounded: corrects float32 un-scaling (218.99998 -> 219), not half precision.
INTEGER_TOLERANCE = 5e-5


def count_events(
    forecast: Tensor,
    target: Tensor,
    thresholds: tuple[float, ...],
    *,
    integer_rule: bool,
    missing_value: float | None,
) -> Tensor:
    """Returns int64 counts `(B, T, K, 4)`: hits, misses, false alarms, correct negatives per lead and threshold.

    An event is a value >= the threshold.  A pair with NaN on either side is ignored; an infinity is a number.

    Args:
        forecast: Physical values `(B,T,H,W,C)` of any dtype.
        target: The verifying values, same shape.
        thresholds: K thresholds.
        integer_rule: Round values within 5e-5 of an integer before comparing.
        missing_value: Targets of this value are ignored.
    """
    if forecast.device.type != "cpu" or target.device.type != "cpu":
        return _count_on_device(forecast, target, thresholds, integer_rule, missing_value)
    counts = np.zeros((*forecast.shape[:2], len(thresholds), 4), np.int64)
    for at, row, truth in rows_of(forecast, target):
        row, truth = _without_missing(row, truth, integer_rule, missing_value)
        counts[at] = _count_row(
            row,
            truth,
            event_limits(thresholds, row.dtype.str, integer_rule),
            event_limits(thresholds, truth.dtype.str, integer_rule),
        )
    return torch.from_numpy(counts)


@lru_cache(maxsize=64)
def event_limits(thresholds: tuple[float, ...], dtype: str, integer_rule: bool) -> tuple[np.generic | int, ...]:
    """Returns the smallest value of a dtype that is an event, per threshold, so that one comparison decides exactly.

    The integer rule is monotonic, so such a value exists: k - 5e-5 for a threshold at an integer k or at most 5e-5
    below it; the next value after k + 5e-5 for a threshold at most 5e-5 above k, because values are rounded down to k;
    and the threshold itself for any other.
    """
    kind = np.dtype(dtype).type
    limits: list[np.generic | int] = []
    for threshold in thresholds:
        if np.dtype(dtype).kind != "f":
            limits.append(math.ceil(threshold))
            continue
        least, nearest = float(threshold), round(threshold)
        if integer_rule and abs(least - nearest) <= INTEGER_TOLERANCE:
            below = least <= nearest
            least = nearest - INTEGER_TOLERANCE if below else math.nextafter(nearest + INTEGER_TOLERANCE, math.inf)
        limit = kind(least)
        limits.append(limit if float(limit) >= least else np.nextafter(limit, kind(np.inf)))
    return tuple(limits)


def _without_missing(
    row: np.ndarray, truth: np.ndarray, integer_rule: bool, missing_value: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels that are known on both sides."""
    keep: np.ndarray | np.bool = np.True_
    for side in (row, truth):
        # The minimum of a row with a NaN is NaN: this checks in one pass without a temporary.
        if side.dtype.kind == "f" and np.isnan(side.min()):
            keep = keep & ~np.isnan(side)
    if missing_value is not None:
        tolerance = INTEGER_TOLERANCE if integer_rule and truth.dtype.kind == "f" else 0
        if not truth.max() < missing_value - tolerance:  # also where the maximum is NaN
            keep = keep & ~(np.abs(truth.astype(np.float64) - missing_value) <= tolerance)
    return (row, truth) if keep is np.True_ else (row[keep], truth[keep])


def _count_row(
    row: np.ndarray,
    truth: np.ndarray,
    row_limits: tuple[np.generic | int, ...],
    truth_limits: tuple[np.generic | int, ...],
) -> np.ndarray:
    counts = np.empty((len(row_limits), 4), np.int64)
    forecast_events, target_events = np.empty(row.shape, bool), np.empty(row.shape, bool)
    for k, (row_limit, truth_limit) in enumerate(zip(row_limits, truth_limits, strict=True)):
        np.greater_equal(row, row_limit, out=forecast_events)
        np.greater_equal(truth, truth_limit, out=target_events)
        forecast_count, target_count = np.count_nonzero(forecast_events), np.count_nonzero(target_events)
        hits = np.count_nonzero(np.logical_and(forecast_events, target_events, out=forecast_events))
        misses, false_alarms = target_count - hits, forecast_count - hits
        counts[k] = hits, misses, false_alarms, row.size - hits - misses - false_alarms
    return counts


def _count_on_device(
    forecast: Tensor,
    target: Tensor,
    thresholds: tuple[float, ...],
    integer_rule: bool,
    missing_value: float | None,
) -> Tensor:
    """Returns the same counts on the tensors' device, with one reduction per threshold and no transfer of fields."""
    target = target.to(forecast.device)
    sides = [_exact_on_device(side, integer_rule) for side in (forecast, target)]
    keep = ~(torch.isnan(sides[0]) | torch.isnan(sides[1]))
    if missing_value is not None:
        keep &= sides[1] != missing_value
    over = (2, 3, 4)
    pairs = keep.sum(over)
    counts = torch.empty(*forecast.shape[:2], len(thresholds), 4, dtype=torch.int64, device=forecast.device)
    for k, threshold in enumerate(thresholds):
        forecast_events, target_events = (sides[0] >= threshold) & keep, (sides[1] >= threshold) & keep
        hits = (forecast_events & target_events).sum(over)
        misses, false_alarms = target_events.sum(over) - hits, forecast_events.sum(over) - hits
        counts[:, :, k] = torch.stack([hits, misses, false_alarms, pairs - hits - misses - false_alarms], -1)
    return counts


def _exact_on_device(values: Tensor, integer_rule: bool) -> Tensor:
    if not values.is_floating_point():
        return values.float()
    if not integer_rule:
        return values
    wide = values.double()
    return torch.where((wide - wide.round()).abs() <= INTEGER_TOLERANCE, wide.round(), wide)
