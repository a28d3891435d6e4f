"""First and last stages: from pixels to the grid on which attention runs, and back.

``conv``: convolutions at full resolution and one merge; up-sampling and convolutions. ``stack_conv``: the
same in several steps, with few channels where there are many pixels.

Source: Earthformer, section 3.2 and the appendix on architectures; sizes as in the authors' released code.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from earthformer import kernels
from earthformer.normalization import make_activation
from earthformer.paths import TwoPaths
from earthformer.patterns import Size3
from earthformer.resampling import PatchMerging, Size4, Upsample, as_scale

CONV_STAGE_GROUPS = 16
CHANNELS_PER_GROUP = 4


class FrameConvolutions(TwoPaths, nn.Sequential):
    """Convolutions 3x3 applied to each frame, each followed by a group norm and an activation."""

    def __init__(self, in_dim: int, out_dim: int, count: int, groups: int, activation: str) -> None:
        """Make `count` convolutions, the first from `in_dim` channels, with torch's default initialisation.

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
        """Return features (B, T, H, W, C_out) of `x` (B, T, H, W, C), from the layer number `start` on."""
        if not len(self):
            return x
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)
        for layer in list(self)[start:]:
            is_activation = not isinstance(layer, nn.Conv2d | nn.GroupNorm)
            frames = kernels.activate_(frames, layer) if is_activation and not self.plain else layer(frames)
        return frames.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def _upsample_then_convolve(x: Tensor, upsample: Upsample, convolutions: FrameConvolutions) -> Tensor:
    """Return ``convolutions(upsample(x))``, with the two convolutions that meet in one pass where that pays."""
    if len(convolutions):
        first = convolutions[0]
        assert isinstance(first, nn.Conv2d)
        composed = upsample.followed_by(x, first)
        if composed is not None:
            return convolutions(composed, start=1)
    return convolutions(upsample(x))


class InitialEncoder(nn.Module):
    """Stage ``conv``: convolutions at full resolution, then one patch merging."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        downsample_scale: int | Sequence[int],
        num_conv_layers: int = 2,
        activation: str = "leaky",
        padding_type: str = "nearest",
        linear_init_mode: str = "0",
        norm_init_mode: str = "0",
    ) -> None:
        """Make the stage from `dim` to `out_dim` channels; without convolutions `dim` must be `out_dim`.

        Raises:
            ValueError: channels that do not fit, or an unknown activation, padding type or scale.
        """
        super().__init__()
        if not num_conv_layers and dim != out_dim:
            raise ValueError(f"initial stage: expected {out_dim} input channels without convolutions, found {dim}")
        self.conv_block = FrameConvolutions(dim, out_dim, num_conv_layers, CONV_STAGE_GROUPS, activation)
        self.patch_merge = PatchMerging(
            dim=out_dim,
            out_dim=out_dim,
            downsample=as_scale(downsample_scale),
            padding_type=padding_type,
            linear_init_mode=linear_init_mode,
            norm_init_mode=norm_init_mode,
        )

    def output_shape(self, shape: Sequence[int]) -> Size4:
        """Return T, H, W, C after the stage for pixels of `shape` (T, H, W, C)."""
        return self.patch_merge.output_shape(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, T', H', W', C_out) of pixels `x` (B, T, H, W, C)."""
        merged: Tensor = self.patch_merge(self.conv_block(x))
        return merged


class FinalDecoder(nn.Module):
    """Stage ``conv`` backwards: up-sampling to the pixels of the target, then convolutions."""

    def __init__(
        self,
        target_thw: Sequence[int],
        dim: int,
        num_conv_layers: int = 2,
        activation: str = "leaky",
        conv_init_mode: str = "0",
    ) -> None:
        """Make the stage for frames of `target_thw` (T, H, W) with `dim` channels in and out.

        Raises:
            ValueError: channels that do not fit, or an unknown activation.
        """
        super().__init__()
        self.conv_block = FrameConvolutions(dim, dim, num_conv_layers, CONV_STAGE_GROUPS, activation)
        self.upsample = Upsample(dim, dim, target_thw, conv_init_mode=conv_init_mode)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, T, H, W, C) of tokens `x` (B, T, H', W', C)."""
        return _upsample_then_convolve(x, self.upsample, self.conv_block)


class InitialStackEncoder(nn.Module):
    """Stage ``stack_conv``: convolutions and a patch merging, several times."""

    def __init__(
        self,
        num_merge: int,
        in_dim: int,
        out_dim_list: Sequence[int],
        downsample_scale_list: Sequence[int],
        num_conv_per_merge_list: Sequence[int],
        activation: str = "leaky",
        padding_type: str = "nearest",
        linear_init_mode: str = "0",
        norm_init_mode: str = "0",
    ) -> None:
        """Make `num_merge` steps; the lists have one entry per step (more are ignored).

        Raises:
            ValueError: a list is too short, or an unknown activation or padding type.
        """
        super().__init__()
        shortest = min(len(out_dim_list), len(downsample_scale_list), len(num_conv_per_merge_list))
        if num_merge < 1 or shortest < num_merge:
            raise ValueError(f"stack_conv: expected lists of at least num_merge={num_merge} entries, found {shortest}")
        self.conv_block_list = nn.ModuleList()
        self.patch_merge_list = nn.ModuleList()
        channels = in_dim
        for step in range(num_merge):
            out_dim, scale, count = (
                out_dim_list[step],
                downsample_scale_list[step],
                num_conv_per_merge_list[step],
            )
            groups = max(1, out_dim // CHANNELS_PER_GROUP)
            self.conv_block_list.append(FrameConvolutions(channels, out_dim, count, groups, activation))
            self.patch_merge_list.append(
                PatchMerging(
                    dim=out_dim,
                    out_dim=out_dim,
                    downsample=(1, scale, scale),
                    padding_type=padding_type,
                    linear_init_mode=linear_init_mode,
                    norm_init_mode=norm_init_mode,
                )
            )
            channels = out_dim

    def output_shapes(self, shape: Sequence[int]) -> list[Size4]:
        """Return T, H, W, C after each step for pixels of `shape` (T, H, W, C)."""
        shapes: list[Size4] = []
        for merge in self.patch_merge_list:
            assert isinstance(merge, PatchMerging)
            shapes.append(merge.output_shape(shapes[-1] if shapes else shape))
        return shapes

    def output_shape(self, shape: Sequence[int]) -> Size4:
        """Return T, H, W, C after the stage for pixels of `shape` (T, H, W, C)."""
        return self.output_shapes(shape)[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, T, H', W', C_out) of pixels `x` (B, T, H, W, C)."""
        for convolutions, merge in zip(self.conv_block_list, self.patch_merge_list, strict=True):
            x = merge(convolutions(x))
        return x


