"""Sums over the pixels of an ensemble and its truth: distances, spread, shares of members with an event, ranks.

Everything is computed from the sorted members.  Sum over pairs i < j of |x_i - x_j| = sum over i of (2i - M + 1) x_(i),
i = 0..M-1, so no (M, M) array is needed; pixels are processed in blocks that fit the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.metrics.pairs import widen
from bench.metrics.skill.contingency import event_limits

# Pixels of a block: with eight members of float32, half a MiB.
_BLOCK = 16_384


@dataclass
class EnsembleSums:
    """Statistics of every frame, `(B,T)`, and of every threshold, `(B,T,K)`; and the ranks of the truth.

    See `bench.metrics.ensemble.formulas` for what each one is.
    """

    errors: dict[str, Tensor]
    """distance, pair_distance, variance, mean_error: float64; pixel_count: int64."""
    events: dict[str, Tensor]
    """brier_sum, brier_spread, observed_count, brier_count: int64."""
    reliability: Tensor
    """Pairs by threshold, number of members with the event, and whether it was observed: int64 `(K, M+1, 2)`."""
    ranks: Tensor
    """Pairs by members below the truth, and members not above it: int64 `(M+1, M+1)`."""


def ensemble_sums(
    members: Tensor, target: Tensor, thresholds: tuple[float, ...], *, integer_rule: bool
) -> EnsembleSums:
    """Returns the sums over the pixels of every frame.

    A pixel with a NaN on either side is ignored; one with an infinity has events and a rank but no distances.

    Args:
        members: Physical values `(M,B,T,H,W,C)` of any dtype.
        target: The verifying values `(B,T,H,W,C)`, on the same device.
        thresholds: An event is a value >= the threshold.
        integer_rule: Round values within 5e-5 of an integer before comparing with a threshold.
    """
    members, target = _comparable(members.detach(), target.detach())
    if members.device.type != "cpu":
        return _sums_on_device(
            members.flatten(3), target.flatten(2), _limits(members, target, thresholds, integer_rule)
        )
    m, batch, leads = members.shape[:3]
    flat, truth = members.reshape(m, batch, leads, -1), target.reshape(batch, leads, -1)
    k = len(thresholds)
    errors = {
        name: torch.zeros(batch, leads, dtype=torch.int64 if name == "pixel_count" else torch.float64)
        for name in ("distance", "pair_distance", "variance", "mean_error", "pixel_count")
    }
    table = torch.zeros(batch, leads, k, m + 1, 2, dtype=torch.int64)
    ranks = torch.zeros(m + 1, m + 1, dtype=torch.int64)
    limits = _limits(members, target, thresholds, integer_rule)
    for at in np.ndindex(batch, leads):
        for rows, row_truth in _blocks(flat[(slice(None), *at)], truth[at]):
            known, values = _known(rows, row_truth)
            if not values.numel():
                continue
            ordered = _sorted(known)
            table[at] += _count_events(ordered, values, limits)
            _count_ranks(ordered, values, ranks)
            finite, finite_values = _finite(ordered, values)
            for name, value in _distances(finite, finite_values).items():
                errors[name][at] += value
            errors["pixel_count"][at] += finite_values.numel()
    return EnsembleSums(errors, _brier_sums(table, m), table.sum((0, 1)), ranks)


def _limits(
    members: Tensor, target: Tensor, thresholds: tuple[float, ...], integer_rule: bool
) -> list[list[int | float]]:
    """Returns the smallest value that is an event, for members and for target and for each threshold."""
    dtypes = (np.dtype(str(side.dtype).removeprefix("torch.")).str for side in (members, target))
    return [
        [limit.item() if isinstance(limit, np.generic) else limit for limit in limits]
        for limits in (event_limits(thresholds, dtype, integer_rule) for dtype in dtypes)
    ]


def _sums_on_device(members: Tensor, truth: Tensor, limits: list[list[int | float]]) -> EnsembleSums:
    """Returns the sums of a whole batch on a GPU, waiting for it only to count the ranks.

    Pixels that do not count are masked instead of removed, because their number is not known on the host.

    Args:
        members: `(M,B,T,P)`.
        truth: `(B,T,P)`.
        limits: Event limits of the members and of the truth, for each threshold.
    """
    m = len(members)
    known = ~(torch.isnan(members).any(0) | torch.isnan(truth))
    ordered = members.sort(0).values
    # (K,B,T) at a time: numbers of pairs, and of observed ones, with at least j members at or above each threshold
    limit, truth_limit = (
        torch.tensor(each, dtype=members.dtype).to(members.device, non_blocking=True)[:, None, None, None]
        for each in limits
    )
    observed = (truth >= truth_limit) & known
    at_least = [known.expand_as(observed)] + [(ordered[m - j] >= limit) & known for j in range(1, m + 1)]
    pairs = torch.stack([flags.sum(-1) for flags in at_least], -1)
    hits = torch.stack([(flags & observed).sum(-1) for flags in at_least], -1)
    exactly = [F.pad(counts, (0, 1)).diff(dim=-1).neg() for counts in (pairs, hits)]
    table = torch.stack([exactly[0] - exactly[1], exactly[1]], -1).permute(1, 2, 0, 3, 4)
    code = (ordered < truth).sum(0) * (m + 1) + (ordered <= truth).sum(0)
    code = code.masked_fill(~known, (m + 1) ** 2)
    ranks = torch.bincount(code.flatten(), minlength=(m + 1) ** 2 + 1)[:-1].view(m + 1, m + 1)
    finite = known & torch.isfinite(ordered[0]) & torch.isfinite(ordered[-1]) & torch.isfinite(truth)
    sums = _distances(list(ordered.masked_fill(~finite, 0)), truth.masked_fill(~finite, 0))
    errors = {**sums, "pixel_count": finite.sum(-1)}
    return EnsembleSums(errors, _brier_sums(table, m), table.sum((0, 1)), ranks)


def _comparable(members: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both in a floating dtype that holds their values exactly."""
    members, target = widen(members), widen(target)
    wide = any(side.dtype in (torch.float64, torch.int32, torch.int64) for side in (members, target))
    dtype = torch.float64 if wide else torch.float32
    return members.to(dtype), target.to(dtype)


