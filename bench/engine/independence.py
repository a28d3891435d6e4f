"""Whether a model forecasts each sequence from its own context alone: not from batch mates, nor from earlier calls.

Batch norm left in training mode, statistics over the batch, and a state kept between calls all give scores that change
with the batch size and the order of the data, and no other sign of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# Root mean square of a difference, in shares of the forecast's range; one pixel may jump where two values tie.  Kernels
# sum in another order for another batch size: in float32 that was 7e-7 at most over ten of the registered models.
# Elsewhere than on a CPU, products are rounded to TF32 or bfloat16, which keeps 8 bits.  Batch norm in training mode is
# off by 1e-2 and more.
_ON_CPU, _ELSEWHERE = 2e-5, 2.0**-8
# One batch twice goes through the same kernels: only sums by atomic additions may differ.
_REPEATED = 0.1


def dependence(
    forecast: Callable[[Tensor], Tensor], context: Tensor, found: Tensor, rows: Iterable[int] = (-1,)
) -> str | None:
    """Returns what a batch's forecast depends on besides each sequence's own context, or None.

    Costs a forecast of the batch, and of each of the rows by itself.

    Args:
        forecast: The model, in evaluation mode.
        context: A batch it forecast, `(B,T,H,W,C)`.
        found: That forecast, `(B,T,H,W,C)`.
        rows: Sequences to forecast alone.
    """
    tolerance = _ON_CPU if found.device.type == "cpu" else _ELSEWHERE
    tolerance = max(tolerance, 4 * torch.finfo(found.dtype).eps)
    off = _off(forecast(context), found)
    if not off <= tolerance * _REPEATED:
        return f"on earlier calls: the same batch forecast twice differs by {off:.2g} of the forecast's range (rms)"
    for row in rows if len(context) > 1 else ():
        index = row % len(context)
        own = slice(index, index + 1)
        off = _off(forecast(context[own]), found[own])
        if not off <= tolerance:
            return f"on its batch mates: a sequence forecast alone differs by {off:.2g} of the forecast's range (rms)"
    return None


def _off(again: Tensor, found: Tensor) -> float:
    """Returns the root mean square difference in shares of the range; NaN where there is a NaN."""
    again, found = again.detach().double(), found.detach().double()
    scale = float(found.max() - found.min()) or float(found.abs().max()) or 1.0
    return float((again - found).square().mean().sqrt()) / scale
