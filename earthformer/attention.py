"""Cuboid self-attention, with or without global vectors.

The layer normalises its input, cuts it into cuboids, attends inside each cuboid and puts the cuboids back;
the residual is added by the caller. Parameter names are those of the authors' checkpoints.

Source: Earthformer, sections 3.1 and 3.2; padding, masks and their quirks as in the authors' released code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earthformer import kernels
from earthformer.cuboids import (
    Cut,
    check_padding_type,
    check_strategy,
    relative_position_index,
    self_attention_mask,
)
from earthformer.initialization import EMBEDDING_STD, init_linear
from earthformer.normalization import make_norm
from earthformer.paths import TwoPaths
from earthformer.patterns import Size3, clip_cuboid
from earthformer.scores import GlobalKeys, fast_attention, masked_softmax, plain_attention


def stack(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of one linear layer that gives the outputs of `layers` side by side."""
    if len(layers) == 1:
        return layers[0].weight, layers[0].bias
    has_bias = layers[0].bias is not None
    weight = torch.cat([layer.weight for layer in layers])
    return weight, torch.cat([layer.bias for layer in layers]) if has_bias else None


def project(x: Tensor, cut: Cut, layers: Sequence[nn.Linear]) -> Tensor:
    """Return the projections of `x` (B, T, H, W, C) side by side, (B, T', H', W', channels), padded and rolled."""
    weight, bias = stack(layers)
    if bias is not None or cut.is_shifted or cut.padding_type == "nearest":
        return kernels.linear(cut.roll(cut.pad(x)), weight, bias)
    # Zero tokens project to zero, so padding may follow the projection and costs no products.
    return cut.pad(kernels.linear(x, weight))


def finish(cut: Cut, out: Tensor, proj: nn.Linear | None = None, drop: nn.Dropout | None = None) -> Tensor:
    """Return the grid (B, T, H, W, C) of attended values (B, h, N, V, d), projected unless `proj` is None.

    Padding is dropped before the projection, which treats every token alike.
    """
    return finish_grid(cut.unpad(cut.unroll(cut.join_heads(out))), proj, drop)


def finish_grid(x: Tensor, proj: nn.Linear | None = None, drop: nn.Dropout | None = None) -> Tensor:
    """Return the grid `x` (B, T, H, W, C), projected and partly dropped unless `proj` and `drop` are None."""
    if proj is not None:
        x = kernels.linear(x, proj.weight, proj.bias)
    return x if drop is None else kernels.dropout(x, drop.p if drop.training else 0.0)


@dataclass(frozen=True)
class GlobalRead:
    """One source that the global vectors read from: (B, h, G, d) queries, (B, h, S, d) keys and values."""

    query: Tensor
    key: Tensor
    value: Tensor


