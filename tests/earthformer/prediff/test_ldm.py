"""LDM: the counts of its construction, its U-Net on stacked frames, the scale of its latents, and its stages."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.config import compose
from bench.engine.run import run
from earthformer.prediff.ldm import LDM, StackedFramesUNet
from earthformer.prediff.model import PreDiff
from earthformer.prediff.stages import DenoiserStage

SHAPES = ((4, 16, 16, 1), (3, 16, 16, 1))
LATENTS = ((4, 4, 4, 2), (3, 4, 4, 2))
CONTEXT, TARGET = (torch.rand(2, *shape, generator=torch.Generator().manual_seed(3)) for shape in SHAPES)


def make(**changes: Any) -> LDM:
    torch.manual_seed(0)
    made = LDM(*SHAPES, **LDM.presets["tiny"] | changes)
    nn.init.normal_(made.diffusion.denoiser.unet.conv_out.weight, std=0.1)  # a fresh denoiser sees no noise at all
    return made.eval()


def small_unet() -> StackedFramesUNet:
    torch.manual_seed(0)
    return StackedFramesUNet(*LATENTS, channels=(32, 64), layers=1).eval()


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The denoiser


def test_the_denoiser_has_its_documented_size() -> None:
    with torch.device("meta"):
        model = LDM((7, 128, 128, 1), (6, 128, 128, 1))
        small = StackedFramesUNet((7, 16, 16, 4), (6, 16, 16, 4), channels=(32, 64), layers=1)
    assert size(model.diffusion.denoiser) == 358_080_280
    assert size(model) == 358_080_280 + 83_649_253
    assert size(small) == 722_680


def test_an_untrained_denoiser_predicts_zero() -> None:
    x, cond = torch.randn(2, *LATENTS[1]), torch.randn(2, *LATENTS[0])
    assert not small_unet()(x, torch.tensor([3, 900]), cond).any()


def test_frames_are_stacked_on_channels_context_first() -> None:
    network = small_unet()
    x, cond = torch.randn(2, *LATENTS[1]), torch.randn(2, *LATENTS[0])
    seen: list[Tensor] = []

    class Last(nn.Module):
        def forward(self, images: Tensor, t: Tensor) -> Any:
            seen.append(images)
            return SimpleNamespace(sample=images[:, -6:])

    network.unet = Last()
    assert torch.equal(network(x, torch.tensor([1, 2]), cond), x)
    assert seen[0].shape == (2, 14, 4, 4)
    assert torch.equal(seen[0][1, 2 * 3 + 1], cond[1, 3, :, :, 1])


def test_the_order_of_the_context_matters_and_other_samples_do_not() -> None:
    network = small_unet()
    nn.init.normal_(network.unet.conv_out.weight)
    x, cond, t = torch.randn(3, *LATENTS[1]), torch.randn(3, *LATENTS[0]), torch.tensor([3, 400, 900])
    with torch.no_grad():
        found = network(x, t, cond)
        assert not torch.allclose(network(x, t, cond.flip(1)), found, atol=1e-3)
        torch.testing.assert_close(network(x[1:2], t[1:2], cond[1:2]), found[1:2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LDM((12, 24, 48, 1), (14, 24, 48, 1)), "multiples of 8, found 3 x 6"),
        (lambda: LDM((10, 32, 32, 1), (10, 32, 32, 1)), "multiples of 8, found 4 x 4"),
        (lambda: make(channels=[32, 64, 64, 64]), "multiples of 8, found 4 x 4"),
        (lambda: make(channels=[32]), r"two or more levels, found \[32\]"),
        (lambda: make(channels=[32, 48]), "multiples of 32"),
        (lambda: make(layers=0), "layers: expected at least 1, found 0"),
        (lambda: make().sample(CONTEXT, members=1, control=1.0), "no alignment network"),
        (lambda: make()(CONTEXT[:, :3]), r"LDM: expected a context .* found \(2, 3, 16, 16, 1\)"),
        (
            lambda: small_unet()(torch.rand(1, 3, 4, 4, 2), torch.tensor([1]), torch.rand(1, 3, 4, 4, 2)),
            "expected cond",
        ),
    ],
)
def test_invalid_arguments_are_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# Members


def test_members_are_independent_and_do_not_depend_on_their_number() -> None:
    model = make(sampler="dpm_solver++", steps=2)
    members = model.sample(CONTEXT, members=3, generator=torch.Generator().manual_seed(1))
    assert members.shape == (3, 2, *SHAPES[1]) and not torch.allclose(members[0], members[1], atol=1e-3)
    fewer = model.sample(CONTEXT[1:], members=2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fewer, members[:2, 1:], atol=1e-5, rtol=1e-5)


def test_the_count_is_the_cost_of_one_member() -> None:
    model = make(steps=5)
    with torch.no_grad(), FlopCounterMode(display=False) as drawn:
        model.sample(CONTEXT[:1], members=1)
    with torch.no_grad(), FlopCounterMode(display=False) as counted, model.reference():
        model(CONTEXT[:1])
    assert counted.get_total_flops() == drawn.get_total_flops()


class _Knows(nn.Module):
    """Predicts the latents exactly."""

    shapes = ((1, 4, 4, 4),)

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents, self.seen = latents, []

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.seen.append(cond)
        return self.latents.expand_as(x)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver++"])
def test_a_perfect_denoiser_draws_the_true_frames(sampler: str) -> None:
    model = make(sampler=sampler, steps=4, parameterization="x0")
    model.diffusion.scale_factor.fill_(3.0)
    latents = torch.randn(1, *model.latent_shape)
    model.diffusion.denoiser = knows = _Knows(latents)
    with torch.no_grad():
        expected = model.autoencoder.to_frames(latents / 3)
        torch.testing.assert_close(model(CONTEXT), expected.expand(2, -1, -1, -1, -1), atol=1e-4, rtol=1e-4)
        cond = model.autoencoder.to_latents(CONTEXT) * 3
    torch.testing.assert_close(knows.seen[0][::2], cond)  # two members of each


def test_noise_and_latent_predictions_are_equivalent() -> None:
    model = make(parameterization="x0")
    latents, noise = torch.randn(2, *model.latent_shape), torch.randn(2, *model.latent_shape)
    model.diffusion.denoiser, t = _Knows(latents), torch.tensor([100, 900])
    noised = model.schedule.add_noise(latents, noise, t)
    torch.testing.assert_close(model.diffusion.predicted_noise(noised, t, latents), noise, atol=1e-3, rtol=1e-3)


# Noise, the scale of the latents, and training


def test_the_loss_is_the_noise_mse_at_the_authors_levels() -> None:
    model = make()
    beta = [(math.sqrt(1.5e-3) + (math.sqrt(1.95e-2) - math.sqrt(1.5e-3)) * i / 999) ** 2 for i in range(1000)]
    kept = torch.tensor(beta, dtype=torch.float64).neg().add(1).cumprod(0)
    t = torch.tensor([3, 700])
    latents, noise = torch.randn(2, *model.latent_shape), torch.randn(2, *model.latent_shape)
    cond = model.autoencoder.to_latents(CONTEXT)
    level = kept[t].view(2, 1, 1, 1, 1)
    noised = (level.sqrt() * latents + (1 - level).sqrt() * noise).float()
    with torch.no_grad():
        error = noise - model.diffusion.denoiser(noised, t, cond)
        found, plain = model.diffusion.losses(latents, cond, t, noise)
    assert error.std() > 0.1
    torch.testing.assert_close(found, error.square().mean())
    torch.testing.assert_close(plain, found)


def stage_of(model: LDM) -> DenoiserStage:
    module = model.stages()[1].module
    assert isinstance(module, DenoiserStage)
    return module


def test_the_latent_scale_does_not_depend_on_batches() -> None:
    targets = torch.rand(300, *SHAPES[1], generator=torch.Generator().manual_seed(1))
    contexts = torch.zeros(300, *SHAPES[0])
    scales = []
    for batch in (7, 300):
        model = make()
        stage = model.stages()[1]
        assert torch.isnan(model.state_dict()["diffusion.scale_factor"])
        assert stage.prepare is not None
        stage.prepare(zip(contexts.split(batch), targets.split(batch), strict=True))
        scales.append(float(stage.module.state_dict()["diffusion.scale_factor"]))
        stage.prepare([(contexts, 9 * targets)])
        assert float(model.diffusion.scale_factor) == scales[-1], "weights that were trained keep their scale"
    posterior = model.autoencoder.posterior(targets[::4])
    variance = posterior.mean.var() + posterior.var.mean()
    assert scales[0] == scales[1] == pytest.approx(float(variance) ** -0.5, rel=0.02)


def test_latents_without_a_scale_are_refused() -> None:
    model = make()
    model.autoencoder.quant_conv.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="scale_factor: expected latents with a finite standard deviation"):
        stage_of(model).prepare([(CONTEXT, TARGET)])


def test_context_and_target_are_scaled_in_training() -> None:
    model = make(augment=False)
    stage = stage_of(model)
    stage.prepare([(CONTEXT, TARGET)])
    scale = float(model.diffusion.scale_factor)
    given: list[tuple[Tensor, Tensor]] = []
    losses = model.diffusion.losses
    model.diffusion.losses = lambda latents, cond, *rest: given.append((latents, cond)) or losses(latents, cond, *rest)
    stage.validation_loss(CONTEXT, TARGET)
    torch.testing.assert_close(given[0][0], model.autoencoder.to_latents(TARGET) * scale)
    torch.testing.assert_close(given[0][1], model.autoencoder.to_latents(CONTEXT) * scale)


def test_one_batch_is_overfitted() -> None:
    torch.manual_seed(0)
    stage = stage_of(LDM(*SHAPES, **LDM.presets["tiny"] | {"augment": False}))
    context, target = (part.repeat(8, 1, 1, 1, 1) for part in (CONTEXT, TARGET))
    stage.prepare([(context, target)])
    optimizer = torch.optim.AdamW(stage.parameters(), lr=2e-3)
    losses = []
    for step in range(50):
        loss = stage.training_loss(context, target, step=step, total_steps=50)["denoising"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.1), "a fresh denoiser predicts 0 of noise of variance 1"
    assert sum(losses[-10:]) < 0.92 * sum(losses[:10])


def test_the_autoencoder_is_that_of_the_paper() -> None:
    shapes = ((7, 128, 128, 1), (6, 128, 128, 1))
    with torch.device("meta"):
        ours, theirs = (model.stages() for model in (LDM(*shapes), PreDiff(*shapes, latent_channels=4)))
    assert ours[0].name == theirs[0].name and type(ours[0].module) is type(theirs[0].module)
    assert ours[0].depends_on == theirs[0].depends_on
    assert ours[1].depends_on != theirs[1].depends_on and theirs[1].prepare is None


@pytest.mark.slow
def test_one_command_trains_on_the_autoencoder_of_prediff(storms: Path, tmp_path: Path) -> None:
    shared = [
        "task=sevir_lr", "task.t_in=3", "task.t_out=2", "task.stride=12", f"data.root={storms}", "data.batch_size=4",
        "limit=2", "model.latent_channels=4", "model.autoencoder_channels=[8,8,8]", "model.autoencoder_layers=1",
        "model.autoencoder_groups=4", "model.members=2", "model.sampler=dpm_solver++", "model.steps=2",
        "train.max_epochs=1", "train.limit=8", "train.loggers=[]", "progress=false", "picture=false", "device=cpu",
        "evaluate.members=2", f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}",
    ]  # fmt: skip
    own = {
        "prediff": ["model.base_units=8", "model.depth=[1]", "model.num_heads=2"],
        "ldm": ["model.channels=[32,64]", "model.layers=1"],
    }
    lines: list[str] = []
    for name, options in own.items():
        lines.clear()
        outcome = run(compose([*shared, *options, f"model={name}"]), training=True, say=lines.append)
        assert "crps" in outcome.record.scores
    assert sum("training had ended" in line for line in lines) == 1, "the autoencoder was trained for PreDiff"
    (whole,) = tmp_path.glob("work/sevir_lr/ldm/*/checkpoints/last.ckpt")
    scale = torch.load(whole, weights_only=True)["state_dict"]["diffusion.scale_factor"]
    assert 0 < float(scale) < float("inf")
