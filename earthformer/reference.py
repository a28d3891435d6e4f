"""The plain formulation of cuboid attention and up-sampling, for counting and for comparison.

It is the one whose cost the papers report: padded tokens are projected too, a mask is applied to every score, global
vectors are updated even if they are not read, and up-sampling is followed by a convolution. The fast layers give the
same values and gradients up to rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earthformer.attention import CuboidAttention, CuboidSelfAttention, Projected, masked_score
from earthformer.cross_attention import CuboidCrossAttention
from earthformer.cuboids import cross_attention_mask, self_attention_mask
from earthformer.layers import Dropout, FeedForward, HasReference
from earthformer.resampling import Upsample


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the softmax of `scores` over the last axis, 0 where `mask` is False, even in fully masked rows."""
    if mask is None:
        return torch.softmax(scores, dim=-1)
    scores = scores.masked_fill(torch.logical_not(mask), masked_score(scores.dtype))
    return torch.softmax(scores, dim=-1) * mask


def _attention(
    layer: CuboidAttention, local: Projected, seen: Projected | None, bias: Tensor | None, mask: Tensor, drop: nn.Module
) -> Tensor:
    """Returns the attended values (B, N, V_q, h*d) from the cuboids and the global vectors that they see."""
    scores = (local.query * layer.scale) @ local.key.transpose(-2, -1)
    value = local.value
    if bias is not None:
        scores = scores + bias
    if seen is not None:
        to_globals = (seen.query * layer.scale) @ seen.key.unsqueeze(2).transpose(-2, -1)
        scores = torch.cat((scores, to_globals), dim=-1)
        mask = F.pad(mask, (0, seen.key.shape[-2]), value=True)
        value = torch.cat((value, seen.value.unsqueeze(2).expand(-1, -1, value.shape[2], -1, -1)), dim=-2)
    attended: Tensor = drop(masked_softmax(scores, mask)) @ value
    return attended.permute(0, 2, 3, 1, 4).flatten(-2)


def _heads(layer: CuboidAttention, tokens: Tensor, head_size: int | None = None) -> tuple[Tensor, ...]:
    """Returns the groups of channels of tokens (B, N, V, groups*h*d), each as (B, h, N, V, d)."""
    groups = tokens.unflatten(-1, (-1, layer.options.num_heads, head_size or layer.head_size))
    return groups.permute(3, 0, 4, 1, 2, 5).unbind(0)


def _self_attention(
    layer: CuboidSelfAttention, x: Tensor, global_vectors: Tensor | None = None, *, update_globals: bool = True
) -> Tensor | tuple[Tensor, Tensor]:
    partition, _ = layer.partition(x)
    mask = layer.kept(self_attention_mask, partition, x.device)
    g = None if global_vectors is None or not layer.use_global_vector else layer.global_vec_norm(global_vectors)
    tokens = partition.decompose(layer.norm(x))
    local = Projected(*_heads(layer, layer.qkv(tokens)))
    seen, update = None, None
    if g is not None and layer.options.separate_global_qkv:
        (query,) = _heads(layer, layer.l2g_q_net(tokens))
        (key,) = _heads(layer, layer.g2l_k_net(tokens))
        (value,) = _heads(layer, layer.g2l_v_net(tokens), layer.global_head_size)
        seen = Projected(query, *layer.vector_heads(layer.l2g_global_kv_net(g)))
        update = layer.separate_update(g, key, value, partition)
    elif g is not None:
        own = Projected(*layer.vector_heads(layer.global_qkv(g)))
        seen = own._replace(query=local.query)
        update = layer.update(Projected(own.query, local.key, local.value), own, partition)
    bias = layer.position_bias(partition.volume, partition.volume)
    out = _attention(layer, local, seen, bias, mask, layer.attn_drop)
    if layer.options.self_attn_use_final_proj:
        out = layer.proj_drop(layer.proj(out))
    out = partition.merge(out)
    return out if update is None else (out, update)


def _cross_attention(
    layer: CuboidCrossAttention, x: Tensor, mem: Tensor, mem_global_vectors: Tensor | None = None
) -> Tensor:
    mem, queries, memory, _ = layer.partitions(x, mem)
    mask = layer.kept(cross_attention_mask, queries, memory, x.device)
    tokens = queries.decompose(layer.norm(x))
    (query,) = _heads(layer, layer.q_proj(tokens))
    local = Projected(query, *_heads(layer, layer.kv_proj(memory.decompose(mem))))
    g = mem_global_vectors if layer.use_global_vector else None
    seen = None
    if g is not None and layer.options.separate_global_qkv:
        (query,) = _heads(layer, layer.l2g_q_net(tokens))
        seen = Projected(query, *layer.vector_heads(layer.l2g_global_kv_net(g)))
    elif g is not None:
        seen = Projected(query, *layer.vector_heads(layer.kv_proj(g)))
    bias = layer.position_bias(queries.volume, memory.volume)
    out = layer.proj_drop(layer.proj(_attention(layer, local, seen, bias, mask, layer.attn_drop)))
    return queries.merge(out)


def _upsample(layer: Upsample, x: Tensor) -> Tensor:
    frames = x.flatten(0, 1).permute(0, 3, 1, 2)
    frames = layer.conv(F.interpolate(frames, size=layer.target_size[1:], mode="nearest"))
    return frames.permute(0, 2, 3, 1).unflatten(0, (-1, layer.target_size[0]))


def _not_composed(layer: Upsample, x: Tensor, conv: nn.Conv2d) -> None:
    return None


_PLAIN: dict[type[nn.Module], dict[str, Callable[..., Any]]] = {
    CuboidSelfAttention: {"forward": _self_attention},
    CuboidCrossAttention: {"forward": _cross_attention},
    Dropout: {"forward": nn.Dropout.forward},
    FeedForward: {"forward": FeedForward.transform},
    Upsample: {"forward": _upsample, "followed_by": _not_composed},
}


@contextmanager
def plain_formulation(model: nn.Module) -> Iterator[None]:
    """Returns a context in which the layers of `model` run the plain formulation; such contexts may be nested."""
    replaced = []
    for module in model.modules():
        own: dict[str, Any] = {name: partial(plain, module) for name, plain in _PLAIN.get(type(module), {}).items()}
        if isinstance(module, HasReference):
            own["plain"] = True
        replaced += [(vars(module), name, value) for name, value in own.items() if name not in vars(module)]
    for attributes, name, value in replaced:
        attributes[name] = value
    try:
        yield
    finally:
        for attributes, name, _ in replaced:
            del attributes[name]
