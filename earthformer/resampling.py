"""Coarser and finer grids: patch merging and nearest up-sampling followed by a convolution.

Source: Earthformer, section 3.2; padding and sizes as in the authors' released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earthformer import kernels
from earthformer.cuboids import check_padding_type, missing_to_multiple, pad
from earthformer.initialization import init_conv, init_linear
from earthformer.normalization import make_norm
from earthformer.paths import TwoPaths
from earthformer.patterns import Size3

Size4 = tuple[int, int, int, int]

# Pixels that two convolutions 3x3 look across.
_SMALLEST_COMPOSED = 3


def as_scale(scale: int | Sequence[int]) -> Size3:
    """Return a down-sampling factor per axis: int s is (1, s, s), two values are (1, a, b), three stay.

    Raises:
        ValueError: another number of values.
    """
    if isinstance(scale, int):
        return (1, scale, scale)
    if len(scale) == 2:
        return (1, scale[0], scale[1])
    if len(scale) == 3:
        return (scale[0], scale[1], scale[2])
    raise ValueError(f"scale: expected an integer or two or three of them, found {scale!r}")


class PatchMerging(nn.Module):
    """Concatenate the channels of neighbouring tokens, normalise them and project them to `out_dim` channels."""

    def __init__(
        self,
        dim: int,
        out_dim: int | None = None,
        downsample: Sequence[int] = (1, 2, 2),
        norm_layer: str = "layer_norm",
        padding_type: str = "nearest",
        linear_init_mode: str = "0",
        norm_init_mode: str = "0",
    ) -> None:
        """Make the layer that merges `downsample` (T, H, W) tokens of `dim` channels.

        Raises:
            ValueError: unknown norm, padding type or initialisation mode.
        """
        super().__init__()
        self.downsample: Size3 = (downsample[0], downsample[1], downsample[2])
        self.out_dim = max(downsample) * dim if out_dim is None else out_dim
        self.padding_type = check_padding_type(padding_type)
        merged = downsample[0] * downsample[1] * downsample[2] * dim
        self.reduction = nn.Linear(merged, self.out_dim, bias=False)
        self.norm = make_norm(norm_layer, merged, mode=norm_init_mode)
        init_linear(self.reduction, linear_init_mode)

    def output_shape(self, shape: Sequence[int]) -> Size4:
        """Return T, H, W and C after merging a grid of `shape` (T, H, W, C)."""
        t, h, w = (-(-length // factor) for length, factor in zip(shape[:3], self.downsample, strict=True))
        return t, h, w, self.out_dim

    def forward(self, x: Tensor) -> Tensor:
        """Return the merged tokens of `x` (B, T, H, W, C): each axis divided by its factor, rounded up.

        Raises:
            ValueError: the number of frames alone is no multiple of its factor (as in the authors' code,
                which pads frames only together with rows or columns).
        """
        batch, channels = x.shape[0], x.shape[-1]
        a, b, c = self.downsample
        shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
        missing = missing_to_multiple(shape, self.downsample)
        if missing[0] and not (missing[1] or missing[2]):
            raise ValueError(f"patch merging: expected a multiple of {a} frames, found {shape[0]} (H, W = {shape[1:]})")
        x = pad(x, missing, self.padding_type)
        t, h, w, _ = self.output_shape(shape)
        x = x.reshape(batch, t, a, h, b, w, c, channels).permute(0, 1, 3, 5, 2, 4, 6, 7)
        merged: Tensor = self.reduction(self.norm(x.reshape(batch, t, h, w, -1)))
        return merged


class Upsample(TwoPaths):
    """Resize each frame to the nearest source pixel, then convolve it."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        target_size: Sequence[int],
        kernel_size: int = 3,
        conv_init_mode: str = "0",
    ) -> None:
        """Make the layer for frames of `target_size` (T, H, W); T must be the number of frames given.

        Raises:
            ValueError: an even kernel, which would change the size of the frame.
        """
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: expected an odd number, found {kernel_size}")
        self.target_size: Size3 = (target_size[0], target_size[1], target_size[2])
        self.conv = nn.Conv2d(dim, out_dim, kernel_size, padding=kernel_size // 2)
        init_conv(self.conv, conv_init_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Return frames (B, T, H', W', C_out) of the target size from `x` (B, T, H, W, C).

        Raises:
            ValueError: the number of frames is not that of the target.
        """
        if x.shape[1] != self.target_size[0]:
            raise ValueError(f"upsample: expected {self.target_size[0]} frames, found {x.shape[1]}")
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        scale = self._whole_scale(frames)
        if self.plain or scale is None or not kernels.prefers_transposed_convolution(x.device):
            frames = self.conv(F.interpolate(frames, size=self.target_size[1:], mode="nearest"))
        else:
            frames = _upsample_and_convolve(frames, scale, self.conv.weight, self.conv.bias)
        return frames.permute(0, 2, 3, 1).unflatten(0, (-1, self.target_size[0]))

    def _whole_scale(self, frames: Tensor) -> tuple[int, int] | None:
        """Return how often rows and columns of `frames` (B, C, H, W) are repeated, or None if not evenly."""
        rows, columns = self.target_size[1], self.target_size[2]
        h, w = int(frames.shape[2]), int(frames.shape[3])
        return None if rows % h or columns % w else (rows // h, columns // w)

    def followed_by(self, x: Tensor, conv: nn.Conv2d) -> Tensor | None:
        """Return ``conv`` of ``forward(x)`` as (B, T, H', W', C_out) in one pass, or None where that does not pay.

        No non-linearity stands between the two convolutions 3x3, so away from the border they are one of 5x5, which
        in turn is one transposed convolution of `x`. At the border the second convolution sees zeros where the
        first would go on; those pixels are computed by themselves.
        """
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        scale = self._whole_scale(frames)
        if (
            self.plain
            or scale is None
            or min(self.target_size[1:]) < _SMALLEST_COMPOSED
            or self.conv.kernel_size != (3, 3)
            or not kernels.prefers_transposed_convolution(x.device)
            or not kernels.composition_pays(scale, self.conv.in_channels, conv.in_channels, conv.out_channels)
        ):
            return None
        weight = kernels.compose_convolutions(self.conv.weight, conv.weight)
        assert self.conv.bias is not None and conv.bias is not None
        bias = conv.bias + (conv.weight.sum((2, 3)) * self.conv.bias).sum(1)
        out = _upsample_and_convolve(frames, scale, weight, bias).permute(0, 2, 3, 1).contiguous()
        _, h, w, channels = out.shape
        place = torch.arange(h * w, device=x.device).view(h, w)
        border = torch.cat((place[0], place[-1], place[1:-1, 0], place[1:-1, -1]))
        out = out.view(-1, h * w, channels).index_copy_(1, border, self._border(frames, scale, conv))
        return out.view(-1, self.target_size[0], h, w, channels)

    def _border(self, frames: Tensor, scale: tuple[int, int], conv: nn.Conv2d) -> Tensor:
        """Return the border pixels (B*T, P, C_out): first row, last row, first and last column without their ends."""
        h, w = int(frames.shape[2]), int(frames.shape[3])
        # Source rows and columns under the three outermost pixels, which decide the outermost one.
        rows, columns = (-(-_SMALLEST_COMPOSED // step) for step in scale)
        edges = []
        for axis, length, source, step in ((2, h, rows, scale[0]), (3, w, columns, scale[1])):
            for first in (True, False):
                strip = frames.narrow(axis, 0 if first else length - source, source)
                strip = F.interpolate(strip, scale_factor=scale, mode="nearest")
                size = source * step
                strip = self.conv(strip.narrow(axis, 0 if first else size - 3, 3))
                strip = conv(strip.narrow(axis, 0 if first else 1, 2))
                edge = strip.select(axis, 0 if first else 1)
                edges.append(edge if axis == 2 else edge[..., 1:-1])
        return torch.cat(edges, dim=2).transpose(1, 2)


def _upsample_and_convolve(frames: Tensor, scale: tuple[int, int], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return nearest up-sampling of `frames` (B, C, H, W) by `scale`, convolved with `weight` and padded with zeros."""
    padding = weight.shape[-1] // 2
    if scale == (1, 1):
        return F.conv2d(frames, weight, bias, padding=padding)
    return F.conv_transpose2d(frames, kernels.upsample_weight(weight, scale), bias, stride=scale, padding=padding)
