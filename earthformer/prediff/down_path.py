"""The path from fine to coarse that the denoiser and the alignment network share.

Source: PreDiff, section 3.2: the hierarchical encoder of Earthformer with a residual block that takes the diffusion
step before each block of cuboid attention. As in the authors' released code, the residual block of a level is one
module, used before each of the level's attention blocks. The residual blocks are those of Dhariwal and Nichol 2021;
names as in the authors' checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from earthformer.blocks import SelfAttentionBlock
from earthformer.layers import HasReference, PositionEmbedding, check_mode, init_linear
from earthformer.options import Options, as_scale
from earthformer.resampling import PatchMerging, Size4

ZERO_MODE = "2"
_MODES = ("0", "1", ZERO_MODE)
_MOST_GROUPS = 32
_LONGEST_PERIOD = 10_000.0


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The hyperparameters of a hierarchy of cuboid attention with steps, under the names of the authors' code.

    Attributes:
        base_units: channels of the finest level.
        block_units: channels of every level; by default they grow by `downsample` ** `scale_alpha`.
        scale_alpha: exponent of that growth.
        depth: attention blocks per level.
        num_heads: attention heads at every level.
        attn_drop: dropout of attention weights.
        proj_drop: dropout after attention's projections, and in the first residual block.
        ffn_drop: dropout of feed-forward layers.
        downsample: factor between levels: s for (1, s, s), or one for each of T, H, W.
        block_attn_patterns: name of the cuboid pattern, or one per level.
        padding_type: ``zeros``, ``ignore`` or ``nearest``.
        ffn_activation: activation of the feed-forward layers.
        gated_ffn: gated feed-forward layers.
        use_inter_ffn: a feed-forward layer after each attention layer rather than after each block.
        norm_layer: ``layer_norm`` or ``rms_norm``.
        pos_embed_type: ``t+h+w`` or ``t+hw``.
        checkpoint_level: 0 keeps all activations, 1 recomputes feed-forward layers, 2 attention layers too.
        use_relative_pos: relative position bias.
        self_attn_use_final_proj: projection after attention.
        time_embed_channels_mult: channels of the step's embedding over `base_units`.
        time_embed_use_scale_shift_norm: whether that embedding scales and shifts a norm rather than being added.
        time_embed_dropout: dropout of the residual blocks that take it.
        attn_linear_init_mode: initialisation of queries, keys and values: "0" N(0, 1/fan_in), "1" Kaiming fan-out.
        ffn_linear_init_mode: initialisation of the first feed-forward layers, likewise.
        ffn2_linear_init_mode: initialisation of the second ones, likewise, or "2" zeros.
        attn_proj_linear_init_mode: initialisation of attention's projections, likewise.
        conv_init_mode: initialisation of up-sampling convolutions, "0".
        down_linear_init_mode: initialisation of patch merging, "0" or "1".
        norm_init_mode: initialisation of norms, "0".
    """

    base_units: int = 256
    block_units: Sequence[int] | None = None
    scale_alpha: float = 1.0
    depth: Sequence[int] = (4, 4)
    num_heads: int = 4
    attn_drop: float = 0.1
    proj_drop: float = 0.1
    ffn_drop: float = 0.1
    downsample: int | Sequence[int] = 2
    block_attn_patterns: str | Sequence[str] = "axial"
    padding_type: str = "zeros"
    ffn_activation: str = "gelu"
    gated_ffn: bool = False
    use_inter_ffn: bool = True
    norm_layer: str = "layer_norm"
    pos_embed_type: str = "t+h+w"
    checkpoint_level: int = 0
    use_relative_pos: bool = True
    self_attn_use_final_proj: bool = True
    time_embed_channels_mult: int = 4
    time_embed_use_scale_shift_norm: bool = False
    time_embed_dropout: float = 0.0
    attn_linear_init_mode: str = "0"
    ffn_linear_init_mode: str = "0"
    ffn2_linear_init_mode: str = ZERO_MODE
    attn_proj_linear_init_mode: str = ZERO_MODE
    conv_init_mode: str = "0"
    down_linear_init_mode: str = "0"
    norm_init_mode: str = "0"

    def __post_init__(self) -> None:
        """Checks the hyperparameters.

        Raises:
            ValueError: no level, a level without blocks, or an unknown initialisation mode.
        """
        if not self.depth or min(self.depth) < 1:
            raise ValueError(f"depth: expected at least one block at each of one or more levels, found {self.depth}")
        for name in ("ffn2_linear_init_mode", "attn_proj_linear_init_mode"):
            check_mode(getattr(self, name), _MODES, name)

    @property
    def options(self) -> Options:
        """These hyperparameters as those of Earthformer's layers."""
        shared = {field.name for field in dataclasses.fields(self)} & {
            field.name for field in dataclasses.fields(Options)
        }
        return Options(
            **{name: getattr(self, name) for name in shared},
            enc_depth=self.depth,
            dec_depth=self.depth,
            enc_attn_patterns=self.block_attn_patterns,
            down_up_linear_init_mode=self.down_linear_init_mode,
        )


