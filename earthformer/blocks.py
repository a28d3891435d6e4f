"""Blocks: the attention layers of one pattern with their feed-forward layers and residuals.

Source: Earthformer, sections 3.1 and 3.2. Activation checkpointing: level 1 recomputes the feed-forward layers in the
backward pass, level 2 the attention layers too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.utils.checkpoint
from torch import Tensor, nn

from earthformer.attention import CuboidSelfAttention
from earthformer.cross_attention import CuboidCrossAttention
from earthformer.layers import FeedForward
from earthformer.options import Options
from earthformer.patterns import CrossPattern, SelfPattern

CHECKPOINT_FFN = 1
CHECKPOINT_ATTENTION = 2


class _Block(nn.Module):
    """Base of the blocks: the number of layers, and activation checkpointing."""

    def __init__(self, options: Options, pattern: SelfPattern | CrossPattern, use_inter_ffn: bool) -> None:
        """Checks the lists of `pattern`.

        Raises:
            ValueError: they differ in length or are empty.
        """
        super().__init__()
        lengths = {name: len(values) for name, values in pattern._asdict().items()}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise ValueError(f"block: expected lists of one entry per attention layer, found lengths {lengths}")
        self.use_inter_ffn = use_inter_ffn
        self.ffn_count = len(pattern.strategy) if use_inter_ffn else 1
        self.checkpoint_level = int(options.checkpoint_level)

    def _run(self, level: int, layer: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self.training and self.checkpoint_level >= level:
            return torch.utils.checkpoint.checkpoint(layer, *arguments, use_reentrant=False, **options)
        return layer(*arguments, **options)


class SelfAttentionBlock(_Block):
    """Cuboid self-attention layers, each with a residual, and feed-forward layers after each or after all."""

    def __init__(
        self,
        options: Options,
        dim: int,
        pattern: SelfPattern,
        *,
        use_inter_ffn: bool,
        use_global_vector: bool = False,
    ) -> None:
        """Makes one attention layer per entry of the lists of `pattern`, for tokens of `dim` channels.

        Raises:
            ValueError: the lists differ in length or are empty, or an option of a layer is wrong.
        """
        super().__init__(options, pattern, use_inter_ffn)
        self.use_global_vector = use_global_vector
        self.use_global_vector_ffn = options.use_global_vector_ffn and use_global_vector
        self.ffn_l = nn.ModuleList(FeedForward(options, dim) for _ in range(self.ffn_count))
        if self.use_global_vector_ffn:
            wide = options.global_dim_ratio * dim
            self.global_ffn_l = nn.ModuleList(FeedForward(options, wide) for _ in range(self.ffn_count))
        self.attn_l = nn.ModuleList(
            CuboidSelfAttention(options, dim, *layer, use_global_vector=use_global_vector)
            for layer in zip(*pattern, strict=True)
        )

    def forward(
        self, x: Tensor, global_vectors: Tensor | None = None, *, update_globals: bool = True
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the tokens (B, T, H, W, C) and, in a block with global vectors, those (B, G, r*C) after the block.

        With `update_globals` False the returned global vectors are invalid, and the work for them is skipped.
        """
        last = len(self.attn_l) - 1
        g = global_vectors
        for index, attention in enumerate(self.attn_l):
            if g is not None and self.use_global_vector:
                wanted = update_globals or index < last
                change, g_change = self._run(CHECKPOINT_ATTENTION, attention, x, g, update_globals=wanted)
                x, g = x + change, g + g_change
            else:
                x = x + self._run(CHECKPOINT_ATTENTION, attention, x)
            if self.use_inter_ffn or index == last:
                place = index if self.use_inter_ffn else 0
                x = self._run(CHECKPOINT_FFN, self.ffn_l[place], x)
                if g is not None and self.use_global_vector_ffn:
                    g = self._run(CHECKPOINT_FFN, self.global_ffn_l[place], g)
        return x if g is None or not self.use_global_vector else (x, g)


class CrossAttentionBlock(_Block):
    """Cuboid cross-attention layers, each with a residual, and feed-forward layers after each or after all."""

    def __init__(
        self,
        options: Options,
        dim: int,
        pattern: CrossPattern,
        *,
        max_temporal_relative: int,
        use_global_vector: bool = False,
    ) -> None:
        """Makes one attention layer per entry of the lists of `pattern`, for tokens of `dim` channels.

        Raises:
            ValueError: the lists differ in length or are empty, or an option of a layer is wrong.
        """
        super().__init__(options, pattern, options.dec_use_inter_ffn)
        self.ffn_l = nn.ModuleList(FeedForward(options, dim) for _ in range(self.ffn_count))
        self.attn_l = nn.ModuleList(
            CuboidCrossAttention(
                options,
                dim,
                *layer,
                max_temporal_relative=max_temporal_relative,
                use_global_vector=use_global_vector,
            )
            for layer in zip(*pattern, strict=True)
        )

    def forward(self, x: Tensor, mem: Tensor, mem_global_vector: Tensor | None = None) -> Tensor:
        """Returns the tokens (B, T_x, H, W, C) after attending to `mem` (B, T_mem, H, W, C) and its global vectors."""
        last = len(self.attn_l) - 1
        for index, attention in enumerate(self.attn_l):
            x = x + self._run(CHECKPOINT_ATTENTION, attention, x, mem, mem_global_vector)
            if self.use_inter_ffn or index == last:
                x = self._run(CHECKPOINT_FFN, self.ffn_l[index if self.use_inter_ffn else 0], x)
        return x
