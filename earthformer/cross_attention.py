"""Cuboid cross-attention: the decoder's tokens attend to the encoder's memory, cuboid by cuboid.

Source: Earthformer, section 3.2; padding, masks and their quirks as in the authors' released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from earthformer.attention import CuboidAttention, Projected
from earthformer.cuboids import CuboidPartition, check_strategy, cross_attention_mask, missing_to_multiple
from earthformer.layers import Dropout, init_linear, make_norm
from earthformer.options import Options
from earthformer.patterns import Size3


class CuboidCrossAttention(CuboidAttention):
    """Attention from the tokens of each cuboid to the same cuboid of a memory and to the memory's global vectors.

    Both sides are cut into `n_temporal` cuboids along time and into cuboids of `cuboid_hw` in space. Only the queries
    are normalised, not the memory and its global vectors.
    """

    def __init__(
        self,
        options: Options,
        dim: int,
        cuboid_hw: Sequence[int],
        shift_hw: Sequence[int],
        strategy: Sequence[str],
        n_temporal: int,
        *,
        max_temporal_relative: int,
        use_global_vector: bool = False,
    ) -> None:
        """Makes the layer for tokens of `dim` channels and fewer than `max_temporal_relative` frames on both sides.

        Raises:
            ValueError: an unknown strategy, no cuboid along time, or a number of heads that does not divide `dim`.
        """
        super().__init__(options, dim)
        if n_temporal < 1:
            raise ValueError(f"n_temporal: expected at least 1, found {n_temporal}")
        self.n_temporal = n_temporal
        self.strategy = check_strategy(strategy)
        self.cuboid_hw = (cuboid_hw[0], cuboid_hw[1])
        rows, columns = (0 if letter == "d" else shift for letter, shift in zip(strategy[1:], shift_hw, strict=True))
        self.shift: Size3 = (0, rows, columns)
        self.max_temporal_relative = max_temporal_relative
        self.use_global_vector = use_global_vector

        if options.use_relative_pos:
            self.add_position_bias((max_temporal_relative, *self.cuboid_hw))
        self.q_proj = nn.Linear(dim, dim, bias=options.qkv_bias)
        self.kv_proj = nn.Linear(dim, 2 * dim, bias=options.qkv_bias)
        self.attn_drop = Dropout(options.attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = Dropout(options.proj_drop)
        init_linear(self.q_proj, options.attn_linear_init_mode)
        init_linear(self.kv_proj, options.attn_linear_init_mode)
        init_linear(self.proj, options.ffn_linear_init_mode)
        if use_global_vector and options.separate_global_qkv:
            self.l2g_q_net = nn.Linear(dim, dim, bias=options.qkv_bias)
            self.l2g_global_kv_net = nn.Linear(options.global_dim_ratio * dim, 2 * dim, bias=options.qkv_bias)
            init_linear(self.l2g_q_net, options.attn_linear_init_mode)
            init_linear(self.l2g_global_kv_net, options.attn_linear_init_mode)
        self.norm = make_norm(options.norm_layer, dim, mode=options.norm_init_mode)

    def forward(self, x: Tensor, mem: Tensor, mem_global_vectors: Tensor | None = None) -> Tensor:
        """Returns the update of `x`.

        Args:
            x: queries (B, T_x, H, W, C).
            mem: memory (B, T_mem, H, W, C).
            mem_global_vectors: (B, G, global_dim_ratio * C), required if the layer uses them, otherwise ignored.

        Raises:
            ValueError: shapes that do not fit together, more frames than relative positions, a grid that needs padding
                of another type than ``ignore``, or missing global vectors.
        """
        mem, queries, memory, mask = self.partitions(x, mem)
        if self.use_global_vector and mem_global_vectors is None:
            raise ValueError("cross-attention: expected global vectors (use_global_vector is set), found none")
        x = self.norm(x)
        (query,) = self._heads(self.q_proj, x, queries)
        local = Projected(query, *self._heads(self.kv_proj, mem, memory))
        seen = None
        if self.use_global_vector and mem_global_vectors is not None:
            if self.options.separate_global_qkv:
                (query,) = self._heads(self.l2g_q_net, x, queries)
                seen = Projected(query, *self.vector_heads(self.l2g_global_kv_net(mem_global_vectors)))
            else:
                seen = Projected(query, *self.vector_heads(self.kv_proj(mem_global_vectors)))
        attended = self._attend(local, seen, self.position_bias(queries.volume, memory.volume), mask)
        if seen is None and mask is not None and memory.is_padded:
            # A cuboid of the memory may consist of padding only.
            attended = attended * mask.any(dim=-1, keepdim=True)
        x = queries.unpad(queries.unroll(queries.join_heads(attended)))
        out: Tensor = self.proj_drop(self.proj(x))
        return out

    def partitions(self, x: Tensor, mem: Tensor) -> tuple[Tensor, CuboidPartition, CuboidPartition, Tensor | None]:
        """Returns the memory frames that are read, the partitions of `x` and of these, and the mask (N, V_x, V_mem).

        The mask is None if everything is allowed.

        Raises:
            ValueError: as `forward`.
        """
        if self.options.dec_cross_last_n_frames is not None:
            mem = mem[:, -min(self.options.dec_cross_last_n_frames, int(mem.shape[1])) :]
        if x.dim() != 5 or mem.dim() != 5 or x.shape[0] != mem.shape[0] or x.shape[2:] != mem.shape[2:]:
            raise ValueError(
                f"cross-attention: expected B, H, W, C of x and memory to agree, found {tuple(x.shape)} and "
                f"{tuple(mem.shape)}"
            )
        frames, grid = (int(x.shape[1]), int(mem.shape[1])), tuple(map(int, x.shape[2:4]))
        queries, memory, mask = self.kept(self._partitions, *frames, grid, x.device)
        return mem, queries, memory, mask

    def _partitions(
        self, t_x: int, t_mem: int, grid: tuple[int, int], device: torch.device
    ) -> tuple[CuboidPartition, CuboidPartition, Tensor | None]:
        if max(t_x, t_mem) >= self.max_temporal_relative:
            raise ValueError(
                f"cross-attention: expected fewer than max_temporal_relative={self.max_temporal_relative} frames, "
                f"found {t_x} and {t_mem}"
            )
        queries, memory = self._partition((t_x, *grid)), self._partition((t_mem, *grid), t_pad_left=True)
        padded = queries.is_padded or memory.is_padded
        if padded and self.options.padding_type != "ignore":
            raise ValueError(
                "cross-attention: expected padding_type ignore where anything is padded, found "
                f"{self.options.padding_type!r} with x {queries.shape} and memory {memory.shape} in {self.n_temporal} "
                f"x {self.cuboid_hw} cuboids"
            )
        if not padded and not queries.is_shifted:
            return queries, memory, None
        return queries, memory, cross_attention_mask(queries, memory, device)

    def _partition(self, shape: Size3, *, t_pad_left: bool = False) -> CuboidPartition:
        # Along time the number of cuboids is given, which determines their length.
        padding = missing_to_multiple(shape, (self.n_temporal, *self.cuboid_hw))
        cuboid = ((shape[0] + padding[0]) // self.n_temporal, *self.cuboid_hw)
        return CuboidPartition(
            shape, cuboid, self.strategy, self.shift, self.options.padding_type, padding=padding, t_pad_left=t_pad_left
        )
