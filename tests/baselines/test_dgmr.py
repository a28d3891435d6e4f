"""DGMR: counts, networks against formulas of its specification, losses, members, and its two alternating optimisers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from without_values import on_meta

from baselines.dgmr.discriminators import SpatialDiscriminator, TemporalDiscriminator
from baselines.dgmr.generator import Generator
from baselines.dgmr.model import DGMR
from bench.cost import count_model

SEVIR_LR = ((7, 128, 128, 1), (6, 128, 128, 1))
SMALL = ((4, 32, 32, 1), (3, 32, 32, 1))
ROWS = 3


def _model(shapes: tuple[Any, Any] = SMALL, **options: Any) -> DGMR:
    torch.manual_seed(0)
    return DGMR(*shapes, **{**DGMR.presets["tiny"], **options})


def _batch(shapes: tuple[Any, Any] = SMALL) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    context, target = (torch.rand((ROWS, *shape), generator=random) for shape in shapes)
    return context, target


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# Counts


def test_parameters_are_those_of_the_pseudocode() -> None:
    with on_meta():
        model, four = DGMR(*SEVIR_LR), DGMR((4, 256, 256, 1), (18, 256, 256, 1))
    assert _size(four.generator) == 51_739_817
    assert _size(model.generator) == 57_027_497
    assert _size(model.generator.context) == 13_745_620
    assert _size(model.generator.latent) == 7_228_305
    assert _size(model.discriminators.spatial) == 16_305_797
    assert _size(model.discriminators.temporal) == 16_433_957


@pytest.mark.parametrize("channels", [(24, 48, 96, 192)])
def test_the_papers_narrower_context_stack_is_an_option(channels: tuple[int, ...]) -> None:
    with on_meta():
        model = DGMR(*SEVIR_LR, context_channels=channels)
    assert round(_size(model.generator) / 1e6, 3) == 49.804


@pytest.mark.slow
def test_multiply_adds_are_those_of_one_member() -> None:
    model = DGMR(*SEVIR_LR).eval()
    assert count_model(model, SEVIR_LR[0]).gmacs == pytest.approx(17.578, abs=5e-4)
    parts = ((model.discriminators.spatial, 6, 0.487), (model.discriminators.temporal, 13, 0.557))
    for discriminator, frames, expected in parts:
        found = FlopCountAnalysis(discriminator, (torch.rand(1, frames, 128, 128, 1),)).unsupported_ops_warnings(False)
        assert found.total() / 1e9 == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("name", ["sevir", "sevir_lr", "nbody_mnist"])
def test_presets_fit_their_tasks(name: str) -> None:
    shapes = {
        "sevir": ((13, 384, 384, 1), (12, 384, 384, 1)),
        "sevir_lr": SEVIR_LR,
        "nbody_mnist": ((10, 64, 64, 1), (10, 64, 64, 1)),
    }[name]
    with on_meta():
        model = DGMR(*shapes, **DGMR.presets[name])
        assert model.discriminators(*(torch.empty(2, *shape) for shape in shapes)).shape == (2, 2)


def test_a_training_pass_runs_one_power_iteration_per_weight() -> None:
    model = _model()
    cell = model.generator.sampler.levels[0].cell
    norm = cell.update.parametrizations.weight[0]
    matrix = cell.update.parametrizations.weight.original.detach().flatten(1)
    u = F.normalize(matrix @ F.normalize(matrix.T @ norm.u, dim=0), dim=0)
    model.train().training_loss(*_batch(), step=2, total_steps=9)
    torch.testing.assert_close(norm.u, u)


# Discriminators


@pytest.mark.parametrize(("t_out", "seen"), [(3, 3), (6, 6), (12, 8)])
def test_the_spatial_discriminator_sees_distinct_frames_of_the_forecast(t_out: int, seen: int) -> None:
    torch.manual_seed(0)
    discriminator, inputs = SpatialDiscriminator(1, (8, 8, 8), 3), []
    discriminator.blocks.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    numbers = torch.arange(t_out).float().expand(4, t_out)
    assert discriminator(numbers[:, :, None, None, None].expand(4, t_out, 32, 32, 1)).shape == (4, 1)
    drawn = inputs[0][:, 0, 0, 0].view(4, seen)
    assert inputs[0].shape == (4 * seen, 4, 8, 8)
    assert all(len(set(row.tolist())) == seen for row in drawn)
    assert len({tuple(row.tolist()) for row in drawn}) > 1  # each has its own order


def test_the_spatial_discriminator_halves_and_folds_its_frames() -> None:
    discriminator, inputs = SpatialDiscriminator(1, (8, 8, 8), 3), []
    discriminator.blocks.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    frame = torch.rand(1, 1, 32, 32, 1)
    discriminator(frame)
    half = frame[0, 0, :, :, 0].view(16, 2, 16, 2).mean((1, 3))
    torch.testing.assert_close(inputs[0][0], half.view(8, 2, 8, 2).permute(1, 3, 0, 2).flatten(0, 1))


def test_the_temporal_discriminator_sees_all_steps_in_random_windows() -> None:
    torch.manual_seed(0)
    discriminator, inputs = TemporalDiscriminator(1, (8, 8, 8), 3), []
    discriminator.volumes.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    place = torch.arange(32)[:, None] * 100.0 + torch.arange(64)
    sequence = place[None, None, :, :, None] + torch.arange(7)[None, :, None, None, None] * 1e4
    assert discriminator(sequence.expand(5, 7, 32, 64, 1)).shape == (5, 1)
    windows = F.pixel_shuffle(inputs[0].movedim(2, 1), 2)[:, :, 0]
    assert windows.shape == (5, 7, 16, 32)
    corners = windows[:, :, :1, :1]
    assert torch.equal(windows - corners, (place[:16, :32] - place[0, 0]).expand(5, 7, 16, 32))
    assert torch.equal(corners[:, :, 0, 0] - corners[:, :1, 0, 0], (torch.arange(7) * 1e4).expand(5, 7))
    assert len(set(corners[:, 0, 0, 0].tolist())) > 1


# Losses


def test_generator_and_discriminator_steps_alternate() -> None:
    model = _model().train()
    context, target = _batch()
    found = []
    for step in range(6):
        model.zero_grad(set_to_none=True)
        losses = model.training_loss(context, target, step=step, total_steps=6)
        torch.stack(list(losses.values())).sum().backward()
        trained = [
            part for part in ("generator", "discriminators") if next(getattr(model, part).parameters()).grad is not None
        ]
        found.append((*trained, sorted(losses)[0]))
        for part in ("generator", "discriminators"):
            assert all((p.grad is None) == (part not in trained) for p in getattr(model, part).parameters())
    d, g = ("discriminators", "spatial_hinge"), ("generator", "grid")
    assert found == [d, d, g, d, d, g]


def test_the_adversarial_gradient_passes_the_head_norm() -> None:
    """The mean score of a batch of generated futures alone would be a constant."""
    model = _model(grid_weight=0.0).train()
    losses = model.training_loss(*_batch(), step=2, total_steps=3)
    for name in ("spatial_deception", "temporal_deception"):
        (gradient,) = torch.autograd.grad(losses[name], model.generator.sampler.head.bias, retain_graph=True)
        assert gradient.abs().max() > 1e-4


def _fixed(model: DGMR, monkeypatch: pytest.MonkeyPatch, samples: Tensor) -> None:
    """Replaces forecasts by the given ones, and the scores by the mean of a future and a hundred times that."""

    def compared(context: Tensor, real: Tensor, made: Tensor, *, frozen: bool = False) -> tuple[Tensor, Tensor]:
        means = (part.flatten(1).mean(1) for part in (real, made))
        return tuple(torch.stack((mean, 100 * mean), 1) for mean in means)

    monkeypatch.setattr(model, "_samples", lambda context, count: samples[:count])
    monkeypatch.setattr(model.discriminators, "compared", compared)


def test_hinge_losses_are_those_of_the_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (context, target) = _model(), _batch()
    samples = torch.rand(2, *target.shape)
    _fixed(model, monkeypatch, samples)
    real, made = (part.flatten(1).mean(1) for part in (target, samples[0]))
    losses = model.training_loss(context, target, step=0, total_steps=3)
    assert float(losses["spatial_hinge"]) == pytest.approx(float((1 - real + 1 + made).mean()), rel=1e-6)
    assert float(losses["temporal_hinge"]) == pytest.approx(float((1 + 100 * made).mean()), rel=1e-6)
    losses = model.training_loss(context, target, step=2, total_steps=3)
    of_all = float(samples.mean())
    assert float(losses["spatial_deception"]) == pytest.approx(-of_all, rel=1e-5)
    assert float(losses["temporal_deception"]) == pytest.approx(-100 * of_all, rel=1e-5)


@pytest.mark.parametrize(
    ("value", "weight"), [(0.0, 1.0), (0.02, 1.0), (0.5, 255 * 0.5 / 10.6), (1.0, 24.0), (math.nan, None)]
)
def test_the_grid_loss_is_weighted_by_intensity(
    monkeypatch: pytest.MonkeyPatch, value: float, weight: float | None
) -> None:
    context, _ = _batch()
    target = torch.full((ROWS, *SMALL[1]), value)
    samples = torch.stack((torch.full_like(target, 0.25), torch.full_like(target, 0.65)))
    for kind in ("intensity", "none"):
        model = _model(weight=kind)
        _fixed(model, monkeypatch, samples)
        found = float(model.training_loss(context, target, step=2, total_steps=3)["grid"])
        factor = 0 if weight is None else weight if kind == "intensity" else 1
        error = 0 if weight is None else abs(0.45 - value)
        assert found == pytest.approx(20 * factor * error, rel=1e-5)


@pytest.mark.parametrize("step", [0, 2])
def test_sequences_are_weighted_by_their_known_pixels(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    model, (context, target) = _model(), _batch()
    samples = torch.rand(2, *target.shape)
    target[0, 1:] = math.nan
    target[1] = math.nan
    target[2, :, :5] = math.nan
    weights = (~torch.isnan(target)).sum((1, 2, 3, 4)).tolist()

    def loss(rows: list[int]) -> dict[str, float]:
        _fixed(model, monkeypatch, samples[:, rows])
        return {
            name: float(value)
            for name, value in model.training_loss(context[rows], target[rows], step=step, total_steps=3).items()
        }

    whole, each = loss([0, 1, 2]), [loss([row]) for row in range(ROWS)]
    assert all(value == 0 for value in each[1].values())
    for name, value in whole.items():
        expected = sum(one[name] * weight for one, weight in zip(each, weights, strict=True)) / sum(weights)
        assert value == pytest.approx(expected, rel=1e-5)


def test_the_discriminator_sees_no_pixel_where_the_target_is_missing() -> None:
    model, (context, target) = _model(), _batch()
    seen: list[Tensor] = []
    model.discriminators.spatial.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    target[:, :, :16] = math.nan
    model.train().training_loss(context, target, step=0, total_steps=3)
    real, made = seen[0].chunk(2)
    assert not real[:, :, :16].any()
    assert not made[:, :, :16].any()
    assert made[:, :, 16:].any()


# Members


def test_members_depend_on_context_and_seed_only() -> None:
    model = _model()  # in training mode, as made
    context, _ = _batch()
    state = torch.get_rng_state()
    members = model.sample(context, members=4, generator=torch.Generator().manual_seed(5))
    assert torch.equal(torch.get_rng_state(), state)
    assert members.shape == (4, ROWS, *SMALL[1])
    again = model.sample(context, members=2, generator=torch.Generator().manual_seed(5))
    assert torch.equal(again, members[:2])
    alone = model.sample(context[1:2], members=4, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(alone[:, 0], members[:, 1])
    turned = model.sample(context.flip(0), members=4, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(turned.flip(1), members)
    other = model.sample(context, members=4, generator=torch.Generator().manual_seed(6))
    assert not torch.allclose(other, members)
    assert members.std(0).mean() > 0
    assert model.training


def test_equal_contexts_with_different_seeds_differ() -> None:
    model, context = _model(), _batch()[0][:1].expand(2, -1, -1, -1, -1)
    members = model.sample(context, members=2, seeds=torch.tensor([3, 4]))
    assert not torch.allclose(members[:, 0], members[:, 1])
    alone = model.sample(context[:1], members=2, seeds=torch.tensor([4]))
    torch.testing.assert_close(alone[:, 0], members[:, 1])


def test_the_forecast_is_the_mean_of_its_members() -> None:
    model, (context, _) = _model(members=3), _batch()
    torch.testing.assert_close(model(context), model.sample(context, members=3).mean(0))
    with model.reference():
        assert model(context).shape == (ROWS, *SMALL[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"members": 0}, "members: expected at least 1"),
        ({"members": 1, "generator": torch.Generator(), "seeds": torch.zeros(3, dtype=torch.long)}, "found both"),
        ({"members": 1, "seeds": torch.zeros(2, dtype=torch.long)}, "one for each sequence"),
        ({"members": 1, "seeds": torch.zeros(3)}, "int64"),
    ],
)
def test_wrong_arguments_of_sample_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _model().sample(_batch()[0], **arguments)


# Sizes


@pytest.mark.parametrize(
    ("shapes", "options", "words"),
    [
        (((7, 64, 64, 1), (6, 64, 64, 1)), {}, "divisible by 128 for 5 halvings .* discriminator_halvings=4 would fit"),
        (((7, 96, 128, 1), (6, 96, 128, 1)), {}, "height must be divisible by 128 .* got 96"),
        (((7, 128, 100, 1), (6, 128, 100, 1)), {}, "width .* divisible by 32, got 100"),
        (((7, 128, 128, 1), (6, 128, 128, 2)), {}, "same channels, got 1 and 2"),
        (((7, 128, 128, 1), (6, 64, 64, 1)), {}, "need one grid"),
        (((2, 128, 128, 1), (1, 128, 128, 1)), {}, "at least 4 frames"),
        (SEVIR_LR, {"discriminator_halvings": 6}, "from 2 to 5"),
        (SEVIR_LR, {"discriminator_halvings": 1}, "from 2 to 5"),
        (SEVIR_LR, {"context_channels": [4, 8]}, "context_channels must be 4 positive sizes"),
        (SEVIR_LR, {"latent_widths": [16, 8]}, "latent_widths must rise"),
        (SEVIR_LR, {"latent_widths": [16, 20]}, "multiple of 8"),
        (SEVIR_LR, {"weight": "rain"}, "weight must be one of intensity, none"),
        (SEVIR_LR, {"members": 0}, "members must be at least 1"),
        (SEVIR_LR, {"discriminator_steps": 0}, "discriminator_steps must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shapes: tuple[Any, Any], options: dict[str, Any], words: str) -> None:
    with on_meta(), pytest.raises(ValueError, match=words):
        DGMR(*shapes, **options)


def test_a_context_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a context"):
        _model()(torch.rand(2, 5, 32, 32, 1))


def test_every_frame_of_the_context_reaches_every_frame_of_the_forecast() -> None:
    torch.manual_seed(0)
    sizes = {"channels": (8, 16), "context_channels": (4, 8), "latent_widths": (8, 16)}
    network = Generator((3, 16, 16, 1), (2, 16, 16, 1), **sizes).eval()
    context = torch.rand(1, 3, 16, 16, 1, requires_grad=True)
    forecast = network(context, torch.randn(1, *network.noise_shape))
    for lead in range(2):
        (gradient,) = torch.autograd.grad(forecast[:, lead].sum(), context, retain_graph=True)
        assert gradient.abs().amax((0, 2, 3, 4)).min() > 0


# Training


def test_one_adam_with_two_parameter_groups_trains_both_networks() -> None:
    model = _model(generator_lr=1e-3, discriminator_lr=2e-3, weight="none").train()
    context, target = _batch()
    groups = model.optimizers()
    assert [(lr, betas) for _, lr, betas in groups] == [(1e-3, (0.0, 0.999)), (2e-3, (0.0, 0.999))]
    covered = [id(parameter) for parameters, _, _ in groups for parameter in parameters]
    assert sorted(covered) == sorted(map(id, model.parameters()))
    adam = torch.optim.Adam([{"params": params, "lr": lr, "betas": betas} for params, lr, betas in groups])
    grid, learnt = [], [False, False]
    for step in range(60):
        before = [next(part.parameters()).clone() for part in (model.generator, model.discriminators)]
        losses = model.training_loss(context, target, step=step, total_steps=60)
        adam.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        adam.step()
        moved = [
            not torch.equal(next(part.parameters()), old)
            for part, old in zip((model.generator, model.discriminators), before, strict=True)
        ]
        assert not moved[1 if "grid" in losses else 0]
        learnt = [one or other for one, other in zip(learnt, moved, strict=True)]
        grid += [float(losses["grid"])] if "grid" in losses else []
    assert learnt == [True, True]
    assert sum(grid[-5:]) < 0.8 * sum(grid[:5])
