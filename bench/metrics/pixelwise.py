"""Mean squared and mean absolute error over all pixels, in float64, overall and per lead time.

Source: the Earthformer release averages over pixels, frames and sequences on the 0-1 scale (Gao et al. 2022, table of
SEVIR results); it has no rule for missing values, which `convention='correct'` adds.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from scipy.linalg.blas import dasum
from torch import Tensor

from bench.metrics.by_event import EventMetric
from bench.metrics.frames import check_pair, rows_of
from bench.metrics.sharing import shared

# Pixels at a time: two buffers of float64 stay in the second-level cache, and no page is faulted in anew.
_BLOCK = 49_152


class ErrorSums(NamedTuple):
    """Sums over the pixels of every frame, float64 `(B,T)`, and how many pixels they are of, int64."""

    squared: Tensor
    absolute: Tensor
    pixel_count: Tensor


@shared
def error_sums(forecast: Tensor, target: Tensor, finite_only: bool) -> ErrorSums:
    """Returns the sums of errors over the pixels of every frame of `(B,T,H,W,C)`.

    Args:
        forecast: Any dtype.
        target: Any dtype.
        finite_only: Leave out pairs whose difference is NaN or infinite.
    """
    if forecast.device.type != "cpu":
        return _sums_there(forecast, target.to(forecast.device), finite_only)
    squared, absolute = (np.zeros(forecast.shape[:2]) for _ in range(2))
    pixel_count = np.zeros(forecast.shape[:2], np.int64)
    buffers = np.empty((2, _BLOCK))
    with np.errstate(invalid="ignore"):
        for at, row, truth in rows_of(forecast, target.cpu()):
            for start in range(0, row.size, _BLOCK):
                part = row[start : start + _BLOCK]
                difference, values = buffers[0, : part.size], buffers[1, : part.size]
                # twice cast and subtracted in place is faster than one subtraction that casts
                difference[...] = part
                values[...] = truth[start : start + _BLOCK]
                difference -= values
                sum_of_squares = difference @ difference
                if finite_only and not math.isfinite(sum_of_squares):
                    difference = difference[np.isfinite(difference)]
                    sum_of_squares = difference @ difference
                squared[at] += sum_of_squares
                absolute[at] += dasum(difference) if difference.size else 0
                pixel_count[at] += difference.size
    return ErrorSums(*(torch.from_numpy(part) for part in (squared, absolute, pixel_count)))


def _sums_there(forecast: Tensor, target: Tensor, finite_only: bool) -> ErrorSums:
    difference = forecast.double() - target.double()
    known = torch.isfinite(difference) if finite_only else torch.ones_like(difference, dtype=torch.bool)
    difference = difference.masked_fill(~known, 0)
    over = (2, 3, 4)
    return ErrorSums(difference.square().sum(over), difference.abs().sum(over), known.sum(over))


class PixelwiseScore(EventMetric):
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

    higher_is_better = False
    family = "errors"
    score: ClassVar[Literal["mse", "mae"]]
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
        check_convention_and_scale(convention, scale)
        self.convention, self.scale = convention, scale
        # float64 by name: a module-wide cast to half precision must not reach the sums
        self.add_statistic("error_sum", (t_out or 0,), torch.float64)
        self.add_statistic("pixel_count", (t_out or 0,), torch.int64)

    def update(self, forecast: Tensor, target: Tensor, events: Tensor | None = None) -> None:
        """Adds the errors of a batch.

        Args:
            forecast: Physical units, `(B,T,H,W,C)`.
            target: The same shape; bytes or floats.
            events: The event of each sequence, `(B,)`, once events are tracked.

        Raises:
            ContractError: shapes differ, or the number of lead times changed.
        """
        check_pair(forecast, target)
        sums = error_sums(forecast, target, self.convention == "correct")
        error_sum = sums.squared if self.score == "mse" else sums.absolute
        self.add({"error_sum": error_sum, "pixel_count": sums.pixel_count}, events)

    def score_options(self) -> dict[str, Any]:
        """Returns what the scores depend on besides the sums."""
        return {"score": self.score, "scale": self.scale, "convention": self.convention}


def check_convention_and_scale(convention: str, scale: float) -> None:
    """Refuses what is no convention and no scale.

    Raises:
        ValueError: says what was expected.
    """
    if convention not in ("upstream", "correct"):
        raise ValueError(f"convention {convention!r}; expected 'upstream' or 'correct'")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale {scale!r}; expected a number > 0")


class MSE(PixelwiseScore):
    """Mean squared error on the 0-1 scale, overall and per lead time (tables show it x 1000)."""

    score = "mse"


class MAE(PixelwiseScore):
    """Mean absolute error on the 0-1 scale, overall and per lead time."""

    score = "mae"
