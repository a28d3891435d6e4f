"""Softmax attention over the tokens of each cuboid and, beside them, over the global vectors.

Shapes: queries (B, h, N, V_q, d), keys and values (B, h, N, V_k, d), global keys and values (B, h, G, d),
    with h heads
and G global vectors; bias (h, 1, V_q, V_k); masks (N, V_q, V_k), True where attention is allowed.

Source: Earthformer, section 3.1, equations 3 to 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from earthformer import kernels


@dataclass(frozen=True)
class GlobalKeys:
    """What local queries see of the global vectors: their keys and values, and the queries that meet those keys.

    Attributes:
        query: (B, h, N, V_q, d); the local queries themselves unless the layer has separate projections.
        key: (B, h, G, d).
        value: (B, h, G, d).
    """

    query: Tensor
    key: Tensor
    value: Tensor


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the softmax of `scores` over the last axis, 0 where `mask` is False.

    The weights are multiplied by the mask after the softmax, so that a row in which nothing is allowed is 0.
    """
    if mask is None:
        return torch.softmax(scores, dim=-1)
    scores = scores.masked_fill(torch.logical_not(mask), kernels.masked_score(scores.dtype))
    return torch.softmax(scores, dim=-1) * mask


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    bias: Tensor | None,
    mask: Tensor,
    seen: GlobalKeys | None,
    drop: torch.nn.Module,
) -> Tensor:
    """Return the attended values (B, h, N, V_q, d), by explicit products, masked softmax and dropout."""
    scores = (query * scale) @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    if seen is not None:
        to_globals = (seen.query * scale) @ seen.key.unsqueeze(2).transpose(-2, -1)
        scores = torch.cat((scores, to_globals), dim=-1)
        mask = F.pad(mask, (0, seen.key.shape[-2]), value=True)
        shared = seen.value.unsqueeze(2).expand(-1, -1, value.shape[2], -1, -1)
        value = torch.cat((value, shared), dim=-2)
    return drop(masked_softmax(scores, mask)) @ value


def fast_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    bias: Tensor | None,
    mask: Tensor | None,
    seen: GlobalKeys | None,
    drop: float,
    zero_masked_rows: bool = False,
) -> Tensor:
    """Return the attended values (B, h, N, V_q, d), by the formulation that suits the device.

    `mask` None means that everything is allowed. Rows in which nothing is allowed come out as 0 only with
    `zero_masked_rows`; elsewhere they are means that the caller discards. `drop` is the probability of
    dropping a weight. Further columns of `bias` than there are keys belong to null keys: keys and values of zeros,
    which take part in the softmax (not where attention is fused, and not together with a mask).
    """
    if kernels.has_fused_attention(query.device) and not zero_masked_rows:
        return _fused(query, key, value, scale=scale, bias=bias, mask=mask, seen=seen, drop=drop)
    if not (torch.is_grad_enabled() or torch.compiler.is_compiling()):
        weights = _weights_in_place(query, key, scale=scale, bias=bias, mask=mask, seen=seen)
        if zero_masked_rows and mask is not None and seen is None:
            weights = weights * mask
        return _weighted_values(weights, value, seen)
    scores = query @ key.transpose(-2, -1)
    if bias is None:
        scores = scores * scale
    else:
        null = bias.shape[-1] - key.shape[-2]
        scores = torch.add(bias, F.pad(scores, (0, null)) if null else scores, alpha=scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, kernels.masked_score(scores.dtype))
    if seen is not None:
        scores = torch.cat((scores, _scores_of_globals(seen).view(*scores.shape[:-1], -1) * scale), dim=-1)
    weights = kernels.softmax(scores)
    if zero_masked_rows and mask is not None and seen is None:
        weights = weights * mask
    return _weighted_values(kernels.dropout(weights, drop), value, seen)


