"""VideoGPT: sizes, networks against formulas of their description, codes one by one, stages by one command."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines import videogpt, vqvae
from baselines.videogpt import VideoGPT
from baselines.vqvae import VQVAE, Codebook
from bench.config import compose
from bench.cost import count_model
from bench.engine.ensembles import Ensemble, draw_members
from bench.engine.run import Outcome, run
from bench.errors import ConfigError, ContractError, DataError

SHAPES = ((4, 8, 16, 1), (3, 8, 16, 1))
CODES = (3, 2, 4)
CODES_OF_A_CONTEXT = torch.arange(32).view(1, 4, 2, 4)
CONTEXT = torch.rand(5, *SHAPES[0], generator=torch.Generator().manual_seed(3))


def make(shapes: tuple[Any, Any] = SHAPES, **changes: Any) -> VideoGPT:
    """A tiny model whose logits differ from the first code on: a fresh one finds all codes equally likely."""
    torch.manual_seed(0)
    made = VideoGPT(*shapes, **(VideoGPT.presets["tiny"] | changes))
    nn.init.normal_(made.transformer.output.weight, std=0.3)
    return made.eval()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    """150.4 GMAC for six frames of three channels, there and back."""
    assert count_model(_Reconstructs(VQVAE(3)), (6, 128, 128, 3)).gmacs == pytest.approx(150.4, abs=0.05)


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
    """The transformer given what the ResNet sees: convolutions have kinds of their own."""

    def __init__(self, model: VideoGPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, context: Tensor) -> Tensor:
        network = self.model.transformer
        vectors = self.model.vqvae.codebook.vectors[:1].expand(len(context), network.length, -1)
        return network(vectors, network.encoded(context))


# The VQ-VAE


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


def test_codes_and_frames_have_their_shapes_and_do_not_depend_on_the_mode_or_the_batch() -> None:
    model = make().vqvae.train()
    frames = torch.rand(4, *SHAPES[1])
    codes = model.encode(frames)
    assert codes.shape == (4, *CODES) and codes.dtype == torch.long
    assert torch.equal(model.encode(frames[2:3]), codes[2:3])
    decoded = model.decode(codes)
    assert decoded.shape == frames.shape and 0 <= decoded.min() <= decoded.max() <= 1
    assert model.training and all(part.training for part in model.modules())


def test_losses_of_the_vqvae_are_the_specification() -> None:
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


def test_the_first_known_latents_are_the_codebook() -> None:
    book, latents = _book(), torch.randn(10, 3)
    share = torch.zeros(10)
    before = book.vectors.clone()
    book(latents, share)
    assert torch.equal(book.vectors, before) and not book.started, "nothing known, nothing learnt"
    share[[1, 4, 6, 9]] = 1.0
    vectors = book(latents, share)
    assert book.started
    torch.testing.assert_close(vectors[share > 0], latents[share > 0])


def test_a_codebook_that_its_latents_lie_on_stays_as_it_is() -> None:
    book = _book()
    latents = torch.randn(4, 3)
    book(latents, torch.ones(4))
    for _ in range(50):
        book(latents.repeat(5, 1), torch.ones(20))
    found = book.vectors[book.nearest(latents)]
    torch.testing.assert_close(found, latents)
    torch.testing.assert_close(book.counts, 5 - 4 * 0.99**50 * torch.ones(4))
    assert book.perplexity == pytest.approx(4)


def test_a_codebook_moves_by_its_decay_and_dead_codes_are_replaced() -> None:
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


def test_a_collapsed_codebook_is_told_of() -> None:
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


# The transformer


def test_all_codes_are_equally_likely_at_first() -> None:
    model = VideoGPT(*SHAPES, **(VideoGPT.presets["tiny"] | {"codes": 512}))
    stage = model.stages()[1].module
    loss = stage.training_loss(CONTEXT, torch.rand(5, *SHAPES[1]), step=0, total_steps=1)
    assert loss.item() == pytest.approx(math.log(512), abs=1e-5)


def test_a_code_reaches_no_logits_before_it() -> None:
    network = make().transformer
    vectors = torch.randn(1, network.length, 16)
    encoded = network.encoded(CONTEXT[:1])
    logits = network(vectors, encoded)
    for place in (0, 7, network.length - 1):
        changed = vectors.clone()
        changed[:, place] += 1
        differs = (network(changed, encoded) != logits).any(-1)[0]
        assert not differs[: place + 1].any() and differs[place + 1 :].all()


def test_logits_code_by_code_are_those_of_one_pass() -> None:
    network = make().transformer
    batch, members = 2, 3
    vectors = torch.randn(batch, members, network.length, 16)
    encoded = network.encoded(CONTEXT[:batch])
    decoder = network.decoder(encoded, members)
    steps = [decoder.logits(vectors[:, :, place - 1] if place else None) for place in range(network.length)]
    expected = network(vectors.flatten(0, 1), encoded.repeat_interleave(members, dim=0))
    torch.testing.assert_close(torch.stack(steps, dim=2).flatten(0, 1), expected, atol=1e-4, rtol=1e-4)


def test_the_codes_of_the_last_frames_are_given_and_not_drawn() -> None:
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
    # Of a transformer that sees the context's codes alone, members follow from the last frames.
    for layer in network.layers:
        nn.init.zeros_(layer.cross.out.weight)
    seeds = torch.tensor([1])
    expected = model.sample(CONTEXT[:1], members=2, seeds=seeds)
    model.vqvae.encode = lambda frames: CODES_OF_A_CONTEXT  # type: ignore[method-assign]
    found = [model.sample(context, members=2, seeds=seeds) for context in (CONTEXT[:1], CONTEXT[1:2])]
    assert torch.equal(*found) and not torch.equal(found[0], expected)


def test_a_layer_is_the_specification() -> None:
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


def test_positions_are_concatenated_tables() -> None:
    network = make().transformer
    found = network.positions().view(*CODES, 48)
    tables = network.positions.tables
    torch.testing.assert_close(found[2, 1, 3], torch.cat((tables[0][2], tables[1][1], tables[2][3])))


# Members


def test_codes_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.tensor([0.3, -50.0, 1.2, 0.0]).double()
    numbers = (torch.arange(10_000).double() + 0.5) / 10_000
    drawn = videogpt._drawn(logits.expand(10_000, 4), numbers)
    share = torch.bincount(drawn, minlength=4) / 10_000
    torch.testing.assert_close(share, logits.softmax(0).float(), atol=2e-4, rtol=0)
    assert videogpt._drawn(logits, torch.tensor(1.0).double()) == 3


def test_members_are_draws_of_their_own_and_come_again_with_their_seed() -> None:
    model = make()
    members = model.sample(CONTEXT, members=3, generator=seeded(1))
    assert members.shape == (3, 5, *SHAPES[1]) and float(members.std(0).mean()) > 1e-3
    assert torch.equal(members, model.sample(CONTEXT, members=3, generator=seeded(1)))
    assert not torch.equal(members, model.sample(CONTEXT, members=3, generator=seeded(2)))


@pytest.mark.parametrize("most", [1, 2, 4, 64])
def test_a_batch_is_what_its_sequences_are_alone(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    model, indices, shape = make(), torch.tensor([4, 0, 9, 2, 7]), SHAPES[1]
    together = draw_members(model, CONTEXT, indices, Ensemble(3, seed=6), shape)
    alone = [draw_members(model, CONTEXT[i : i + 1], indices[i : i + 1], Ensemble(3, seed=6), shape) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)
    fewer = draw_members(model, CONTEXT[2:3], indices[2:3], Ensemble(2, seed=6), shape)
    torch.testing.assert_close(fewer, together[:2, 2:3], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(videogpt, "_MOST_ROWS", most)
    parts = draw_members(model, CONTEXT, indices, Ensemble(3, seed=6), shape)
    torch.testing.assert_close(parts, together, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_sampling_leaves_the_mode_the_precision_and_the_random_state_alone() -> None:
    model = make().train()
    model.vqvae.eval()
    before = torch.get_rng_state()
    assert model(CONTEXT).dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), before)
    assert model.transformer.training and not model.vqvae.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_rounding_of_single_precision_changes_no_code() -> None:
    """Why sampling computes in double precision: half of an ensemble's logits are moved by single rounding."""
    model = make()
    numbers = videogpt._numbers([1, 2, 3, 4, 5], 4, model.transformer.length)
    with torch.no_grad():
        codes = model._codes(CONTEXT, numbers, 64, None)
        moved = model._codes(CONTEXT + 1e-12 * torch.randn(CONTEXT.shape).double(), numbers, 64, None)
    assert torch.equal(codes, moved)


