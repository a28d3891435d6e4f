"""The mean of a loss over batches that hold different numbers of known pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.metrics.states import ExactMetric


class WeightedMean(ExactMetric):
    """Mean over all pixels of means over the pixels of batches; NaN without any pixel.

    Neither batches nor processes matter, and nothing waits for the device before `compute()`.  torchmetrics' own
    `MeanMetric` either looks at every value or, told not to (`nan_strategy="disable"`), ignores the weights.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, count: Tensor) -> None:
        """Adds the mean of `count` pixels, both `()`."""
        self.total = self.total + mean.detach().double() * count
        self.count = self.count + count

    def compute(self) -> Tensor:
        """Returns the mean, float64 `()`."""
        return self.total / self.count
