"""A second implementation of PreDiff's networks and steps, from its specification: functions of a state_dict."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def agree(found: Tensor, expected: Tensor) -> None:
    """Single precision against the double precision of this module: 1e-5 of the largest value, or of 1."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-5 * scale, rtol=0.0)


def double(weights: Weights) -> Weights:
    return {name: value.double() if value.is_floating_point() else value for name, value in weights.items()}


@pytest.fixture
def oracle() -> ModuleType:
    """This module: the suite imports its tests by path, so they cannot import one another."""
    return sys.modules[__name__]


@pytest.fixture
def randomise():
    """Gives every weight a random value, because the zeros of untrained networks would hide mistakes."""

    def draw(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator)
                is_scale = parameter.dim() == 1 and name.endswith("weight")
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 25
                parameter.copy_(drawn / fan_in**0.5 + is_scale)
        return model.eval()

    return draw


def within(weights: Weights, prefix: str) -> Weights:
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}


def groups(channels: int) -> int:
    return 32 if channels % 32 == 0 else channels


# The denoiser and the alignment network


def residual(w: Weights, x: Tensor, e: Tensor | None, *, scale_shift: bool = False) -> Tensor:
    """x: (B,C,T,H,W)."""
    h = F.group_norm(x, groups(x.shape[1]), w["in_layers.0.weight"], w["in_layers.0.bias"], 1e-5)
    h = F.conv3d(F.silu(h), w["in_layers.2.weight"], w["in_layers.2.bias"], padding=1)
    norm = (groups(h.shape[1]), w["out_layers.0.weight"], w["out_layers.0.bias"], 1e-5)
    if e is None:
        h = F.group_norm(h, *norm)
    else:
        change = F.linear(F.silu(e), w["emb_layers.1.weight"], w["emb_layers.1.bias"])[..., None, None, None]
        if scale_shift:
            half = change.shape[1] // 2
            h = F.group_norm(h, *norm) * (1 + change[:, :half]) + change[:, half:]
        else:
            h = F.group_norm(h + change, *norm)
    h = F.conv3d(F.silu(h), w["out_layers.3.weight"], w["out_layers.3.bias"], padding=1)
    if "skip_connection.weight" in w:
        x = F.conv3d(x, w["skip_connection.weight"], w["skip_connection.bias"])
    return x + h