def _scores_of_globals(seen: GlobalKeys) -> Tensor:
    """Return the unscaled scores (B, h, N*V_q, G): the vectors are the same for all cuboids, so it is one product."""
    return seen.query.flatten(2, 3) @ seen.key.transpose(-2, -1)


def _weighted_values(weights: Tensor, value: Tensor, seen: GlobalKeys | None) -> Tensor:
    """Return the sums of values (B, h, N, V_q, d) with `weights` (B, h, N, V_q, V_k [+ null keys] [+ G])."""
    local = weights[..., : value.shape[-2]]
    if seen is None:
        return local @ value
    of_globals = weights[..., weights.shape[-1] - seen.value.shape[-2] :].flatten(2, 3)
    return kernels.add_residual((of_globals @ seen.value).view(*local.shape[:-1], -1), local @ value)


def _weights_in_place(
    query: Tensor,
    key: Tensor,
    *,
    scale: float,
    bias: Tensor | None,
    mask: Tensor | None,
    seen: GlobalKeys | None,
) -> Tensor:
    """Return the weights (B, h, N, V_q, V_k [+ null keys] [+ G]) in the buffer of the scores (no gradients)."""
    scores = query @ key.transpose(-2, -1)
    local = scores.shape[-1] if bias is None else bias.shape[-1]
    length = local + (0 if seen is None else seen.key.shape[-2])
    padded = kernels.padded_row(length, scores.device)
    # Lengthening by zeros and a bias of minus infinity are two passes over memory without gaps, which is faster
    # than writing the scores into a part of each row.
    rows = F.pad(scores, (0, padded - scores.shape[-1])) if padded > scores.shape[-1] else scores
    if seen is not None:
        rows[..., local:length] = _scores_of_globals(seen).view(*rows.shape[:-1], -1)
    if bias is None and padded == length:
        rows.mul_(scale)
    else:
        extra = rows.new_zeros(1, 1, 1, local) if bias is None else bias
        extra = F.pad(F.pad(extra, (0, length - local)), (0, padded - length), value=-math.inf)
        torch.add(extra, rows, alpha=scale, out=rows)
    if mask is not None:
        rows[..., :local].masked_fill_(~mask, kernels.masked_score(rows.dtype))
    return torch.softmax(rows, dim=-1, out=rows)[..., :length]


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    bias: Tensor | None,
    mask: Tensor | None,
    seen: GlobalKeys | None,
    drop: float,
) -> Tensor:
    """Return the attended values (B, h, N, V_q, d) from one fused kernel; a mask becomes part of the bias."""
    _, heads, count, rows, _ = query.shape
    if mask is not None:
        blocked = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
        blocked = blocked.masked_fill_(~mask, kernels.masked_score(query.dtype))
        bias = blocked if bias is None else bias + blocked
    if bias is not None:
        bias = bias.to(query.dtype).expand(heads, count, rows, -1)
    if seen is not None:
        shared_key, shared_value = (t.unsqueeze(2).expand(-1, -1, count, -1, -1) for t in (seen.key, seen.value))
        if seen.query is not query:
            # Two products in one: [q, q'] . [k, 0] = q . k and [q, q'] . [0, k'] = q' . k'.
            size = query.shape[-1]
            query = torch.cat((query, seen.query), dim=-1)
            key, shared_key = F.pad(key, (0, size)), F.pad(shared_key, (size, 0))
        key, value = torch.cat((key, shared_key), dim=-2), torch.cat((value, shared_value), dim=-2)
        if bias is not None:
            bias = F.pad(bias, (0, shared_key.shape[-2]))
    if bias is not None:
        # One for the whole batch: where the kernel lengthens its rows, it would lengthen a copy for each sequence.
        bias = bias.reshape(1, heads * count, rows, -1)
    out = F.scaled_dot_product_attention(
        query.flatten(1, 2),
        key.flatten(1, 2),
        value.flatten(1, 2),
        attn_mask=bias,
        dropout_p=drop,
        scale=scale,
    )
    return out.unflatten(1, (heads, count))
