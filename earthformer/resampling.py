"""Changes of the grid: patch merging, up-sampling with convolutions, and the stages between pixels and tokens.

The first stage ``conv`` is convolutions at full resolution and one merge, the last one up-sampling and convolutions;
``stack_conv`` is the same in several steps, with fewer channels at higher resolution.

Source: Earthformer, section 3.2 and the appendix on architectures; padding and sizes as in the authors' released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earthformer.cuboids import missing_to_multiple, pad
from earthformer.layers import init_conv, init_linear, make_activation, make_norm
from earthformer.options import Options, as_scale
from earthformer.patterns import Size3

Size4 = tuple[int, int, int, int]

CONV_STAGE_GROUPS = 16
CHANNELS_PER_GROUP = 4
# Outermost pixels that decide a border pixel after two 3x3 convolutions; smaller frames are not composed.
_SMALLEST_COMPOSED = 3
# Required ratio of products, because the loops of a transposed convolution are less regular.
_COMPOSITION_GAIN = 1.4


class PatchMerging(nn.Module):
    """Concatenates the channels of neighbouring tokens, normalises them and projects them to `out_dim` channels."""

    def __init__(
        self, options: Options, dim: int, out_dim: int, downsample: Sequence[int], *, norm_layer: str = "layer_norm"
    ) -> None:
        """Makes the layer that merges `downsample` (T, H, W) tokens of `dim` channels.

        Raises:
            ValueError: unknown norm or initialisation mode.
        """
        super().__init__()
        self.downsample: Size3 = (downsample[0], downsample[1], downsample[2])
        self.out_dim = out_dim
        self.padding_type = options.padding_type
        merged = downsample[0] * downsample[1] * downsample[2] * dim
        self.reduction = nn.Linear(merged, self.out_dim, bias=False)
        self.norm = make_norm(norm_layer, merged, mode=options.norm_init_mode)
        init_linear(self.reduction, options.down_up_linear_init_mode)

    def output_shape(self, shape: Sequence[int]) -> Size4:
        """Returns T, H, W and C after merging a grid of `shape` (T, H, W, C)."""
        t, h, w = (-(-length // factor) for length, factor in zip(shape[:3], self.downsample, strict=True))
        return t, h, w, self.out_dim

    def forward(self, x: Tensor) -> Tensor:
        """Returns the merged tokens of `x` (B, T, H, W, C): each axis divided by its factor, rounded up.

        Raises:
            ValueError: only the number of frames is not a multiple of its factor (as in the authors' code, which pads
                frames only together with rows or columns).
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


