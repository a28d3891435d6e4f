"""PreDiff as a registered model: members, control, and refused arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from bench.engine.ensembles import Ensemble, draw_members
from earthformer.prediff.aligned_model import PreDiffKA
from earthformer.prediff.alignment import Guidance
from earthformer.prediff.autoencoder import make_autoencoder
from earthformer.prediff.constraints import Control
from earthformer.prediff.diffusion import NoiseSchedule
from earthformer.prediff.losses import AdversarialLoss, PatchDiscriminator
from earthformer.prediff.model import PreDiff
from earthformer.prediff.noise import members_of
from earthformer.prediff.stages import AutoencoderStage, random_symmetry, random_turn

SHAPES = ((4, 8, 8, 1), (3, 8, 8, 1))
CONTEXT = torch.rand(2, 4, 8, 8, 1, generator=torch.Generator().manual_seed(3))


def make(model: type[PreDiff] = PreDiff, **changes: Any) -> PreDiff:
    torch.manual_seed(0)
    made = model(*SHAPES, **(model.presets["tiny"] | {"depth": [1]} | changes))
    nn.init.normal_(made.diffusion.denoiser.final_proj.weight, std=0.1)  # a fresh denoiser sees no noise at all
    return made.eval()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Members


def test_members_are_independent_and_reproducible() -> None:
    model = make()
    members = model.sample(CONTEXT, members=3, generator=seeded(1))
    assert members.shape == (3, 2, 3, 8, 8, 1)
    assert not torch.allclose(members[0], members[1], atol=1e-3)
    assert torch.equal(members, model.sample(CONTEXT, members=3, generator=seeded(1)))
    assert not torch.equal(members, model.sample(CONTEXT, members=3, generator=seeded(2)))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver++"])
def test_a_member_does_not_depend_on_other_members_or_the_batch(sampler: str) -> None:
    model = make(sampler=sampler, steps=4, eta=0.5)
    members = model.sample(CONTEXT, members=3, generator=seeded(1))
    fewer = model.sample(CONTEXT[1:], members=2, generator=seeded(1))
    torch.testing.assert_close(fewer, members[:2, 1:], atol=1e-5, rtol=1e-5)


def test_a_forecast_is_the_mean_of_the_members_without_a_generator() -> None:
    model = make(members=3, seed=11)
    torch.testing.assert_close(model(CONTEXT), model.sample(CONTEXT, members=3).mean(dim=0))


def test_sampling_preserves_mode_and_random_state() -> None:
    model = make()
    model.train()
    model.autoencoder.eval()
    before = torch.get_rng_state()
    model(CONTEXT)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.diffusion.training and not model.autoencoder.training


def test_the_context_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make(steps=3), []
    encode = model.autoencoder.to_latents
    monkeypatch.setattr(model.autoencoder, "to_latents", lambda frames: seen.append(len(frames)) or encode(frames))
    model.sample(CONTEXT, members=5)
    assert seen == [2]


VARIANTS: dict[str, tuple[type[PreDiff], dict[str, Any]]] = {
    "ancestral": (PreDiff, {"sampler": "ddpm", "steps": 5}),
    "multi-step": (PreDiff, {"steps": 5}),
    "own control": (PreDiffKA, {"steps": 3, "control": (-0.5, 0.5)}),
    "one norm": (PreDiffKA, {"steps": 3, "control": (-0.5, 0.5), "guide_norm": "batch"}),
    "of the context": (PreDiffKA, {"steps": 3, "constraint": "energy", "control": None, "guide_scale": 5.0}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_equals_its_sequences_alone(name: str) -> None:
    """5 sequences with 3 members in parts of at most 4 rows, against one sequence at a time."""
    kind, options = VARIANTS[name]
    model = make(kind, **options)
    torch.manual_seed(1)
    contexts, indices, shape = torch.rand(5, *SHAPES[0]), torch.tensor([4, 0, 9, 2, 7]), SHAPES[1]
    together = draw_members(model, contexts, indices, Ensemble(3, seed=6), shape)
    assert together.shape == (3, 5, *shape) and float(together.std(dim=0).mean()) > 1e-3
    alone = [draw_members(model, contexts[i : i + 1], indices[i : i + 1], Ensemble(3, seed=6), shape) for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=2e-5, rtol=1e-5)
    model._rows_that_fit = 4
    torch.testing.assert_close(
        draw_members(model, contexts, indices, Ensemble(3, seed=6), shape), together, atol=2e-5, rtol=1e-5
    )
    if options.get("guide_norm") != "batch":
        fewer = draw_members(model, contexts[2:3], indices[2:3], Ensemble(2, seed=6), shape)
        torch.testing.assert_close(fewer, together[:2, 2:3], atol=2e-5, rtol=1e-5)


def test_a_batch_too_large_for_memory_is_halved_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = make(), []
    expected = model.sample(CONTEXT, members=5)
    predict = model.diffusion.predicted_noise

    def of_little_memory(noised: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        sizes.append(len(noised))
        if len(noised) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(noised, t, cond)

    monkeypatch.setattr(model.diffusion, "predicted_noise", of_little_memory)
    torch.testing.assert_close(model.sample(CONTEXT, members=5), expected, atol=1e-5, rtol=1e-5)
    assert sizes[0] == 10 and set(sizes[1:]) <= {5, 3, 2, 1} and model._rows_that_fit in (2, 3)
    sizes.clear()
    model.sample(CONTEXT, members=5)
    assert max(sizes) <= 3
    monkeypatch.setattr(model.diffusion, "predicted_noise", lambda *_: of_little_memory(*[torch.zeros(4)] * 3))
    with pytest.raises(torch.OutOfMemoryError):
        model.sample(CONTEXT, members=2)


class _Waits(TorchDispatchMode):
    """Counts operations that would wait for a device: values read on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize("name", VARIANTS)
