"""Frechet distance between the features of forecast and observed clips, named after the features.

Sources: Heusel et al. (2017), NeurIPS (the distance); Unterthiner et al. (2018), arXiv:1812.01717 (with I3D: FVD).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from bench.errors import ConfigError, first_line
from bench.metrics.names import BETTER
from bench.metrics.pairs import check_members
from bench.metrics.skill.formulas import VIL_THRESHOLDS
from bench.metrics.states import ExactMetric, tell_apart

Features = Callable[[Tensor], Tensor]
"""From clips `(N,T,H,W)` on the 0-1 scale to features, float64 `(N,D)`."""

_LEVELS = tuple(round(level / 255, 4) for level in VIL_THRESHOLDS)
_SPECTRUM_BINS = 8
_SMALLEST = 1e-6
_MIN_FRAMES = 9  # of I3D
_I3D_PIXELS = 224


class Frechet(ExactMetric):
    """Distance of two Gaussians fitted to the features of clips: |mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)).

    `compute()` gives one number whose name states the features: `frechet_storm`, or `fvd` with the I3D network and its
    weights.  Smaller is better.  It depends on the features and on the number of clips and has no unit, so it only
    compares models on the same clips.  Covariances are unbiased; fewer than two clips give NaN, and unless there are
    more clips than features, the covariance is singular and the figure means little: `NAME_clip_count` is the number of
    forecast clips, `NAME_feature_count` that of features.

    The features `storm` of a clip are hand-made, need no download and are the same everywhere: means and standard
    deviations over frames of the log power spectrum in 8 radial bands and of the logarithm of the share of pixels at
    or above six levels; and mean, standard deviation and largest value of the change from frame to frame.

    Each member of an ensemble is a separate clip; the observed clips count once.  Contexts are not used.

    Args:
        features: `storm` or `i3d`.
        weights: File of I3D's state dict, of 400 or 600 classes; for `i3d`.
        scale: Physical value that becomes 1.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    better = BETTER
    takes_members = True
    forecast_count: Tensor
    forecast_sum: Tensor
    forecast_products: Tensor
    target_count: Tensor
    target_sum: Tensor
    target_products: Tensor

    def __init__(
        self,
        features: Literal["storm", "i3d"] = "storm",
        weights: str | Path | None = None,
        scale: float = 255.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if features not in ("storm", "i3d"):
            raise ValueError(f"features {features!r}; expected 'storm' or 'i3d'")
        if (features == "i3d") != (weights is not None):
            raise ValueError("weights are I3D's: give weights=FILE with features='i3d', and only with it")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale {scale!r}; expected a number > 0")
        self.scale = scale
        self.score = "fvd" if features == "i3d" else f"frechet_{features}"
        if weights is not None:
            self._features, count = i3d_features(Path(weights))
        else:
            self._features, count = storm_features, 2 * (_SPECTRUM_BINS + len(_LEVELS)) + 3
        for side in ("forecast", "target"):
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(count, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_products", torch.zeros(count, count, dtype=torch.float64), dist_reduce_fx="sum")
        tell_apart(self, features=features, weights=weights if weights is None else str(weights), scale=scale)

    def update(self, forecast: Tensor, target: Tensor) -> None:
        """Adds the clips of a batch; each channel is a separate clip.

        A sequence whose target has a missing pixel (NaN) has no features: it and its forecasts are ignored.

        Args:
            forecast: Members in physical units, `(M,B,T,H,W,C)`.
            target: `(B,T,H,W,C)`.

        Raises:
            ContractError: shapes differ.
        """
        check_members(forecast, target)
        known = ~torch.isnan(target).flatten(1).any(1)
        forecast, target = forecast[:, known.to(forecast.device)], target[known]
        if not len(target):
            return
        for side, clips in (("forecast", forecast.flatten(0, 1)), ("target", target)):
            flat = clips.detach().float().div(self.scale).movedim(4, 1).flatten(0, 1)
            found = self._features(flat)
            state = getattr(self, f"{side}_sum")
            found = found.to(state)
            setattr(self, f"{side}_count", getattr(self, f"{side}_count") + len(found))
            setattr(self, f"{side}_sum", state + found.sum(0))
            setattr(self, f"{side}_products", getattr(self, f"{side}_products") + found.T @ found)

    def compute(self) -> dict[str, float]:
        """Returns the distance by name; see the class."""
        sides = [
            moments(*(getattr(self, f"{side}_{part}").cpu().numpy() for part in ("count", "sum", "products")))
            for side in ("forecast", "target")
        ]
        return {
            self.score: frechet_distance(*sides[0], *sides[1]),
            f"{self.score}_clip_count": float(self.forecast_count),
            f"{self.score}_feature_count": float(len(self.forecast_sum)),
        }


def moments(count: np.ndarray, total: np.ndarray, products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean `(D,)` and unbiased covariance `(D,D)` from sums; NaN with fewer than two clips."""
    n = int(count)
    if n < 2:
        return np.full_like(total, np.nan), np.full_like(products, np.nan)
    mean = total / n
    return mean, (products - n * np.outer(mean, mean)) / (n - 1)


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Returns the squared Frechet distance of two Gaussians; NaN if a mean or covariance is not finite.

    The trace of the product's square root is the sum of the roots of its eigenvalues, with negative ones (round-off) as
    0, which also works for singular covariances.
    """
    if not all(np.isfinite(part).all() for part in (mean_a, cov_a, mean_b, cov_b)):
        return math.nan
    eigenvalues = np.linalg.eigvals(cov_a @ cov_b).real
    root = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root)


def storm_features(clips: Tensor) -> Tensor:
    """Returns hand-made features of clips `(N,T,H,W)`, float64 `(N,31)`; see `Frechet`."""
    clips = clips.double()
    per_frame = torch.cat([_log_spectrum(clips), _log_shares(clips)], 2)
    parts = [per_frame.mean(1), per_frame.std(1, unbiased=False)]
    change = clips.diff(dim=1).abs().flatten(1) if clips.shape[1] > 1 else clips.new_zeros(len(clips), 1)
    parts.append(torch.stack([change.mean(1), change.std(1, unbiased=False), change.amax(1)], 1))
    return torch.cat(parts, 1)


def _log_spectrum(clips: Tensor) -> Tensor:
    """Returns log10 of the mean power in radial bands from the longest wave to two pixels, `(N,T,8)`."""
    height, width = clips.shape[2:]
    power = torch.fft.rfft2(clips, norm="forward").abs().square()
    fy = torch.fft.fftfreq(height, device=clips.device, dtype=torch.float64)
    fx = torch.fft.rfftfreq(width, device=clips.device, dtype=torch.float64)
    radius = torch.hypot(fy[:, None], fx[None]) * 2 * _SPECTRUM_BINS  # 0.5 cycles a pixel is the last bin's end
    band = radius.floor().clamp(max=_SPECTRUM_BINS - 1).long().flatten()
    sums = power.new_zeros(*power.shape[:2], _SPECTRUM_BINS).index_add_(2, band, power.flatten(2))
    sizes = torch.bincount(band, minlength=_SPECTRUM_BINS).clamp(min=1)
    return (sums / sizes + _SMALLEST).log10()


def _log_shares(clips: Tensor) -> Tensor:
    levels = torch.tensor(_LEVELS, dtype=clips.dtype, device=clips.device)
    shares = torch.stack([(clips >= level).double().mean((2, 3)) for level in levels], 2)
    return (shares + 1e-4).log10()


def i3d_features(weights: Path) -> tuple[Features, int]:
    """Returns the logits of I3D as features, and their number.

    Clips are converted to the network's input: every frame is repeated in clips of fewer than 9 frames, grey becomes
    three equal channels, the shorter side is resized to 224 pixels (bilinear), the centre is cropped, 0..1 becomes
    -1..1.

    Raises:
        ConfigError: the file is missing, or is not a state dict of this network.
    """
    from bench.metrics.frechet.i3d import I3D

    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        classes = len(state["logits.conv3d.weight"])
        network = I3D(classes)
        network.load_state_dict(state)
    except FileNotFoundError as error:
        raise ConfigError(
            f"weights={str(weights)!r}: no such file. FVD needs the I3D network of Kinetics (state dict of 400 or 600 "
            "classes); features=storm needs no file, but is another score."
        ) from error
    except Exception as error:  # torch raises errors of many kinds for other files
        raise ConfigError(f"weights={str(weights)!r} is not a state dict of I3D: {first_line(error)}") from error
    return _I3DFeatures(network.eval().requires_grad_(False)), classes


class _I3DFeatures:
    """The logits of I3D, `(N,D)`; no module, so that the network is not part of the metric."""

    def __init__(self, network: Module) -> None:
        self.network = network

    def __call__(self, clips: Tensor) -> Tensor:
        self.network.to(clips.device)
        found: Tensor = self.network(i3d_input(clips)).double()
        return found


def i3d_input(clips: Tensor) -> Tensor:
    """Returns I3D's input `(N,3,T,224,224)` in -1..1 for clips `(N,T,H,W)` on the 0-1 scale."""
    repeats = -(-_MIN_FRAMES // clips.shape[1])
    clips = clips.repeat_interleave(repeats, 1)
    height, width = clips.shape[2:]
    factor = _I3D_PIXELS / min(height, width)
    size = [max(_I3D_PIXELS, round(extent * factor)) for extent in (height, width)]
    clips = F.interpolate(clips, size=size, mode="bilinear", align_corners=False)
    top, left = ((extent - _I3D_PIXELS) // 2 for extent in size)
    clips = clips[:, :, top : top + _I3D_PIXELS, left : left + _I3D_PIXELS]
    return clips[:, None].expand(-1, 3, -1, -1, -1) * 2 - 1
