"""VQ-VAE: convolutions, attention, losses and the codebook, against formulas of their description."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_videogpt import CODES, SHAPES, make

from baselines import vqvae
from baselines.videogpt import VideoGPT
from baselines.vqvae import Codebook


def test_a_convolution_pads_more_on_the_left() -> None:
    conv = vqvae._SameConv(1, 1, 4, (1, 2, 2))
    x = torch.rand(1, 1, 3, 8, 6)
    expected = F.conv3d(F.pad(x, (1, 1, 1, 1, 2, 1)), conv.weight, conv.bias, stride=(1, 2, 2))
    assert expected.shape == (1, 1, 3, 4, 3)
    torch.testing.assert_close(conv(x), expected)


def test_axial_attention_is_the_sum_along_three_axes() -> None:
    torch.manual_seed(0)
    block, x = vqvae._Axial(8), torch.randn(2, 8, 3, 4, 5)
    expected = torch.zeros(2, 3, 4, 5, 8)
    for axis, qkv, out in zip((3, 2, 1), block.qkv, block.out, strict=True):
        lines = x.permute(0, 2, 3, 4, 1).movedim(axis, 3)
        q, k, v = (part.unflatten(-1, (2, 4)) for part in F.linear(lines, qkv.weight).chunk(3, dim=-1))
        weights = torch.einsum("abciyd,abcjyd->abcyij", q, k).div(2).softmax(-1)  # sqrt(4) = 2
        seen = torch.einsum("abcyij,abcjyd->abciyd", weights, v).flatten(-2)
        expected = expected + F.linear(seen, out.weight, out.bias).movedim(3, axis)
    torch.testing.assert_close(block(x), expected.permute(0, 4, 1, 2, 3))


def test_codes_and_frames_do_not_depend_on_mode_or_batch() -> None:
    model = make().vqvae.train()
    frames = torch.rand(4, *SHAPES[1])
    codes = model.encode(frames)
    assert codes.shape == (4, *CODES) and codes.dtype == torch.long
    assert torch.equal(model.encode(frames[2:3]), codes[2:3])
    decoded = model.decode(codes)
    assert decoded.shape == frames.shape and 0 <= decoded.min() <= decoded.max() <= 1
    assert model.training and all(part.training for part in model.modules())


def test_vqvae_losses_follow_the_specification() -> None:
    model = make().vqvae
    frames = torch.rand(2, *SHAPES[1])
    latents = model.encoder((frames - 0.5).permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
    vectors = model.codebook.vectors[torch.cdist(latents, model.codebook.vectors).argmin(-1)]
    back = model.decoder(vectors.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1) + 0.5
    found = model.losses(frames)
    torch.testing.assert_close(found["reconstruction"], F.mse_loss(back, frames) / 0.06)
    torch.testing.assert_close(found["commitment"], 0.25 * F.mse_loss(latents, vectors))


def test_the_variance_is_that_of_the_known_pixels() -> None:
    model, frames = make().vqvae, torch.rand(6, *SHAPES[1])
    frames[0, 1] = math.nan
    model.fit_variance(frames.split(2))
    torch.testing.assert_close(model.variance, frames[~frames.isnan()].var(correction=0))
    for alike in (torch.full((2, *SHAPES[1]), 0.3), torch.full((2, *SHAPES[1]), math.nan)):
        with pytest.raises(ValueError, match="expected target frames that differ, found"):
            model.fit_variance([alike])


def _book(codes: int = 4, width: int = 3) -> Codebook:
    torch.manual_seed(0)
    return Codebook(codes, width).train()


def test_the_codebook_is_initialised_from_the_first_known_latents() -> None:
    book, latents = _book(), torch.randn(10, 3)
    share = torch.zeros(10)
    before = book.vectors.clone()
    book(latents, share)
    assert torch.equal(book.vectors, before) and not book.started, "nothing known, nothing learnt"
    share[[1, 4, 6, 9]] = 1.0
    vectors = book(latents, share)
    assert book.started
    torch.testing.assert_close(vectors[share > 0], latents[share > 0])


def test_a_codebook_that_matches_its_latents_does_not_move() -> None:
    book = _book()
    latents = torch.randn(4, 3)
    book(latents, torch.ones(4))
    for _ in range(50):
        book(latents.repeat(5, 1), torch.ones(20))
    found = book.vectors[book.nearest(latents)]
    torch.testing.assert_close(found, latents)
    torch.testing.assert_close(book.counts, 5 - 4 * 0.99**50 * torch.ones(4))
    assert book.perplexity == pytest.approx(4)


def test_codes_move_by_the_decay_and_dead_codes_are_replaced() -> None:
    book, origin = _book(2, 1), torch.tensor([[0.0], [10.0]])
    book(origin, torch.ones(2))
    order = book.vectors[:, 0].argsort()
    latents, share = torch.tensor([[1.0], [2.0], [90.0]]), torch.tensor([1.0, 1.0, 0.0])
    book(latents, share)
    counts = book.counts[order]
    torch.testing.assert_close(counts, torch.tensor([0.99 + 0.02, 0.99]))
    near, dead = book.vectors[order, 0]
    assert float(near) == pytest.approx(0.01 * 3 / 1.01, rel=1e-4)
    assert float(dead) in (1.0, 2.0), "a known latent takes the place of the code with a count below 1"
    book.eval()
    state = {name: value.clone() for name, value in book.state_dict().items()}
    book(latents, share)
    assert all(torch.equal(value, state[name]) for name, value in book.state_dict().items())


def test_the_codebook_is_saved_with_the_weights(tmp_path: Path) -> None:
    model = make()
    model.vqvae.train().losses(torch.rand(2, *SHAPES[1]))
    model.vqvae.fit_variance([torch.rand(2, *SHAPES[1])])
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.manual_seed(5)
    fresh = VideoGPT(*SHAPES, **VideoGPT.presets["tiny"])
    fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    for name in ("vectors", "sums", "counts", "started"):
        assert torch.equal(getattr(fresh.vqvae.codebook, name), getattr(model.vqvae.codebook, name)), name
    assert torch.equal(fresh.vqvae.variance, model.vqvae.variance) and fresh.vqvae.codebook.started


def test_a_collapsed_codebook_warns() -> None:
    model = make(codes=64)
    prepare = model.stages()[1].prepare
    assert prepare is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare([])
    model.vqvae.codebook.counts.copy_(torch.tensor([100.0] + [0.1] * 63))
    assert model.vqvae.codebook.perplexity == pytest.approx(1.6, abs=0.01)
    with pytest.warns(UserWarning, match=r"perplexity of its 64 codes is 1\.\d. Train stage vqvae longer"):
        prepare([])
