"""Schedule, objective, samplers and guidance against formulas in double precision, and refused arguments."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from prediff_models import SHAPE, small_alignment, small_denoiser
from torch import Tensor

from earthformer.prediff.alignment import Guidance
from earthformer.prediff.constraints import Control, make_constraint
from earthformer.prediff.diffusion import LatentDiffusion, NoiseSchedule, make_betas
from earthformer.prediff.noise import RowNoise, members_of
from earthformer.prediff.sampling import DivergedError, Sampler, make_solver, sample_latents


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(make_betas())


def rows(*seeds: int) -> RowNoise:
    return members_of(torch.tensor(seeds), 1)


# Schedule


def test_every_table_follows_the_specification(oracle: ModuleType, schedule: NoiseSchedule) -> None:
    for name, table in oracle.tables().items():
        torch.testing.assert_close(schedule.tables[name], torch.from_numpy(table), rtol=1e-6, atol=1e-9, msg=name)
    assert float(schedule.tables["alphas_cumprod"][-1]) == pytest.approx(7.334e-4, rel=1e-3)
    assert float(schedule.tables["posterior_variance"].sqrt().sum()) == pytest.approx(75.6, abs=0.1)
    assert float(schedule.tables["posterior_variance"].sum()) == pytest.approx(7.16, abs=0.01)


@pytest.mark.parametrize(
    ("name", "beta"),
    [
        ("linear", lambda i: (math.sqrt(0.01) + (math.sqrt(0.04) - math.sqrt(0.01)) * i / 9) ** 2),
        ("sqrt_linear", lambda i: 0.01 + 0.03 * i / 9),
        ("sqrt", lambda i: math.sqrt(0.01 + 0.03 * i / 9)),
        ("cosine", lambda i: min(0.999, 1 - _cosine((i + 1) / 10) / _cosine(i / 10))),
    ],
)
def test_named_schedules(name: str, beta) -> None:
    found = make_betas(name, timesteps=10, linear_start=0.01, linear_end=0.04)
    torch.testing.assert_close(found, torch.tensor([beta(i) for i in range(10)], dtype=torch.float64))


def _cosine(place: float) -> float:
    return math.cos((place + 0.008) / 1.008 * math.pi / 2) ** 2


def test_noise_is_added_and_recovered(schedule: NoiseSchedule) -> None:
    latents, noise, t = torch.randn(4, *SHAPE), torch.randn(4, *SHAPE), torch.tensor([0, 10, 500, 999])
    noised = schedule.add_noise(latents, noise, t)
    kept = float(schedule.tables["alphas_cumprod"][500])
    torch.testing.assert_close(noised[2], kept**0.5 * latents[2] + (1 - kept) ** 0.5 * noise[2])
    torch.testing.assert_close(schedule.without_noise(noised, noise, t), latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(schedule.noise_in(noised, latents, t), noise, atol=1e-4, rtol=1e-3)


# Objective


@pytest.mark.parametrize("parameterization", ["eps", "x0"])
def test_the_loss_is_weighted_by_the_variance_of_each_step(
    randomise, schedule: NoiseSchedule, parameterization: str
) -> None:
    diffusion = LatentDiffusion(randomise(small_denoiser()), schedule, parameterization=parameterization)
    with torch.no_grad():
        diffusion.logvar[7], diffusion.logvar[900] = 0.5, -1.0
        latents, noise, cond = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE), torch.randn(2, 3, *SHAPE[1:])
        t = torch.tensor([7, 900])
        weighted, simple = diffusion.losses(latents, cond, t, noise)
        predicted = diffusion.denoiser(schedule.add_noise(latents, noise, t), t, cond)
    wanted = noise if parameterization == "eps" else latents
    each = (wanted - predicted).square().mean(dim=(1, 2, 3, 4))
    assert float(simple) == pytest.approx(float(each.mean()), rel=1e-5)
    expected = (each[0] / math.exp(0.5) + 0.5 + each[1] / math.exp(-1.0) - 1.0) / 2
    assert float(weighted) == pytest.approx(float(expected), rel=1e-5)


def test_the_log_variance_is_trained_only_on_request(schedule: NoiseSchedule) -> None:
    assert "logvar" in dict(LatentDiffusion(small_denoiser(), schedule).named_parameters())
    fixed = LatentDiffusion(small_denoiser(), schedule, learn_logvar=False, logvar_init=0.3)
    assert "logvar" not in dict(fixed.named_parameters()) and float(fixed.logvar[5]) == pytest.approx(0.3)


def test_predicted_latents_imply_the_noise(randomise, schedule: NoiseSchedule) -> None:
    diffusion = LatentDiffusion(randomise(small_denoiser()), schedule, parameterization="x0")
    noised, cond, t = torch.randn(1, *SHAPE), torch.randn(1, 3, *SHAPE[1:]), torch.tensor([400])
    with torch.no_grad():
        noise = diffusion.predicted_noise(noised, t, cond)
        torch.testing.assert_close(
            schedule.without_noise(noised, noise, t), diffusion.denoiser(noised, t, cond), atol=1e-4, rtol=1e-4
        )


# Samplers


@pytest.mark.parametrize("t", [999, 500, 20, 2, 1, 0])
def test_a_plain_ancestral_step_follows_the_specification(oracle: ModuleType, schedule: NoiseSchedule, t: int) -> None:
    z, eps = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    noise = torch.randn(2, *SHAPE)
    found = make_solver(Sampler("ddpm", 1000), schedule).step(999 - t, z, eps, lambda: noise)
    oracle.agree(found, oracle.ancestral_step(z, eps, t, noise))


@pytest.mark.parametrize("norm", ["sample", "batch"])
@pytest.mark.parametrize("scaling", ["sigma", "variance"])
@pytest.mark.parametrize("t", [900, 30, 1])
def test_a_guided_ancestral_step_follows_the_specification(
    oracle: ModuleType, randomise, schedule: NoiseSchedule, t: int, scaling: str, norm: str
) -> None:
    alignment = small_alignment()
    weights = randomise(alignment).network.state_dict()
    z, eps = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE)
    target = torch.tensor([[0.1], [0.9], [-0.4]])
    guidance = Guidance(alignment, target, scale=5.0, norm=norm, scaling=scaling)
    steps = torch.full((3,), t)

    probe = z.double().requires_grad_()
    distance = oracle.alignment(weights, probe, steps, heads=2).mean(dim=1) - target
    distance = distance.norm() if norm == "batch" else distance.norm(dim=1).sum()
    (gradient,) = torch.autograd.grad(distance, probe)
    variance = float(oracle.tables()["posterior_variance"][t])
    shift = -5.0 * (variance**0.5 if scaling == "sigma" else variance) * gradient

    with torch.inference_mode():  # as Lightning evaluates
        oracle.agree(guidance.mean_shift(z, steps, schedule).clone(), shift)
        guided = eps + guidance.noise_shift(z, steps, schedule)
        noise = torch.randn(3, *SHAPE)
        found = make_solver(Sampler(), schedule).step(999 - t, z, guided, lambda: noise)
    oracle.agree(found.clone(), oracle.ancestral_step(z, eps, t, noise, shift))


def test_guidance_is_independent_within_a_batch(randomise, schedule: NoiseSchedule) -> None:
    alignment = small_alignment()
    randomise(alignment)
    z, t, target = torch.randn(3, *SHAPE), torch.tensor([100, 100, 100]), torch.tensor([[0.1], [0.9], [-0.4]])
    alone = Guidance(alignment, target[:1]).gradient(z[:1], t[:1])
    torch.testing.assert_close(Guidance(alignment, target).gradient(z, t)[:1], alone)
    coupled = Guidance(alignment, target, norm="batch").gradient(z, t)[:1]
    assert not torch.allclose(coupled, alone, rtol=1e-2)
    torch.testing.assert_close(Guidance(alignment, target[:1], norm="batch").gradient(z[:1], t[:1]), alone)


def exact_noise(schedule: NoiseSchedule, mean: float, std: float):
    """Returns the prediction of the optimal denoiser if every latent is N(mean, std^2)."""

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        kept = schedule.at("alphas_cumprod", t, z)
        return (1 - kept).sqrt() * (z - kept.sqrt() * mean) / (kept * std**2 + 1 - kept)

    return denoise


@pytest.mark.parametrize(
    ("sampler", "std", "bias"),
    [
        (Sampler("ddpm", 1000), 0.3481, 0.004),
        (Sampler("ddpm", 50), 0.3194, 0.004),
        (Sampler("ddim", 50), 0.3345, 0.012),
        (Sampler("ddim", 20), 0.3131, 0.012),
        (Sampler("dpm_solver++", 20), 0.3425, 0.012),
        (Sampler("dpm_solver++", 50), 0.3487, 0.012),
    ],
    ids=lambda value: f"{value.name}-{value.steps}" if isinstance(value, Sampler) else "",
)
def test_samplers_draw_a_normal_distribution(
    schedule: NoiseSchedule, sampler: Sampler, std: float, bias: float
) -> None:
    """With the exact denoiser of N(0.7, 0.35^2); the figures are from the specification, for 2e5 draws."""
    drawn = sample_latents(
        exact_noise(schedule, 0.7, 0.35),
        (10_000,),
        sampler=sampler,
        schedule=schedule,
        noise=rows(1),
    )
    assert float(drawn.std()) == pytest.approx(std, abs=0.009)
    assert float(drawn.mean()) == pytest.approx(0.7, abs=bias + 0.009)


@pytest.mark.parametrize(
    ("sampler", "theirs", "options"),
    [
        (Sampler("ddpm", 1000), DDPMScheduler, {"variance_type": "fixed_small", "clip_sample": False}),
        (Sampler("ddpm", 50), DDPMScheduler, {"variance_type": "fixed_small", "clip_sample": False}),
        (Sampler("ddpm", 30), DDPMScheduler, {"variance_type": "fixed_small", "clip_sample": False}),
        (Sampler("ddim", 50, 0.0), DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}),
        (Sampler("ddim", 50, 0.7), DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}),
        (Sampler("dpm_solver++", 20), DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
    ],
    ids=lambda value: f"{value.name}-{value.steps}-{value.eta}" if isinstance(value, Sampler) else "",
)
def test_every_step_equals_that_of_diffusers(
    schedule: NoiseSchedule, sampler: Sampler, theirs: type, options: dict[str, Any]
) -> None:
    """diffusers with double-precision tables and latents; DDPM's noise, which diffusers draws, is added here."""
    peer = theirs(
        num_train_timesteps=1000, trained_betas=schedule.betas.tolist(), timestep_spacing="trailing", **options
    )
    for name in ("betas", "alphas", "alphas_cumprod"):
        setattr(peer, name, schedule.tables[name])
    peer.one = torch.ones((), dtype=torch.float64)
    peer.set_timesteps(sampler.steps)
    solver = make_solver(sampler, schedule)
    assert solver.timesteps == peer.timesteps.tolist() and solver.timesteps[0] == 999
    for index, t in enumerate(solver.timesteps):
        if sampler.steps > 100 and 20 < index < 980:
            continue
        z, eps, noise = torch.randn(3, 1, *SHAPE).double().unbind()
        if sampler.name == "ddpm":
            peer._get_variance = lambda t, predicted_variance=None: torch.zeros((), dtype=torch.float64)
            expected = peer.step(eps, t, z).prev_sample
            if t:
                expected = expected + theirs._get_variance(peer, t) ** 0.5 * noise
        elif sampler.name == "ddim":
            expected = peer.step(eps, t, z, eta=sampler.eta, variance_noise=noise).prev_sample
        else:
            expected = peer.step(eps, t, z).prev_sample
        found = solver.step(index, z.float(), eps.float(), lambda noise=noise: noise.float())
        torch.testing.assert_close(found.double(), expected.double(), atol=2e-5, rtol=1e-5)


