"""Blocks: the attention layers of one pattern with their feed-forward layers and residuals.

Source: Earthformer, sections 3.1 and 3.2. Activation checkpointing: level 1 recomputes the feed-forward
    layers in
backward, level 2 the attention layers too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.utils.checkpoint
from torch import Tensor, nn

from earthformer import kernels
from earthformer.attention import CuboidSelfAttention
from earthformer.cross_attention import CuboidCrossAttention
from earthformer.feedforward import FeedForward

FFN_EXPANSION = 4
CHECKPOINT_FFN = 1
CHECKPOINT_ATTENTION = 2


def _feed_forwards(
    count: int,
    units: int,
    *,
    ffn_drop: float,
    gated_ffn: bool,
    activation: str,
    norm_layer: str,
    modes: dict[str, str],
) -> nn.ModuleList:
    return nn.ModuleList(
        FeedForward(
            units=units,
            hidden_size=FFN_EXPANSION * units,
            activation_dropout=ffn_drop,
            dropout=ffn_drop,
            gated_proj=gated_ffn,
            activation=activation,
            normalization=norm_layer,
            pre_norm=True,
            linear_init_mode=modes["ffn_linear_init_mode"],
            norm_init_mode=modes["norm_init_mode"],
        )
        for _ in range(count)
    )


def _same_length(**lists: Sequence[Any]) -> int:
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) != 1 or not min(lengths.values()):
        raise ValueError(f"block: expected lists of one entry per attention layer, found lengths {lengths}")
    return next(iter(lengths.values()))


class _Block(nn.Module):
    """What blocks share: running a layer, or recomputing it in backward."""

    checkpoint_level: int

    def _run(self, level: int, layer: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self.training and self.checkpoint_level >= level:
            return torch.utils.checkpoint.checkpoint(layer, *arguments, use_reentrant=False, **options)
        return layer(*arguments, **options)

    @staticmethod
    def _add(attention: nn.Module, x: Tensor, change: Tensor) -> Tensor:
        return x + change if attention.plain else kernels.add_residual(x, change)


class SelfAttentionBlock(_Block):
    """Cuboid self-attention layers, each with a residual, and feed-forward layers after each or after all."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        block_cuboid_size: Sequence[Sequence[int]] = ((4, 4, 4), (4, 4, 4)),
        block_shift_size: Sequence[Sequence[int]] = ((0, 0, 0), (2, 2, 2)),
        block_strategy: Sequence[Sequence[str]] = (("d", "d", "d"), ("l", "l", "l")),
        padding_type: str = "ignore",
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        ffn_drop: float = 0.0,
        activation: str = "leaky",
        gated_ffn: bool = False,
        norm_layer: str = "layer_norm",
        use_inter_ffn: bool = False,
        use_global_vector: bool = False,
        use_global_vector_ffn: bool = True,
        use_global_self_attn: bool = False,
        separate_global_qkv: bool = False,
        global_dim_ratio: int = 1,
        checkpoint_level: int = 1,
        use_relative_pos: bool = True,
        use_final_proj: bool = True,
        attn_linear_init_mode: str = "0",
        ffn_linear_init_mode: str = "0",
        norm_init_mode: str = "0",
    ) -> None:
        """Make one attention layer per entry of the three lists.

        Raises:
            ValueError: the lists differ in length or are empty, or an argument of a layer is wrong.
        """
        super().__init__()
        count = _same_length(cuboid_size=block_cuboid_size, shift_size=block_shift_size, strategy=block_strategy)
        self.use_inter_ffn = use_inter_ffn
        self.use_global_vector = use_global_vector
        self.use_global_vector_ffn = use_global_vector_ffn and use_global_vector
        self.checkpoint_level = int(checkpoint_level)
        modes = {"ffn_linear_init_mode": ffn_linear_init_mode, "norm_init_mode": norm_init_mode}
        ffn_count = count if use_inter_ffn else 1
        ffn: dict[str, Any] = {
            "ffn_drop": ffn_drop,
            "gated_ffn": gated_ffn,
            "activation": activation,
            "norm_layer": norm_layer,
            "modes": modes,
        }
        self.ffn_l = _feed_forwards(ffn_count, dim, **ffn)
        if self.use_global_vector_ffn:
            self.global_ffn_l = _feed_forwards(ffn_count, global_dim_ratio * dim, **ffn)
        self.attn_l = nn.ModuleList(
            CuboidSelfAttention(
                dim=dim,
                num_heads=num_heads,
                cuboid_size=cuboid_size,
                shift_size=shift_size,
                strategy=strategy,
                padding_type=padding_type,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop=attn_drop,
                proj_drop=proj_drop,
                use_final_proj=use_final_proj,
                norm_layer=norm_layer,
                use_global_vector=use_global_vector,
                use_global_self_attn=use_global_self_attn,
                separate_global_qkv=separate_global_qkv,
                global_dim_ratio=global_dim_ratio,
                use_relative_pos=use_relative_pos,
                attn_linear_init_mode=attn_linear_init_mode,
                **modes,
            )
            for cuboid_size, shift_size, strategy in zip(
                block_cuboid_size, block_shift_size, block_strategy, strict=True
            )
        )

    def forward(
        self, x: Tensor, global_vectors: Tensor | None = None, *, update_globals: bool = True
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the tokens (B, T, H, W, C) and, in a block with global vectors, those (B, G, r*C) after the block.

        With `update_globals` False the caller ignores the global vectors that come back: the fast path then
        leaves out the work that only they would need.
        """
        last = len(self.attn_l) - 1
        g = global_vectors
        for index, attention in enumerate(self.attn_l):
            if g is not None and self.use_global_vector:
                wanted = update_globals or index < last
                change, g_change = self._run(CHECKPOINT_ATTENTION, attention, x, g, update_globals=wanted)
                x, g = self._add(attention, x, change), g + g_change
            else:
                x = self._add(attention, x, self._run(CHECKPOINT_ATTENTION, attention, x))
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
        dim: int,
        num_heads: int,
        block_cuboid_hw: Sequence[Sequence[int]] = ((4, 4), (4, 4)),
        block_shift_hw: Sequence[Sequence[int]] = ((0, 0), (2, 2)),
        block_n_temporal: Sequence[int] = (1, 2),
        block_strategy: Sequence[Sequence[str]] = (("d", "d", "d"), ("l", "l", "l")),
        padding_type: str = "ignore",
        cross_last_n_frames: int | None = None,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        ffn_drop: float = 0.0,
        activation: str = "leaky",
        gated_ffn: bool = False,
        norm_layer: str = "layer_norm",
        use_inter_ffn: bool = True,
        max_temporal_relative: int = 50,
        checkpoint_level: int = 1,
        use_relative_pos: bool = True,
        use_global_vector: bool = False,
        separate_global_qkv: bool = False,
        global_dim_ratio: int = 1,
        attn_linear_init_mode: str = "0",
        ffn_linear_init_mode: str = "0",
        norm_init_mode: str = "0",
    ) -> None:
        """Make one attention layer per entry of the four lists.

        Raises:
            ValueError: the lists differ in length or are empty, or an argument of a layer is wrong.
        """
        super().__init__()
        count = _same_length(cuboid_hw=block_cuboid_hw, shift_hw=block_shift_hw, strategy=block_strategy)
        self.use_inter_ffn = use_inter_ffn
        self.checkpoint_level = int(checkpoint_level)
        modes = {"ffn_linear_init_mode": ffn_linear_init_mode, "norm_init_mode": norm_init_mode}
        self.ffn_l = _feed_forwards(
            count if use_inter_ffn else 1,
            dim,
            ffn_drop=ffn_drop,
            gated_ffn=gated_ffn,
            activation=activation,
            norm_layer=norm_layer,
            modes=modes,
        )
        self.attn_l = nn.ModuleList(
            CuboidCrossAttention(
                dim=dim,
                num_heads=num_heads,
                n_temporal=n_temporal,
                cuboid_hw=cuboid_hw,
                shift_hw=shift_hw,
                strategy=strategy,
                padding_type=padding_type,
                cross_last_n_frames=cross_last_n_frames,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                attn_drop=attn_drop,
                proj_drop=proj_drop,
                max_temporal_relative=max_temporal_relative,
                norm_layer=norm_layer,
                use_global_vector=use_global_vector,
                separate_global_qkv=separate_global_qkv,
                global_dim_ratio=global_dim_ratio,
                use_relative_pos=use_relative_pos,
                attn_linear_init_mode=attn_linear_init_mode,
                **modes,
            )
            for cuboid_hw, shift_hw, strategy, n_temporal in zip(
                block_cuboid_hw, block_shift_hw, block_strategy, block_n_temporal, strict=False
            )
        )

    def forward(self, x: Tensor, mem: Tensor, mem_global_vector: Tensor | None = None) -> Tensor:
        """Return the tokens (B, T_x, H, W, C) after attending to `mem` (B, T_mem, H, W, C) and its global vectors."""
        last = len(self.attn_l) - 1
        for index, attention in enumerate(self.attn_l):
            x = self._add(attention, x, self._run(CHECKPOINT_ATTENTION, attention, x, mem, mem_global_vector))
            if self.use_inter_ffn or index == last:
                x = self._run(CHECKPOINT_FFN, self.ffn_l[index if self.use_inter_ffn else 0], x)
        return x