def _blocks(rows: Tensor, truth: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, truth.numel(), _BLOCK):
        yield rows[:, start : start + _BLOCK], truth[start : start + _BLOCK]


def _known(rows: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the pixels without NaN; a finite sum shows that there is none."""
    if bool(torch.isfinite(rows.sum() + truth.sum())):
        return rows, truth
    keep = ~(torch.isnan(rows).any(0) | torch.isnan(truth))
    return rows[:, keep], truth[keep]


@lru_cache(maxsize=32)
def _comparators(count: int) -> tuple[tuple[int, int], ...]:
    """Returns Batcher's odd-even merge sort for `count` lines, as pairs to compare and exchange in order."""
    found = []
    p = 1
    while p < count:
        k = p
        while k >= 1:
            for j in range(k % p, count - k, 2 * k):
                for i in range(min(k, count - j - k)):
                    if (i + j) // (2 * p) == (i + j + k) // (2 * p):
                        found.append((i + j, i + j + k))
            k //= 2
        p *= 2
    return tuple(found)


def _sorted(rows: Tensor) -> list[Tensor]:
    """Returns the members of every pixel in ascending order, as M rows, by a network of minima and maxima.

    It is about ten times as fast as sorting along the first axis, for an ensemble of eight members.
    """
    ordered = [row.numpy() for row in rows]
    fresh = [False] * len(ordered)  # the caller's rows must stay as they are
    spare = np.empty_like(ordered[0])
    for low, high in _comparators(len(ordered)):
        a, b = ordered[low], ordered[high]
        least = np.minimum(a, b, out=spare)
        most = np.maximum(a, b, out=b if fresh[high] else np.empty_like(b))
        ordered[low], ordered[high] = least, most
        spare = a if fresh[low] else np.empty_like(spare)
        fresh[low] = fresh[high] = True
    return [torch.from_numpy(row) for row in ordered]


def _count_events(rows: list[Tensor], values: Tensor, limits: list[list[int | float]]) -> Tensor:
    """Returns the number of pixels by members at or above a threshold, and by observation: int64 `(K, M+1, 2)`."""
    # numpy compares and counts booleans several times as fast
    ordered, truth, count = [row.numpy() for row in rows], values.numpy(), np.count_nonzero
    m = len(ordered)
    # [k, j]: pairs, and observed ones, with at least j members at or above threshold k; none has M + 1
    at_least = np.zeros((len(limits[0]), m + 2, 2), np.int64)
    at_least[:, 0, 0] = math.prod(truth.shape)
    for k, (limit, truth_limit) in enumerate(zip(*limits, strict=True)):
        observed = truth >= truth_limit
        at_least[k, 0, 1] = count(observed)
        for j in range(1, m + 1):
            forecast = ordered[m - j] >= limit  # the j-th largest member
            at_least[k, j, 0] = count(forecast)
            if not at_least[k, j, 0]:
                break
            at_least[k, j, 1] = count(forecast & observed)
    pairs, hits = np.moveaxis(at_least[:, :-1] - at_least[:, 1:], -1, 0)
    return torch.from_numpy(np.stack([pairs - hits, hits], -1))


def _count_ranks(ordered: list[Tensor], truth: Tensor, ranks: Tensor) -> None:
    m = len(ordered)
    below = torch.zeros(truth.shape, dtype=torch.int16, device=truth.device)
    not_above = torch.zeros_like(below)
    for row in ordered:
        below += row < truth
        not_above += row <= truth
    ranks += torch.bincount((below.long() * (m + 1) + not_above.long()), minlength=(m + 1) ** 2).view(m + 1, m + 1)


def _finite(ordered: list[Tensor], truth: Tensor) -> tuple[list[Tensor], Tensor]:
    if bool(torch.isfinite(ordered[0].sum() + ordered[-1].sum() + truth.sum())):
        return ordered, truth
    keep = torch.isfinite(ordered[0]) & torch.isfinite(ordered[-1]) & torch.isfinite(truth)
    return [row[keep] for row in ordered], truth[keep]


def _distances(ordered: list[Tensor], truth: Tensor) -> dict[str, Tensor]:
    """Returns sums over pixels, the last axis, in float64."""
    m = len(ordered)
    wide = truth.double()
    total = torch.zeros_like(wide)
    squares = torch.zeros_like(wide)
    distance = wide.new_zeros(wide.shape[:-1])
    for row in ordered:
        difference = row.double() - wide
        total += difference
        squares.addcmul_(difference, difference)
        distance += difference.abs_().sum(-1)
    sums = [row.sum(-1, dtype=torch.float64) for row in ordered]
    # outer pairs together, so that equal members cancel exactly
    pairs = sum(((m - 1 - 2 * i) * (sums[m - 1 - i] - sums[i]) for i in range(m // 2)), torch.zeros_like(distance))
    mean_error = total.square_().sum(-1) / m**2
    variance = (squares.sum(-1) - m * mean_error) / (m - 1) if m > 1 else torch.zeros_like(distance)
    return {
        "distance": distance,
        "pair_distance": pairs,
        "variance": variance.clamp(min=0),
        "mean_error": mean_error,
    }


def _brier_sums(table: Tensor, m: int) -> dict[str, Tensor]:
    """Returns the integer sums of Brier scores, `(B,T,K)`, see `bench.metrics.ensemble.formulas`."""
    with_event = torch.arange(m + 1, device=table.device)[:, None]
    observed = torch.arange(2, device=table.device)
    over = (-2, -1)
    return {
        "brier_sum": (table * (with_event - m * observed) ** 2).sum(over),
        "brier_spread": (table * (with_event * (m - with_event))).sum(over),
        "observed_count": table[..., 1].sum(-1),
        "brier_count": table.sum(over),
    }
