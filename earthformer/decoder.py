"""Decoders: from coarse to fine, with self-attention and cross-attention to the encoder's memories.

Source: Earthformer, section 3.2 and figure 2; the U-shaped decoder is that of the authors' EarthNet2021
    model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from earthformer.blocks import CrossAttentionBlock, SelfAttentionBlock
from earthformer.encoder import Patterns, is_nested, one_per_level, self_layers_per_level
from earthformer.patterns import CrossPattern, Size3, cross_pattern
from earthformer.positions import PositionEmbedding
from earthformer.resampling import PatchMerging, Size4, Upsample

CROSS_MODES = ("up", "down", "both")


def cross_layers_per_level(
    patterns: Patterns,
    cuboid_hw: Sequence[Any],
    shift_hw: Sequence[Any],
    strategy: Sequence[Any],
    n_temporal: Sequence[Any],
    shapes: Sequence[Size4],
) -> list[CrossPattern]:
    """Return the cross-attention layers of each level: of the named patterns, or of the explicit lists.

    Raises:
        ValueError: unknown pattern, or lists that do not fit the number of levels.
    """
    levels = len(shapes)
    if patterns is not None:
        names = one_per_level(patterns, levels, nested=not isinstance(patterns, str), argument="cross_attn_patterns")
        return [cross_pattern(name, shape) for name, shape in zip(names, shapes, strict=True)]
    lists = [
        one_per_level(value, levels, nested=is_nested(value, depth), argument=argument)
        for argument, value, depth in (
            ("cross_cuboid_hw", cuboid_hw, 2),
            ("cross_shift_hw", shift_hw, 2),
            ("cross_strategy", strategy, 2),
            ("cross_n_temporal", n_temporal, 1),
        )
    ]
    return [CrossPattern(*layers) for layers in zip(*lists, strict=True)]


class _LevelDecoder(nn.Module):
    """What both decoders share: the blocks of a level and the steps between levels."""

    def __init__(
        self,
        t_out: int,
        memory_shapes: Sequence[Size4],
        depth: Sequence[int],
        cross_start: int,
        use_self_global: bool,
        self_update_global: bool,
        use_cross_global: bool,
        self_layers: tuple[Patterns, Sequence[Any], Sequence[Any], Sequence[Any]],
        cross_layers: tuple[Patterns, Sequence[Any], Sequence[Any], Sequence[Any], Sequence[Any]],
        self_block: dict[str, Any],
        cross_block: dict[str, Any],
    ) -> None:
        super().__init__()
        self.t_out = t_out
        self.memory_shapes = list(memory_shapes)
        self.depth = list(depth)
        self.cross_start = cross_start
        self.use_self_global = use_self_global
        self.self_update_global = self_update_global
        self.use_cross_global = use_cross_global
        # Patterns see the encoder's number of frames, not the decoder's: checkpoints were trained that way.
        self._self_layers = self_layers_per_level(*self_layers, self.memory_shapes)
        self._cross_layers = cross_layers_per_level(*cross_layers, self.memory_shapes)
        self._self_block = self_block
        self._cross_block = cross_block

    def _self_blocks(self, level: int, count: int) -> nn.ModuleList:
        layers = self._self_layers[level]
        return nn.ModuleList(
            SelfAttentionBlock(
                dim=self.memory_shapes[level][3],
                block_cuboid_size=layers.cuboid_size,
                block_strategy=layers.strategy,
                block_shift_size=layers.shift_size,
                use_global_vector=self.use_self_global,
                **self._self_block,
            )
            for _ in range(count)
        )

    def _cross_blocks(self) -> nn.ModuleList:
        """Return the cross-attention blocks of all levels that have any, starting with level `cross_start`."""
        return nn.ModuleList(
            nn.ModuleList(
                CrossAttentionBlock(
                    dim=self.memory_shapes[level][3],
                    block_cuboid_hw=self._cross_layers[level].cuboid_hw,
                    block_shift_hw=self._cross_layers[level].shift_hw,
                    block_strategy=self._cross_layers[level].strategy,
                    block_n_temporal=self._cross_layers[level].n_temporal,
                    use_global_vector=self.use_cross_global,
                    **self._cross_block,
                )
                for _ in range(self.depth[level])
            )
            for level in range(self.cross_start, len(self.memory_shapes))
        )

    def _upsample_layers(self, kernel_size: int, conv_init_mode: str) -> nn.ModuleList:
        return nn.ModuleList(
            Upsample(coarse[3], fine[3], (self.t_out, *fine[1:3]), kernel_size, conv_init_mode)
            for fine, coarse in pairwise(self.memory_shapes)
        )

    def _attend(self, block: nn.Module, x: Tensor, g: Tensor | None, wanted: bool) -> tuple[Tensor, Tensor | None]:
        """Return tokens and global vectors after a self-attention block; `wanted`: someone reads the latter."""
        if not self.use_self_global or g is None:
            return block(x), g
        wanted = wanted and self.self_update_global
        x, updated = block(x, g, update_globals=wanted)
        return x, updated if wanted else g


class Decoder(_LevelDecoder):
    """The decoder of Earthformer: from initial tokens at the coarsest level to tokens at the finest."""

    def __init__(
        self,
        *,
        use_first_self_attn: bool,
        hierarchical_pos_embed: bool,
        pos_embed_type: str,
        upsample_kernel_size: int,
        conv_init_mode: str,
        **levels: Any,
    ) -> None:
        """Make the decoder; `levels` are the arguments shared with the U-shaped one.

        Raises:
            ValueError: arguments that do not fit the number of levels, or hierarchical embeddings with one
                level.
        """
        super().__init__(**levels)
        top = len(self.memory_shapes) - 1
        if hierarchical_pos_embed and top == 0:
            raise ValueError("dec_hierarchical_pos_embed: expected at least 2 levels, found 1")
        self.use_first_self_attn = use_first_self_attn
        self.hierarchical_pos_embed = hierarchical_pos_embed
        self.self_blocks = nn.ModuleList(
            self._self_blocks(level, count if use_first_self_attn or level < top else count - 1)
            for level, count in enumerate(self.depth)
        )
        self.cross_blocks = self._cross_blocks()
        if top:
            self.upsample_layers = self._upsample_layers(upsample_kernel_size, conv_init_mode)
        if hierarchical_pos_embed:
            self.hierarchical_pos_embed_l = nn.ModuleList(
                PositionEmbedding(channels, self.t_out, h, w, pos_embed_type)
                for _, h, w, channels in self.memory_shapes[:-1]
            )

    def forward(self, x: Tensor, memories: Sequence[Tensor], vectors: Sequence[Tensor | None]) -> Tensor:
        """Return tokens (B, T_out, H_0, W_0, C_0) from initial ones `x` (B, T_out, H_L, W_L, C_L)."""
        top = len(self.memory_shapes) - 1
        for level in range(top, -1, -1):
            g = vectors[level]
            # The coarsest level starts with cross-attention: its initial tokens have nothing to tell each
            # other.
            steps: list[tuple[str, int]] = []
            lead = level == top and not self.use_first_self_attn
            for index in range(self.depth[level]):
                if not (lead and index == 0):
                    steps.append(("self", index - 1 if lead else index))
                if level >= self.cross_start:
                    steps.append(("cross", index))
            for place, (kind, index) in enumerate(steps):
                if kind == "cross":
                    x = self._cross(level, index)(x, memories[level], g)
                else:
                    rest = [later for later, _ in steps[place + 1 :]]
                    wanted = "self" in rest or ("cross" in rest and self.use_cross_global)
                    x, g = self._attend(self._self(level, index), x, g, wanted)
            if level:
                x = self.upsample_layers[level - 1](x)
                if self.hierarchical_pos_embed:
                    x = self.hierarchical_pos_embed_l[level - 1](x)
        return x

    def _self(self, level: int, index: int) -> nn.Module:
        blocks = self.self_blocks[level]
        assert isinstance(blocks, nn.ModuleList)
        return blocks[index]

    def _cross(self, level: int, index: int) -> nn.Module:
        blocks = self.cross_blocks[level - self.cross_start]
        assert isinstance(blocks, nn.ModuleList)
        return blocks[index]


class UNetDecoder(_LevelDecoder):
    """A decoder that starts from tokens at the finest level, goes down to the coarsest and up again, without skips."""

    def __init__(
        self,
        *,
        cross_mode: str,
        downsample: Size3,
        padding_type: str,
        upsample_kernel_size: int,
        conv_init_mode: str,
        down_linear_init_mode: str,
        norm_init_mode: str,
        **levels: Any,
    ) -> None:
        """Make the decoder; `levels` are the arguments shared with the plain one.

        Raises:
            ValueError: unknown `cross_mode`, or arguments that do not fit the number of levels.
        """
        super().__init__(**levels)
        if cross_mode not in CROSS_MODES:
            raise ValueError(f"unet_dec_cross_mode: expected one of {', '.join(CROSS_MODES)}, found {cross_mode!r}")
        self.up_use_cross = cross_mode != "down"
        self.down_use_cross = cross_mode != "up"
        shapes = self.memory_shapes
        if len(shapes) > 1:
            self.downsample_layers = nn.ModuleList(
                PatchMerging(
                    dim=fine[3],
                    out_dim=coarse[3],
                    downsample=downsample,
                    padding_type=padding_type,
                    linear_init_mode=down_linear_init_mode,
                    norm_init_mode=norm_init_mode,
                )
                for fine, coarse in pairwise(shapes)
            )
            self.upsample_layers = self._upsample_layers(upsample_kernel_size, conv_init_mode)
        self.down_self_blocks = nn.ModuleList(self._self_blocks(level, count) for level, count in enumerate(self.depth))
        self.up_self_blocks = nn.ModuleList(self._self_blocks(level, count) for level, count in enumerate(self.depth))
        if self.up_use_cross:
            self.up_cross_blocks = self._cross_blocks()
        if self.down_use_cross:
            self.down_cross_blocks = self._cross_blocks()

    def forward(self, x: Tensor, memories: Sequence[Tensor], vectors: Sequence[Tensor | None]) -> Tensor:
        """Return tokens (B, T_out, H_0, W_0, C_0) from auxiliary ones `x` of the same shape.

        Raises:
            ValueError: global vectors of another level's width would be used on the way up (see
                `_upward_globals`).
        """
        levels = len(self.memory_shapes)
        left: list[Tensor | None] = []
        for level in range(levels):
            if level:
                x = self.downsample_layers[level - 1](x)
            g = vectors[level]
            for index in range(self.depth[level]):
                x, g = self._attend(self._at(self.down_self_blocks, level, index), x, g, True)
                if self.down_use_cross and level >= self.cross_start:
                    x = self._at(self.down_cross_blocks, level - self.cross_start, index)(x, memories[level], g)
                left.append(g)
        for level in range(levels - 1, -1, -1):
            g = self._upward_globals(left, vectors, level)
            for index in range(self.depth[level]):
                crosses = self.up_use_cross and level >= self.cross_start
                wanted = index < self.depth[level] - 1 or (crosses and self.use_cross_global)
                x, g = self._attend(self._at(self.up_self_blocks, level, index), x, g, wanted)
                if crosses:
                    x = self._at(self.up_cross_blocks, level - self.cross_start, index)(x, memories[level], g)
            if level:
                x = self.upsample_layers[level - 1](x)
        return x

    def _upward_globals(
        self, left: Sequence[Tensor | None], vectors: Sequence[Tensor | None], level: int
    ) -> Tensor | None:
        """Return the global vectors that `level` starts from on the way up.

        The authors' code keeps one entry per block of the way down but looks it up by level, so that a level
        above deeper ones gets an earlier block's vectors. That is reproduced where the widths allow it.
        """
        g, own = left[level], vectors[level]
        used = self.use_self_global or (self.use_cross_global and self.up_use_cross)
        if used and g is not None and own is not None and g.shape != own.shape:
            raise ValueError(
                f"dec_depth: expected 1 at every level but the last with global vectors, found {self.depth}; level "
                f"{level} would get vectors {tuple(g.shape)} for {tuple(own.shape)}"
            )
        return g

    @staticmethod
    def _at(blocks: nn.ModuleList, level: int, index: int) -> nn.Module:
        of_level = blocks[level]
        assert isinstance(of_level, nn.ModuleList)
        return of_level[index]
