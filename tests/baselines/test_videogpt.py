"""VideoGPT: sizes, networks against formulas of their description, and sampling code by code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_videogpt import CODES, CONTEXT, SHAPES, make, seeded
from torch import Tensor, nn
from without_values import uninitialised

from baselines import videogpt
from baselines.videogpt import VideoGPT
from baselines.vqvae import VQVAE
from bench.cost import count_model
from bench.engine.ensembles import Ensemble, draw_members

CODES_OF_A_CONTEXT = torch.arange(32).view(1, 4, 2, 4)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Sizes


@pytest.mark.parametrize(
    ("shapes", "options", "of_vqvae", "of_resnet", "of_transformer"),
    [
        (((7, 128, 128, 1), (6, 128, 128, 1)), {}, 21_080_177, 33_886_688, 71_587_152),
        (((7, 128, 128, 3), (6, 128, 128, 3)), {}, 21_141_619, 33_890_144, None),
        (((7, 128, 128, 1), (6, 128, 128, 1)), {"width": 768}, 21_080_177, 33_886_688, 99_333_904),
        (((7, 128, 128, 1), (6, 128, 128, 1)), {"downsample": 8}, 28_453_457, None, None),
        (((7, 128, 128, 3), (6, 128, 128, 3)), {"downsample": 8}, 28_514_899, None, None),
        (((10, 64, 64, 1), (10, 64, 64, 1)), {}, 21_080_177, 33_886_688, 71_579_456),
    ],
)
def test_sizes(shapes: Any, options: Any, of_vqvae: int, of_resnet: int | None, of_transformer: int | None) -> None:
    with torch.device("meta"):
        model = VideoGPT(*shapes, **options)
    assert parameters(model.vqvae) == of_vqvae
    assert of_resnet in (None, parameters(model.transformer.context_encoder))
    assert of_transformer in (None, parameters(model.transformer))
    assert parameters(model) == parameters(model.vqvae) + parameters(model.transformer)


class _Reconstructs(nn.Module):
    def __init__(self, network: VQVAE) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        latents = self.network._latents(frames)
        return self.network._frames(self.network.codebook.vectors[self.network.codebook.nearest(latents)])


def test_multiply_adds_of_the_vqvae() -> None:
    """150.4 GMACs to encode and decode six frames of three channels."""
    assert count_model(_Reconstructs(uninitialised(VQVAE, 3)), (6, 128, 128, 3)).gmacs == pytest.approx(150.4, abs=0.05)


def test_multiply_adds_of_a_pass_follow_from_the_sizes() -> None:
    model = make(layers=3)
    width, context, places, seen, codes = 48, 24, 24, 4 * 2 * 4, 32
    dense = 4 * width**2 + width**2 + context * width + 8 * width**2
    of_layer = places * dense + seen * (context * width + context**2)
    of_layer += places * places * 2 * width + places * seen * (width + context)  # the whole square, as torch counts it
    cost = count_model(_Logits(model), SHAPES[0]).by_operator
    products = sum(cost[kind] for kind in ("linear", "attention"))
    assert products * 1e9 == pytest.approx(3 * of_layer + (places - 1) * 16 * width + places * width * codes)


class _Logits(nn.Module):
    """The transformer, given the ResNet's features."""

    def __init__(self, model: VideoGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, context: Tensor) -> Tensor:
        network = self.model.transformer
        vectors = self.model.vqvae.codebook.vectors[:1].expand(len(context), network.length, -1)
        return network(vectors, network.encoded(context))


# The transformer


def test_an_untrained_model_gives_all_codes_equal_probability() -> None:
    model = VideoGPT(*SHAPES, **(VideoGPT.presets["tiny"] | {"codes": 512}))
    stage = model.stages()[1].module
    loss = stage.training_loss(CONTEXT, torch.rand(5, *SHAPES[1]), step=0, total_steps=1)
    assert loss.item() == pytest.approx(math.log(512), abs=1e-5)


def test_logits_are_causal() -> None:
    network = make().transformer
    vectors = torch.randn(1, network.length, 16)
    encoded = network.encoded(CONTEXT[:1])
    logits = network(vectors, encoded)
    for place in (0, 7, network.length - 1):
        changed = vectors.clone()
        changed[:, place] += 1
        differs = (network(changed, encoded) != logits).any(-1)[0]
        assert not differs[: place + 1].any() and differs[place + 1 :].all()


def test_cached_decoding_equals_one_full_pass() -> None:
    network = make().transformer
    batch, members = 2, 3
    vectors = torch.randn(batch, members, network.length, 16)
    encoded = network.encoded(CONTEXT[:batch])
    decoder = network.decoder(encoded, members)
    steps = [decoder.logits(vectors[:, :, place - 1] if place else None) for place in range(network.length)]
    expected = network(vectors.flatten(0, 1), encoded.repeat_interleave(members, dim=0))
    torch.testing.assert_close(torch.stack(steps, dim=2).flatten(0, 1), expected, atol=1e-4, rtol=1e-4)


