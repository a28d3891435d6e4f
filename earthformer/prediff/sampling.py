"""Sampling of latents from noise, with or without guidance, for many rows at once and without synchronising.

`in_parts` draws as many rows at once as fit into the device's memory.

Source: Ho et al. 2020 (``ddpm``, the authors' sampler at 1000 steps), Song et al. 2021 (``ddim``), Lu et al. 2022
(``dpm_solver++``, second order, multi-step, by diffusers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from earthformer.prediff.diffusion import NoiseSchedule
from earthformer.prediff.noise import RowNoise

SAMPLERS = ("ddpm", "ddim", "dpm_solver++")
# Steps between two checks that the latents are finite; each check waits for the device.
_LOOK_EVERY = 50

Denoise = Callable[[Tensor, Tensor], Tensor]
"""Function from noised latents (N, T, h, w, C) and steps (N,) to the noise in them."""


class DivergedError(ValueError, FloatingPointError):
    """Sampling diverged: NaN or infinite latents."""


class Guide(Protocol):
    """Shifts the predicted noise at every step."""

    def noise_shift(self, noised: Tensor, t: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Returns the shift to add to the predicted noise (N, T, h, w, C)."""
        ...


@dataclass(frozen=True)
class Sampler:
    """The solver and its number of steps.

    Attributes:
        name: ``ddpm``, ``ddim`` or ``dpm_solver++``.
        steps: from 1 to the schedule's number of steps; fewer are spaced evenly from the last down ("trailing").
        eta: noise of ``ddim``: 0 is deterministic, 1 is as much as ``ddpm`` adds.
    """

    name: str = "ddpm"
    steps: int = 1000
    eta: float = 0.0

    def __post_init__(self) -> None:
        """Checks the settings.

        Raises:
            ValueError: unknown name, or a number out of range.
        """
        if self.name not in SAMPLERS:
            raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, found {self.name!r}")
        if self.steps < 1 or not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"sampler: expected steps >= 1 and eta in 0..1, found {self.steps} and {self.eta}")