def start_linear(layer: nn.Linear, mode: str) -> None:
    """Initialises a linear layer by a mode of `Levels`: "0", "1" or, for zeros, "2"."""
    if str(mode) == ZERO_MODE:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    else:
        init_linear(layer, mode)


def checked_shape(name: str, shape: Sequence[int]) -> Size4:
    """Returns `shape` as T, H, W, C.

    Raises:
        ValueError: it is not four positive sizes.
    """
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"{name}: expected four positive sizes (T, H, W, C), found {list(shape)}")
    t, h, w, c = (int(size) for size in shape)
    return t, h, w, c


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns a norm over 32 groups of channels, or over each channel if 32 does not divide their number.

    Its statistics are taken over all of T, H and W.
    """
    return nn.GroupNorm(_MOST_GROUPS if channels % _MOST_GROUPS == 0 else channels, channels)


def step_sinusoids(t: Tensor, channels: int) -> Tensor:
    """Returns the embedding (B, channels) of diffusion steps `t` (B,): cosines, then sines, of falling frequency."""
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * exponent)
    missing = angles.new_zeros(len(t), channels % 2)
    return torch.cat((angles.cos(), angles.sin(), missing), dim=1)


class StepEmbedding(nn.Module):
    """Sinusoids of the diffusion step through two linear layers."""

    def __init__(self, base_channels: int, channels: int) -> None:
        """Makes the layers from `base_channels` sinusoids to `channels`; they keep torch's initialisation."""
        super().__init__()
        self.base_channels = base_channels
        self.layer = nn.Sequential(nn.Linear(base_channels, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, t: Tensor) -> Tensor:
        """Returns the embedding (B, channels) of diffusion steps `t` (B,)."""
        embedded: Tensor = self.layer(step_sinusoids(t, self.base_channels))
        return embedded


class ResidualBlock(nn.Module):
    """Two 3-D convolutions with group norms and a residual; the diffusion step's embedding enters between them."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        embed_channels: int | None = None,
        dropout: float = 0.0,
        scale_shift: bool = False,
    ) -> None:
        """Makes the block; initially it is the identity, or the 1x1x1 convolution that changes the channels.

        Args:
            channels: channels of the input.
            out_channels: channels of the output.
            embed_channels: channels of the step's embedding; None for a block that does not take it.
            dropout: dropout before the second convolution.
            scale_shift: whether the embedding scales and shifts the second norm rather than being added before it.
        """
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv3d(channels, out_channels, 3, padding=1))
        if embed_channels is not None:
            linear = nn.Linear(embed_channels, (2 if scale_shift else 1) * out_channels)
            init_linear(linear)
            self.emb_layers = nn.Sequential(nn.SiLU(), linear)
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
        )
        for parameter in self.out_layers[-1].parameters():
            nn.init.zeros_(parameter)
        same = channels == out_channels
        self.skip_connection: nn.Module = nn.Identity() if same else nn.Conv3d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedded: Tensor | None = None) -> Tensor:
        """Returns (B, T, H, W, C_out) for `x` (B, T, H, W, C) and, for a block that takes it, the embedding (B, E)."""
        x = x.permute(0, 4, 1, 2, 3)
        h = self.in_layers(x)
        if embedded is not None:
            change = self.emb_layers(embedded)[:, :, None, None, None]
            if self.scale_shift:
                scale, shift = change.chunk(2, dim=1)
                h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
            else:
                h = self.out_layers(h + change)
        else:
            h = self.out_layers(h)
        out: Tensor = self.skip_connection(x) + h
        return out.permute(0, 2, 3, 4, 1)


class DownPath(HasReference):
    """A first residual block, position embedding, and levels of residual and attention blocks with patch merging.

    Attributes:
        levels: the hyperparameters.
        shapes: T, H, W, C of every level's tokens, fine to coarse.
    """

    def __init__(self, shape: Size4, levels: Levels) -> None:
        """Makes the path for tokens of `shape` (T, H, W, C).

        Raises:
            ValueError: hyperparameters do not fit each other or the shape.
        """
        super().__init__()
        self.levels = levels
        self.options = options = levels.options
        units, downsample = options.units, as_scale(levels.downsample)
        self.first_proj = ResidualBlock(shape[3], units[0], dropout=levels.proj_drop)
        self.pos_embed = PositionEmbedding(units[0], *shape[:3], levels.pos_embed_type)
        self.embed_channels = levels.time_embed_channels_mult * levels.base_units
        self.time_embed = StepEmbedding(levels.base_units, self.embed_channels)
        self.shapes: list[Size4] = [(*shape[:3], units[0])]
        merging = []
        for fine, coarse in pairwise(units):
            layer = PatchMerging(options, fine, coarse, downsample)
            self.shapes.append(layer.output_shape(self.shapes[-1]))
            merging.append(layer)
        self.downsample_layers = nn.ModuleList(merging)
        self.down_time_embed_blocks = self._residual_blocks()
        self.down_self_blocks = self._attention_blocks()

    def _residual_blocks(self) -> nn.ModuleList:
        """Returns a new residual block per level."""
        return nn.ModuleList(
            ResidualBlock(
                channels,
                channels,
                embed_channels=self.embed_channels,
                dropout=self.levels.time_embed_dropout,
                scale_shift=self.levels.time_embed_use_scale_shift_norm,
            )
            for *_, channels in self.shapes
        )

    def _attention_blocks(self) -> nn.ModuleList:
        """Returns new blocks of cuboid attention: a list per level."""
        levels, options = self.levels, self.options
        patterns = options.self_patterns("enc", self.shapes)
        stages = nn.ModuleList()
        for (*_, channels), count, pattern in zip(self.shapes, levels.depth, patterns, strict=True):
            blocks = [
                SelfAttentionBlock(options, channels, pattern, use_inter_ffn=levels.use_inter_ffn) for _ in range(count)
            ]
            for block in blocks:
                for feed_forward in block.ffn_l:
                    start_linear(feed_forward.ffn_2, levels.ffn2_linear_init_mode)  # type: ignore[arg-type]
                for attention in block.attn_l if levels.self_attn_use_final_proj else ():
                    start_linear(attention.proj, levels.attn_proj_linear_init_mode)  # type: ignore[arg-type]
            stages.append(nn.ModuleList(blocks))
        return stages

    def descend(self, x: Tensor, embedded: Tensor) -> list[Tensor]:
        """Returns the tokens (B, T_i, H_i, W_i, C_i) after each level, for inputs (B, T, H, W, C) and an embedding."""
        x = self.pos_embed(self.first_proj(x))
        behind: list[Tensor] = []
        for level in range(len(self.shapes)):
            if level:
                x = self.downsample_layers[level - 1](x)
            x = self._level(self.down_time_embed_blocks[level], self.down_self_blocks[level], x, embedded)
            behind.append(x)
        return behind

    @staticmethod
    def _level(residual: nn.Module, blocks: nn.Module, x: Tensor, embedded: Tensor) -> Tensor:
        """Returns `x` after a level: the same residual block runs before each attention block."""
        assert isinstance(blocks, nn.ModuleList)
        for block in blocks:
            x = block(residual(x, embedded))
        return x