def test_a_sequence_does_not_depend_on_its_batch(schedule: NoiseSchedule) -> None:
    options = {"sampler": Sampler("ddpm", 10), "schedule": schedule}
    denoise = exact_noise(schedule, 0.0, 1.0)
    noise = members_of(torch.tensor([8, 9, 3]), 2)
    together = sample_latents(denoise, (5,), noise=noise, **options)
    alone = sample_latents(denoise, (5,), noise=noise[3:4], **options)
    torch.testing.assert_close(together[3:4], alone)


@pytest.mark.parametrize("sampler", [Sampler("ddpm", 200), Sampler("ddim", 40), Sampler("dpm_solver++", 20)])
def test_guidance_moves_the_samples_of_every_solver(schedule: NoiseSchedule, sampler: Sampler) -> None:
    """With an exact denoiser and an exact estimate of the mean, the samples' mean follows the target."""
    alignment = small_alignment()
    kept = schedule.tables["alphas_cumprod"]
    alignment.network.forward = lambda z, t: z.mean(dim=(2, 3, 4)).unsqueeze(-1) * kept[t].sqrt().float()[:, None, None]
    means = []
    for target in (-0.5, 0.0, 0.5):
        guide = Guidance(alignment, torch.full((4, 1), target), scale=300.0, scaling="variance")
        options = {"schedule": schedule, "noise": rows(0, 1, 2, 3)}
        drawn = sample_latents(exact_noise(schedule, 0.0, 1.0), SHAPE, sampler=sampler, guide=guide, **options)
        means.append(float(drawn.mean()))
    assert means[0] < means[1] - 0.1 and means[1] + 0.1 < means[2], means