def test_the_codes_of_the_context_frames_are_given() -> None:
    model = make(prompt_frames=2)
    network, given = model.transformer, 2 * 2 * 4
    assert (network.code_shape, network.given, network.length) == ((5, 2, 4), given, given + 24)
    assert parameters(network) == parameters(make().transformer) + 2 * 16  # of positions in time
    vectors, encoded = torch.randn(2, network.length, 16), network.encoded(CONTEXT[:2])
    logits = network(vectors, encoded)
    assert logits.shape == (2, 24, 32)
    decoder = network.decoder(encoded, 1)
    steps = [decoder.logits(vectors[:, None, place - 1] if place else None) for place in range(network.length)]
    torch.testing.assert_close(torch.cat(steps[given:], dim=1), logits, atol=1e-4, rtol=1e-4)
    # Members of a transformer that sees only the context's codes depend on the last frames.
    for layer in network.layers:
        nn.init.zeros_(layer.cross.out.weight)
    seeds = torch.tensor([1])
    expected = model.sample(CONTEXT[:1], members=2, seeds=seeds)
    model.vqvae.encode = lambda frames: CODES_OF_A_CONTEXT  # type: ignore[method-assign]
    found = [model.sample(context, members=2, seeds=seeds) for context in (CONTEXT[:1], CONTEXT[1:2])]
    assert torch.equal(*found) and not torch.equal(found[0], expected)