class FinalStackDecoder(nn.Module):
    """Stage ``stack_conv`` backwards: up-sampling and convolutions, several times."""

    def __init__(
        self,
        target_shape_list: Sequence[Sequence[int]],
        in_dim: int,
        num_conv_per_up_list: Sequence[int],
        activation: str = "leaky",
        conv_init_mode: str = "0",
    ) -> None:
        """Make one step per target (T, H, W, C), coarse to fine, with its number of convolutions.

        Raises:
            ValueError: fewer numbers of convolutions than targets, or an unknown activation.
        """
        super().__init__()
        if len(num_conv_per_up_list) < len(target_shape_list):
            raise ValueError(
                f"stack_conv: expected {len(target_shape_list)} numbers of convolutions, found {num_conv_per_up_list}"
            )
        self.conv_block_list = nn.ModuleList()
        self.upsample_list = nn.ModuleList()
        channels = in_dim
        for target, count in zip(target_shape_list, num_conv_per_up_list, strict=False):
            groups = max(1, target[3] // CHANNELS_PER_GROUP)
            self.upsample_list.append(Upsample(channels, channels, target[:3], conv_init_mode=conv_init_mode))
            self.conv_block_list.append(FrameConvolutions(channels, target[3], count, groups, activation))
            channels = target[3]

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, T, H, W, C_out) of tokens `x` (B, T, H', W', C)."""
        for upsample, convolutions in zip(self.upsample_list, self.conv_block_list, strict=True):
            assert isinstance(upsample, Upsample) and isinstance(convolutions, FrameConvolutions)
            x = _upsample_then_convolve(x, upsample, convolutions)
        return x


class Stages:
    """The first and last stage of a model, and the shapes between them.

    Attributes:
        initial: from pixels (B, T, H, W, C_in) to tokens.
        final: from tokens to features at the pixels of the target.
        token_shape: T, H, W of the tokens of the input.
        features: channels of what `final` returns.
    """

    def __init__(
        self,
        kind: str,
        input_shape: Size4,
        target_shape: Size4,
        base_units: int,
        activation: str,
        padding_type: str,
        scale: int | Sequence[int],
        initial_conv_layers: int,
        final_conv_layers: int,
        stack_num_layers: int,
        stack_dim_list: Sequence[int] | None,
        stack_downscale_list: Sequence[int],
        stack_num_conv_list: Sequence[int],
        conv_init_mode: str,
        linear_init_mode: str,
        norm_init_mode: str,
    ) -> None:
        """Make the two stages of `kind` ``conv`` or ``stack_conv``.

        Raises:
            ValueError: unknown kind, or sizes that do not fit.
        """
        self._stack = (
            stack_num_layers,
            stack_dim_list or [base_units] * stack_num_layers,
            stack_downscale_list,
        )
        self._kind, self._base_units, self._scale = kind, base_units, scale
        self._conv_layers, self._stack_convs = initial_conv_layers, stack_num_conv_list
        self._common = {
            "activation": activation,
            "padding_type": padding_type,
            "linear_init_mode": linear_init_mode,
            "norm_init_mode": norm_init_mode,
        }
        self.initial = self.make_initial(input_shape[3])
        token_shape = self.initial.output_shape(input_shape)
        self.token_shape: Size3 = token_shape[:3]
        if token_shape[3] != base_units:
            raise ValueError(
                f"initial stage: expected base_units={base_units} channels at its end, found {token_shape[3]}"
            )
        self.final: FinalDecoder | FinalStackDecoder
        if isinstance(self.initial, InitialEncoder):
            self.final = FinalDecoder(target_shape[:3], base_units, final_conv_layers, activation, conv_init_mode)
            self.features = base_units
            return
        # Grids of the target before each merge, fine to coarse, with the channels that the merge came from.
        after = self.initial.output_shapes(target_shape)
        grids = [target_shape, *after[:-1]]
        targets = [(*grid[:3], step[3]) for grid, step in zip(grids, after, strict=True)][::-1]
        self.final = FinalStackDecoder(
            targets, after[-1][3], list(stack_num_conv_list)[::-1], activation, conv_init_mode
        )
        self.features = targets[-1][3]

    def make_initial(self, channels: int) -> InitialEncoder | InitialStackEncoder:
        """Return a new first stage for pixels of `channels` channels."""
        if self._kind == "conv":
            return InitialEncoder(channels, self._base_units, self._scale, self._conv_layers, **self._common)
        if self._kind == "stack_conv":
            count, dims, scales = self._stack
            return InitialStackEncoder(count, channels, dims, scales, self._stack_convs, **self._common)
        raise ValueError(f"initial_downsample_type: expected conv or stack_conv, found {self._kind!r}")
