"""The hierarchical encoder: blocks of cuboid self-attention with patch merging between levels.

Source: Earthformer, section 3.2 and figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from earthformer.blocks import SelfAttentionBlock
from earthformer.patterns import SelfPattern, Size3, self_pattern
from earthformer.resampling import PatchMerging, Size4

Patterns = str | Sequence[str] | None


def one_per_level(value: Any, levels: int, *, nested: bool, argument: str) -> list[Any]:
    """Return `value` once per level, or the entries of `value` if it is `nested`: one per level already.

    Raises:
        ValueError: a nested list has another number of entries.
    """
    if not nested:
        return [value] * levels
    if len(value) != levels:
        raise ValueError(f"{argument}: expected one entry for each of {levels} levels, found {len(value)}")
    return list(value)


def is_nested(value: Any, depth: int) -> bool:
    """Return whether lists stand at least `depth` deep inside the first entries of `value`."""
    for _ in range(depth):
        if not isinstance(value, list | tuple) or not value:
            return False
        value = value[0]
    return isinstance(value, list | tuple)


def self_layers_per_level(
    patterns: Patterns,
    cuboid_size: Sequence[Any],
    strategy: Sequence[Any],
    shift_size: Sequence[Any],
    shapes: Sequence[Size4],
) -> list[SelfPattern]:
    """Return the attention layers of each level: of the named patterns, or of the explicit lists if there are none.

    Raises:
        ValueError: unknown pattern, or lists that do not fit the number of levels.
    """
    levels = len(shapes)
    if patterns is not None:
        names = one_per_level(patterns, levels, nested=not isinstance(patterns, str), argument="attn_patterns")
        return [self_pattern(name, shape) for name, shape in zip(names, shapes, strict=True)]
    lists = [
        one_per_level(value, levels, nested=is_nested(value, 2), argument=argument)
        for argument, value in (
            ("cuboid_size", cuboid_size),
            ("strategy", strategy),
            ("shift_size", shift_size),
        )
    ]
    return [SelfPattern(*layers) for layers in zip(*lists, strict=True)]


def level_units(
    base_units: int, block_units: Sequence[int] | None, levels: int, downsample: Size3, alpha: float
) -> list[int]:
    """Return the channels of each level.

    Raises:
        ValueError: `block_units` does not have one entry per level or does not start with `base_units`.
    """
    if block_units is None:
        return [base_units * int((max(downsample) ** alpha) ** level) for level in range(levels)]
    if len(block_units) != levels or block_units[0] != base_units:
        raise ValueError(
            f"block_units: expected {levels} entries starting with {base_units}, found {list(block_units)}"
        )
    return list(block_units)


class Encoder(nn.Module):
    """Levels of self-attention blocks; each level leaves a memory for the decoder."""

    def __init__(
        self,
        input_shape: Size4,
        units: Sequence[int],
        depth: Sequence[int],
        downsample: Size3,
        layers: tuple[Patterns, Sequence[Any], Sequence[Any], Sequence[Any]],
        padding_type: str,
        use_global_vector: bool,
        global_dim_ratio: int,
        down_linear_init_mode: str,
        norm_init_mode: str,
        block: dict[str, Any],
    ) -> None:
        """Make the levels for tokens of `input_shape` (T, H, W, C).

        `layers` are the pattern names, or None and explicit cuboid sizes, strategies and shifts; `block`
        holds the other arguments of `SelfAttentionBlock`.

        Raises:
            ValueError: arguments that do not fit the number of levels.
        """
        super().__init__()
        self.input_shape = input_shape
        self.use_global_vector = use_global_vector
        steps = list(pairwise(units))
        if steps:
            self.down_layers = nn.ModuleList(
                PatchMerging(
                    dim=fine,
                    out_dim=coarse,
                    downsample=downsample,
                    padding_type=padding_type,
                    linear_init_mode=down_linear_init_mode,
                    norm_init_mode=norm_init_mode,
                )
                for fine, coarse in steps
            )
            if use_global_vector:
                # Keep torch's default initialisation, as in the authors' code.
                self.down_layer_global_proj = nn.ModuleList(
                    nn.Linear(global_dim_ratio * fine, global_dim_ratio * coarse) for fine, coarse in steps
                )
        self.memory_shapes: list[Size4] = [input_shape]
        for layer in self.down_layers if steps else ():
            assert isinstance(layer, PatchMerging)
            self.memory_shapes.append(layer.output_shape(self.memory_shapes[-1]))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    SelfAttentionBlock(
                        dim=width,
                        block_cuboid_size=pattern.cuboid_size,
                        block_strategy=pattern.strategy,
                        block_shift_size=pattern.shift_size,
                        use_global_vector=use_global_vector,
                        **block,
                    )
                    for _ in range(count)
                )
            )
            for width, count, pattern in zip(
                units, depth, self_layers_per_level(*layers, self.memory_shapes), strict=True
            )
        )

    def forward(
        self, x: Tensor, global_vectors: Tensor | None = None, *, keep_globals: bool = True
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return the memories (B, T_i, H_i, W_i, C_i) and global vectors (B, G, r*C_i) of all levels, fine to coarse.

        With `keep_globals` False nobody reads the returned global vectors, and their last update is left out.

        Raises:
            ValueError: `x` (B, T, H, W, C) is not of the configured shape.
        """
        if tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(f"encoder: expected tokens {self.input_shape}, found {tuple(x.shape[1:])}")
        memories: list[Tensor] = []
        vectors: list[Tensor | None] = []
        g = global_vectors
        last = len(self.blocks) - 1
        for level, blocks in enumerate(self.blocks):
            assert isinstance(blocks, nn.Sequential)
            for index, block in enumerate(blocks):
                if self.use_global_vector:
                    wanted = keep_globals or level < last or index < len(blocks) - 1
                    x, g = block(x, g, update_globals=wanted)
                else:
                    x = block(x)
            memories.append(x)
            vectors.append(g)
            if level < last:
                x = self.down_layers[level](x)
                if g is not None and self.use_global_vector:
                    g = self.down_layer_global_proj[level](g)
        return memories, vectors