class Upsample(nn.Module):
    """Resizes each frame by nearest-neighbour interpolation, then convolves it.

    On CPUs both are one transposed convolution of the source, whose taps are sums of the taps that read the same
    source pixel.
    """

    def __init__(
        self, dim: int, out_dim: int, target_size: Sequence[int], kernel_size: int = 3, conv_init_mode: str = "0"
    ) -> None:
        """Makes the layer for frames of `target_size` (T, H, W); T must be the number of frames given.

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
        """Returns frames (B, T, H', W', C_out) of the target size from `x` (B, T, H, W, C).

        Raises:
            ValueError: the number of frames is not that of the target.
        """
        if x.shape[1] != self.target_size[0]:
            raise ValueError(f"upsample: expected {self.target_size[0]} frames, found {x.shape[1]}")
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        scale = self._whole_scale(frames)
        if scale is None or frames.device.type != "cpu":
            frames = self.conv(F.interpolate(frames, size=self.target_size[1:], mode="nearest"))
        else:
            frames = _upsample_and_convolve(frames, scale, self.conv.weight, self.conv.bias)
        return frames.permute(0, 2, 3, 1).unflatten(0, (-1, self.target_size[0]))

    def _whole_scale(self, frames: Tensor) -> tuple[int, int] | None:
        """Returns how often rows and columns of `frames` (B, C, H, W) are repeated; None if the ratio is no integer."""
        rows, columns = self.target_size[1], self.target_size[2]
        h, w = int(frames.shape[2]), int(frames.shape[3])
        return (rows // h, columns // w) if rows % h == 0 and columns % w == 0 else None

    def followed_by(self, x: Tensor, conv: nn.Conv2d) -> Tensor | None:
        """Returns ``conv`` of ``forward(x)`` as (B, T, H', W', C_out) in one pass, or None if that is not faster.

        There is no non-linearity between the two 3x3 convolutions, so away from the border they are one of 5x5, which
        in turn is one transposed convolution of `x`. At the border the second convolution sees zeros where the first
        one would have values; those pixels are computed separately.
        """
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        scale = self._whole_scale(frames)
        if (
            scale is None
            or frames.device.type != "cpu"
            or min(self.target_size[1:]) < _SMALLEST_COMPOSED
            or self.conv.kernel_size != (3, 3)
            or not _composition_pays(scale, self.conv.in_channels, conv.in_channels, conv.out_channels)
        ):
            return None
        weight = _compose(self.conv.weight, conv.weight)
        assert self.conv.bias is not None and conv.bias is not None
        bias = conv.bias + (conv.weight.sum((2, 3)) * self.conv.bias).sum(1)
        out = _upsample_and_convolve(frames, scale, weight, bias).permute(0, 2, 3, 1).contiguous()
        _, h, w, channels = out.shape
        place = torch.arange(h * w, device=x.device).view(h, w)
        border = torch.cat((place[0], place[-1], place[1:-1, 0], place[1:-1, -1]))
        out = out.view(-1, h * w, channels).index_copy_(1, border, self._border(frames, scale, conv))
        return out.view(-1, self.target_size[0], h, w, channels)

    def _border(self, frames: Tensor, scale: tuple[int, int], conv: nn.Conv2d) -> Tensor:
        """Returns the border pixels (B*T, P, C_out): first and last row, first and last column without their ends."""
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
    """Returns `frames` (B, C, H, W) up-sampled to the nearest pixel by `scale` and convolved, padded with zeros."""
    padding = weight.shape[-1] // 2
    if scale == (1, 1):
        return F.conv2d(frames, weight, bias, padding=padding)
    return F.conv_transpose2d(frames, upsample_weight(weight, scale), bias, stride=scale, padding=padding)


def upsample_weight(weight: Tensor, scale: tuple[int, int]) -> Tensor:
    """Returns the transposed-convolution weight of "nearest up-sampling by `scale`, then convolution with `weight`".

    `weight` is (C_out, C_in, K, K) with K odd; the result (C_in, C_out, K + s_h - 1, K + s_w - 1) is used with stride
    `scale` and padding K // 2.
    """
    kernel = weight.shape[-1]
    tap = torch.arange(kernel, device=weight.device)
    sums = []
    for step in scale:
        first = kernel - 1 - torch.arange(kernel + step - 1, device=weight.device)[:, None]
        sums.append(((tap >= first) & (tap < first + step)).to(weight.dtype))
    return torch.einsum("mk,nl,oikl->iomn", *sums, weight)


def _compose(first: Tensor, second: Tensor) -> Tensor:
    """Returns the weight (C_out, C_in, K, K) of the convolution `first` followed by `second`, borders aside.

    Weights are (C_middle, C_in, K_1, K_1) and (C_out, C_middle, K_2, K_2); K = K_1 + K_2 - 1.
    """
    return F.conv2d(first.transpose(0, 1), second.flip(-2, -1), padding=second.shape[-1] - 1).transpose(0, 1)


def _composition_pays(scale: tuple[int, int], c_in: int, c_middle: int, c_out: int) -> bool:
    """Returns whether two 3x3 convolutions after up-sampling by `scale` are faster as one 5x5 convolution.

    Compares multiply-adds per pixel of the two forms, both with the up-sampling folded in.
    """
    one, two = ((k + scale[0] - 1) * (k + scale[1] - 1) / (scale[0] * scale[1]) for k in (3, 5))
    return one * c_in * c_middle + 9 * c_middle * c_out > _COMPOSITION_GAIN * two * c_in * c_out


class FrameConvolutions(nn.Sequential):
    """3x3 convolutions of each frame, each followed by a group norm and an activation."""

    def __init__(self, in_dim: int, out_dim: int, count: int, groups: int, activation: str) -> None:
        """Makes `count` convolutions, the first from `in_dim` channels, with torch's default initialisation.

        The authors' initialisation does not reach these layers either.

        Raises:
            ValueError: `groups` does not divide `out_dim`, or unknown activation.
        """
        if count and out_dim % groups:
            raise ValueError(f"convolutions: expected a multiple of {groups} channels, found {out_dim}")
        layers: list[nn.Module] = []
        for index in range(count):
            conv = nn.Conv2d(out_dim if index else in_dim, out_dim, 3, padding=1)
            layers += [conv, nn.GroupNorm(groups, out_dim), make_activation(activation)]
        super().__init__(*layers)

    def forward(self, x: Tensor, *, start: int = 0) -> Tensor:
        """Returns features (B, T, H, W, C_out) of `x` (B, T, H, W, C), from the layer number `start` on."""
        if not len(self):
            return x
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        for layer in list(self)[start:]:
            frames = layer(frames)
        return frames.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def _upsample_then_convolve(x: Tensor, upsample: Upsample, convolutions: FrameConvolutions) -> Tensor:
    """Returns ``convolutions(upsample(x))``, with the two adjacent convolutions in one pass if that is faster."""
    if len(convolutions):
        first = convolutions[0]
        assert isinstance(first, nn.Conv2d)
        composed = upsample.followed_by(x, first)
        if composed is not None:
            return convolutions(composed, start=1)
    return convolutions(upsample(x))


class InitialEncoder(nn.Module):
    """First stage ``conv``: convolutions at full resolution, then one patch merging."""

    def __init__(self, options: Options, in_channels: int) -> None:
        """Makes the stage from `in_channels` to `base_units` channels, which are equal without convolutions.

        Raises:
            ValueError: channels that do not fit, or an unknown activation or scale.
        """
        super().__init__()
        units, count = options.base_units, options.initial_downsample_conv_layers
        if not count and in_channels != units:
            raise ValueError(f"initial stage: expected {units} channels without convolutions, found {in_channels}")
        activation = options.initial_downsample_activation
        self.conv_block = FrameConvolutions(in_channels, units, count, CONV_STAGE_GROUPS, activation)
        self.patch_merge = PatchMerging(options, units, units, as_scale(options.initial_downsample_scale))

    def output_shapes(self, shape: Sequence[int]) -> list[Size4]:
        """Returns T, H, W, C after each merge for pixels of `shape` (T, H, W, C)."""
        return [self.patch_merge.output_shape(shape)]

    def forward(self, x: Tensor) -> Tensor:
        """Returns tokens (B, T', H', W', C_out) of pixels `x` (B, T, H, W, C)."""
        merged: Tensor = self.patch_merge(self.conv_block(x))
        return merged


class FinalDecoder(nn.Module):
    """Last stage ``conv``: up-sampling to the pixels of the target, then convolutions."""

    def __init__(self, options: Options, target_thw: Sequence[int]) -> None:
        """Makes the stage for frames of `target_thw` (T, H, W) with `base_units` channels in and out.

        Raises:
            ValueError: channels that do not fit, or an unknown activation.
        """
        super().__init__()
        units, count = options.base_units, options.final_upsample_conv_layers
        self.conv_block = FrameConvolutions(
            units, units, count, CONV_STAGE_GROUPS, options.initial_downsample_activation
        )
        self.upsample = Upsample(units, units, target_thw, conv_init_mode=options.conv_init_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Returns features (B, T, H, W, C) of tokens `x` (B, T, H', W', C)."""
        return _upsample_then_convolve(x, self.upsample, self.conv_block)


class InitialStackEncoder(nn.Module):
    """First stage ``stack_conv``: convolutions and a patch merging, several times."""

    def __init__(self, options: Options, in_channels: int) -> None:
        """Makes the steps; the lists of `options` have one entry per step (more are ignored).

        Raises:
            ValueError: a list is too short, or an unknown activation.
        """
        super().__init__()
        steps = options.initial_downsample_stack_conv_num_layers
        lists = (
            options.initial_downsample_stack_conv_dim_list or [options.base_units] * steps,
            options.initial_downsample_stack_conv_downscale_list,
            options.initial_downsample_stack_conv_num_conv_list,
        )
        shortest = min(map(len, lists))
        if steps < 1 or shortest < steps:
            raise ValueError(f"stack_conv: expected lists of at least num_layers={steps} entries, found {shortest}")
        self.conv_block_list = nn.ModuleList()
        self.patch_merge_list = nn.ModuleList()
        channels, activation = in_channels, options.initial_downsample_activation
        for dim, scale, count in list(zip(*lists, strict=False))[:steps]:
            groups = max(1, dim // CHANNELS_PER_GROUP)
            self.conv_block_list.append(FrameConvolutions(channels, dim, count, groups, activation))
            self.patch_merge_list.append(PatchMerging(options, dim, dim, as_scale(scale)))
            channels = dim

    def output_shapes(self, shape: Sequence[int]) -> list[Size4]:
        """Returns T, H, W, C after each merge for pixels of `shape` (T, H, W, C)."""
        shapes: list[Size4] = []
        for merge in self.patch_merge_list:
            assert isinstance(merge, PatchMerging)
            shapes.append(merge.output_shape(shapes[-1] if shapes else shape))
        return shapes

    def forward(self, x: Tensor) -> Tensor:
        """Returns tokens (B, T', H', W', C_out) of pixels `x` (B, T, H, W, C)."""
        for convolutions, merge in zip(self.conv_block_list, self.patch_merge_list, strict=True):
            x = merge(convolutions(x))
        return x


class FinalStackDecoder(nn.Module):
    """Last stage ``stack_conv``: up-sampling and convolutions, several times."""

    def __init__(self, options: Options, targets: Sequence[Sequence[int]], in_channels: int) -> None:
        """Makes one step per target (T, H, W, C), coarse to fine, with the first stage's convolutions in reverse order.

        Raises:
            ValueError: fewer numbers of convolutions than targets, or an unknown activation.
        """
        super().__init__()
        counts = list(options.initial_downsample_stack_conv_num_conv_list)[::-1]
        if len(counts) < len(targets):
            raise ValueError(f"stack_conv: expected {len(targets)} numbers of convolutions, found {counts}")
        self.conv_block_list = nn.ModuleList()
        self.upsample_list = nn.ModuleList()
        channels, activation = in_channels, options.initial_downsample_activation
        for (*grid, dim), count in zip(targets, counts, strict=False):
            groups = max(1, dim // CHANNELS_PER_GROUP)
            self.upsample_list.append(Upsample(channels, channels, grid, conv_init_mode=options.conv_init_mode))
            self.conv_block_list.append(FrameConvolutions(channels, dim, count, groups, activation))
            channels = dim

    def forward(self, x: Tensor) -> Tensor:
        """Returns features (B, T, H, W, C) of tokens `x` (B, T, H', W', C)."""
        for upsample, convolutions in zip(self.upsample_list, self.conv_block_list, strict=True):
            assert isinstance(upsample, Upsample) and isinstance(convolutions, FrameConvolutions)
            x = _upsample_then_convolve(x, upsample, convolutions)
        return x


def make_initial_stage(options: Options, channels: int) -> InitialEncoder | InitialStackEncoder:
    """Returns a new first stage for pixels of `channels` channels.

    Raises:
        ValueError: an unknown kind, or sizes that do not fit.
    """
    if options.initial_downsample_type == "conv":
        return InitialEncoder(options, channels)
    if options.initial_downsample_type == "stack_conv":
        return InitialStackEncoder(options, channels)
    raise ValueError(f"initial_downsample_type: expected conv or stack_conv, found {options.initial_downsample_type!r}")


def make_final_stage(
    options: Options, initial: InitialEncoder | InitialStackEncoder, target_shape: Size4
) -> tuple[FinalDecoder | FinalStackDecoder, int]:
    """Returns the last stage for pixels of the target (T, H, W, C), and the number of channels that it returns."""
    if isinstance(initial, InitialEncoder):
        return FinalDecoder(options, target_shape[:3]), options.base_units
    # Grids of the target before each merge, fine to coarse, with the channels that the merge came from.
    after = initial.output_shapes(target_shape)
    grids = [target_shape, *after[:-1]]
    targets = [(*grid[:3], step[3]) for grid, step in zip(grids, after, strict=True)][::-1]
    return FinalStackDecoder(options, targets, after[-1][3]), targets[-1][3]
