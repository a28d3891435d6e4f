"""Checks that a model forecasts each sequence from its own context alone, not from batch mates or earlier calls.

With batch norm in training mode, statistics over the batch, or a state kept between calls, scores change with the batch
size and the order of the data, and nothing else shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

# Root mean square difference as a share of the forecast's range; a single pixel may jump where two values tie.  The
# order of a kernel's sums depends on the batch size: at most 7e-7 in float32 over ten of the registered models.  On
# other devices than CPUs, products are rounded to TF32 or bfloat16, which keep 11 and 8 bits.  Batch norm in training
# mode differs by 1e-2 and more.
_ON_CPU, _ELSEWHERE = 2e-5, 2.0**-8
# The same batch twice uses the same kernels: only sums by atomic additions may differ.
_REPEATABILITY = 0.1


def dependence(
    forecast: Callable[[Tensor], Tensor], context: Tensor, found: Tensor, rows: Iterable[int] = (-1,)
) -> str | None:
    """Returns what a batch's forecast depends on besides each sequence's own context, or None.

    Costs one forecast of the batch, and one of each row.

    Args:
        forecast: The model, in evaluation mode.
        context: A batch, `(B,T,H,W,C)`.
        found: The model's forecast of it, `(B,T,H,W,C)`.
        rows: Indices of sequences to forecast alone.
    """
    tolerance = _ON_CPU if found.device.type == "cpu" else _ELSEWHERE
    tolerance = max(tolerance, 4 * torch.finfo(found.dtype).eps)
    off = _relative_difference(forecast(context), found)
    if not off <= tolerance * _REPEATABILITY:
        return f"on earlier calls: the same batch forecast twice differs by {off:.2g} of the forecast's range (rms)"
    for row in rows if len(context) > 1 else ():
        index = row % len(context)
        own = slice(index, index + 1)
        off = _relative_difference(forecast(context[own]), found[own])
        if not off <= tolerance:
            return f"on its batch mates: a sequence forecast alone differs by {off:.2g} of the forecast's range (rms)"
    return None


def _relative_difference(again: Tensor, found: Tensor) -> float:
    """Returns the root mean square difference as a share of the range; NaN if there is a NaN."""
    again, found = again.detach().double(), found.detach().double()
    scale = float(found.max() - found.min()) or float(found.abs().max()) or 1.0
    return float((again - found).square().mean().sqrt()) / scale