def test_steps_are_told() -> None:
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
def test_what_cannot_work_is_refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(make())


# One command


STAGED = [
    "task=sevir_lr", "task.t_in=3", "task.t_out=2", "task.stride=12", "data.batch_size=4", "limit=2", "model=videogpt",
    *(f"model.{key}={value}" for key, value in VideoGPT.presets["tiny"].items()), "train.max_epochs=1",
    "train.limit=8", "train.loggers=[]", "train.stages.gpt.ema_decay=0.9", "progress=false", "picture=false",
    "device=cpu",
]  # fmt: skip


def start(storms: Path, out: Path, *overrides: str) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    folders = [f"data.root={storms}", f"results.root={out / 'results'}", f"work={out / 'work'}"]
    return run(compose([*STAGED, *folders, *overrides]), training=True, say=lines.append), lines


@pytest.fixture(scope="module")
def trained(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    out = tmp_path_factory.mktemp("trained")
    return out, start(storms, out, "evaluate.members=2")[0]


def test_one_command_trains_both_stages_and_evaluates(trained: tuple[Path, Outcome], storms: Path) -> None:
    out, outcome = trained
    summary = outcome.record.training
    assert summary is not None and summary.steps == 4
    assert summary.stopped_because == "vqvae: max_epochs; gpt: max_epochs"
    assert "crps" in outcome.record.scores
    (whole,) = out.glob("work/sevir_lr/videogpt/*/checkpoints/last.ckpt")
    state = torch.load(whole, weights_only=True)["state_dict"]
    (stage,) = out.glob("work/sevir_lr/stages/vqvae-*/checkpoints/best.ckpt")
    of_stage = torch.load(stage, weights_only=True)["state_dict"]
    for name in ("codebook.vectors", "variance", "encoder.0.weight"):
        assert torch.equal(state[f"vqvae.{name}"], of_stage[f"model.vqvae.{name}"]), name
    assert state["vqvae.codebook.started"] and state["vqvae.variance"] != torch.tensor(0.06)


def test_a_stage_may_come_from_a_file(trained: tuple[Path, Outcome], storms: Path, tmp_path: Path) -> None:
    out, _ = trained
    (whole,) = out.glob("work/sevir_lr/videogpt/*/checkpoints/last.ckpt")
    state = torch.load(whole, weights_only=True)["state_dict"]
    given = {key.removeprefix("vqvae."): value for key, value in state.items() if key.startswith("vqvae.")}
    for number, content in enumerate((state, given, {"state_dict": given})):
        torch.save(content, tmp_path / f"{number}.pt")
        stage = make(((3, 32, 32, 1), (2, 32, 32, 1))).stages()[0]
        stage.load(tmp_path / f"{number}.pt")
        assert all(torch.equal(value, given[name]) for name, value in stage.part.state_dict().items())
    outcome, _ = start(storms, tmp_path, f"train.stages.vqvae.checkpoint={tmp_path / '1.pt'}")
    assert outcome.record.training is not None
    assert outcome.record.training.stopped_because == "vqvae: given weights; gpt: max_epochs"


def test_wrong_stages_are_refused(storms: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pt").write_text("nothing")
    torch.save(make(codes=16).vqvae.state_dict(), tmp_path / "other.pt")
    for overrides, error, words in (
        (["train.stages.vqvae.checkpoint=missing.pt"], DataError, "missing.pt: no such file"),
        ([f"train.stages.vqvae.checkpoint={tmp_path / 'other.pt'}"], ConfigError, r"codebook.vectors is \(16, 16\)"),
        (["train.stages.vqvea.lr=1.0"], ConfigError, "vqvea: Did you mean 'vqvae'"),
        (["model.downsample=5"], ConfigError, "downsample must be a power of 2"),
    ):
        with pytest.raises(error, match=words):
            start(storms, tmp_path, *overrides)
    with pytest.raises(ValueError, match=r"no.pt: expected tensors"):
        make().stages()[0].load(tmp_path / "no.pt")
    with pytest.raises(ContractError, match=r"draws no members: .*expected a context"):
        draw_members(make(), CONTEXT[:, :2], torch.arange(5), Ensemble(2), SHAPES[1])