class Solver(Protocol):
    """Walks from one diffusion step to the next."""

    timesteps: list[int]
    """The diffusion steps that the denoiser is called at, from the last one down."""

    def step(self, index: int, latents: Tensor, noise: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        """Returns the latents after step `timesteps[index]`, given the noise in them and a source of fresh noise."""
        ...


def make_solver(sampler: Sampler, schedule: NoiseSchedule) -> Solver:
    """Returns the solver of a sampler on a schedule.

    Raises:
        ValueError: more steps than the schedule has.
    """
    if sampler.steps > schedule.timesteps:
        raise ValueError(f"sampler: expected at most {schedule.timesteps} steps, found {sampler.steps}")
    if sampler.name == "dpm_solver++":
        return _MultiStep(sampler.steps, schedule)
    return _OneStep(sampler.steps, schedule, eta=1.0 if sampler.name == "ddpm" else sampler.eta)


class _OneStep:
    """DDIM, which is DDPM at eta = 1: each step is linear in latents, noise and fresh noise (Song et al., eq. 12).

    We do not use diffusers here because it draws DDPM's noise itself. The factors are computed in double precision,
    because in single precision they cancel in the last steps.
    """

    def __init__(self, steps: int, schedule: NoiseSchedule, *, eta: float) -> None:
        spacing = schedule.timesteps / steps
        self.timesteps = [round(schedule.timesteps - place * spacing) - 1 for place in range(steps)]
        kept = schedule.tables["alphas_cumprod"]
        now = kept[self.timesteps]
        then = torch.cat((now[1:], now.new_ones(1)))
        variance = eta**2 * (1 - then) / (1 - now) * (1 - now / then)
        of_noise = (1 - then - variance).clamp(min=0).sqrt() - ((1 - now) * then / now).sqrt()
        self.factors: list[tuple[float, float, float]] = list(
            zip((then / now).sqrt().tolist(), of_noise.tolist(), variance.sqrt().tolist(), strict=True)
        )

    def step(self, index: int, latents: Tensor, noise: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        of_latents, of_noise, of_draw = self.factors[index]
        latents = (latents * of_latents).add_(noise, alpha=of_noise)
        return latents.add_(draw(), alpha=of_draw) if of_draw else latents


class _MultiStep:
    """diffusers' DPM-Solver++ with this schedule's tables in double precision."""

    def __init__(self, steps: int, schedule: NoiseSchedule) -> None:
        made: Any = DPMSolverMultistepScheduler(
            num_train_timesteps=schedule.timesteps,
            trained_betas=schedule.betas.tolist(),
            timestep_spacing="trailing",
            prediction_type="epsilon",
            algorithm_type="dpmsolver++",
            solver_order=2,
        )
        for name in ("betas", "alphas", "alphas_cumprod"):
            setattr(made, name, schedule.tables[name])
        made.set_timesteps(steps)
        self.scheduler = made
        self.timesteps: list[int] = made.timesteps.tolist()

    def step(self, index: int, latents: Tensor, noise: Tensor, draw: Callable[[], Tensor]) -> Tensor:
        following: Tensor = self.scheduler.step(noise, self.timesteps[index], latents).prev_sample
        return following


def sample_latents(
    denoise: Denoise,
    shape: tuple[int, ...],
    *,
    sampler: Sampler,
    schedule: NoiseSchedule,
    noise: RowNoise,
    guide: Guide | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Returns latents (N, T, h, w, C) drawn by a sampler, float32, on the device of the seeds in `noise`.

    Args:
        denoise: predicts the noise; see `Denoise`.
        shape: T, h, w, C.
        sampler: solver and number of steps.
        schedule: noise schedule.
        noise: random numbers of the N rows; a row does not depend on its batch.
        guide: shifts the predicted noise.
        advance: called with (done, total) after every step.

    Raises:
        DivergedError: latents that are not finite, with the step at which they appeared.
        ValueError: no rows, or more steps than the schedule has.
    """
    rows, device = len(noise), noise.seeds.device
    if not rows:
        raise ValueError("noise: expected at least 1 row, found 0")
    solver = make_solver(sampler, schedule)
    latents = noise.normal(shape, 0)
    # NaN or infinite from the first step at which a latent is.
    sums = torch.zeros(sampler.steps, device=device)
    for index, step in enumerate(solver.timesteps):
        t = torch.full((rows,), step, dtype=torch.long, device=device)
        seen = denoise(latents, t).float()
        if guide is not None:
            seen = seen + guide.noise_shift(latents, t, schedule)
        latents = solver.step(index, latents, seen, lambda draw=index + 1: noise.normal(shape, draw))  # type: ignore[misc]
        sums[index] = latents.sum()
        if (index + 1) % _LOOK_EVERY == 0 or index + 1 == sampler.steps:
            _check_finite(sums[: index + 1], solver, guided=guide is not None)
        if advance:
            advance(index + 1, sampler.steps)
    return latents


def _check_finite(sums: Tensor, solver: Solver, *, guided: bool) -> None:
    if sums.is_meta or not (diverged := (~torch.isfinite(sums)).nonzero().flatten().tolist()):
        return
    first = diverged[0]
    cause = "the guidance is too strong: lower guide_scale" if guided else "the denoiser's output is not finite"
    step, steps = solver.timesteps[first], len(solver.timesteps)
    raise DivergedError(f"sampling diverged at diffusion step {step} ({first + 1} of {steps}): {cause}")


def in_parts(
    compute: Callable[[slice], Tensor], total: int, most: int, *, divisible: bool = True
) -> tuple[Tensor, int]:
    """Returns the results of `compute` for rows 0 to `total`, in few equal parts, and how many rows fit at a time.

    Args:
        compute: function from some rows to their results (N, ...).
        total: number of rows.
        most: most rows of a part; if they do not fit into the device's memory, half of them are tried.
        divisible: whether parts may be smaller than `most`.

    Raises:
        torch.OutOfMemoryError: not even the smallest part fits.
    """
    done: list[Tensor] = []
    start, size = 0, _even(total, most) if divisible else most
    fitting = most
    while start < total:
        try:
            done.append(compute(slice(start, min(start + size, total))))
        except torch.OutOfMemoryError:
            if size == 1 or not divisible:
                raise
            fitting = size // 2
            size = _even(total - start, fitting)
            continue
        start += size
    return torch.cat(done), fitting


def _even(total: int, most: int) -> int:
    """Returns the size of the fewest possible parts, equal but for the last, so a compiled network sees few sizes."""
    return -(-total // -(-total // most))
