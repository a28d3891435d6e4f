"""Blank: zeros in physical units."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines.shapes import checked_shapes


class Blank(nn.Module):
    """Zeros in physical units (no rain, a black image, no anomaly) for every lead time; nothing to train.

    Args:
        input_shape: `(T_in, H, W, C)`.
        target_shape: `(T_out, H, W, C)`.
        zero: The value of 0 in physical units on the scale that models see; by default that of the task.

    Raises:
        ValueError: the shapes do not fit together.
    """

    trivial: ClassVar[bool] = True
    of_task: ClassVar[dict[str, str]] = {"zero": "zero"}

    def __init__(
        self,
        input_shape: tuple[int, int, int, int],
        target_shape: tuple[int, int, int, int],
        zero: float = 0.0,
    ) -> None:
        super().__init__()
        _, self.shape = checked_shapes("blank", input_shape, target_shape, feeds_back=False)
        self.zero = zero

    def forward(self, context: Tensor) -> Tensor:
        """Returns `(B, T_out, H, W, C)` for a context `(B, T_in, H, W, C)`."""
        return torch.full((len(context), *self.shape), self.zero, dtype=context.dtype, device=context.device)
