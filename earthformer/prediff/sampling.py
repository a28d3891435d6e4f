"""From noise to latents: diffusers' schedulers with double-precision tables, with or without guidance.

Source: Ho et al. 2020 (``ddpm``, the authors' sampler at 1000 steps), Song et al. 2021 (``ddim``), Lu et al. 2022
(``dpm_solver++``, second order, multi-step).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

try:
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
except ImportError as error:
    raise ImportError("PreDiff needs diffusers: pip install 'earthbench[prediff]'") from error

from earthformer.prediff.schedule import NoiseSchedule

SAMPLERS = ("ddpm", "ddim", "dpm_solver++")
_SEED_BITS = 63
# An odd constant with well mixed bits, so that neighbouring seeds land far apart.
_MIX = 0x9E3779B97F4A7C15

Denoise = Callable[[Tensor, Tensor], Tensor]
"""From noised latents (N, T, h, w, C) and steps (N,) to the noise in them."""


class DivergedError(ValueError, FloatingPointError):
    """Sampling left the numbers: not-a-number or infinite latents."""


class Guide(Protocol):
    """What shifts the predicted noise at every step."""

    def noise_shift(self, noised: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Return what is to be added to the predicted noise (N, T, h, w, C)."""
        ...


@dataclass(frozen=True)
class Sampler:
    """Which solver, and how many steps it takes.

    Attributes:
        name: ``ddpm``, ``ddim`` or ``dpm_solver++``.
        steps: from 1 to the schedule's number; fewer are spaced evenly from the last one down ("trailing").
        eta: noise of ``ddim``: 0 is deterministic, 1 is as much as ``ddpm`` adds.
    """

    name: str = "ddpm"
    steps: int = 1000
    eta: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: unknown name, or a number out of range.
        """
        if self.name not in SAMPLERS:
            raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, found {self.name!r}")
        if self.steps < 1 or not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"sampler: expected steps >= 1 and eta in 0..1, found {self.steps} and {self.eta}")


def make_scheduler(sampler: Sampler, schedule: NoiseSchedule) -> Any:
    """Return diffusers' scheduler for a sampler, with this schedule's tables in double precision and its steps set.

    Its own tables are single precision, and cancel in the last steps.

    Raises:
        ValueError: more steps than the schedule has.
    """
    if sampler.steps > schedule.timesteps:
        raise ValueError(f"sampler: expected at most {schedule.timesteps} steps, found {sampler.steps}")
    common: dict[str, Any] = {
        "num_train_timesteps": schedule.timesteps,
        "trained_betas": schedule.betas.tolist(),
        "timestep_spacing": "trailing",
        "prediction_type": "epsilon",
    }
    made: Any
    if sampler.name == "ddpm":
        made = DDPMScheduler(**common, variance_type="fixed_small", clip_sample=False)
    elif sampler.name == "ddim":
        made = DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True)
    else:
        made = DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)
    for name in ("betas", "alphas", "alphas_cumprod"):
        setattr(made, name, schedule.tables[name])
    if sampler.name == "ddpm":
        made.one = schedule.betas.new_ones(())
    made.set_timesteps(sampler.steps)
    return made


def sample_latents(
    denoise: Denoise,
    shape: tuple[int, ...],
    *,
    sampler: Sampler,
    schedule: NoiseSchedule,
    generators: list[torch.Generator],
    device: torch.device | str = "cpu",
    guide: Guide | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Return latents (N, T, h, w, C) drawn by a sampler.

    Args:
        denoise: predicts the noise; see `Denoise`.
        shape: N, T, h, w, C.
        sampler: solver and number of steps.
        schedule: of the noise.
        generators: one for each of N, so that a sequence does not depend on what it is batched with.
        device: of the result; the draws come from the generators' device.
        guide: shifts the predicted noise.
        advance: called with (done, total) after every step.

    Raises:
        DivergedError: latents that are not finite, with the step at which they appeared.
        ValueError: another number of generators than of sequences, or more steps than the schedule has.
    """
    if len(generators) != shape[0] or not generators:
        raise ValueError(f"generators: expected one for each of {shape[0]} sequences (>= 1), found {len(generators)}")
    scheduler = make_scheduler(sampler, schedule)
    extra: dict[str, Any] = {"eta": sampler.eta} if sampler.name == "ddim" else {}
    latents = draw_normal(shape, generators, device)
    for done, step in enumerate(scheduler.timesteps.tolist(), start=1):
        t = torch.full((shape[0],), step, dtype=torch.long, device=latents.device)
        noise = denoise(latents, t).float()
        if guide is not None:
            noise = noise + guide.noise_shift(latents, t, schedule)
        latents = scheduler.step(noise, step, latents, generator=generators, **extra).prev_sample
        if not latents.is_meta and not bool(torch.isfinite(latents).all()):
            cause = "the guidance is too strong: lower guide_scale" if guide else "the denoiser's output is not finite"
            raise DivergedError(f"sampling diverged at diffusion step {step} ({done} of {sampler.steps}): {cause}")
        if advance:
            advance(done, sampler.steps)
    return latents


def draw_normal(shape: tuple[int, ...], generators: Iterable[torch.Generator], device: torch.device | str) -> Tensor:
    """Return standard normal numbers `shape` (N, ...), each row from its own generator."""
    rows = [torch.randn(shape[1:], generator=generator, device=generator.device) for generator in generators]
    return torch.stack(rows).to(device)


def content_seed(row: Tensor, seed: int = 0) -> int:
    """Return a seed that follows from a tensor's values and another seed, wherever the tensor stands in a batch."""
    content = 0 if row.is_meta else zlib.crc32(row.detach().float().cpu().numpy().tobytes())
    mixed = (content * _MIX + seed * (_MIX >> 1 | 1) + 1) & ((1 << 64) - 1)
    return (mixed ^ mixed >> 29) & ((1 << _SEED_BITS) - 1)


def row_generators(context: Tensor, seeds: Iterable[int]) -> list[torch.Generator]:
    """Return a generator for every seed and row of `context` (B, ...), seeds first: members before the batch."""
    return [torch.Generator().manual_seed(content_seed(row, seed)) for seed in seeds for row in context]
