"""Scores of frames as images: errors per pixel and per frame, SSIM, PSNR and, as an extra, LPIPS.

Sources: MSE and MAE as sums per frame are those of the Earthformer release on MovingMNIST and N-body MNIST (Gao et al.
2022) and of most of the literature on these data; SSIM of 2022 is that of torchmetrics 0.9.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.errors import ConfigError
from bench.metrics.errors.metric import check_convention_and_scale, error_sums
from bench.metrics.frames.formulas import FRAME_MEANS
from bench.metrics.frames.similarity import psnr, ssim, ssim_at
from bench.metrics.names import BETTER
from bench.metrics.pairs import check_pair
from bench.metrics.states import EventMetric, tell_apart

# Data ranges for which the 2022 SSIM is kept: Chebyshev points of log(data range) between these, on the 0-1 scale.
_MIN_RANGE, _MAX_RANGE, _POINTS = 2.0**-8, 2.0**8, 96
_AT_RANGES = "ssim_at_ranges"


class FrameScores(EventMetric):
    """MSE and MAE per pixel and per frame, SSIM and PSNR, overall and per lead time, on the 0-1 scale.

    `compute()` gives, over everything and as `NAME_lead_L` for lead L = 1..: `mse` and `mae`, means over pixels;
    `mse_frame_sum` and `mae_frame_sum`, the same times H x W x C, i.e. the mean over frames of a frame's summed errors;
    `ssim` and `psnr`, means over the frames of all channels; and `lpips` if requested.
    Only PSNR clips, to 0..1; the PSNR of equal frames is infinite, and so is a mean that contains one.

    Two conventions, which differ in SSIM and in missing values:

    * `upstream`: SSIM as papers of 2022 computed it.  Its data range is the larger of the ranges of forecast and
      target over the whole set, which is known only at the end.  A frame's SSIM is a smooth function of the logarithm
      of the data range, with no singularity closer to the real axis than pi/2: sums at 96 points give it at any range
      between 1/256 and 256 (on the 0-1 scale) to 1e-13, without keeping frames.  Outside these ranges, and if all
      frames are flat, it is undefined (NaN).  A NaN in any frame makes the score NaN.
    * `correct`: the data range is 1.  Pairs of pixels with a NaN or an infinity on either side are left out, and
      frames with such a pixel are left out of SSIM and LPIPS; `mse_pixel_count`, `ssim_frame_count`, ... count what
      was used.

    Args:
        convention: `upstream` or `correct`.
        scale: Physical value that becomes 1.
        t_out: Number of lead times, if known; else taken from the first update.
        lpips: Also compute the LPIPS distance with AlexNet, of grey frames as three equal channels; torchvision
            downloads its weights.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    better = BETTER
    family = "frames"
    frame_pixels: Tensor
    largest: Tensor
    smallest: Tensor

    def __init__(
        self,
        convention: Literal["upstream", "correct"] = "upstream",
        scale: float = 1.0,
        t_out: int | None = None,
        lpips: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_convention_and_scale(convention, scale)
        self.convention, self.scale = convention, scale
        self.add_state("frame_pixels", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")
        self._lpips = _LpipsDistance() if lpips else None
        for name in ("mse_sum", "mae_sum"):
            self.add_statistic(name, (t_out or 0,), torch.float64)
        self.add_statistic("pixel_count", (t_out or 0,), torch.int64)
        for score in FRAME_MEANS if lpips else FRAME_MEANS[:2]:
            self.add_statistic(f"{score}_sum", (t_out or 0,), torch.float64)
            self.add_statistic(f"{score}_count", (t_out or 0,), torch.int64)
        if convention == "upstream":
            self.add_statistic(_AT_RANGES, (t_out or 0, _POINTS), torch.float64)
            # of forecast and target, physical
            self.add_state("largest", torch.full((2,), -math.inf, dtype=torch.float64), dist_reduce_fx="max")
            self.add_state("smallest", torch.full((2,), math.inf, dtype=torch.float64), dist_reduce_fx="min")
        tell_apart(self, convention=convention, scale=scale, lpips=lpips)

    def update(self, forecast: Tensor, target: Tensor, events: Tensor | None = None) -> None:
        """Adds the frames of a batch.

        Args:
            forecast: Physical units, `(B,T,H,W,C)`.
            target: The same shape.
            events: The event of each sequence, `(B,)`, once events are tracked.

        Raises:
            ContractError: shapes differ, frames are smaller than SSIM's window, or the number of lead times changed.
        """
        check_pair(forecast, target)
        target = target.to(forecast.device)
        self.frame_pixels = self.frame_pixels.clamp(min=forecast[0, 0].numel() if forecast.numel() else 0)
        correct = self.convention == "correct"
        sums = error_sums(forecast, target, correct)
        found = {"mse_sum": sums.squared, "mae_sum": sums.absolute, "pixel_count": sums.pixel_count}
        scaled = [_channel_frames(side.detach().double() / self.scale) for side in (forecast, target)]
        shape = (*forecast.shape[:2], forecast.shape[4])
        found |= self._means("psnr", psnr(*scaled, finite_only=correct), shape)
        if self._lpips is not None:
            found |= self._means("lpips", self._lpips(*scaled), shape)
        if correct:
            found |= self._means("ssim", ssim(scaled[0], scaled[1], data_range=1.0), shape)
        else:
            each = ssim_at(scaled[0], scaled[1], _ranges()).reshape(*shape, _POINTS)
            found[_AT_RANGES] = each.sum(2)
            found["ssim_sum"] = torch.zeros_like(found["mse_sum"])  # known at the end
            found["ssim_count"] = torch.full_like(found["pixel_count"], shape[2])
            self._widen(forecast, target)
        self.add(found, events)

    def _means(self, score: str, values: Tensor, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """Returns sums and counts `(B,T)` of a score of frames `(B x T x C,)`."""
        values = values.reshape(shape)
        known = ~torch.isnan(values) if self.convention == "correct" else torch.ones_like(values, dtype=torch.bool)
        return {f"{score}_sum": values.masked_fill(~known, 0).sum(-1), f"{score}_count": known.sum(-1)}

    def _widen(self, forecast: Tensor, target: Tensor) -> None:
        if forecast.numel():
            sides = [side.detach().double() for side in (forecast, target)]
            self.largest = torch.maximum(self.largest, torch.stack([side.max() for side in sides]).to(self.largest))
            self.smallest = torch.minimum(self.smallest, torch.stack([side.min() for side in sides]).to(self.smallest))

    def _with_ssim(self, found: dict[str, Any]) -> dict[str, Any]:
        """Returns statistics with the sums of SSIM interpolated to the data range of the whole set."""
        if self.convention == "upstream":
            at_ranges = found.pop(_AT_RANGES)
            data_range = float((self.largest - self.smallest).max()) / self.scale
            found["ssim_sum"] = at_ranges @ _weights(data_range) if at_ranges.size else found["ssim_sum"]
        return found

    def score_options(self) -> dict[str, Any]:
        """Returns what the scores depend on besides the sums."""
        return {"scale": self.scale, "convention": self.convention, "frame_pixels": int(self.frame_pixels)}

    def statistics(self) -> dict[str, Any]:
        """Returns the sums over everything, `(T,)`, by name."""
        return self._with_ssim(super().statistics())

    def event_statistics(self) -> dict[str, Any]:
        """Returns the sums of each event, `(events, T)`, by name; empty if events are not tracked."""
        found = super().event_statistics()
        return self._with_ssim(found) if found else {}


@lru_cache(maxsize=1)
def _angles() -> np.ndarray:
    return (np.arange(_POINTS) + 0.5) * math.pi / _POINTS


@lru_cache(maxsize=1)
def _ranges() -> Tensor:
    """Returns the data ranges that SSIM is kept for, `(96,)`: Chebyshev points of the first kind in its logarithm."""
    middle, half = (math.log(_MAX_RANGE) + sign * math.log(_MIN_RANGE) for sign in (1, -1))
    return torch.from_numpy(np.exp((middle + half * np.cos(_angles())) / 2))


def _weights(data_range: float) -> np.ndarray:
    """Returns weights `(96,)` that interpolate from `_ranges` to a data range, barycentric in its logarithm.

    Source: Berrut and Trefethen (2004), SIAM Review 46, 501-517.
    """
    if not _MIN_RANGE <= data_range <= _MAX_RANGE:
        return np.full(_POINTS, math.nan)
    distance = math.log(data_range) - np.log(_ranges().numpy())
    if (distance == 0).any():
        return (distance == 0).astype(np.float64)
    weights = (-1.0) ** np.arange(_POINTS) * np.sin(_angles()) / distance
    found: np.ndarray = weights / weights.sum()
    return found


def _channel_frames(values: Tensor) -> Tensor:
    """Returns `(B x T x C, H, W)` of `(B,T,H,W,C)`."""
    return values.movedim(4, 2).flatten(0, 2)


class _LpipsDistance:
    """The LPIPS distance (AlexNet, version 0.1) of frames `(N,H,W)` in 0..1, float64 `(N,)`.

    It is no module, so that the network is not part of the metric or of a checkpoint.

    Raises:
        ConfigError: the weights of AlexNet are not cached and cannot be downloaded.
    """

    def __init__(self) -> None:
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        try:
            self.network = LearnedPerceptualImagePatchSimilarity(net_type="alex").net
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"lpips=true needs torchvision's weights of AlexNet, which are not in its cache and could not be "
                f"downloaded: {error}. Put them under $TORCH_HOME/hub/checkpoints, or leave lpips out."
            ) from error

    def __call__(self, forecast: Tensor, target: Tensor) -> Tensor:
        self.network = self.network.to(forecast.device)
        pair = [side.float().clamp(0, 1)[:, None].expand(-1, 3, -1, -1) * 2 - 1 for side in (forecast, target)]
        return self.network(*pair).double().flatten()