def test_progress_is_reported(schedule: NoiseSchedule) -> None:
    told: list[tuple[int, int]] = []
    sample_latents(
        exact_noise(schedule, 0.0, 1.0), (5,), sampler=Sampler("ddim", 3), schedule=schedule,
        noise=rows(0), advance=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_divergence_names_step_and_network(randomise, schedule: NoiseSchedule) -> None:
    options = {"sampler": Sampler("ddpm", 10), "schedule": schedule, "noise": rows(0)}
    with pytest.raises(DivergedError, match=r"diffusion step 999 \(1 of 10\): the denoiser"):
        sample_latents(lambda z, t: z * math.nan, SHAPE, **options)
    with pytest.raises(DivergedError, match=r"diffusion step 599 \(5 of 10\): the denoiser"):
        sample_latents(
            lambda z, t: z + torch.where(t == 599, math.inf, 0.0)[:, None, None, None, None], SHAPE, **options
        )
    seen: list[int] = []
    with pytest.raises(DivergedError, match=r"\(1 of 1000\)"):  # not only after all of them
        sample_latents(
            lambda z, t: z * (math.nan if not seen.append(1) else 0), SHAPE, **options | {"sampler": Sampler()}
        )
    assert len(seen) == 50
    guide = Guidance(randomise(small_alignment()), torch.zeros(1, 1), scale=1e38)
    with pytest.raises(DivergedError, match="lower guide_scale"):
        sample_latents(lambda z, t: z, SHAPE, guide=guide, **options)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Sampler("euler"), "expected one of ddpm, ddim, dpm_solver"),
        (lambda: Sampler(steps=0), "steps >= 1"),
        (lambda: make_solver(Sampler(steps=1001), NoiseSchedule(make_betas())), "at most 1000 steps, found 1001"),
        (lambda: make_betas("quadratic"), "expected one of linear, sqrt_linear"),
        (lambda: make_betas(linear_end=1.5), "0 < linear_start"),
        (lambda: make_betas(timesteps=0), "at least 1"),
        (lambda: NoiseSchedule(torch.tensor([0.1, 1.0])), "one number in"),
        (lambda: LatentDiffusion(small_denoiser(), NoiseSchedule(make_betas()), parameterization="v"), "eps, x0"),
        (lambda: sample_latents(lambda z, t: z, (5,), sampler=Sampler(), schedule=NoiseSchedule(make_betas()),
                                noise=rows()), "at least 1 row"),
        (lambda: Guidance(small_alignment(), torch.zeros(1, 1), norm="l1"), "guide_norm: expected one of"),
        (lambda: Guidance(small_alignment(), torch.zeros(1, 1), scaling="std"), "guide_scaling"),
        (lambda: Guidance(small_alignment(), torch.zeros(1, 1), scale=math.inf), "finite"),
        (lambda: make_constraint("humidity"), "expected one of energy, mean_intensity"),
        (lambda: Control(), "found none"),
        (lambda: Control(sigmas=1.0, value=2.0), "found sigmas, value"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
