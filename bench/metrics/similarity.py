"""Structural similarity (SSIM) and peak signal-to-noise ratio (PSNR) of single frames.

Source: Wang, Bovik, Sheikh and Simoncelli (2004), IEEE Trans. Image Process. 13, 600-612: Gaussian window of 11 pixels
with sigma 1.5, k1 = 0.01, k2 = 0.03, biased variances.  Only windows wholly inside the frame count.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.errors import ContractError

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def ssim(forecast: Tensor, target: Tensor, data_range: float) -> Tensor:
    """Returns the mean SSIM of each frame, float64 `(N,)`; NaN for a frame with a NaN.

    Args:
        forecast: Frames `(N,H,W)`.
        target: The same shape.
        data_range: Largest value less the smallest; 0 gives NaN where both frames are flat.

    Raises:
        ContractError: frames are smaller than the window.
    """
    if min(forecast.shape[1:]) < _WINDOW:
        raise ContractError(
            f"SSIM's window is {_WINDOW}x{_WINDOW} pixels, frames are {forecast.shape[1]}x{forecast.shape[2]}"
        )
    x, y = forecast.double(), target.double()
    of_x, of_y = _smooth(x), _smooth(y)
    variances = _smooth(x * x) + _smooth(y * y) - of_x**2 - of_y**2
    covariance = _smooth(x * y) - of_x * of_y
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    map_ = (2 * of_x * of_y + c1) * (2 * covariance + c2) / ((of_x**2 + of_y**2 + c1) * (variances + c2))
    return map_.mean((1, 2))


def _smooth(values: Tensor) -> Tensor:
    """Returns Gaussian means of the windows inside frames `(N,H,W)`: two products with a band matrix."""
    bands = [_band(extent, values) for extent in values.shape[1:]]
    return bands[0] @ values @ bands[1].T


def _band(extent: int, like: Tensor) -> Tensor:
    weights = torch.exp(-(((torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2) / _SIGMA) ** 2) / 2)
    weights = (weights / weights.sum()).to(like)
    band = like.new_zeros(extent - _WINDOW + 1, extent)
    for row in range(len(band)):
        band[row, row : row + _WINDOW] = weights
    return band


def psnr(forecast: Tensor, target: Tensor, *, finite_only: bool) -> Tensor:
    """Returns the PSNR in dB of each frame `(N,...)` clipped to 0..1, float64 `(N,)`; infinite for equal frames.

    Args:
        forecast: Frames on the 0-1 scale.
        target: The same shape.
        finite_only: Leave out pairs of pixels with a NaN or an infinity; a frame without any other gives NaN.
    """
    pair = [side.double().flatten(1) for side in (forecast, target)]
    error = (pair[0].clamp(0, 1) - pair[1].clamp(0, 1)).square()
    if finite_only:
        error = error.masked_fill(~(torch.isfinite(pair[0]) & torch.isfinite(pair[1])), math.nan)
        return -10 * error.nanmean(1).log10()
    return -10 * error.mean(1).log10()
