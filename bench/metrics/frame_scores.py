"""Scores of frames as images: errors per pixel and per frame, SSIM, PSNR and, as an extra, LPIPS.

Sources: MSE and MAE as sums per frame are those of the Earthformer release on MovingMNIST and N-body MNIST (Gao et al.
2022) and of most of the literature on these data; SSIM of 2022 is that of torchmetrics 0.9.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from bench.errors import ConfigError, RunFailedError
from bench.metrics.by_event import EventMetric
from bench.metrics.frames import check_pair
from bench.metrics.pixelwise import check_convention_and_scale, error_sums
from bench.metrics.similarity import psnr, ssim
from bench.metrics.states import tell_apart
from bench.scores.directions import BETTER
from bench.scores.frames import FRAME_MEANS

# The 2022 SSIM keeps every frame: more than this belongs to a data set that it was never used on.
_MOST_KEPT_BYTES = 4 * 2**30


class FrameScores(EventMetric):
    """MSE and MAE per pixel and per frame, SSIM and PSNR, overall and per lead time, on the 0-1 scale.

    `compute()` gives, over everything and as `NAME_lead_L` for lead L = 1..: `mse` and `mae`, means over pixels;
    `mse_frame_sum` and `mae_frame_sum`, the same times H x W x C, the mean over frames of a frame's summed errors;
    `ssim` and `psnr`, means over frames, of frames of each channel for itself; and `lpips` where asked for.
    Nothing is clipped but for PSNR, to 0..1; the PSNR of equal frames is infinite, and so is a mean with one.

    Two conventions, which differ in SSIM and in missing values:

    * `upstream`: SSIM as papers of 2022 computed it.  Its data range is the larger of the ranges of forecast and
      target over the whole set, which is known at the end only: every frame is kept (8 bytes a pixel or fewer).
      A NaN makes the score NaN.
    * `correct`: the data range is 1, frames are scored as they come.  Pairs of pixels with a NaN or an infinity on
      either side are left out, so are frames with one from SSIM and LPIPS; `mse_pixel_count`, `ssim_frame_count`, ...
      say how many entered.

    Args:
        convention: `upstream` or `correct`.
        scale: Physical value that becomes 1.
        t_out: Number of lead times, where known; else taken from the first update.
        lpips: Also the LPIPS distance with AlexNet, of grey frames as three equal channels; its weights are a download
            by torchvision.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    better = BETTER
    family = "frames"
    frame_pixels: Tensor
    kept_forecast: list[Tensor]
    kept_target: list[Tensor]
    kept_event: list[Tensor]

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
        self._kept_bytes = 0
        self._lpips = _LpipsDistance() if lpips else None
        for name in ("mse_sum", "mae_sum"):
            self.add_statistic(name, (t_out or 0,), torch.float64)
        self.add_statistic("pixel_count", (t_out or 0,), torch.int64)
        for score in FRAME_MEANS if lpips else FRAME_MEANS[:2]:
            self.add_statistic(f"{score}_sum", (t_out or 0,), torch.float64)
            self.add_statistic(f"{score}_count", (t_out or 0,), torch.int64)
        for side in ("kept_forecast", "kept_target", "kept_event"):
            self.add_state(side, [], dist_reduce_fx="cat")
        tell_apart(self, convention=convention, scale=scale, lpips=lpips)

    def update(self, forecast: Tensor, target: Tensor, events: Tensor | None = None) -> None:
        """Adds the frames of a batch.

        Args:
            forecast: Physical units, `(B,T,H,W,C)`.
            target: The same shape.
            events: The event of each sequence, `(B,)`, once events are tracked.

        Raises:
            ContractError: shapes differ, frames are smaller than SSIM's window, or the number of lead times changed.
            RunFailedError: the 2022 SSIM would have to keep too much.
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
            none = torch.zeros(forecast.shape[:2], dtype=torch.int64)
            found |= {"ssim_sum": none.double(), "ssim_count": none}
            self._keep(forecast, target, events)
        self.add(found, events)

    def _means(self, score: str, values: Tensor, shape: tuple[int, int, int]) -> dict[str, Tensor]:
        """Returns sums and counts `(B,T)` of a score of frames `(B x T x C,)`."""
        values = values.reshape(shape)
        known = ~torch.isnan(values) if self.convention == "correct" else torch.ones_like(values, dtype=torch.bool)
        return {f"{score}_sum": values.masked_fill(~known, 0).sum(-1), f"{score}_count": known.sum(-1)}

    def _keep(self, forecast: Tensor, target: Tensor, events: Tensor | None) -> None:
        parts = [side.detach().cpu().clone() for side in (forecast, target)]
        self._refuse_to_keep(self._kept_bytes + sum(part.nbytes for part in parts))
        self.kept_forecast.append(parts[0])
        self.kept_target.append(parts[1])
        self.kept_event.append(torch.zeros(len(target), dtype=torch.int64) if events is None else events.cpu().clone())

    def _refuse_to_keep(self, count: int) -> None:
        self._kept_bytes = count
        if count > _MOST_KEPT_BYTES:
            raise RunFailedError(
                "SSIM in the convention 'upstream' is on the range of the whole set, so every frame is kept: these are "
                f"more than {_MOST_KEPT_BYTES // 2**30} GiB. Give the metric frames convention=correct."
            )

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        super()._reduce_states(incoming_state)
        self._refuse_to_keep(sum(part.nbytes for part in (*self.kept_forecast, *self.kept_target)))

    def reset(self) -> None:
        """Starts afresh."""
        super().reset()
        self._kept_bytes = 0

    def _kept_ssim(self) -> dict[str, Tensor]:
        """Returns the 2022 SSIM of what was kept: sums and counts `(N,T)`, and the events `(N,)`."""
        # lists after local updates, one tensor each after processes were joined
        sides = [_as_list(side) for side in (self.kept_forecast, self.kept_target)]
        ranges = [
            (max(float(part.max()) for part in side) - min(float(part.min()) for part in side)) / self.scale
            if not any(bool(torch.isnan(part).any()) for part in side)
            else math.nan
            for side in sides
        ]
        data_range = math.nan if any(map(math.isnan, ranges)) else max(ranges)
        found: list[dict[str, Tensor]] = []
        for forecast, target in zip(*sides, strict=True):
            pair = [_channel_frames(side.double() / self.scale) for side in (forecast, target)]
            found.append(
                self._means("ssim", ssim(pair[0], pair[1], data_range), (*forecast.shape[:2], forecast.shape[4]))
            )
        joined = {name: torch.cat([part[name] for part in found]) for name in ("ssim_sum", "ssim_count")}
        return {**joined, "events": torch.cat(_as_list(self.kept_event))}

    def score_options(self) -> dict[str, Any]:
        """Returns what the scores depend on besides the sums."""
        return {"scale": self.scale, "convention": self.convention, "frame_pixels": int(self.frame_pixels)}

    def statistics(self) -> dict[str, Any]:
        """Returns the sums over everything, `(T,)`, by name."""
        found = super().statistics()
        if len(self.kept_event):
            kept = self._kept_ssim()
            found |= {name: kept[name].sum(0).numpy() for name in ("ssim_sum", "ssim_count")}
        return found

    def event_statistics(self) -> dict[str, Any]:
        """Returns the sums of each event, `(events, T)`, by name; empty where events are not tracked."""
        found = super().event_statistics()
        if found and len(self.kept_event):
            kept = self._kept_ssim()
            for name in ("ssim_sum", "ssim_count"):
                sums = kept[name].new_zeros((self.event_count, kept[name].shape[1]))
                found[name] = sums.index_add_(0, kept["events"], kept[name]).numpy()
        return found


def _channel_frames(values: Tensor) -> Tensor:
    """Returns `(B x T x C, H, W)` of `(B,T,H,W,C)`."""
    return values.movedim(4, 2).flatten(0, 2)


def _as_list(state: list[Tensor] | Tensor) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else state


class _LpipsDistance:
    """The LPIPS distance (AlexNet, version 0.1) of frames `(N,H,W)` in 0..1, float64 `(N,)`.

    No module: the network must not become a part of the metric, nor of a checkpoint.

    Raises:
        ConfigError: the weights of AlexNet are neither here nor to be had.
    """

    def __init__(self) -> None:
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        try:
            self.network = LearnedPerceptualImagePatchSimilarity(net_type="alex").net
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"lpips=true needs torchvision's weights of AlexNet, which are neither in its cache nor to be "
                f"downloaded: {error}. Put them under $TORCH_HOME/hub/checkpoints, or leave lpips out."
            ) from error

    def __call__(self, forecast: Tensor, target: Tensor) -> Tensor:
        self.network = self.network.to(forecast.device)
        pair = [side.float().clamp(0, 1)[:, None].expand(-1, 3, -1, -1) * 2 - 1 for side in (forecast, target)]
        return self.network(*pair).double().flatten()