def attention(w: Weights, x: Tensor, axis: int, heads: int) -> Tensor:
    """Axial attention along one of T, H, W; x: (B,T,H,W,C)."""
    channels = x.shape[-1]
    h = F.layer_norm(x, (channels,), w["norm.weight"], w["norm.bias"], 1e-5).movedim(axis, -2)
    length = h.shape[-2]
    q, k, v = F.linear(h, w["qkv.weight"]).reshape(*h.shape[:-1], 3, heads, channels // heads).movedim(-3, 0)
    q, k, v = (part.movedim(-2, -3) for part in (q, k, v))  # (..., heads, length, d)
    i, j = torch.meshgrid(torch.arange(length), torch.arange(length), indexing="ij")
    bias = w["relative_position_bias_table"][i - j + length - 1].movedim(-1, 0)
    weights = torch.softmax((q * (channels // heads) ** -0.5) @ k.transpose(-1, -2) + bias, dim=-1)
    out = (weights @ v).movedim(-3, -2).flatten(-2)
    return F.linear(out, w["proj.weight"], w["proj.bias"]).movedim(-2, axis)


def axial_stack(w: Weights, x: Tensor, heads: int) -> Tensor:
    for place in range(3):
        x = x + attention(within(w, f"attn_l.{place}."), x, place + 1, heads)
        f = within(w, f"ffn_l.{place}.")
        h = F.layer_norm(x, x.shape[-1:], f["layer_norm.weight"], f["layer_norm.bias"], 1e-5)
        h = F.gelu(F.linear(h, f["ffn_1.weight"], f["ffn_1.bias"]))
        x = x + F.linear(h, f["ffn_2.weight"], f["ffn_2.bias"])
    return x


def level(w: Weights, side: str, number: int, x: Tensor, e: Tensor, heads: int, scale_shift: bool) -> Tensor:
    depth = len({name.split(".")[2] for name in w if name.startswith(f"{side}_self_blocks.{number}.")})
    for index in range(depth):
        block = within(w, f"{side}_time_embed_blocks.{number}.")
        x = residual(block, x.permute(0, 4, 1, 2, 3), e, scale_shift=scale_shift).permute(0, 2, 3, 4, 1)
        x = axial_stack(within(w, f"{side}_self_blocks.{number}.{index}."), x, heads)
    return x


def merge(w: Weights, x: Tensor) -> Tensor:
    x = F.pad(x, (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
    x = torch.cat([x[:, :, dh::2, dw::2] for dh in range(2) for dw in range(2)], dim=-1)
    x = F.layer_norm(x, x.shape[-1:], w["norm.weight"], w["norm.bias"], 1e-5)
    return F.linear(x, w["reduction.weight"])


def embed(w: Weights, t: Tensor) -> Tensor:
    channels = w["time_embed.layer.0.weight"].shape[1]
    frequency = torch.tensor([10000 ** (-i / (channels // 2)) for i in range(channels // 2)]).double()
    angle = t.double()[:, None] * frequency
    table = F.pad(torch.cat([angle.cos(), angle.sin()], dim=1), (0, channels % 2))
    h = F.silu(F.linear(table, w["time_embed.layer.0.weight"], w["time_embed.layer.0.bias"]))
    return F.linear(h, w["time_embed.layer.2.weight"], w["time_embed.layer.2.bias"])


def down(w: Weights, x: Tensor, e: Tensor, heads: int, scale_shift: bool) -> list[Tensor]:
    x = residual(within(w, "first_proj."), x.permute(0, 4, 1, 2, 3), None).permute(0, 2, 3, 4, 1)
    x = x + w["pos_embed.T_embed.weight"][:, None, None] + w["pos_embed.H_embed.weight"][:, None]
    x = x + w["pos_embed.W_embed.weight"]
    levels = len({name.split(".")[1] for name in w if name.startswith("down_self_blocks.")})
    kept = []
    for number in range(levels):
        if number:
            x = merge(within(w, f"downsample_layers.{number - 1}."), x)
        x = level(w, "down", number, x, e, heads, scale_shift)
        kept.append(x)
    return kept


def unet(w: Weights, x: Tensor, t: Tensor, cond: Tensor, *, heads: int = 4, scale_shift: bool = False) -> Tensor:
    w, both = double(w), torch.cat([cond, x], dim=1).double()
    flag = torch.zeros(*both.shape[:4], 1, dtype=both.dtype)
    flag[:, : cond.shape[1]] = 1
    e = embed(w, t)
    kept = down(w, torch.cat([both, flag], dim=-1), e, heads, scale_shift)
    h = kept[-1]
    for number in reversed(range(len(kept))):
        if number < len(kept) - 1:
            fine = kept[number]
            batch, frames = h.shape[:2]
            h = h.flatten(0, 1).permute(0, 3, 1, 2)
            rows = torch.arange(fine.shape[2]) * h.shape[2] // fine.shape[2]
            columns = torch.arange(fine.shape[3]) * h.shape[3] // fine.shape[3]
            u = within(w, f"upsample_layers.{number}.")
            h = F.conv2d(h[:, :, rows][..., columns], u["conv.weight"], u["conv.bias"], padding=1)
            h = h.permute(0, 2, 3, 1).reshape(batch, frames, *h.shape[2:], h.shape[1]) + fine
        h = level(w, "up", number, h, e, heads, scale_shift)
    return F.linear(h[:, cond.shape[1] :], w["final_proj.weight"], w["final_proj.bias"])


def alignment(w: Weights, z: Tensor, t: Tensor, *, heads: int = 4, scale_shift: bool = False) -> Tensor:
    w, z = double(w), z.double()
    h = down(w, z, embed(w, t), heads, scale_shift)[-1]
    batch, frames, _, _, channels = h.shape
    h = h.reshape(batch * frames, -1, channels).transpose(1, 2)
    h = F.silu(F.group_norm(h, groups(channels), w["out.0.weight"], w["out.0.bias"], 1e-5))
    h = torch.cat([h.mean(2, keepdim=True), h], dim=2) + w["out.2.positional_embedding"]
    qkv = torch.einsum("oi,nis->nos", w["out.2.qkv_proj.weight"][..., 0], h) + w["out.2.qkv_proj.bias"][:, None]
    size = channels // heads
    answers = []
    for head in range(heads):
        q, k, v = (qkv[:, part * channels + head * size : part * channels + (head + 1) * size] for part in range(3))
        weights = torch.softmax(torch.einsum("nds,ndr->nsr", q, k) / math.sqrt(size), dim=-1)
        answers.append(torch.einsum("nsr,ndr->nds", weights, v))
    out = F.linear(torch.cat(answers, dim=1)[..., 0], w["out.2.c_proj.weight"][..., 0], w["out.2.c_proj.bias"])
    return out.reshape(batch, frames, -1)


# The autoencoder, on the authors' key names


def image_residual(w: Weights, x: Tensor, g: int) -> Tensor:
    h = F.silu(F.group_norm(x, g, w["norm1.weight"], w["norm1.bias"], 1e-6))
    h = F.conv2d(h, w["conv1.weight"], w["conv1.bias"], padding=1)
    h = F.silu(F.group_norm(h, g, w["norm2.weight"], w["norm2.bias"], 1e-6))
    h = F.conv2d(h, w["conv2.weight"], w["conv2.bias"], padding=1)
    if "conv_shortcut.weight" in w:
        x = F.conv2d(x, w["conv_shortcut.weight"], w["conv_shortcut.bias"])
    return x + h


def middle(w: Weights, x: Tensor, g: int) -> Tensor:
    x = image_residual(within(w, "resnets.0."), x, g)
    a = within(w, "attentions.0.")
    batch, channels, height, width = x.shape
    h = (
        F.group_norm(x, g, a["group_norm.weight"], a["group_norm.bias"], 1e-6)
        .reshape(batch, channels, -1)
        .transpose(1, 2)
    )
    q, k, v = (F.linear(h, a[f"{part}.weight"], a[f"{part}.bias"]) for part in ("query", "key", "value"))
    h = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(channels), dim=-1) @ v
    h = F.linear(h, a["proj_attn.weight"], a["proj_attn.bias"])
    x = x + h.transpose(1, 2).reshape(batch, channels, height, width)
    return image_residual(within(w, "resnets.1."), x, g)


def encode(w: Weights, image: Tensor, g: int) -> tuple[Tensor, Tensor]:
    w, image = double(w), image.double()
    e = within(w, "encoder.")
    x = F.conv2d(image, e["conv_in.weight"], e["conv_in.bias"], padding=1)
    blocks = len({name.split(".")[1] for name in e if name.startswith("down_blocks.")})
    for block in range(blocks):
        b = within(e, f"down_blocks.{block}.")
        for index in range(len({name.split(".")[1] for name in b if name.startswith("resnets.")})):
            x = image_residual(within(b, f"resnets.{index}."), x, g)
        if block < blocks - 1:
            s = within(b, "downsamplers.0.conv.")
            x = F.conv2d(F.pad(x, (0, 1, 0, 1)), s["weight"], s["bias"], stride=2)
    x = middle(within(e, "mid_block."), x, g)
    x = F.silu(F.group_norm(x, g, e["conv_norm_out.weight"], e["conv_norm_out.bias"], 1e-6))
    x = F.conv2d(x, e["conv_out.weight"], e["conv_out.bias"], padding=1)
    x = F.conv2d(x, w["quant_conv.weight"], w["quant_conv.bias"])
    mean, logvar = x.chunk(2, dim=1)
    return mean, logvar.clamp(-30, 20)


def decode(w: Weights, z: Tensor, g: int) -> Tensor:
    w, z = double(w), z.double()
    d = within(w, "decoder.")
    x = F.conv2d(z, w["post_quant_conv.weight"], w["post_quant_conv.bias"])
    x = middle(within(d, "mid_block."), F.conv2d(x, d["conv_in.weight"], d["conv_in.bias"], padding=1), g)
    blocks = len({name.split(".")[1] for name in d if name.startswith("up_blocks.")})
    for block in range(blocks):
        b = within(d, f"up_blocks.{block}.")
        for index in range(len({name.split(".")[1] for name in b if name.startswith("resnets.")})):
            x = image_residual(within(b, f"resnets.{index}."), x, g)
        if block < blocks - 1:
            s = within(b, "upsamplers.0.conv.")
            x = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), s["weight"], s["bias"], padding=1)
    x = F.silu(F.group_norm(x, g, d["conv_norm_out.weight"], d["conv_norm_out.bias"], 1e-6))
    return F.conv2d(x, d["conv_out.weight"], d["conv_out.bias"], padding=1)


# Schedule and steps, in double precision


def tables() -> dict[str, np.ndarray]:
    beta = np.array([(1e-2 + (math.sqrt(2e-2) - 1e-2) * i / 999) ** 2 for i in range(1000)])
    kept = np.cumprod(1 - beta)
    before = np.concatenate([[1.0], kept[:-1]])
    variance = beta * (1 - before) / (1 - kept)
    return {
        "betas": beta,
        "alphas_cumprod": kept,
        "sqrt_alphas_cumprod": np.sqrt(kept),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - kept),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / kept),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / kept - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": beta * np.sqrt(before) / (1 - kept),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - beta) / (1 - kept),
    }


def ancestral_step(z: Tensor, eps: Tensor, t: int, noise: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    """One step, with the mean moved by `shift`; double precision throughout."""
    s = {name: float(table[t]) for name, table in tables().items()}
    z0 = z.double() * s["sqrt_recip_alphas_cumprod"] - eps.double() * s["sqrt_recipm1_alphas_cumprod"]
    mean = s["posterior_mean_coef1"] * z0 + s["posterior_mean_coef2"] * z.double() + shift
    return mean + (t > 0) * math.exp(0.5 * s["posterior_log_variance_clipped"]) * noise.double()
