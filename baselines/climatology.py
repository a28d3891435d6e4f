"""Climatology: the mean of the training targets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines.shapes import checked_shapes


class Climatology(nn.Module):
    """The mean of the training targets at each cell, for every lead time; fitted in one pass, not trained.

    For radar and digits this is the mean training frame: the best forecast that does not use the context.  For
    anomalies, from which the mean of each calendar month is subtracted, it is (nearly) zero: the seasonal climatology.
    It is the reference of skill scores (Wilks 2011, Statistical Methods in the Atmospheric Sciences, ch. 8).

    Args:
        input_shape: `(T_in, H, W, C)`.
        target_shape: `(T_out, H, W, C)`.

    Raises:
        ValueError: the shapes do not fit together.
    """

    trivial: ClassVar[bool] = True
    mean: Tensor

    def __init__(self, input_shape: tuple[int, int, int, int], target_shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        _, (self.t_out, *cells) = checked_shapes("climatology", input_shape, target_shape, feeds_back=False)
        self.register_buffer("mean", torch.zeros(*cells))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Computes the mean of all targets; NaN is ignored, and a cell that is always NaN gets 0.

        Args:
            batches: Contexts `(B, T_in, H, W, C)` and targets `(B, T_out, H, W, C)`.
        """
        total = torch.zeros_like(self.mean, dtype=torch.float64)
        count = torch.zeros_like(total)
        for _, target in batches:
            known = ~torch.isnan(target)
            total += torch.where(known, target, 0).double().sum((0, 1))
            count += known.sum((0, 1))
        self.mean.copy_(total / count.clamp(min=1))

    def forward(self, context: Tensor) -> Tensor:
        """Returns `(B, T_out, H, W, C)` for a context `(B, T_in, H, W, C)`."""
        return self.mean.to(context.dtype).expand(len(context), self.t_out, *self.mean.shape).clone()
