"""Cuboid attention token by token, from its definition, in float64: the reference for tests of the layers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn

from earthformer.attention import CuboidSelfAttention
from earthformer.cross_attention import CuboidCrossAttention
from earthformer.upstream import build_layer

# Channels and heads of the layers under test.
DIM, HEADS = 8, 2


def make_self(case: dict[str, Any]) -> CuboidSelfAttention:
    """Returns a self-attention layer with the authors' arguments, in float64 and with random weights."""
    layer = spread(build_layer("CuboidSelfAttentionLayer", {"dim": DIM, "num_heads": HEADS, **case}))
    assert isinstance(layer, CuboidSelfAttention)
    return layer


def make_cross(case: dict[str, Any]) -> CuboidCrossAttention:
    """Returns a cross-attention layer likewise."""
    layer = spread(build_layer("CuboidCrossAttentionLayer", {"dim": DIM, "num_heads": HEADS, **case}))
    assert isinstance(layer, CuboidCrossAttention)
    return layer


def spread(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter (norms and biases too) random values, in float64."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.5 * noise + (1.0 if parameter.dim() == 1 else 0.0))
    return module


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest_sources(length: int, padded: int) -> list[int]:
    return [math.floor(index * length / padded) for index in range(padded)]


class Grid:
    """The position of each token of a padded and shifted grid, computed from the definition, cell by cell."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        sizes: tuple[int, int, int],
        strategy: str,
        shift: tuple[int, int, int],
        padded: tuple[int, int, int],
        t_left: int = 0,
    ) -> None:
        self.cells: list[dict[str, Any]] = []
        for place in itertools.product(*(range(n) for n in padded)):
            inside, cuboid, region = [], [], []
            for axis in range(3):
                n, b, s = padded[axis], sizes[axis], shift[axis]
                count = n // b
                p = place[axis]
                inside.append(p % b if strategy[axis] == "l" else p // count)
                cuboid.append(p // b if strategy[axis] == "l" else p % count)
                region.append(0 if s == 0 else (2 if p >= n - s else (1 if p >= n - b else 0)))
            unshifted = tuple((p + s) % n for p, s, n in zip(place, shift, padded, strict=True))
            source = (unshifted[0] - t_left, unshifted[1], unshifted[2])
            real = all(0 <= p < n for p, n in zip(source, shape, strict=True))
            self.cells.append(
                {
                    "cuboid": tuple(cuboid),
                    "inside": tuple(inside),
                    "region": tuple(region),
                    "padded": unshifted,
                    "source": source if real else None,
                }
            )
        self.ordered = sorted(self.cells, key=lambda cell: (cell["cuboid"], cell["inside"]))


def attend(q: Tensor, keys: list[tuple[float, Tensor]]) -> Tensor:
    """Returns the softmax over (score, value) pairs; zero if there are none."""
    if not keys:
        return torch.zeros_like(q)
    weights = torch.softmax(torch.stack([torch.as_tensor(score) for score, _ in keys]), dim=0)
    return sum((w * value for w, (_, value) in zip(weights, keys, strict=True)), torch.zeros_like(keys[0][1]))


def heads_of(x: Tensor, index: int, groups: int, size: int) -> list[Tensor]:
    """Splits a vector of `groups` x HEADS x `size` channels and returns head `index` of each group."""
    return [x[(g * HEADS + index) * size : (g * HEADS + index + 1) * size] for g in range(groups)]


def self_attention_oracle(layer: CuboidSelfAttention, x: Tensor, g: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One sample, token by token, from the definition."""
    shape = tuple(x.shape[:3])
    d = DIM // HEADS
    scale = layer.scale
    sizes, shift = [], []
    for axis in range(3):
        clipped = shape[axis] <= layer.cuboid_size[axis]
        sizes.append(shape[axis] if clipped else layer.cuboid_size[axis])
        shift.append(0 if clipped or layer.strategy[axis] == "d" else layer.shift_size[axis])
    padded = tuple(-(-n // b) * b for n, b in zip(shape, sizes, strict=True))
    normed = layer.norm(x)
    if layer.options.padding_type == "nearest":
        source = [nearest_sources(n, m) for n, m in zip(shape, padded, strict=True)]
        normed = normed[source[0]][:, source[1]][:, :, source[2]]
        shape = padded
    grid = Grid(shape, tuple(sizes), "".join(layer.strategy), tuple(shift), padded)
    zero = torch.zeros(DIM, dtype=x.dtype)
    tokens = [normed[cell["source"]] if cell["source"] is not None else zero for cell in grid.ordered]
    volume = math.prod(sizes)
    qkv = [layer.qkv(token) for token in tokens]
    gn = None if g is None else layer.global_vec_norm(g)
    dg = layer.global_head_size
    # Projections of each token and of each vector, once.
    separate = layer.options.separate_global_qkv
    if gn is not None and separate:
        seen_q, seen_kv = [layer.l2g_q_net(token) for token in tokens], [layer.l2g_global_kv_net(v) for v in gn]
        read_k, read_v = [layer.g2l_k_net(token) for token in tokens], [layer.g2l_v_net(token) for token in tokens]
    elif gn is not None:
        own = [layer.global_qkv(vector) for vector in gn]
    out_tokens: list[Tensor] = []
    ignore = layer.options.padding_type == "ignore"
    for i, cell in enumerate(grid.ordered):
        merged = []
        for head in range(HEADS):
            q = heads_of(qkv[i], head, 3, d)[0]
            keys = []
            for j, other in enumerate(grid.ordered):
                if other["cuboid"] != cell["cuboid"] or other["region"] != cell["region"]:
                    continue
                if ignore and (other["source"] is None or cell["source"] is None):
                    continue
                _, k, v = heads_of(qkv[j], head, 3, d)
                score = scale * (q @ k)
                if layer.options.use_relative_pos:
                    # Positions in the clipped cuboid index the corner of the configured cuboid's table.
                    score = (
                        score
                        + layer.relative_position_bias_table[
                            configured_row(layer.cuboid_size, i % volume, j % volume), head
                        ]
                    )
                keys.append((score, v))
            if gn is not None:
                for index in range(len(gn)):
                    if separate:
                        q_g = heads_of(seen_q[i], head, 1, d)[0]
                        k, v = heads_of(seen_kv[index], head, 2, d)
                    else:
                        q_g = q
                        _, k, v = heads_of(own[index], head, 3, d)
                    keys.append((scale * (q_g @ k), v))
            merged.append(attend(torch.zeros(d, dtype=x.dtype), keys))
        token = torch.cat(merged)
        out_tokens.append(layer.proj(token) if layer.options.self_attn_use_final_proj else token)
    out = torch.zeros(*padded, DIM, dtype=x.dtype)
    for cell, token in zip(grid.ordered, out_tokens, strict=True):
        out[cell["padded"]] = token
    if layer.options.padding_type == "nearest":
        back = [nearest_sources(m, n) for n, m in zip(x.shape[:3], padded, strict=True)]
        out = out[back[0]][:, back[1]][:, :, back[2]]
    out = out[: x.shape[0], : x.shape[1], : x.shape[2]]
    if gn is None:
        return out, None
    updates = []
    # The mask is in row-major order of the shifted grid, the keys are in cuboid order.
    allowed = [not ignore or cell["source"] is not None for cell in grid.cells]
    for index, vector in enumerate(gn):
        merged = []
        for head in range(HEADS):
            keys = []
            q = heads_of(layer.g2l_global_q_net(vector) if separate else own[index], head, 1, d)[0]
            for j in range(len(tokens)):
                if not allowed[j]:
                    continue
                if separate:
                    k = heads_of(read_k[j], head, 1, d)[0]
                    v = heads_of(read_v[j], head, 1, dg)[0]
                else:
                    _, k, v = heads_of(qkv[j], head, 3, d)
                keys.append((scale * (q @ k), v))
            if layer.options.use_global_self_attn:
                net, size = (
                    (layer.g2g_global_qkv_net, dg) if layer.options.separate_global_qkv else (layer.global_qkv, d)
                )
                q = heads_of(net(vector), head, 3, size)[0]
                for other_vector in gn:
                    _, k, v = heads_of(net(other_vector), head, 3, size)
                    keys.append((scale * (q @ k), v))
            merged.append(attend(torch.zeros(dg, dtype=x.dtype), keys))
        update = torch.cat(merged)
        updates.append(layer.global_proj(update) if layer.options.self_attn_use_final_proj else update)
    return out, torch.stack(updates)


def configured_row(size: tuple[int, int, int], a: int, b: int) -> int:
    def place(index: int) -> tuple[int, int, int]:
        return index // (size[1] * size[2]), index // size[2] % size[1], index % size[2]

    (ta, ha, wa), (tb, hb, wb) = place(a), place(b)
    rows = (ta - tb + size[0] - 1) * (2 * size[1] - 1) + ha - hb + size[1] - 1
    return rows * (2 * size[2] - 1) + wa - wb + size[2] - 1


def cross_attention_oracle(layer: CuboidCrossAttention, x: Tensor, mem: Tensor, g: Tensor | None) -> Tensor:
    """One sample, query by query, from the definition."""
    d, n, (bh, bw) = DIM // HEADS, layer.n_temporal, layer.cuboid_hw
    if layer.options.dec_cross_last_n_frames is not None:
        mem = mem[-layer.options.dec_cross_last_n_frames :]
    shift = (
        0,
        *(0 if letter == "d" else s for letter, s in zip(layer.strategy[1:], layer.shift[1:], strict=True)),
    )
    h, w = (-(-size // b) * b for size, b in zip(x.shape[1:3], (bh, bw), strict=True))
    t_x, t_mem = (-(-size // n) * n for size in (x.shape[0], mem.shape[0]))
    letters = "".join(layer.strategy)
    queries = Grid(tuple(x.shape[:3]), (t_x // n, bh, bw), letters, shift, (t_x, h, w))
    memory = Grid(
        tuple(mem.shape[:3]), (t_mem // n, bh, bw), letters, shift, (t_mem, h, w), t_left=t_mem - mem.shape[0]
    )
    normed = layer.norm(x)
    volume_x, volume_mem = (t // n * bh * bw for t in (t_x, t_mem))
    size = (layer.max_temporal_relative, bh, bw)
    out = torch.zeros_like(x)
    for i, cell in enumerate(queries.ordered):
        if cell["source"] is None:
            continue
        token = normed[cell["source"]]
        merged = []
        for head in range(HEADS):
            q = heads_of(layer.q_proj(token), head, 1, d)[0]
            keys = []
            for j, other in enumerate(memory.ordered):
                if other["cuboid"] != cell["cuboid"] or other["region"][1:] != cell["region"][1:]:
                    continue
                if other["source"] is None:
                    continue
                k, v = heads_of(layer.kv_proj(mem[other["source"]]), head, 2, d)
                score = layer.scale * (q @ k)
                if layer.options.use_relative_pos:
                    row = configured_row(size, i % volume_x, j % volume_mem)
                    score = score + layer.relative_position_bias_table[row, head]
                keys.append((score, v))
            for vector in () if g is None else g:
                if layer.options.separate_global_qkv:
                    q_g = heads_of(layer.l2g_q_net(token), head, 1, d)[0]
                    k, v = heads_of(layer.l2g_global_kv_net(vector), head, 2, d)
                else:
                    q_g, (k, v) = q, heads_of(layer.kv_proj(vector), head, 2, d)
                keys.append((layer.scale * (q_g @ k), v))
            merged.append(attend(torch.zeros(d, dtype=x.dtype), keys))
        out[cell["source"]] = layer.proj(torch.cat(merged))
    return out
