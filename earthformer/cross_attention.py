"""Cuboid cross-attention: the decoder's tokens attend to the encoder's memory, cuboid by cuboid.

Source: Earthformer, section 3.2; padding, masks and their quirks as in the authors' released code.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from earthformer.attention import CuboidAttention, finish, project
from earthformer.cuboids import (
    Cut,
    check_padding_type,
    check_strategy,
    cross_attention_mask,
    missing_to_multiple,
)
from earthformer.initialization import init_linear
from earthformer.normalization import make_norm
from earthformer.patterns import Size3
from earthformer.scores import GlobalKeys, fast_attention, plain_attention


class CuboidCrossAttention(CuboidAttention):
    """Attention from the tokens of each cuboid to the same cuboid of a memory and to the memory's global vectors.

    Both sides are cut into `n_temporal` cuboids along time and into cuboids of `cuboid_hw` in space. The
    memory and its global vectors are used as they come: only the queries are normalised.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        n_temporal: int = 1,
        cuboid_hw: Sequence[int] = (7, 7),
        shift_hw: Sequence[int] = (0, 0),
        strategy: Sequence[str] = ("d", "l", "l"),
        padding_type: str = "ignore",
        cross_last_n_frames: int | None = None,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        max_temporal_relative: int = 50,
        norm_layer: str = "layer_norm",
        use_global_vector: bool = True,
        separate_global_qkv: bool = False,
        global_dim_ratio: int = 1,
        use_relative_pos: bool = True,
        attn_linear_init_mode: str = "0",
        ffn_linear_init_mode: str = "0",
        norm_init_mode: str = "0",
    ) -> None:
        """Make the layer for tokens of `dim` channels on both sides.

        Raises:
            ValueError: unknown padding type or strategy, no cuboid along time, heads that do not divide
                `dim`, or wider global vectors without projections of their own.
        """
        super().__init__(dim, num_heads, qk_scale, global_dim_ratio, separate_global_qkv)
        if n_temporal < 1:
            raise ValueError(f"n_temporal: expected at least 1, found {n_temporal}")
        self.n_temporal = n_temporal
        self.strategy = check_strategy(strategy)
        self.cuboid_hw = (cuboid_hw[0], cuboid_hw[1])
        rows, columns = (0 if letter == "d" else shift for letter, shift in zip(strategy[1:], shift_hw, strict=True))
        self.shift: Size3 = (0, rows, columns)
        self.padding_type = check_padding_type(padding_type)
        self.max_temporal_relative = max_temporal_relative
        self.cross_last_n_frames = cross_last_n_frames
        self.use_global_vector = use_global_vector
        self.separate_global_qkv = separate_global_qkv
        self.use_relative_pos = use_relative_pos
        self._cuts: dict[tuple[Size3, int], tuple[Cut, Cut]] = {}

        if use_relative_pos:
            self._add_position_bias((max_temporal_relative, *self.cuboid_hw))
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv_proj = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        init_linear(self.q_proj, attn_linear_init_mode)
        init_linear(self.kv_proj, attn_linear_init_mode)
        init_linear(self.proj, ffn_linear_init_mode)
        if use_global_vector and separate_global_qkv:
            self.l2g_q_net = nn.Linear(dim, dim, bias=qkv_bias)
            self.l2g_global_kv_net = nn.Linear(global_dim_ratio * dim, 2 * dim, bias=qkv_bias)
            init_linear(self.l2g_q_net, attn_linear_init_mode)
            init_linear(self.l2g_global_kv_net, attn_linear_init_mode)
        self.norm = make_norm(norm_layer, dim, mode=norm_init_mode)

    def forward(self, x: Tensor, mem: Tensor, mem_global_vectors: Tensor | None = None) -> Tensor:
        """Return what is to be added to `x`.

        Args:
            x: queries (B, T_x, H, W, C).
            mem: memory (B, T_mem, H, W, C).
            mem_global_vectors: (B, G, global_dim_ratio * C), needed if the layer uses them, else ignored.

        Raises:
            ValueError: shapes that do not belong together, more frames than relative positions, a grid that
                needs padding of another type than ``ignore``, or global vectors missing.
        """
        if self.cross_last_n_frames is not None:
            mem = mem[:, -min(self.cross_last_n_frames, int(mem.shape[1])) :]
        queries, memory = self._both_cuts(x, mem)
        if self.use_global_vector and mem_global_vectors is None:
            raise ValueError("cross-attention: expected global vectors (use_global_vector is set), found none")
        g = mem_global_vectors if self.use_global_vector else None
        x = self.norm(x)
        if self.plain:
            return self._plain(x, mem, g, queries, memory)
        return self._fast(x, mem, g, queries, memory)

    def _both_cuts(self, x: Tensor, mem: Tensor) -> tuple[Cut, Cut]:
        t_x, t_mem, h, w = int(x.shape[1]), int(mem.shape[1]), int(x.shape[2]), int(x.shape[3])
        if ((t_x, h, w), t_mem) not in self._cuts or x.shape[2:] != mem.shape[2:] or x.shape[0] != mem.shape[0]:
            self._cuts[(t_x, h, w), t_mem] = self._make_cuts(x, mem)
        return self._cuts[(t_x, h, w), t_mem]

    def _make_cuts(self, x: Tensor, mem: Tensor) -> tuple[Cut, Cut]:
        if x.dim() != 5 or mem.dim() != 5 or x.shape[0] != mem.shape[0] or x.shape[2:] != mem.shape[2:]:
            raise ValueError(
                f"cross-attention: expected B, H, W, C of x and memory to agree, found {tuple(x.shape)} and "
                f"{tuple(mem.shape)}"
            )
        t_mem = int(mem.shape[1])
        t_x, h, w = (int(size) for size in x.shape[1:4])
        if max(t_x, t_mem) >= self.max_temporal_relative:
            raise ValueError(
                f"cross-attention: expected fewer than max_temporal_relative={self.max_temporal_relative} frames, "
                f"found {t_x} and {t_mem}"
            )
        queries, memory = self._cut((t_x, h, w)), self._cut((t_mem, h, w), t_pad_left=True)
        if self.padding_type != "ignore" and (queries.is_padded or memory.is_padded):
            raise ValueError(
                f"cross-attention: expected padding_type ignore where anything is padded, found {self.padding_type!r} "
                f"with x {queries.shape} and memory {memory.shape} in {self.n_temporal} x {self.cuboid_hw} cuboids"
            )
        return queries, memory

    def _cut(self, shape: Size3, *, t_pad_left: bool = False) -> Cut:
        # Along time the number of cuboids is given, and with it their length.
        padding = missing_to_multiple(shape, (self.n_temporal, *self.cuboid_hw))
        cuboid = ((shape[0] + padding[0]) // self.n_temporal, *self.cuboid_hw)
        return Cut(
            shape,
            cuboid,
            self.strategy,
            self.shift,
            self.padding_type,
            padding=padding,
            t_pad_left=t_pad_left,
        )

    def _plain(self, x: Tensor, mem: Tensor, g: Tensor | None, queries: Cut, memory: Cut) -> Tensor:
        tokens = queries.decompose(x)
        (q,) = self._split_heads(self.q_proj(tokens))
        k, v = self._split_heads(self.kv_proj(memory.decompose(mem)))
        seen = None
        if g is not None and self.separate_global_qkv:
            (seen_q,) = self._split_heads(self.l2g_q_net(tokens))
            seen = GlobalKeys(seen_q, *self._vectors(self.l2g_global_kv_net(g)))
        elif g is not None:
            seen = GlobalKeys(q, *self._vectors(self.kv_proj(g)))
        bias = self._position_bias(queries.volume, memory.volume)
        mask = self._kept(cross_attention_mask, queries, memory, x.device)
        out = plain_attention(q, k, v, scale=self.scale, bias=bias, mask=mask, seen=seen, drop=self.attn_drop)
        out = self.proj_drop(self.proj(out.permute(0, 2, 3, 1, 4).flatten(-2)))
        return queries.merge(out)

    def _fast(self, x: Tensor, mem: Tensor, g: Tensor | None, queries: Cut, memory: Cut) -> Tensor:
        heads, size = self.num_heads, self.head_size
        k, v = memory.split_heads(project(mem, memory, [self.kv_proj]), heads, size).unbind(0)
        seen = None
        if g is not None and self.separate_global_qkv:
            q, seen_q = queries.split_heads(project(x, queries, [self.q_proj, self.l2g_q_net]), heads, size).unbind(0)
            seen = GlobalKeys(seen_q, *self._vectors(self.l2g_global_kv_net(g)))
        else:
            (q,) = queries.split_heads(project(x, queries, [self.q_proj]), heads, size).unbind(0)
            if g is not None:
                seen = GlobalKeys(q, *self._vectors(self.kv_proj(g)))
        padded = queries.is_padded or memory.is_padded
        mask = None
        if padded or queries.is_shifted:
            mask = self._kept(cross_attention_mask, queries, memory, x.device)
        out = fast_attention(
            q,
            k,
            v,
            scale=self.scale,
            bias=self._position_bias(queries.volume, memory.volume),
            mask=mask,
            seen=seen,
            drop=self.attn_drop.p if self.training else 0.0,
            # A cuboid of the memory may be all padding.
            zero_masked_rows=padded,
        )
        return finish(queries, out, self.proj, self.proj_drop)