class CuboidAttention(TwoPaths):
    """What self- and cross-attention share: heads, relative position bias and the mask of the last grid."""

    def __init__(self, dim: int, num_heads: int, qk_scale: float | None, global_dim_ratio: int, separate: bool) -> None:
        """Check the sizes that both layers take.

        Raises:
            ValueError: heads that do not divide `dim`, or wider global vectors without projections of their
                own.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim: expected a multiple of num_heads={num_heads}, found {dim}")
        if global_dim_ratio != 1 and not separate:
            raise ValueError(f"global_dim_ratio: expected 1 without separate_global_qkv, found {global_dim_ratio}")
        self.dim = dim
        self.num_heads = num_heads
        self.head_size = dim // num_heads
        self.global_head_size = global_dim_ratio * self.head_size
        self.scale = qk_scale or self.head_size**-0.5
        self.use_relative_pos = False
        self._last_mask: tuple[object, Tensor] | None = None

    def _add_position_bias(self, size: Size3) -> None:
        rows = (2 * size[0] - 1) * (2 * size[1] - 1) * (2 * size[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(rows, self.num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=EMBEDDING_STD)
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relative_position_index(size))

    def _position_bias(self, rows: int, columns: int) -> Tensor | None:
        """Return the bias (h, 1, rows, columns), or None in a layer without one.

        Smaller cuboids use the corner of the configured cuboid's index, as checkpoints expect, although it
        holds their offsets only if the first axis longer than 1 is the one that is clipped.
        """
        if not self.use_relative_pos:
            return None
        index = self.relative_position_index[:rows, :columns].reshape(-1)
        bias = self.relative_position_bias_table.index_select(0, index)
        return bias.view(rows, columns, -1).permute(2, 0, 1).contiguous().unsqueeze(1)

    def _split_heads(self, tokens: Tensor, head_size: int | None = None) -> tuple[Tensor, ...]:
        """Return the groups of channels of tokens (B, N, V, groups*h*d), each as (B, h, N, V, d)."""
        groups = tokens.unflatten(-1, (-1, self.num_heads, head_size or self.head_size))
        return groups.permute(3, 0, 4, 1, 2, 5).unbind(0)

    def _vectors(self, g: Tensor, head_size: int | None = None) -> tuple[Tensor, ...]:
        """Return the groups of channels of vectors (B, G, groups*h*d), each as (B, h, G, d)."""
        groups = g.unflatten(-1, (-1, self.num_heads, head_size or self.head_size))
        return groups.permute(2, 0, 3, 1, 4).unbind(0)

    def _kept(self, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """Return ``make(*arguments)``, made anew only when the arguments change."""
        if torch.compiler.is_compiling():
            return make(*arguments)
        if self._last_mask is None or self._last_mask[0] != arguments:
            # A tensor made in inference mode could not be used in training later.
            with torch.inference_mode(False):
                self._last_mask = (arguments, make(*arguments))
        return self._last_mask[1]


class CuboidSelfAttention(CuboidAttention):
    """Attention inside each cuboid, and between the cuboids' tokens and a few global vectors."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        cuboid_size: Sequence[int] = (2, 7, 7),
        shift_size: Sequence[int] = (0, 0, 0),
        strategy: Sequence[str] = ("l", "l", "l"),
        padding_type: str = "ignore",
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        use_final_proj: bool = True,
        norm_layer: str = "layer_norm",
        use_global_vector: bool = False,
        use_global_self_attn: bool = False,
        separate_global_qkv: bool = False,
        global_dim_ratio: int = 1,
        use_relative_pos: bool = True,
        attn_linear_init_mode: str = "0",
        ffn_linear_init_mode: str = "0",
        norm_init_mode: str = "0",
    ) -> None:
        """Make the layer for tokens of `dim` channels and global vectors of `global_dim_ratio` * `dim`.

        Raises:
            ValueError: unknown padding type or strategy, heads that do not divide `dim`, or wider global
                vectors without projections of their own.
        """
        super().__init__(dim, num_heads, qk_scale, global_dim_ratio, separate_global_qkv)
        self.use_relative_pos = use_relative_pos
        self.cuboid_size: Size3 = (cuboid_size[0], cuboid_size[1], cuboid_size[2])
        self.shift_size: Size3 = (shift_size[0], shift_size[1], shift_size[2])
        self.strategy = check_strategy(strategy)
        self.padding_type = check_padding_type(padding_type)
        self.use_final_proj = use_final_proj
        self.use_global_vector = use_global_vector
        self.use_global_self_attn = use_global_self_attn
        self.separate_global_qkv = separate_global_qkv
        self._cuts: dict[Size3, Cut] = {}

        global_dim = global_dim_ratio * dim
        if use_relative_pos:
            self._add_position_bias(self.cuboid_size)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        if use_global_vector and separate_global_qkv:
            # Named from the reader to the read: l2g are local queries that read global vectors.
            self.l2g_q_net = nn.Linear(dim, dim, bias=qkv_bias)
            self.l2g_global_kv_net = nn.Linear(global_dim, 2 * dim, bias=qkv_bias)
            self.g2l_global_q_net = nn.Linear(global_dim, dim, bias=qkv_bias)
            self.g2l_k_net = nn.Linear(dim, dim, bias=qkv_bias)
            self.g2l_v_net = nn.Linear(dim, global_dim, bias=qkv_bias)
            if use_global_self_attn:
                self.g2g_global_qkv_net = nn.Linear(global_dim, 3 * global_dim, bias=qkv_bias)
        elif use_global_vector:
            self.global_qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                init_linear(layer, attn_linear_init_mode)
        if use_final_proj:
            self.proj = nn.Linear(dim, dim)
            init_linear(self.proj, ffn_linear_init_mode)
            self.proj_drop = nn.Dropout(proj_drop)
            if use_global_vector:
                # Keeps torch's default initialisation, as in the authors' code.
                self.global_proj = nn.Linear(global_dim, global_dim)
        self.norm = make_norm(norm_layer, dim, mode=norm_init_mode)
        if use_global_vector:
            self.global_vec_norm = make_norm(norm_layer, global_dim, mode=norm_init_mode)

    def forward(
        self, x: Tensor, global_vectors: Tensor | None = None, *, update_globals: bool = True
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return what is to be added to `x` and, in a layer with global vectors, what is to be added to them.

        Args:
            x: tokens (B, T, H, W, C).
            global_vectors: (B, G, global_dim_ratio * C), given if and only if the layer uses them.
            update_globals: whether the second result is wanted; if not, the fast path returns zeros for it.

        Raises:
            ValueError: wrong number of channels, or global vectors missing.
        """
        if x.dim() != 5 or x.shape[-1] != self.dim:
            raise ValueError(f"self-attention: expected x (B, T, H, W, {self.dim}), found {tuple(x.shape)}")
        if self.use_global_vector and global_vectors is None:
            raise ValueError("self-attention: expected global vectors (use_global_vector is set), found none")
        cut = self._cut(x)
        x = self.norm(x)
        g = self.global_vec_norm(global_vectors) if self.use_global_vector else None
        x, update = self._plain(x, g, cut) if self.plain else self._fast(x, g, cut, update_globals)
        if global_vectors is None or g is None:
            return x
        return x, torch.zeros_like(global_vectors) if update is None else update

    def _cut(self, x: Tensor) -> Cut:
        shape = (int(x.shape[1]), int(x.shape[2]), int(x.shape[3]))
        if shape not in self._cuts:
            size, shift = clip_cuboid(shape, self.cuboid_size, self.shift_size, self.strategy)
            self._cuts[shape] = Cut(shape, size, self.strategy, shift, self.padding_type)
        return self._cuts[shape]

    def _plain(self, x: Tensor, g: Tensor | None, cut: Cut) -> tuple[Tensor, Tensor | None]:
        tokens = cut.decompose(x)
        q, k, v = self._split_heads(self.qkv(tokens))
        seen, read = None, None
        if g is not None and self.separate_global_qkv:
            (seen_q,) = self._split_heads(self.l2g_q_net(tokens))
            (read_k,) = self._split_heads(self.g2l_k_net(tokens))
            (read_v,) = self._split_heads(self.g2l_v_net(tokens), self.global_head_size)
            seen = GlobalKeys(seen_q, *self._vectors(self.l2g_global_kv_net(g)))
            read = self._separate_read(g, read_k, read_v)
        elif g is not None:
            own = GlobalRead(*self._vectors(self.global_qkv(g)))
            seen, read = (
                GlobalKeys(q, own.key, own.value),
                [GlobalRead(own.query, k.flatten(2, 3), v.flatten(2, 3)), own],
            )
        bias = self._position_bias(cut.volume, cut.volume)
        mask = self._kept(self_attention_mask, cut, x.device)
        out = plain_attention(q, k, v, scale=self.scale, bias=bias, mask=mask, seen=seen, drop=self.attn_drop)
        out = out.permute(0, 2, 3, 1, 4).flatten(-2)
        if self.use_final_proj:
            out = self.proj_drop(self.proj(out))
        return cut.merge(out), None if read is None else self._update(read, cut)

    def _fast(self, x: Tensor, g: Tensor | None, cut: Cut, update_globals: bool) -> tuple[Tensor, Tensor | None]:
        if self._avoids_padding(cut, g, update_globals):
            return self._without_padding(x, g, cut), None
        seen, read = None, None
        if g is not None and self.separate_global_qkv:
            extra = [self.g2l_k_net, self.g2l_v_net] if update_globals else []
            tokens = project(x, cut, [self.qkv, self.l2g_q_net, *extra])
            same_size = (5 if update_globals else 4) * self.dim
            q, k, v, seen_q, *read_k = cut.split_heads(tokens[..., :same_size], self.num_heads, self.head_size).unbind(
                0
            )
            seen = GlobalKeys(seen_q, *self._vectors(self.l2g_global_kv_net(g)))
            if update_globals:
                read_v = cut.split_heads(tokens[..., same_size:], self.num_heads, self.global_head_size)[0]
                read = self._separate_read(g, read_k[0], read_v)
        else:
            q, k, v = cut.split_heads(project(x, cut, [self.qkv]), self.num_heads, self.head_size).unbind(0)
            if g is not None:
                own = GlobalRead(*self._vectors(self.global_qkv(g)))
                seen = GlobalKeys(q, own.key, own.value)
                read = [GlobalRead(own.query, k.flatten(2, 3), v.flatten(2, 3)), own] if update_globals else None
        drop = self.attn_drop.p if self.training else 0.0
        bias = self._position_bias(cut.volume, cut.volume)
        mask = self._mask(cut, x.device)
        out = fast_attention(q, k, v, scale=self.scale, bias=bias, mask=mask, seen=seen, drop=drop)
        x = finish(cut, out, *((self.proj, self.proj_drop) if self.use_final_proj else ()))
        return x, None if read is None else self._update(read, cut)

    def _avoids_padding(self, cut: Cut, g: Tensor | None, update_globals: bool) -> bool:
        """Return whether padded tokens may be left out: none is read by global vectors, and zeros stay zeros."""
        unread = g is None or not update_globals
        zero = self.padding_type == "ignore" or self.qkv.bias is None
        return unread and zero and not kernels.has_fused_attention(self.qkv.weight.device) and bool(cut.parts)

    def _without_padding(self, x: Tensor, g: Tensor | None, cut: Cut) -> Tensor:
        """Return the attended values of the parts of a padded grid; padded tokens are null keys, or nothing."""
        layers, seen_key, seen_value = [self.qkv], None, None
        if g is not None and self.separate_global_qkv:
            layers.append(self.l2g_q_net)
            seen_key, seen_value = self._vectors(self.l2g_global_kv_net(g))
        elif g is not None:
            _, seen_key, seen_value = self._vectors(self.global_qkv(g))
        tokens = kernels.linear(x, *stack(layers))
        whole = self._position_bias(cut.volume, cut.volume)
        if whole is None and self.padding_type == "zeros":
            whole = tokens.new_zeros(self.num_heads, 1, cut.volume, cut.volume)
        grids = []
        for part in cut.parts:
            q, k, v, *seen_q = part.cut.split_heads(tokens[:, *part.box], self.num_heads, self.head_size).unbind(0)
            seen = None
            if seen_key is not None and seen_value is not None:
                seen = GlobalKeys(seen_q[0] if seen_q else q, seen_key, seen_value)
            bias = None
            if whole is not None:
                columns = part.places if self.padding_type == "ignore" else part.places + part.missing
                bias = whole[:, :, part.places][..., columns]
            drop = self.attn_drop.p if self.training else 0.0
            out = fast_attention(q, k, v, scale=self.scale, bias=bias, mask=None, seen=seen, drop=drop)
            grids.append(part.cut.join_heads(out))
        return finish_grid(cut.assemble(grids), *((self.proj, self.proj_drop) if self.use_final_proj else ()))

    def _mask(self, cut: Cut, device: torch.device) -> Tensor | None:
        """Return the mask of `cut`, or None if everything is allowed."""
        if not (cut.is_shifted or (cut.is_padded and self.padding_type == "ignore")):
            return None
        return self._kept(self_attention_mask, cut, device)

    def _separate_read(self, g: Tensor, key: Tensor, value: Tensor) -> list[GlobalRead]:
        (query,) = self._vectors(self.g2l_global_q_net(g))
        read = [GlobalRead(query, key.flatten(2, 3), value.flatten(2, 3))]
        if self.use_global_self_attn:
            read.append(GlobalRead(*self._vectors(self.g2g_global_qkv_net(g), self.global_head_size)))
        return read

    def _update(self, read: Sequence[GlobalRead], cut: Cut) -> Tensor:
        """Return the change of the global vectors (B, G, r*C): one softmax over all tokens and, if set, themselves."""
        tokens = cut.count * cut.volume
        read = read if self.use_global_self_attn else read[:1]
        scores = torch.cat([(part.query * self.scale) @ part.key.transpose(-2, -1) for part in read], dim=-1)
        mask = None
        if self.padding_type == "ignore" and (cut.is_padded or self.plain):
            # Cells are listed in row-major order of the rolled grid although the keys stand in cuboid order,
            # so that with real padding other tokens than the padded ones are masked. Checkpoints were trained
            # that way.
            mask = F.pad(cut.validity(scores.device).reshape(-1), (0, scores.shape[-1] - tokens), value=True)
        weights = self.attn_drop(masked_softmax(scores, mask))
        update = weights @ torch.cat([part.value for part in read], dim=-2)
        update = update.transpose(1, 2).flatten(-2)
        return self.proj_drop(self.global_proj(update)) if self.use_final_proj else update
