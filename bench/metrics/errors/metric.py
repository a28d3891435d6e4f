"""Mean squared and mean absolute error over all pixels, in float64, overall and per lead time.

Source: the Earthformer release averages over pixels, frames and sequences on the 0-1 scale (Gao et al. 2022, table of
SEVIR results); it has no rule for missing values, which `convention='correct'` adds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from scipy.linalg.blas import dasum, sasum
from torch import Tensor

from bench.errors import ContractError, did_you_mean
from bench.metrics.names import BETTER
from bench.metrics.pairs import check_convention, check_pair, rows_of, shared
from bench.metrics.states import EventMetric, tell_apart

# Pixels per block: two float64 buffers fit the second-level cache and are allocated once.
_BLOCK = 49_152
_CACHE_LINE = 64  # bytes

# Weights of cells are rounded to multiples of it, as fine as float32, so that their sums are exact.
_WEIGHT_UNIT = 2.0**-24


class ErrorSums(NamedTuple):
    """Sums over the pixels of every frame, float64 `(B,T)`, and the numbers of pixels, int64."""

    squared: Tensor
    absolute: Tensor
    pixel_count: Tensor


@shared
def error_sums(forecast: Tensor, target: Tensor, finite_only: bool) -> ErrorSums:
    """Returns the sums of errors over the pixels of every frame of `(B,T,H,W,C)`.

    They are exact to float64's round-off.  The exception are float32 frames of 49,152 pixels or more without
    `finite_only`: their blocks are summed in float32, as in the authors' code, which takes half the time.  The sums of
    a frame are then accurate to 3e-7, and still do not depend on batches or processes.

    Args:
        forecast: Any dtype.
        target: Any dtype.
        finite_only: Leave out pairs whose difference is NaN or infinite.
    """
    if forecast.device.type != "cpu":
        return _sums_on_device(forecast, target.to(forecast.device), finite_only)
    squared, absolute = (np.zeros(forecast.shape[:2]) for _ in range(2))
    pixel_count = np.zeros(forecast.shape[:2], np.int64)
    buffers = _aligned_buffers()
    with np.errstate(invalid="ignore", over="ignore"):
        for at, row, truth in rows_of(forecast, target.cpu()):
            single = row.size >= _BLOCK and row.dtype == np.float32 and truth.dtype in (np.uint8, np.float32)
            for start in range(0, row.size, _BLOCK):
                part, true_part = row[start : start + _BLOCK], truth[start : start + _BLOCK]
                sums = _single_sums(part, true_part, buffers) if single and not finite_only else None
                sums = sums or _double_sums(part, true_part, buffers, finite_only)
                squared[at] += sums[0]
                absolute[at] += sums[1]
                pixel_count[at] += sums[2]
    return ErrorSums(*(torch.from_numpy(part) for part in (squared, absolute, pixel_count)))


def _aligned_buffers() -> np.ndarray:
    """Returns two buffers of a block, `(2,49152)` float64, that start on a cache line.

    BLAS sums values before the first cache line separately, so the last bit of a sum would depend on the address of
    numpy's allocation.
    """
    raw = np.empty(2 * _BLOCK + _CACHE_LINE // 8)
    start = -raw.ctypes.data % _CACHE_LINE // raw.itemsize
    return raw[start : start + 2 * _BLOCK].reshape(2, _BLOCK)


def _double_sums(
    row: np.ndarray, truth: np.ndarray, buffers: np.ndarray, finite_only: bool
) -> tuple[float, float, int]:
    """Returns the float64 sums of squared and absolute errors of one block, and its number of pixels."""
    difference, values = buffers[0, : row.size], buffers[1, : row.size]
    # two casts and a subtraction in place are faster than one subtraction that casts
    difference[...] = row
    values[...] = truth
    difference -= values
    squared = float(difference @ difference)
    if finite_only and not math.isfinite(squared):
        known = np.isfinite(difference)
        difference = np.compress(known, difference, out=values[: np.count_nonzero(known)])
        squared = float(difference @ difference)
    return squared, dasum(difference) if difference.size else 0.0, difference.size


def _single_sums(row: np.ndarray, truth: np.ndarray, buffers: np.ndarray) -> tuple[float, float, int] | None:
    """Returns the same sums computed in float32; None on overflow."""
    difference = buffers[0].view(np.float32)[: row.size]
    difference[...] = truth
    np.subtract(row, difference, out=difference)
    squared = float(difference @ difference)
    return (squared, sasum(difference), row.size) if math.isfinite(squared) else None


def _sums_on_device(forecast: Tensor, target: Tensor, finite_only: bool) -> ErrorSums:
    difference = forecast.double() - target.double()
    known = torch.isfinite(difference) if finite_only else torch.ones_like(difference, dtype=torch.bool)
    difference = difference.masked_fill(~known, 0)
    over = (2, 3, 4)
    return ErrorSums(difference.square().sum(over), difference.abs().sum(over), known.sum(over))


def weighted_sums(forecast: Tensor, target: Tensor, weights: np.ndarray, finite_only: bool) -> tuple[Tensor, ...]:
    """Returns sums over the pixels of every frame of `(B,T,H,W,C)`, each `(B,T)`.

    These are the sums of weighted squared errors, of weighted absolute errors and of weights, float64, and the number
    of pixels with a positive weight, int64.

    Args:
        forecast: Any dtype.
        target: Any dtype.
        weights: Weights of the cells, `(H,W)`, multiples of 2^-24.
        finite_only: Leave out pairs whose difference is NaN or infinite.
    """
    channels = forecast.shape[-1]
    inside = np.flatnonzero(np.repeat(weights.ravel(), channels))
    weight = np.repeat(weights.ravel(), channels)[inside]
    squared, absolute, total = (np.zeros(forecast.shape[:2]) for _ in range(3))
    pixel_count = np.zeros(forecast.shape[:2], np.int64)
    for at, row, truth in rows_of(forecast.cpu(), target.cpu()):
        difference, mine = row[inside].astype(np.float64) - truth[inside], weight
        if finite_only and not (known := np.isfinite(difference)).all():
            difference, mine = difference[known], weight[known]
        squared[at], absolute[at] = mine @ np.square(difference), mine @ np.abs(difference)
        total[at], pixel_count[at] = mine.sum(), len(mine)
    return tuple(torch.from_numpy(part) for part in (squared, absolute, total, pixel_count))


class PixelwiseScore(EventMetric):
    """Mean over pixels of |forecast - target|^p on the scale of the tables, overall and per lead time.

    `compute()` gives `NAME` over everything, `NAME_lead_L` for lead L = 1.., and with `correct` also
    `NAME_pixel_count`, the number of pairs used.

    Args:
        convention: `upstream`: all pairs count, and one NaN makes the score NaN.  `correct`: pairs with a NaN or an
            infinity on either side are left out; no pair left gives NaN.
        scale: Physical value that becomes 1: 255 for 8-bit codes, whose errors the papers give on the 0-1 scale.
        t_out: Number of lead times, if known; else taken from the first update.
        weights: Names of the task's weights of cells, such as `area` and `ocean`: a cell's weight is their product, and
            the mean is weighted.  `NAME_pixel_count` then counts cells with a positive weight.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    better = BETTER
    family = "errors"
    takes_cells = False
    score: ClassVar[Literal["mse", "mae"]]
    error_sum: Tensor
    pixel_count: Tensor

    def __init__(
        self,
        convention: Literal["upstream", "correct"] = "upstream",
        scale: float = 255.0,
        t_out: int | None = None,
        weights: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_convention_and_scale(convention, scale)
        if isinstance(weights, str):
            raise ValueError(f"weights {weights!r}; expected a list of names")
        self.convention, self.scale, self.weights = convention, scale, tuple(weights)
        self.takes_cells = bool(weights)
        # float64 by name: a module-wide cast to half precision must not reach the sums
        self.add_statistic("error_sum", (t_out or 0,), torch.float64)
        self.add_statistic("pixel_count", (t_out or 0,), torch.int64)
        if weights:
            self.add_statistic("weight_sum", (t_out or 0,), torch.float64)
        tell_apart(self, convention=convention, scale=scale, **({"weights": self.weights} if weights else {}))

    def update(
        self,
        forecast: Tensor,
        target: Tensor,
        events: Tensor | None = None,
        cells: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Adds the errors of a batch.

        Args:
            forecast: Physical units, `(B,T,H,W,C)`.
            target: The same shape; bytes or floats.
            events: The event of each sequence, `(B,)`, once events are tracked.
            cells: The task's weights of cells by name, `(H,W)`; needed with `weights`.

        Raises:
            ContractError: shapes differ, the number of lead times changed, or there are no such weights.
        """
        check_pair(forecast, target)
        if self.weights:
            known = (self.convention == "correct",)
            squared, absolute, total, count = weighted_sums(forecast, target, self._product(cells, forecast), *known)
            chosen = squared if self.score == "mse" else absolute
            self.add({"error_sum": chosen, "pixel_count": count, "weight_sum": total}, events)
            return
        sums = error_sums(forecast, target, self.convention == "correct")
        error_sum = sums.squared if self.score == "mse" else sums.absolute
        self.add({"error_sum": error_sum, "pixel_count": sums.pixel_count}, events)

    def _product(self, cells: Mapping[str, np.ndarray] | None, frames: Tensor) -> np.ndarray:
        """Returns the weights of cells `(H,W)`, multiples of 2^-24."""
        product = np.ones(frames.shape[2:4])
        for name in self.weights:
            if name not in (cells or {}):
                raise ContractError(f"{self.score}: no weights {name!r} of cells. {did_you_mean(name, cells or {})}")
            own = np.asarray((cells or {})[name], np.float64)
            if own.shape != product.shape or not (np.isfinite(own).all() and own.min() >= 0 and own.max() <= 1):
                raise ContractError(
                    f"{self.score}: weights {name!r} of cells: expected 0 to 1 for {product.shape} cells, found "
                    f"{own.min():g} to {own.max():g} for {own.shape}"
                )
            product *= own
        return np.rint(product / _WEIGHT_UNIT) * _WEIGHT_UNIT

    def score_options(self) -> dict[str, Any]:
        """Returns what the scores depend on besides the sums."""
        weights = {"weights": list(self.weights)} if self.weights else {}
        return {"score": self.score, "scale": self.scale, "convention": self.convention, **weights}


def check_convention_and_scale(convention: str, scale: float) -> None:
    """Refuses an unknown convention and an invalid scale.

    Raises:
        ValueError: names the expected values.
    """
    check_convention(convention)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale {scale!r}; expected a number > 0")


class MSE(PixelwiseScore):
    """Mean squared error on the 0-1 scale, overall and per lead time (tables show it x 1000)."""

    score = "mse"


class MAE(PixelwiseScore):
    """Mean absolute error on the 0-1 scale, overall and per lead time."""

    score = "mae"
