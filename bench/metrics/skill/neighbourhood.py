"""Max-pooling of frames and sums of the fractions skill score, for any dtype and device; NaN spreads to its cell."""

from __future__ import annotations

from functools import reduce

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from bench.errors import ContractError
from bench.metrics.pairs import widen
from bench.metrics.skill.contingency import event_limits


def max_pool(values: Tensor, size: int) -> Tensor:
    """Returns the maxima over cells of size x size pixels, `(B,T,H//size,W//size,C)`, of `(B,T,H,W,C)`.

    Pixels at the lower and right edges that do not fill a cell are left out.  A cell with a NaN is NaN.

    Raises:
        ContractError: frames are smaller than a cell.
    """
    height, width = (extent // size * size for extent in values.shape[2:4])
    if not height or not width:
        raise ContractError(f"frames of {values.shape[2]}x{values.shape[3]} pixels have no cell of {size}x{size}")
    # along the contiguous axis last: by then only 1/size of the pixels are left
    rows = reduce(torch.maximum, (values[:, :, at:height:size] for at in range(size)))
    return reduce(torch.maximum, (rows[:, :, :, at:width:size] for at in range(size)))


def fraction_sums(
    forecast: Tensor, target: Tensor, thresholds: tuple[float, ...], windows: tuple[int, ...], *, integer_rule: bool
) -> tuple[Tensor, Tensor]:
    """Returns the sums over pixels of (P_f - P_o)^2 and of P_f^2 + P_o^2, float64 `(B, T, windows x thresholds)`.

    P is the share of a window's pixels with an event, for a window centred on every pixel.  Pixels beyond the frame,
    and pixels with NaN on either side, have no event on both sides.

    Args:
        forecast: Physical values `(B,T,H,W,C)`.
        target: The verifying values, same shape and device.
        thresholds: An event is a value >= the threshold.
        windows: Widths in pixels, odd.
        integer_rule: Round values within 5e-5 of an integer before comparing.
    """
    pair = [widen(side.detach()).movedim(4, 2) for side in (forecast, target)]  # (B,T,C,H,W)
    known = ~(torch.isnan(pair[0]) | torch.isnan(pair[1]))
    shape = (*forecast.shape[:2], len(windows), len(thresholds))
    error, reference = (torch.empty(shape, dtype=torch.float64, device=forecast.device) for _ in range(2))
    limits = [event_limits(thresholds, str(side.dtype).removeprefix("torch."), integer_rule) for side in pair]
    for k in range(len(thresholds)):
        tables = [_integral(side.ge(_scalar(limit[k])) & known) for side, limit in zip(pair, limits, strict=True)]
        for w, window in enumerate(windows):
            counts = [_window_counts(table, window) for table in tables]
            # integers up to the square of a window's area: exact in int64, and their sum over a frame in float64
            over = (2, 3, 4)
            error[:, :, w, k] = ((counts[0] - counts[1]) ** 2).sum(over).double() / window**4
            reference[:, :, w, k] = (counts[0] ** 2 + counts[1] ** 2).sum(over).double() / window**4
    return error.flatten(2), reference.flatten(2)


def _scalar(limit: np.generic | int) -> float | int:
    return limit.item() if isinstance(limit, np.generic) else limit


def _integral(events: Tensor) -> Tensor:
    """Returns the counts of events above and left of every corner, int64 `(..., H+1, W+1)`."""
    return pad(events.long().cumsum(-1).cumsum(-2), (1, 0, 1, 0))


def _window_counts(table: Tensor, window: int) -> Tensor:
    half = window // 2
    for axis in (-2, -1):
        extent = table.shape[axis] - 1
        at = torch.arange(extent, device=table.device)
        upper, lower = (at + half + 1).clamp(max=extent), (at - half).clamp(min=0)
        table = table.index_select(axis, upper) - table.index_select(axis, lower)
    return table