def test_no_step_waits_for_the_device(name: str) -> None:
    kind, options = VARIANTS[name]
    waits = []
    for steps in (4, 14):
        model = make(kind, **options | {"steps": steps})
        with _Waits() as seen:
            model.sample(CONTEXT, members=2, seeds=torch.tensor([1, 2]))
        waits.append(seen.count)
    assert waits[0] == waits[1]


def test_noise_tables_follow_the_device_and_are_not_saved() -> None:
    model = make()
    assert not [name for name in model.state_dict() if "schedule" in name]
    assert model.to("meta").schedule.at("betas", torch.zeros(2, dtype=torch.long, device="meta"), CONTEXT).is_meta


def test_the_denoiser_compiles_to_one_graph() -> None:
    model, counter = make(steps=3), CompileCounter()
    expected = model.sample(CONTEXT, members=6)
    model.compile(backend=counter, dynamic=False)
    torch.testing.assert_close(model.sample(CONTEXT, members=6), expected, atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


def test_a_small_draw_does_not_limit_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = make(), []
    predict = model.diffusion.predicted_noise
    monkeypatch.setattr(
        model.diffusion, "predicted_noise", lambda *given: sizes.append(len(given[0])) or predict(*given)
    )
    model.sample(CONTEXT[:1], members=1)
    model.sample(CONTEXT, members=5)
    assert sizes == [1, 1, 10, 10]


def test_only_the_networks_run_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 noise levels are 1000 distinct values, not the 400 that bfloat16 can represent."""
    model, seen = make(PreDiffKA, steps=3, timesteps=1000), []
    add, guided = model.schedule.add_noise, Guidance.noise_shift

    def noted(latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        seen.extend((latents.dtype, noise.dtype, add(latents, noise, t).dtype))
        return add(latents, noise, t)

    def shifted(self: Guidance, noised: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
        seen.extend((noised.dtype, guided(self, noised, t, schedule).dtype))
        return guided(self, noised, t, schedule)

    monkeypatch.setattr(model.schedule, "add_noise", noted)
    monkeypatch.setattr(Guidance, "noise_shift", shifted)
    target = torch.rand(2, *SHAPES[1])
    with torch.autocast("cpu", torch.bfloat16):
        for stage in model.stages():
            for loss in stage.module.training_loss(CONTEXT, target, step=0, total_steps=2).values():
                seen.append(loss.dtype)
            seen.append(stage.module.validation_loss(CONTEXT, target).dtype)
        seen.append(model.sample(CONTEXT, members=2).dtype)
        levels = model.schedule.at("sqrt_alphas_cumprod", torch.arange(1000), CONTEXT.bfloat16())
    assert set(seen) == {torch.float32} and len(seen) > 15
    assert len(levels.unique()) == 1000


def test_mixed_precision_stays_close() -> None:
    exact, mixed = make(steps=3), make(steps=3, bfloat16=True)
    torch.testing.assert_close(mixed(CONTEXT), exact(CONTEXT), atol=0.05, rtol=0.05)


# Control


def test_control_values_are_drawn_and_given() -> None:
    model = make(PreDiffKA, control=(-2.0, 2.0), control_as="sigmas")
    model.alignment.fit([torch.tensor([0.1, 0.3]).view(2, 1, 1).expand(2, 3, 1)])
    drawn = model._targets(torch.zeros(2, 4, 2, 2, 4), members_of(torch.tensor([1, 2]), 20), None)
    assert drawn is not None and drawn.shape == (40, 1) and len(set(drawn.flatten().tolist())) == 40
    low, high = (float(end) for end in ((drawn - 0.2) / 0.1).aminmax())  # mean 0.2, standard deviation 0.1
    assert -2 <= low < -1.5 and 1.5 < high <= 2
    steered = Control(sigmas=torch.tensor([1.0, -1.0]))
    assert model._targets(
        torch.zeros(2, 4, 2, 2, 4), members_of(torch.tensor([1, 2]), 2), steered
    ).flatten().tolist() == (pytest.approx([0.3, 0.3, 0.1, 0.1]))
    by_number = model.sample(CONTEXT, members=1, control=1)
    assert torch.equal(by_number, model.sample(CONTEXT, members=1, control=Control(sigmas=1.0)))
    assert torch.equal(by_number, model.sample(CONTEXT, members=1, control=Control(value=0.3)))


def test_energy_follows_the_context() -> None:
    model = make(PreDiffKA, constraint="energy", control=None)
    assert model.sample(CONTEXT, members=1).shape == (1, 2, 3, 8, 8, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make().sample(CONTEXT, members=0), "members: expected at least 1, found 0"),
        (lambda: make(members=0), "members: expected at least 1, found 0"),
        (lambda: make().sample(CONTEXT, members=1, seeds=torch.tensor([1])), r"seeds: expected int64 \(2,\).*\(1,\)"),
        (lambda: make().sample(CONTEXT, members=1, seeds=torch.rand(2)), r"seeds: expected int64 .* torch.float32"),
        (lambda: make().sample(CONTEXT, members=1, generator=seeded(1), seeds=torch.tensor([1, 2])), "found both"),
        (lambda: make()(CONTEXT[:, :3]), r"\(4, 8, 8, 1\) behind B, found \(2, 3, 8, 8, 1\)"),
        (lambda: make().sample(CONTEXT, members=1, control=2.0), "use prediff_ka"),
        (lambda: make(steps=2000), "at most timesteps = 1000"),
        (lambda: make(autoencoder_channels=[8] * 5), "multiples of 16"),
        (lambda: make(PreDiffKA, control=None), "expects a number or a range"),
        (lambda: make(PreDiffKA, control=[1.0]), "two that span a range"),
        (lambda: make(PreDiffKA, control_as="percent"), "sigmas, times or value"),
        (lambda: make(PreDiffKA, guide_norm="max"), "guide_norm"),
        (lambda: make(PreDiffKA, constraint="rain"), "expected one of energy, mean_intensity"),
        (lambda: make(PreDiffKA).sample(CONTEXT, members=1, control=1.0), "train the alignment stage"),
        (lambda: make(PreDiffKA, guide_scale=1e38)(CONTEXT), "lower guide_scale"),
    ],
)
def test_invalid_arguments_are_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# The autoencoder's training


def test_autoencoder_losses_follow_the_specification() -> None:
    torch.manual_seed(1)
    autoencoder = make_autoencoder(latent_channels=2, block_out_channels=(8, 8), norm_num_groups=4)
    stage = AutoencoderStage(autoencoder, AdversarialLoss(discriminator_from=3), augment=False)
    context, target = torch.rand(2, 3, 32, 32, 1), torch.rand(2, 2, 32, 32, 1)
    torch.manual_seed(5)
    before = stage.training_loss(context, target, step=2, total_steps=10)
    torch.manual_seed(5)
    losses = stage.training_loss(context, target, step=3, total_steps=10)
    assert set(before) == {"reconstruction", "divergence"}

    torch.manual_seed(5)
    image = torch.cat([context, target], dim=1).reshape(10, 1, 32, 32)
    posterior = autoencoder.encode(image).latent_dist
    mean, logvar = posterior.mean, posterior.logvar
    made = autoencoder.decode(mean + torch.exp(logvar / 2) * torch.randn(mean.shape)).sample
    nll = (image - made).abs().sum() / 10
    kl = (0.5 * (mean**2 + logvar.exp() - 1 - logvar)).sum() / 10
    deception = -stage.discriminator(made).mean()
    last = autoencoder.decoder.conv_out.weight
    pulls = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, deception)]
    weight = 0.5 * (pulls[0] / (pulls[1] + 1e-4)).clamp(0, 1e4)
    hinge = 0.5 * (
        torch.relu(1 - stage.discriminator(image)).mean() + torch.relu(1 + stage.discriminator(made.detach())).mean()
    )
    for name, expected in {
        "reconstruction": nll, "divergence": 1e-6 * kl, "deception": weight * deception, "discrimination": hinge,
    }.items():  # fmt: skip
        torch.testing.assert_close(losses[name], expected, rtol=1e-4, atol=1e-6, msg=name)

    parts = {name: list(part.parameters()) for name, part in stage.named_children() if name != "loss"}
    for name, idle in (("discrimination", "autoencoder"), ("deception", "discriminator")):
        reached = torch.autograd.grad(losses[name], parts[idle], allow_unused=True, retain_graph=True)
        assert all(gradient is None for gradient in reached), f"{name} must not train the {idle}"


def test_the_discriminator_has_its_published_size() -> None:
    discriminator = PatchDiscriminator()
    assert round(sum(p.numel() for p in discriminator.parameters()) / 1e6, 2) == 2.76
    assert discriminator(torch.zeros(2, 1, 128, 128)).shape == (2, 1, 14, 14)
    convolutions = [layer for layer in discriminator.main if isinstance(layer, nn.Conv2d)]
    assert [layer.bias is not None for layer in convolutions] == [True, False, False, False, True]


def test_augmentation_turns_whole_sequences() -> None:
    torch.manual_seed(0)
    sequence = torch.rand(1, 2, 4, 4, 1)
    symmetries = {
        tuple(part.rot90(turns, (1, 2)).flatten().tolist())
        for part in (sequence[0], sequence[0].flip(1))
        for turns in range(4)
    }
    seen = {tuple(random_symmetry(sequence).flatten().tolist()) for _ in range(200)}
    assert seen == symmetries
    assert random_symmetry(torch.rand(3, 2, 4, 6, 1)).shape == (3, 2, 4, 6, 1)


def test_frames_are_rotated_without_stretching() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(24) - 11.5, torch.arange(48) - 23.5, indexing="ij")
    disc = ((rows**2 + columns**2) < 64).float().expand(8, 1, 24, 48)
    assert float((random_turn(disc) - disc).abs().mean()) < 0.02, "a disc in the middle stays what it is"
    turned = random_turn(torch.ones(8, 1, 24, 48))
    assert set(turned.unique().tolist()) == {0.0, 1.0}
