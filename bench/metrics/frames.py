"""How metrics walk over a batch: pairs of flat rows, each of one lead time, small enough to stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.errors import ContractError

# Below this many pixels a frame is cheaper to count together with its batch mates than by itself.
_SMALL_FRAME = 16_384


def check_pair(forecast: Tensor, target: Tensor) -> None:
    """Refuses a pair that is not two tensors `(B,T,H,W,C)` of one shape.

    Raises:
        ContractError: names both shapes.
    """
    if forecast.shape != target.shape or forecast.dim() != 5:
        raise ContractError(
            f"forecast has shape {tuple(forecast.shape)} and target {tuple(target.shape)}; "
            "expected the same (B, T, H, W, C)"
        )


def rows_by_lead(forecast: Tensor, target: Tensor) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields `(lead, forecast pixels, target pixels)` of a batch on the CPU, as flat arrays of the dtypes given.

    Half precision is widened to float32, which is exact.
    """
    batch, leads = forecast.shape[:2]
    pixels = forecast[0, 0].numel() if batch and leads else 0
    if not batch or not pixels:
        return
    pair = [_widen(tensor.detach()) for tensor in (forecast, target)]
    if pixels < _SMALL_FRAME:
        turned = [tensor.transpose(0, 1).reshape(leads, -1).numpy() for tensor in pair]
        for lead in range(leads):
            yield lead, turned[0][lead], turned[1][lead]
    else:
        flat = [tensor.reshape(batch, leads, pixels).numpy() for tensor in pair]
        for sample in range(batch):
            for lead in range(leads):
                yield lead, flat[0][sample, lead], flat[1][sample, lead]


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
