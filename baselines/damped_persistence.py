"""Damped persistence: the last frame, relaxed towards the mean with lead time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from baselines.shapes import checked_shapes

# Below this share of the mean square, the variance of a cell is rounding error: land, a border that is always dry.
_LEAST_VARIANCE = 1e-10


class DampedPersistence(nn.Module):
    """A linear regression of each lead time on the last frame of the context, fitted in one pass over training data.

    Forecast = mean of the target + slope x (last frame - its mean). For anomalies with lag autocorrelation r this is
    r times the last anomaly, the usual statistical baseline of seasonal forecasting (Wilks 2011, Statistical Methods
    in the Atmospheric Sciences, ch. 9).  An unfitted model is persistence.

    Args:
        input_shape: `(T_in, H, W, C)`.
        target_shape: `(T_out, H, W, C)`, with the same H, W and C.
        slopes: `cell` for one slope per lead time and cell, `global` for one per lead time; means are per cell in both.

    Raises:
        ValueError: frames of context and target differ in shape, or `slopes` is neither of these.
    """

    trivial: ClassVar[bool] = True

    slope: Tensor
    intercept: Tensor

    def __init__(
        self,
        input_shape: tuple[int, int, int, int],
        target_shape: tuple[int, int, int, int],
        slopes: Literal["cell", "global"] = "cell",
    ) -> None:
        super().__init__()
        _, shape = checked_shapes("damped_persistence", input_shape, target_shape, feeds_back=True)
        if slopes not in ("cell", "global"):
            raise ValueError(f"damped_persistence: slopes must be 'cell' or 'global', got {slopes!r}")
        self.slopes = slopes
        self.register_buffer("slope", torch.ones(shape))
        self.register_buffer("intercept", torch.zeros(shape))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Regresses targets on last frames by least squares; pairs with NaN on either side are ignored.

        A cell without variance or without known pairs gets slope 0.

        Args:
            batches: Contexts `(B, T_in, H, W, C)` and targets `(B, T_out, H, W, C)`.
        """
        n, x, y, xx, xy = (torch.zeros_like(self.slope, dtype=torch.float64) for _ in range(5))
        for context, target in batches:
            last = context[:, -1:].double().expand(target.shape)
            known = ~(torch.isnan(last) | torch.isnan(target))
            last, target = (torch.where(known, side, 0).double() for side in (last, target))
            for total, part in ((n, known), (x, last), (y, target), (xx, last * last), (xy, last * target)):
                total += part.sum(0)
        count = n.clamp(min=1)
        variance, covariance = xx - x * x / count, xy - x * y / count
        still = variance <= _LEAST_VARIANCE * xx
        if self.slopes == "global":
            cells = (1, 2, 3)
            variance = variance.masked_fill(still, 0).sum(cells, keepdim=True)
            covariance = covariance.masked_fill(still, 0).sum(cells, keepdim=True)
            still = still | (variance <= 0)
        slope = torch.where(still, 0, covariance / variance.masked_fill(variance <= 0, 1))
        self.slope.copy_(slope)
        self.intercept.copy_((y - slope * x) / count)

    def forward(self, context: Tensor) -> Tensor:
        """Returns `(B, T_out, H, W, C)` for a context `(B, T_in, H, W, C)`."""
        return self.intercept.to(context.dtype) + self.slope.to(context.dtype) * context[:, -1:]
