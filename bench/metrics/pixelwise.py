"""Mean squared and mean absolute error over all pixels, in float64, overall and per lead time.

Source: the Earthformer release averages over pixels, frames and sequences on the 0-1 scale (Gao et al. 2022, table of
SEVIR results); it has no rule for missing values, which `convention='correct'` adds.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from bench.errors import ContractError
from bench.metrics.frames import check_pair, rows_by_lead


class PixelwiseScore(Metric):
    """Mean over pixels of |forecast - target|^p on the scale of the tables, overall and per lead time.

    `compute()` gives `NAME` over everything, `NAME_lead_L` for lead L = 1.., and with `correct` also
    `NAME_pixel_count`, the number of pairs that entered.

    Args:
        convention: `upstream`: every pair enters, one NaN makes the score NaN.  `correct`: pairs with a NaN or an
            infinity on either side are left out; no pair left gives NaN.
        scale: Physical value that becomes 1: 255 for 8-bit codes, whose errors the papers give on the 0-1 scale.
        t_out: Number of lead times, where known; else taken from the first update.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = False
    score: ClassVar[str]
    power: ClassVar[int]
    error_sum: Tensor
    pixel_count: Tensor

    def __init__(
        self,
        convention: Literal["upstream", "correct"] = "upstream",
        scale: float = 255.0,
        t_out: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if convention not in ("upstream", "correct"):
            raise ValueError(f"convention {convention!r}; expected 'upstream' or 'correct'")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale {scale!r}; expected a number > 0")
        self.convention, self.scale = convention, scale
        # float64 by name: a module-wide cast to half precision must not reach the sums
        self.add_state("error_sum", torch.zeros(t_out or 0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixel_count", torch.zeros(t_out or 0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor) -> None:
        """Adds the errors of a batch.

        Args:
            forecast: Physical units, `(B,T,H,W,C)`.
            target: The same shape; bytes or floats.

        Raises:
            ContractError: shapes differ, or the number of lead times changed.
        """
        check_pair(forecast, target)
        sums, counts = (
            self._on_cpu(forecast, target) if forecast.device.type == "cpu" else self._there(forecast, target)
        )
        if self.error_sum.shape[0] == 0:
            self.error_sum, self.pixel_count = (
                self.error_sum.new_zeros(sums.shape),
                self.pixel_count.new_zeros(sums.shape),
            )
        elif self.error_sum.shape != sums.shape:
            raise ContractError(f"{self.score} counts {len(self.error_sum)} lead times, this batch has {len(sums)}")
        self.error_sum = self.error_sum + sums.to(self.error_sum.device)
        self.pixel_count = self.pixel_count + counts.to(self.pixel_count.device)

    def _on_cpu(self, forecast: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        sums = np.zeros(forecast.shape[1], np.float64)
        counts = np.zeros(forecast.shape[1], np.int64)
        for lead, row, truth in rows_by_lead(forecast, target.cpu()):
            with np.errstate(invalid="ignore"):
                difference = np.subtract(row, truth, dtype=np.float64)
            if self.convention == "correct" and not np.isfinite(difference).all():
                difference = difference[np.isfinite(difference)]
            sums[lead] += difference @ difference if self.power == 2 else np.abs(difference, out=difference).sum()
            counts[lead] += difference.size
        return torch.from_numpy(sums), torch.from_numpy(counts)

    def _there(self, forecast: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        difference = forecast.double() - target.to(forecast.device).double()
        known = torch.ones_like(difference, dtype=torch.bool)
        if self.convention == "correct":
            known = torch.isfinite(difference)
            difference = difference.masked_fill(~known, 0)
        over = (0, 2, 3, 4)
        return difference.abs().pow(self.power).sum(over), known.sum(over)

    def compute(self) -> dict[str, float]:
        """Returns the error by name; see the class."""
        sums = (self.error_sum.cpu() / self.scale**self.power).tolist()
        counts = self.pixel_count.tolist()
        found = {self.score: _mean(sum(sums), sum(counts))}
        for lead, (total, count) in enumerate(zip(sums, counts, strict=True), start=1):
            found[f"{self.score}_lead_{lead}"] = _mean(total, count)
        if self.convention == "correct":
            found[f"{self.score}_pixel_count"] = float(sum(counts))
        return found


def _mean(total: float, count: int) -> float:
    return total / count if count else math.nan


class MSE(PixelwiseScore):
    """Mean squared error on the 0-1 scale, overall and per lead time (tables show it x 1000)."""

    score = "mse"
    power = 2


class MAE(PixelwiseScore):
    """Mean absolute error on the 0-1 scale, overall and per lead time."""

    score = "mae"
    power = 1
