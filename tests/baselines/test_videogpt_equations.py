"""VideoGPT's whole networks against plain formulas of its description, in double precision."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_videogpt import CODES, CONTEXT, SHAPES, make
from torch import Tensor

from baselines.videogpt import VideoGPT
from baselines.vqvae import Codebook

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> VideoGPT:
    """A tiny model with random weights, norms and statistics."""
    made = make().double().eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if value.is_floating_point() and not name.startswith(("vqvae.codebook", "vqvae.variance")):
                value.add_(0.3 * torch.rand(value.shape, generator=random, dtype=torch.float64))
    return made


def conv(w: Weights, name: str, x: Tensor, *, stride: int = 1, left: int, right: int) -> Tensor:
    """A convolution of (B, C, T, H, W), padded by `left` and `right` along the two strided axes."""
    weight, bias = w[f"{name}.weight"], w.get(f"{name}.bias")
    surplus = weight.shape[2] - 1
    padded = F.pad(x, (left, right, left, right, surplus - surplus // 2, surplus // 2))
    return F.conv3d(padded, weight, bias, stride=(1, stride, stride))


def batch_norm_relu(w: Weights, name: str, x: Tensor) -> Tensor:
    mean, variance, scale, offset = (
        w[f"{name}.{part}"][:, None, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return ((x - mean) / (variance + 1e-5).sqrt() * scale + offset).relu()


def attended(q: Tensor, k: Tensor, v: Tensor, *, heads: int, causal: bool = False) -> Tensor:
    """Attention of (..., L, C) to (..., S, C), head by head."""
    parts = []
    for q_own, k_own, v_own in zip(*(part.chunk(heads, -1) for part in (q, k, v)), strict=True):
        logits = q_own @ k_own.mT / math.sqrt(q_own.shape[-1])
        if causal:
            logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -math.inf)
        parts.append(logits.softmax(-1) @ v_own)
    return torch.cat(parts, -1)


def axial(w: Weights, name: str, x: Tensor) -> Tensor:
    """The sum of attentions along W, H and T, each of the same input."""
    x, total = x.permute(0, 2, 3, 4, 1), torch.zeros(())
    for k, axis in enumerate((3, 2, 1)):
        q, k_, v = (x.transpose(axis, 3) @ w[f"{name}.qkv.{k}.weight"].T).chunk(3, -1)
        seen = attended(q, k_, v, heads=2) @ w[f"{name}.out.{k}.weight"].T + w[f"{name}.out.{k}.bias"]
        total = total + seen.transpose(axis, 3)
    return total.permute(0, 4, 1, 2, 3)


def residual_stack(w: Weights, name: str, first: int, x: Tensor) -> Tensor:
    block = f"{name}.{first}.block"
    y = conv(w, f"{block}.2", batch_norm_relu(w, f"{block}.0", x), left=1, right=1)
    y = conv(w, f"{block}.5", batch_norm_relu(w, f"{block}.3", y), left=0, right=0)
    x = x + axial(w, f"{block}.8", batch_norm_relu(w, f"{block}.6", y))
    return batch_norm_relu(w, f"{name}.{first + 1}", x)


def transposed(w: Weights, name: str, x: Tensor) -> Tensor:
    """Each value adds the kernel, scaled by it, to what is twice as high and wide; the edges that it pads are cut off.

    Padded as a convolution is, with the odd frame in front, and cut by the kernel's size less one.
    """
    weight, bias = w[f"{name}.weight"], w[f"{name}.bias"]
    x = F.pad(x, (1, 1, 1, 1, 2, 1))
    batch, _, frames, height, width = x.shape
    made = torch.zeros(batch, weight.shape[1], frames + 3, 2 * height + 2, 2 * width + 2, dtype=x.dtype)
    for a, b, c in itertools.product(range(4), repeat=3):
        part = torch.einsum("bithw,io->bothw", x, weight[:, :, a, b, c])
        made[:, :, a : a + frames, b : b + 2 * height : 2, c : c + 2 * width : 2] += part
    return made[:, :, 3:-3, 3:-3, 3:-3] + bias[:, None, None, None]


def test_the_vqvae_follows_the_equations(model: VideoGPT) -> None:
    w, frames = model.vqvae.state_dict(), torch.rand(2, *SHAPES[1], dtype=torch.float64)
    x = (frames - 0.5).permute(0, 4, 1, 2, 3)
    for layer in ("encoder.0", "encoder.2"):
        x = conv(w, layer, x, stride=2, left=1, right=1).relu()
    latents = conv(
        w, "encoder.8", residual_stack(w, "encoder", 5, conv(w, "encoder.4", x, left=1, right=1)), left=0, right=0
    )
    with torch.no_grad():
        torch.testing.assert_close(model.vqvae._latents(frames), latents.permute(0, 2, 3, 4, 1))
    codes = torch.randint(32, (2, *CODES))
    x = conv(w, "decoder.0", w["codebook.vectors"][codes].permute(0, 4, 1, 2, 3), left=0, right=0)
    x = transposed(w, "decoder.4", residual_stack(w, "decoder", 1, x)).relu()
    made = (transposed(w, "decoder.6", x).permute(0, 2, 3, 4, 1) + 0.5).clamp(0, 1)
    torch.testing.assert_close(model.vqvae.decode(codes), made.float())


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def channel_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return layer_norm(w, name, x.movedim(1, -1)).movedim(-1, 1)


def resnet(w: Weights, context: Tensor) -> Tensor:
    """Features (B, T, h, w, C): height and width are halved by the first blocks of the second and the third group."""
    name = "context_encoder"
    x = F.conv3d((context - 0.5).permute(0, 4, 1, 2, 3), w[f"{name}.stem.weight"], padding=1)
    x = channel_norm(w, f"{name}.norm", x).relu()
    for k, stride in enumerate((1, 2, 2, 1)):
        block, strides = f"{name}.blocks.{k}", (1, stride, stride)
        y = F.conv3d(x, w[f"{block}.conv1.weight"], stride=strides, padding=1)
        y = F.conv3d(channel_norm(w, f"{block}.norm1", y).relu(), w[f"{block}.conv2.weight"], padding=1)
        shortcut = F.conv3d(x, w[f"{block}.shortcut.0.weight"], stride=strides)
        x = (channel_norm(w, f"{block}.norm2", y).relu() + channel_norm(w, f"{block}.shortcut.1", shortcut)).relu()
    return x.permute(0, 2, 3, 4, 1)


def positions(w: Weights, name: str, shape: tuple[int, int, int]) -> Tensor:
    """Each axis has a third of the channels."""
    tables = [w[f"{name}.tables.{axis}"] for axis in range(3)]
    places = itertools.product(*map(range, shape))
    return torch.stack([torch.cat([table[i] for table, i in zip(tables, place, strict=True)]) for place in places])


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", torch.zeros((), dtype=x.dtype))


def test_logits_follow_the_equations(model: VideoGPT) -> None:
    w, context = model.transformer.state_dict(), CONTEXT[:2].double()
    vectors = torch.randn(2, math.prod(CODES), 16, dtype=torch.float64)
    seen = resnet(w, context).flatten(1, 3) + positions(w, "context_positions", (SHAPES[0][0], *CODES[1:]))
    # Shifted to the right, because the vector of a code is read only for the codes after it.
    x = linear(w, "input", vectors).roll(1, dims=1)
    x[:, 0] = w["start"]
    x = x + positions(w, "positions", CODES)
    for k in range(2):
        layer = f"layers.{k}"
        q, k_, v = linear(w, f"{layer}.qkv", layer_norm(w, f"{layer}.self_norm", x)).chunk(3, -1)
        x = x + linear(w, f"{layer}.out", attended(q, k_, v, heads=4, causal=True))
        q = linear(w, f"{layer}.cross.query", layer_norm(w, f"{layer}.cross_norm", x))
        k_, v = linear(w, f"{layer}.cross.key", seen), linear(w, f"{layer}.cross.value", seen)
        x = x + linear(w, f"{layer}.cross.out", attended(q, k_, v, heads=4))
        y = linear(w, f"{layer}.feed.0", layer_norm(w, f"{layer}.feed_norm", x))
        x = x + linear(w, f"{layer}.feed.2", y * torch.sigmoid(1.702 * y))
    expected = linear(w, "output", layer_norm(w, "norm", x))
    with torch.no_grad():
        found = model.transformer(vectors, model.transformer.encoded(context))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_used_codes_follow_their_running_averages() -> None:
    random = np.random.default_rng(0)
    latents = [random.normal(size=(200, 3)).astype(np.float32) for _ in range(6)]
    torch.manual_seed(0)
    book = Codebook(4, 3).train()
    book(torch.from_numpy(latents[0]), torch.ones(200))
    vectors, sums, counts = (book.state_dict()[name].double().numpy() for name in ("vectors", "sums", "counts"))
    for batch in latents[1:]:
        book(torch.from_numpy(batch), torch.ones(200))
        codes = ((batch[:, None] - vectors) ** 2).sum(-1).argmin(1)
        counts = 0.99 * counts + 0.01 * np.bincount(codes, minlength=4)
        assert (counts >= 1).all(), "no code is dead"
        sums = 0.99 * sums + 0.01 * np.stack([batch[codes == code].sum(0) for code in range(4)])
        vectors = sums / counts[:, None]
        np.testing.assert_allclose(book.counts.numpy(), counts, rtol=1e-5)
        np.testing.assert_allclose(book.vectors.numpy(), vectors, rtol=1e-3, atol=1e-4)