def test_a_layer_follows_the_specification() -> None:
    torch.manual_seed(0)
    network = make(heads=2).transformer
    layer, x, encoded = network.layers[0], torch.randn(1, 5, 48), torch.randn(1, 7, 24)

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        parts = []
        for head in range(2):
            own = [part[..., head * part.shape[-1] // 2 : (head + 1) * part.shape[-1] // 2] for part in (q, k, v)]
            weights = (own[0] @ own[1].mT / math.sqrt(own[0].shape[-1])).masked_fill(~mask, -math.inf).softmax(-1)
            parts.append(weights @ own[2])
        return torch.cat(parts, dim=-1)

    h = F.layer_norm(x, (48,), layer.self_norm.weight, layer.self_norm.bias)
    seen = attention(*F.linear(h, layer.qkv.weight).chunk(3, dim=-1), torch.ones(5, 5).tril().bool())
    y = x + F.linear(seen, layer.out.weight, layer.out.bias)
    h = F.layer_norm(y, (48,), layer.cross_norm.weight, layer.cross_norm.bias)
    cross = layer.cross
    q, k, v = h @ cross.query.weight.T, encoded @ cross.key.weight.T, encoded @ cross.value.weight.T
    y = y + F.linear(attention(q, k, v, torch.ones(5, 7).bool()), cross.out.weight, cross.out.bias)
    h = F.layer_norm(y, (48,), layer.feed_norm.weight, layer.feed_norm.bias)
    inner = F.linear(h, layer.feed[0].weight, layer.feed[0].bias)
    inner = inner / (1 + torch.exp(-1.702 * inner))
    y = y + F.linear(inner, layer.feed[2].weight, layer.feed[2].bias)
    torch.testing.assert_close(layer(x, encoded), y, atol=1e-5, rtol=1e-5)


def test_position_embeddings_are_concatenated_per_axis() -> None:
    network = make().transformer
    found = network.positions().view(*CODES, 48)
    tables = network.positions.tables
    torch.testing.assert_close(found[2, 1, 3], torch.cat((tables[0][2], tables[1][1], tables[2][3])))


# Members


def test_codes_are_drawn_with_their_probability() -> None:
    logits = torch.tensor([0.3, -50.0, 1.2, 0.0]).double()
    numbers = (torch.arange(10_000).double() + 0.5) / 10_000
    drawn = videogpt._drawn(logits.expand(10_000, 4), numbers)
    share = torch.bincount(drawn, minlength=4) / 10_000
    torch.testing.assert_close(share, logits.softmax(0).float(), atol=2e-4, rtol=0)
    assert videogpt._drawn(logits, torch.tensor(1.0).double()) == 3


def test_members_are_independent_and_reproducible() -> None:
    model = make()
    members = model.sample(CONTEXT, members=3, generator=seeded(1))
    assert members.shape == (3, 5, *SHAPES[1]) and float(members.std(0).mean()) > 1e-3
    assert torch.equal(members, model.sample(CONTEXT, members=3, generator=seeded(1)))
    assert not torch.equal(members, model.sample(CONTEXT, members=3, generator=seeded(2)))


@pytest.mark.parametrize("most", [1, 2, 4, 64])
def test_a_batch_equals_its_sequences_alone(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    model, indices, shape = make(), torch.tensor([4, 0, 9, 2, 7]), SHAPES[1]
    together = draw_members(model, CONTEXT, indices, Ensemble(3, seed=6), shape)
    alone = [draw_members(model, CONTEXT[i : i + 1], indices[i : i + 1], Ensemble(3, seed=6), shape) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)
    fewer = draw_members(model, CONTEXT[2:3], indices[2:3], Ensemble(2, seed=6), shape)
    torch.testing.assert_close(fewer, together[:2, 2:3], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(videogpt, "_MOST_ROWS", most)
    parts = draw_members(model, CONTEXT, indices, Ensemble(3, seed=6), shape)
    torch.testing.assert_close(parts, together, atol=1e-5, rtol=1e-5)


def test_a_batch_too_large_for_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tried = make(), []
    whole = model.sample(CONTEXT, members=2)
    decoder = model.transformer.decoder

    def small(network: Any, encoded: Tensor, members: int) -> Any:
        tried.append(len(encoded) * members)
        if tried[-1] > 4:
            raise torch.OutOfMemoryError
        return decoder.__func__(network, encoded, members)

    monkeypatch.setattr(type(model.transformer), "decoder", small)
    torch.testing.assert_close(model.sample(CONTEXT, members=2), whole, atol=1e-5, rtol=1e-5)
    assert tried[0] == 10 and max(tried[-3:]) == 4


def test_a_forecast_is_the_mean_of_the_members_without_a_generator() -> None:
    model = make(members=3, seed=11)
    torch.testing.assert_close(model(CONTEXT), model.sample(CONTEXT, members=3).mean(dim=0))
    assert not torch.equal(model(CONTEXT), make(members=3, seed=12)(CONTEXT))


def test_sampling_preserves_mode_precision_and_random_state() -> None:
    model = make().train()
    model.vqvae.eval()
    before = torch.get_rng_state()
    assert model(CONTEXT).dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)
    assert model.transformer.training and not model.vqvae.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_float32_rounding_changes_no_code() -> None:
    """The reason for sampling in double precision: here half of an ensemble's logits are rounded differently."""
    model = make()
    numbers = videogpt._numbers([1, 2, 3, 4, 5], 4, model.transformer.length)
    with torch.no_grad():
        codes = model._codes(CONTEXT, numbers, 64, None)
        moved = model._codes(CONTEXT + 1e-12 * torch.randn(CONTEXT.shape).double(), numbers, 64, None)
    assert torch.equal(codes, moved)


def test_sampling_reports_progress() -> None:
    told: list[tuple[int, int]] = []
    make().sample(CONTEXT[:2], members=3, advance=lambda done, total: told.append((done, total)))
    assert told[0] == (6, 6 * 24) and told[-1] == (6 * 24, 6 * 24) and len(told) == 24


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.sample(CONTEXT, members=0), "members: expected at least 1, found 0"),
        (lambda m: m(CONTEXT[:, :3]), r"expected a context .*\(4, 8, 16, 1\).* found \(5, 3, 8, 16, 1\)"),
        (lambda m: m.sample(CONTEXT, members=1, seeds=torch.zeros(4).long()), r"seeds: expected int64 \(5,\)"),
        (lambda m: m.sample(CONTEXT, members=1, seeds=torch.zeros(5).long(), generator=seeded(0)), "found both"),
        (lambda _: make(members=0), "members: expected at least 1, found 0"),
        (lambda _: make(width=50), r"width \(three axes of positions, 4 heads\) must be divisible by 12, got 50"),
        (lambda _: make(context_channels=[8, 8, 8, 20]), "last of context_channels .* divisible by 12, got 20"),
        (lambda _: make(context_blocks=[1, 1]), "context_blocks must be 4 positive sizes"),
        (lambda _: make(downsample=3), "downsample must be a power of 2 from 2 on, got 3"),
        (lambda _: make(((4, 64, 64, 1), (3, 64, 64, 1)), downsample=16), "downsample must be at most 8, got 16"),
        (lambda _: make(((4, 10, 16, 1), (3, 10, 16, 1))), "height must be divisible by 4, got 10"),
        (lambda _: make(((13, 384, 384, 1), (12, 384, 384, 1))), "at most 16384 codes.* found 12 x 96 x 96 = 110592"),
        (lambda _: make(vqvae_width=18), "width must be divisible by 4, got 18"),
        (lambda _: make(codes=0), "sizes must be positive, got codes=0"),
    ],
)
def test_invalid_arguments_are_refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(make())
