"""Cuboid attention: the base class of all its layers, and self-attention with or without global vectors.

A layer normalises its input, cuts it into cuboids, attends inside each cuboid and puts the cuboids back; the residual
is added by the caller. Parameter names are those of the authors' checkpoints.

Shapes: queries (B, h, N, V_q, d), keys and values (B, h, N, V_k, d), those of global vectors (B, h, G, d), with h
heads, N cuboids of V tokens and G global vectors.

Source: Earthformer, sections 3.1 and 3.2, equations 3 to 5; padding, masks and their quirks as in the authors'
released code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earthformer.cuboids import (
    CuboidPartition,
    check_strategy,
    relative_position_index,
    self_attention_mask,
)
from earthformer.layers import EMBEDDING_STD, Dropout, dropout, init_linear, make_norm
from earthformer.options import Options
from earthformer.patterns import Size3, clip_cuboid

# Finite, so that a fully masked row gives numbers (which are discarded or set to 0) rather than NaN.
MASKED_SCORE = -1e18
MASKED_SCORE_FLOAT16 = -1e4


class Projected(NamedTuple):
    """Queries, keys and values of one attention."""

    query: Tensor
    key: Tensor
    value: Tensor


def masked_score(dtype: torch.dtype) -> float:
    """Returns the score that stands for "not allowed" in tensors of `dtype`."""
    return MASKED_SCORE_FLOAT16 if dtype == torch.float16 else MASKED_SCORE


def has_fused_attention(device: torch.device) -> bool:
    """Returns whether attention runs as one kernel: on GPUs only; on CPUs it is slower for rows as short as these."""
    return device.type == "cuda"


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, bias: Tensor | None, drop: float = 0.0
) -> Tensor:
    """Returns the attended values (B, h, N, V_q, d).

    Args:
        query: (B, h, N, V_q, d).
        key: (B, h, N, V_k, d).
        value: (B, h, N, V_k, d).
        scale: factor of the products of queries and keys.
        bias: bias added to the scaled products, (h or 1, N or 1, V_q, V_k).
        drop: probability of dropping a weight.
    """
    if not has_fused_attention(query.device):
        # On CPUs, softmax is slow along a short last axis and fast along any other.
        scores = key @ query.transpose(-2, -1)
        scores = scores * scale if bias is None else torch.add(bias.transpose(-2, -1).contiguous(), scores, alpha=scale)
        weights = dropout(torch.softmax(scores, dim=-2), drop, training=True)
        return weights.transpose(-2, -1) @ value
    heads, count, rows = query.shape[1:4]
    if bias is not None:
        # One bias for the whole batch: if the kernel pads the rows, it would otherwise pad a copy for each sequence.
        bias = bias.to(query.dtype).expand(heads, count, rows, -1).reshape(1, heads * count, rows, -1)
    query, key, value = (tensor.flatten(1, 2) for tensor in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=drop, scale=scale)
    return out.unflatten(1, (heads, count))


class CuboidAttention(nn.Module):
    """Base of self- and cross-attention: heads, relative position bias, global keys and the output projection."""

    def __init__(self, options: Options, dim: int) -> None:
        """Checks the sizes.

        Raises:
            ValueError: the number of heads does not divide `dim`.
        """
        super().__init__()
        if dim % options.num_heads:
            raise ValueError(f"dim: expected a multiple of num_heads={options.num_heads}, found {dim}")
        self.options = options
        self.dim = dim
        self.head_size = dim // options.num_heads
        self.global_head_size = options.global_dim_ratio * self.head_size
        self.scale = options.qk_scale or self.head_size**-0.5
        self._last: dict[str, tuple[tuple[Any, ...], Any]] = {}

    def add_position_bias(self, size: Size3) -> None:
        """Makes the bias table and its index for cuboids of `size` (T, H, W)."""
        rows = (2 * size[0] - 1) * (2 * size[1] - 1) * (2 * size[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, self.options.num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=EMBEDDING_STD)
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relative_position_index(size))

    def position_bias(self, rows: int, columns: int) -> Tensor | None:
        """Returns the bias (h, 1, rows, columns), or None in a layer without one.

        Smaller cuboids use the corner of the configured cuboid's index, as checkpoints expect, although this has the
        right offsets only if the clipped axis is the first one longer than 1.
        """
        if not self.options.use_relative_pos:
            return None
        index = self.relative_position_index[:rows, :columns].reshape(-1)
        bias = self.relative_position_bias_table.index_select(0, index)
        return bias.view(rows, columns, -1).permute(2, 0, 1).contiguous().unsqueeze(1)

    def _heads(
        self, projection: nn.Linear, x: Tensor, partition: CuboidPartition, head_size: int | None = None
    ) -> tuple[Tensor, ...]:
        """Returns the groups of channels of the projected `x` (B, T, H, W, C), each as (B, h, N, V, d)."""
        if partition.is_padded and projection.bias is None and partition.padding_type != "nearest":
            # Zero tokens project to zero, so padding may follow the projection, which saves work.
            x = partition.roll(partition.pad(projection(x)))
        else:
            x = projection(partition.roll(partition.pad(x)))
        return partition.split_heads(x, self.options.num_heads, head_size or self.head_size).unbind(0)

    def vector_heads(self, g: Tensor, head_size: int | None = None) -> tuple[Tensor, ...]:
        """Returns the groups of channels of vectors (B, G, groups*h*d), each as (B, h, G, d)."""
        groups = g.unflatten(-1, (-1, self.options.num_heads, head_size or self.head_size))
        return groups.permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(self, local: Projected, globals_: Projected | None, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        """Returns the values (B, h, N, V_q, d) from one softmax over the cuboid's keys and the global ones.

        Args:
            local: queries, keys and values of the cuboids.
            globals_: keys and values of the global vectors (B, h, G, d), with the queries for them (B, h, N, V_q, d),
                which are those of `local` unless the layer has separate projections. Bias and mask do not apply.
            bias: (h, 1, V_q, V_k).
            mask: (N, V_q, V_k), True where attention is allowed; fully masked rows are means.
        """
        query, key, value = local
        if mask is not None:
            blocked = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
            blocked = blocked.masked_fill_(~mask, masked_score(query.dtype))
            bias = blocked if bias is None else bias + blocked
            bias = bias.view(-1, *mask.shape)
        if globals_ is not None:
            count = query.shape[2]
            shared_key, shared_value = (t.unsqueeze(2).expand(-1, -1, count, -1, -1) for t in globals_[1:])
            if globals_.query is not query:
                # Two products in one: [q, q'] . [k, 0] = q . k and [q, q'] . [0, k'] = q' . k'.
                query = torch.cat((query, globals_.query), dim=-1)
                key, shared_key = F.pad(key, (0, self.head_size)), F.pad(shared_key, (self.head_size, 0))
            key, value = torch.cat((key, shared_key), dim=-2), torch.cat((value, shared_value), dim=-2)
            bias = None if bias is None else F.pad(bias, (0, shared_key.shape[-2]))
        drop = self.options.attn_drop if self.training else 0.0
        return attend(query, key, value, scale=self.scale, bias=bias, drop=drop)

    def kept(self, make: Callable[..., Any], *arguments: Any) -> Any:
        """Returns ``make(*arguments)``, cached until the arguments change."""
        if torch.compiler.is_compiling():
            return make(*arguments)
        last = self._last.get(make.__name__)
        if last is None or last[0] != arguments:
            # A tensor made in inference mode could not be used in training later.
            with torch.inference_mode(False):
                last = self._last[make.__name__] = (arguments, make(*arguments))
        return last[1]


class CuboidSelfAttention(CuboidAttention):
    """Attention inside each cuboid, and between the cuboids' tokens and a few global vectors."""

    def __init__(
        self,
        options: Options,
        dim: int,
        cuboid_size: Sequence[int],
        strategy: Sequence[str],
        shift_size: Sequence[int],
        *,
        use_global_vector: bool = False,
    ) -> None:
        """Makes the layer for tokens of `dim` channels and global vectors of `global_dim_ratio` * `dim`.

        Raises:
            ValueError: an unknown strategy, or a number of heads that does not divide `dim`.
        """
        super().__init__(options, dim)
        self.cuboid_size: Size3 = (cuboid_size[0], cuboid_size[1], cuboid_size[2])
        self.strategy = check_strategy(strategy)
        self.shift_size: Size3 = (shift_size[0], shift_size[1], shift_size[2])
        self.use_global_vector = use_global_vector

        global_dim, bias = options.global_dim_ratio * dim, options.qkv_bias
        if options.use_relative_pos:
            self.add_position_bias(self.cuboid_size)
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.attn_drop = Dropout(options.attn_drop)
        if use_global_vector and options.separate_global_qkv:
            # Named from the reader to the read: l2g are local queries that read global vectors.
            self.l2g_q_net = nn.Linear(dim, dim, bias=bias)
            self.l2g_global_kv_net = nn.Linear(global_dim, 2 * dim, bias=bias)
            self.g2l_global_q_net = nn.Linear(global_dim, dim, bias=bias)
            self.g2l_k_net = nn.Linear(dim, dim, bias=bias)
            self.g2l_v_net = nn.Linear(dim, global_dim, bias=bias)
            if options.use_global_self_attn:
                self.g2g_global_qkv_net = nn.Linear(global_dim, 3 * global_dim, bias=bias)
        elif use_global_vector:
            self.global_qkv = nn.Linear(dim, 3 * dim, bias=bias)
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                init_linear(layer, options.attn_linear_init_mode)
        if options.self_attn_use_final_proj:
            self.proj = nn.Linear(dim, dim)
            init_linear(self.proj, options.ffn_linear_init_mode)
            self.proj_drop = Dropout(options.proj_drop)
            if use_global_vector:
                # Keeps torch's default initialisation, as in the authors' code.
                self.global_proj = nn.Linear(global_dim, global_dim)
        self.norm = make_norm(options.norm_layer, dim, mode=options.norm_init_mode)
        if use_global_vector:
            self.global_vec_norm = make_norm(options.norm_layer, global_dim, mode=options.norm_init_mode)

    def forward(
        self, x: Tensor, global_vectors: Tensor | None = None, *, update_globals: bool = True
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the update of `x` and, in a layer with global vectors, that of the global vectors.

        Args:
            x: tokens (B, T, H, W, C).
            global_vectors: (B, G, global_dim_ratio * C), given if and only if the layer uses them.
            update_globals: whether to compute the second result; otherwise it is zeros.

        Raises:
            ValueError: wrong number of channels, or missing global vectors.
        """
        if x.dim() != 5 or x.shape[-1] != self.dim:
            raise ValueError(f"self-attention: expected x (B, T, H, W, {self.dim}), found {tuple(x.shape)}")
        if self.use_global_vector and global_vectors is None:
            raise ValueError("self-attention: expected global vectors (use_global_vector is set), found none")
        partition, mask = self.partition(x)
        x = self.norm(x)
        if not self.use_global_vector and self._has_partial_cuboids(partition) and not has_fused_attention(x.device):
            return self._attend_partial_apart(x, partition)
        local = Projected(*self._heads(self.qkv, x, partition))
        if not self.use_global_vector or global_vectors is None:
            return self._output(self._attend(local, None, self._bias(partition), mask), partition)
        g = self.global_vec_norm(global_vectors)
        update = torch.zeros_like(global_vectors)
        if self.options.separate_global_qkv:
            (query,) = self._heads(self.l2g_q_net, x, partition)
            seen = Projected(query, *self.vector_heads(self.l2g_global_kv_net(g)))
            if update_globals:
                (key,) = self._heads(self.g2l_k_net, x, partition)
                (value,) = self._heads(self.g2l_v_net, x, partition, self.global_head_size)
                update = self.separate_update(g, key, value, partition)
        else:
            own = Projected(*self.vector_heads(self.global_qkv(g)))
            seen = own._replace(query=local.query)
            if update_globals:
                update = self.update(Projected(own.query, local.key, local.value), own, partition)
        return self._output(self._attend(local, seen, self._bias(partition), mask), partition), update

    def partition(self, x: Tensor) -> tuple[CuboidPartition, Tensor | None]:
        """Returns the partition of the grid of `x` (B, T, H, W, C), and its mask (N, V, V); None if all is allowed."""
        found: tuple[CuboidPartition, Tensor | None] = self.kept(
            self._partition, tuple(map(int, x.shape[1:4])), x.device
        )
        return found

    def _partition(self, shape: Size3, device: torch.device) -> tuple[CuboidPartition, Tensor | None]:
        padding_type = self.options.padding_type
        size, shift = clip_cuboid(shape, self.cuboid_size, self.shift_size, self.strategy)
        partition = CuboidPartition(shape, size, self.strategy, shift, padding_type)
        if not (partition.is_shifted or (partition.is_padded and padding_type == "ignore")):
            return partition, None
        return partition, self_attention_mask(partition, device)

    def _bias(self, partition: CuboidPartition) -> Tensor | None:
        return self.position_bias(partition.volume, partition.volume)

    def _has_partial_cuboids(self, partition: CuboidPartition) -> bool:
        """Returns whether the only padding is zeros at the end of time, in unshifted cuboids local along time."""
        only_time = partition.padding[0] > 0 and not any(partition.padding[1:]) and self.strategy[0] == "l"
        adds_zeros = self.qkv.bias is None and partition.padding_type != "nearest"
        return only_time and adds_zeros and not partition.is_shifted

    def _attend_partial_apart(self, x: Tensor, partition: CuboidPartition) -> Tensor:
        """Returns the output for normalised `x`; partial cuboids attend separately from full ones.

        They need fewer queries, as the output of padded tokens is discarded, and fewer keys: the score of a padded key
        is its bias and its value is zero, so one zero key with the bias log(sum(exp(bias))) stands for all of them.
        """
        (frames, height, width), (length, *area) = partition.shape, partition.cuboid
        full = frames // length * length
        parts = []
        for tokens in self.qkv(x).split((full, frames - full), dim=1):
            count = int(tokens.shape[1])
            part = CuboidPartition((count, height, width), (min(length, count), area[0], area[1]), self.strategy)
            query, key, value = part.split_heads(tokens, self.options.num_heads, self.head_size).unbind(0)
            if part.volume == partition.volume or partition.padding_type == "ignore":
                bias = self.position_bias(part.volume, part.volume)
            else:
                key, value = F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1))
                bias = self.position_bias(part.volume, partition.volume)
                bias = x.new_zeros(1, 1, part.volume, partition.volume) if bias is None else bias
                bias, padded = bias.split((part.volume, partition.volume - part.volume), dim=-1)
                bias = torch.cat((bias, padded.logsumexp(dim=-1, keepdim=True)), dim=-1)
            parts.append(part.join_heads(self._attend(Projected(query, key, value), None, bias, None)))
        return self._project(torch.cat(parts, dim=1))

    def _output(self, attended: Tensor, partition: CuboidPartition) -> Tensor:
        """Returns the grid (B, T, H, W, C) of attended values (B, h, N, V, d), without padding, then projected."""
        return self._project(partition.unpad(partition.unroll(partition.join_heads(attended))))

    def _project(self, x: Tensor) -> Tensor:
        """Returns attended values (B, T, H, W, C), projected if the layer has a final projection."""
        return self.proj_drop(self.proj(x)) if self.options.self_attn_use_final_proj else x

    def separate_update(self, g: Tensor, key: Tensor, value: Tensor, partition: CuboidPartition) -> Tensor:
        """Returns `update` for a layer whose global vectors have separate projections."""
        (query,) = self.vector_heads(self.g2l_global_q_net(g))
        own = None
        if self.options.use_global_self_attn:
            own = Projected(*self.vector_heads(self.g2g_global_qkv_net(g), self.global_head_size))
        return self.update(Projected(query, key, value), own, partition)

    def update(self, tokens: Projected, own: Projected | None, partition: CuboidPartition) -> Tensor:
        """Returns the change of the global vectors (B, G, r*C): one softmax over all tokens and, if set, themselves."""
        read = [tokens._replace(key=tokens.key.flatten(2, 3), value=tokens.value.flatten(2, 3))]
        if own is not None and self.options.use_global_self_attn:
            read.append(own)
        scores = torch.cat([(part.query * self.scale) @ part.key.transpose(-2, -1) for part in read], dim=-1)
        if self.options.padding_type == "ignore" and partition.is_padded:
            # The cells are in row-major order of the rolled grid although the keys are in cuboid order, so the wrong
            # tokens are masked. Checkpoints were trained that way.
            real = partition.validity(scores.device).reshape(-1)
            real = F.pad(real, (0, scores.shape[-1] - len(real)), value=True)
            scores = scores.masked_fill(~real, masked_score(scores.dtype))
        weights = self.attn_drop(torch.softmax(scores, dim=-1))
        update = (weights @ torch.cat([part.value for part in read], dim=-2)).transpose(1, 2).flatten(-2)
        return self.proj_drop(self.global_proj(update)) if self.options.self_attn_use_final_proj else update
