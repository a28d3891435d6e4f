"""Structural similarity (SSIM) and peak signal-to-noise ratio (PSNR) of single frames.

Source: Wang, Bovik, Sheikh and Simoncelli (2004), IEEE Trans. Image Process. 13, 600-612: Gaussian window of 11 pixels
with sigma 1.5, k1 = 0.01, k2 = 0.03, biased variances.  Only windows entirely inside the frame count.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from bench.errors import ContractError

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
# Pixels per block on the CPU, which fit its cache; and pixels times data ranges on other devices, 0.5 GiB.
_BLOCK, _MOST = 16_384, 2**26


def ssim(forecast: Tensor, target: Tensor, data_range: float) -> Tensor:
    """Returns the mean SSIM of each frame, float64 `(N,)`; NaN for a frame with a NaN.

    Args:
        forecast: Frames `(N,H,W)`.
        target: The same shape.
        data_range: Largest minus smallest value; 0 gives NaN if both frames are flat.

    Raises:
        ContractError: frames are smaller than the window.
    """
    return ssim_at(forecast, target, torch.tensor([data_range], dtype=torch.float64))[:, 0]


def ssim_at(forecast: Tensor, target: Tensor, data_ranges: Tensor) -> Tensor:
    """Returns the mean SSIM of each frame for each of several data ranges, float64 `(N,R)`; otherwise as `ssim`.

    Args:
        forecast: Frames `(N,H,W)`.
        target: The same shape.
        data_ranges: `(R,)`.

    Raises:
        ContractError: frames are smaller than the window.
    """
    if min(forecast.shape[1:]) < _WINDOW:
        raise ContractError(
            f"SSIM's window is {_WINDOW}x{_WINDOW} pixels, frames are {forecast.shape[1]}x{forecast.shape[2]}"
        )
    there = data_ranges.to(forecast.device, non_blocking=forecast.is_cuda)
    c1, c2 = (((k * there) ** 2)[:, None, None] for k in (_K1, _K2))
    on_cpu = forecast.device.type == "cpu"
    pixels = forecast.shape[1] * forecast.shape[2]
    frames = max(1, _BLOCK // pixels) if on_cpu else max(1, len(forecast))
    ranges = 1 if on_cpu else max(1, _MOST // max(1, pixels * len(forecast)))
    found = []
    for pair in zip(forecast.double().split(frames), target.double().split(frames), strict=True):
        p, q, r, s = _parts(*pair)
        each = [
            ((p + k1) * (r + k2) / ((q + k1) * (s + k2))).mean(2)
            for k1, k2 in zip(c1.split(ranges), c2.split(ranges), strict=True)
        ]
        found.append(torch.cat(each).T)
    return torch.cat(found)


def _parts(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns, flat for each frame, 2 m_x m_y, m_x^2 + m_y^2, twice the covariance, and the sum of both variances."""
    of_x, of_y = _smooth(x), _smooth(y)
    means, squares = 2 * of_x * of_y, of_x**2 + of_y**2
    covariance = 2 * _smooth(x * y) - means
    variances = _smooth(x * x) + _smooth(y * y) - squares
    return means.flatten(1), squares.flatten(1), covariance.flatten(1), variances.flatten(1)


def _smooth(values: Tensor) -> Tensor:
    """Returns Gaussian means of the windows inside frames `(N,H,W)`: two products with a band matrix."""
    rows, columns = (_band(extent, values.device) for extent in values.shape[1:])
    return rows @ values @ columns.T


@lru_cache(maxsize=8)
def _band(extent: int, device: torch.device) -> Tensor:
    weights = torch.exp(-(((torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2) / _SIGMA) ** 2) / 2)
    band = torch.zeros(extent - _WINDOW + 1, extent, dtype=torch.float64)
    for row in range(len(band)):
        band[row, row : row + _WINDOW] = weights / weights.sum()
    return band.to(device)


def psnr(forecast: Tensor, target: Tensor, *, finite_only: bool) -> Tensor:
    """Returns the PSNR in dB of each frame `(N,...)` clipped to 0..1, float64 `(N,)`; infinite for equal frames.

    Args:
        forecast: Frames on the 0-1 scale.
        target: The same shape.
        finite_only: Leave out pairs of pixels with a NaN or an infinity; a frame without other pairs gives NaN.
    """
    pair = [side.double().flatten(1) for side in (forecast, target)]
    error = (pair[0].clamp(0, 1) - pair[1].clamp(0, 1)).square()
    if finite_only:
        error = error.masked_fill(~(torch.isfinite(pair[0]) & torch.isfinite(pair[1])), math.nan)
        return -10 * error.nanmean(1).log10()
    return -10 * error.mean(1).log10()
