"""Diffusion of latent sequences: the noise schedule and its tables, and the losses of a denoiser.

Source: PreDiff, section 3.2; Ho et al. 2020 (DDPM); Rombach et al. 2022 for the learned weight of each step's loss.
Names of the schedules are those of PreDiff's configs, where "linear" is linear in the square root of beta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from earthformer.prediff.losses import weighted_mean

PARAMETERIZATIONS = ("eps", "x0")
SCHEDULES = ("linear", "sqrt_linear", "sqrt", "cosine")
_LARGEST_BETA = 0.999
_SMALLEST_VARIANCE = 1e-20


def make_betas(
    name: str = "linear",
    *,
    timesteps: int = 1000,
    linear_start: float = 1e-4,
    linear_end: float = 2e-2,
    cosine_s: float = 8e-3,
) -> Tensor:
    """Returns the variances beta of a named schedule, float64 (timesteps,).

    Args:
        name: ``linear`` (in the square root of beta), ``sqrt_linear`` (in beta), ``sqrt`` (its root), ``cosine``.
        timesteps: number of diffusion steps.
        linear_start: first beta of the first three schedules.
        linear_end: last beta of these.
        cosine_s: offset of ``cosine``.

    Raises:
        ValueError: unknown name, or values outside (0, 1).
    """
    double: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    if timesteps < 1:
        raise ValueError(f"timesteps: expected at least 1, found {timesteps}")
    if name == "cosine":
        place = torch.arange(timesteps + 1, **double) / timesteps
        kept = torch.cos((place + cosine_s) / (1 + cosine_s) * math.pi / 2).square()
        return (1 - kept[1:] / kept[:-1]).clamp(0.0, _LARGEST_BETA)
    if not 0 < linear_start <= linear_end < 1:
        raise ValueError(f"beta: expected 0 < linear_start <= linear_end < 1, found {linear_start} and {linear_end}")
    if name == "linear":
        return torch.linspace(linear_start**0.5, linear_end**0.5, timesteps, **double).square()
    betas = torch.linspace(linear_start, linear_end, timesteps, **double)
    if name == "sqrt_linear":
        return betas
    if name == "sqrt":
        return betas.sqrt()
    raise ValueError(f"beta_schedule: expected one of {', '.join(SCHEDULES)}, found {name!r}")


class NoiseSchedule(nn.Module):
    """The tables of a schedule; `at` returns entries on the module's device without synchronising with it.

    Attributes:
        betas: variance added by each step, float64 (timesteps,) on the CPU.
        tables: all tables under the names of the authors' code, likewise.
    """

    def __init__(self, betas: Tensor) -> None:
        """Checks the variances and derives the tables.

        Raises:
            ValueError: the variances are not a list of numbers in (0, 1).
        """
        super().__init__()
        betas = betas.detach().double().cpu()
        if betas.dim() != 1 or not len(betas) or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas: expected one number in (0, 1) for each of one or more diffusion steps")
        kept = torch.cumprod(1 - betas, dim=0)
        before = torch.cat((kept.new_ones(1), kept[:-1]))
        variance = betas * (1 - before) / (1 - kept)
        self.betas = betas
        self.tables = {
            "betas": betas,
            "alphas": 1 - betas,
            "alphas_cumprod": kept,
            "alphas_cumprod_prev": before,
            "sqrt_alphas_cumprod": kept.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - kept).sqrt(),
            "sqrt_recip_alphas_cumprod": (1 / kept).sqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / kept - 1).sqrt(),
            "posterior_variance": variance,
            "posterior_log_variance_clipped": variance.clamp(min=_SMALLEST_VARIANCE).log(),
            "posterior_mean_coef1": betas * before.sqrt() / (1 - kept),
            "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - kept),
        }
        self._place = {name: place for place, name in enumerate(self.tables)}
        self._single: Tensor
        # Not part of the weights, as they follow from hyperparameters.
        single = torch.stack(list(self.tables.values())).float()
        self.register_buffer("_single", single.to(torch.get_default_device()), persistent=False)

    @property
    def timesteps(self) -> int:
        """Returns the number of diffusion steps."""
        return len(self.betas)

    def at(self, table: str, t: Tensor, like: Tensor) -> Tensor:
        """Returns entries `t` (B,) of a table, float32, shaped to multiply `like` (B, ...).

        In half precision, neighbouring noise levels would coincide.
        """
        return self._single[self._place[table]][t].view(-1, *([1] * (like.dim() - 1)))

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Returns latents (B, ...) noised to steps `t` (B,) with the given noise."""
        kept = self.at("sqrt_alphas_cumprod", t, latents)
        return kept * latents + self.at("sqrt_one_minus_alphas_cumprod", t, latents) * noise

    def without_noise(self, noised: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Returns the latents that become `noised` at steps `t` with this noise: the inverse of `add_noise`."""
        scaled = self.at("sqrt_recip_alphas_cumprod", t, noised) * noised
        return scaled - self.at("sqrt_recipm1_alphas_cumprod", t, noised) * noise

    def noise_in(self, noised: Tensor, latents: Tensor, t: Tensor) -> Tensor:
        """Returns the noise in `noised` at steps `t`, given the latents without noise."""
        scaled = self.at("sqrt_recip_alphas_cumprod", t, noised) * noised
        return (scaled - latents) / self.at("sqrt_recipm1_alphas_cumprod", t, noised)


class Denoiser(Protocol):
    """A module that predicts the noise in a latent sequence, or the sequence itself."""

    @property
    def shapes(self) -> Sequence[tuple[int, int, int, int]]:
        """T, H, W, C of each level's layers, finest first."""
        ...

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Returns the prediction (B, T_out, h, w, C).

        Args:
            x: noised target latents (B, T_out, h, w, C).
            t: diffusion steps (B,), integers from 0.
            cond: the context's latents (B, T_in, h, w, C).
        """
        ...


class LatentDiffusion(nn.Module):
    """A denoiser, its noise schedule and the learned log-variance of every step's loss.

    Attributes:
        denoiser: predicts the noise, or the latents themselves.
        logvar: (timesteps,), a parameter or, if it is not learned, a buffer.
        scale_factor: factor of latents before noise is added: a number, or a buffer that is NaN until it is measured.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        schedule: NoiseSchedule,
        *,
        parameterization: str = "eps",
        learn_logvar: bool = True,
        logvar_init: float = 0.0,
        scale_factor: float | None = 1.0,
        scale_context: bool = False,
    ) -> None:
        """Combines denoiser and schedule.

        Args:
            denoiser: called with noised latents, steps and the context's latents.
            schedule: noise schedule.
            parameterization: ``eps`` if the denoiser predicts the noise, ``x0`` if the latents.
            learn_logvar: whether each step's log-variance is trained.
            logvar_init: initial log-variance.
            scale_factor: factor of the target's latents; None for 1 / their standard deviation, see `set_scale`.
            scale_context: whether the context's latents are scaled too; they are not in PreDiff's code.

        Raises:
            ValueError: unknown parameterization.
        """
        super().__init__()
        if parameterization not in PARAMETERIZATIONS:
            raise ValueError(
                f"parameterization: expected one of {', '.join(PARAMETERIZATIONS)}, found {parameterization!r}"
            )
        self.denoiser: Any = denoiser  # also an nn.Module, which a protocol cannot express
        self.schedule = schedule
        self.parameterization = parameterization
        logvar = torch.full((schedule.timesteps,), float(logvar_init))
        self.logvar: Tensor
        if learn_logvar:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar)
        self.scale_context = scale_context
        self.scale_factor: float | Tensor
        if scale_factor is None:
            self.register_buffer("scale_factor", torch.tensor(math.nan))
        else:
            self.scale_factor = float(scale_factor)

    @property
    def measures_scale(self) -> bool:
        """Returns whether the scale of the latents is measured rather than given."""
        return isinstance(self.scale_factor, Tensor)

    @property
    def has_scale(self) -> bool:
        """Returns whether the scale of the latents is known."""
        return not isinstance(self.scale_factor, Tensor) or not bool(torch.isnan(self.scale_factor))

    def set_scale(self, latents: Tensor) -> None:
        """Sets the scale to 1 / the standard deviation of these latents.

        Source: Rombach et al. 2022, ``scale_by_std``, which takes the first training batch.

        Raises:
            ValueError: latents are constant or not finite.
        """
        spread = float(latents.cpu().double().std(correction=0))
        if not 0 < spread < math.inf:
            raise ValueError(
                f"scale_factor: expected latents with a finite standard deviation above 0, found {spread}: is the "
                "autoencoder trained?"
            )
        self.scale_factor = torch.full_like(torch.as_tensor(self.scale_factor), 1 / spread)

    def scaled(self, latents: Tensor) -> Tensor:
        """Returns a target's latents on the scale on which noise is added."""
        return latents * self._scale

    def unscaled(self, latents: Tensor) -> Tensor:
        """Returns a target's latents on the autoencoder's scale: the inverse of `scaled`."""
        return latents / self._scale

    def conditioned(self, cond: Tensor) -> Tensor:
        """Returns a context's latents on the scale on which the denoiser reads them."""
        return self.scaled(cond) if self.scale_context else cond

    @property
    def _scale(self) -> float | Tensor:
        scale = self.scale_factor
        return scale.nan_to_num(nan=1.0) if isinstance(scale, Tensor) else scale

    def predicted_noise(self, noised: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Returns the noise in latents (B, T, h, w, C) according to the denoiser, for either parameterization."""
        predicted: Tensor = self.denoiser(noised, t, cond).float()
        return predicted if self.parameterization == "eps" else self.schedule.noise_in(noised, predicted, t)

    def losses(
        self, latents: Tensor, cond: Tensor, t: Tensor, noise: Tensor, share: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the loss to minimise and the plain one: the mean squared error of the prediction.

        The first weights every step's error by its learned variance and becomes negative in normal training; monitor
        the second.

        Args:
            latents: latents of the target (B, T_out, h, w, C).
            cond: latents of the context (B, T_in, h, w, C).
            t: diffusion steps (B,).
            noise: standard normal noise, shaped as `latents`.
            share: share of known pixels behind each latent (B, T_out, h, w, 1), used as its weight; None for equal.
        """
        # Only the network may be in half precision.
        predicted = self.denoiser(self.schedule.add_noise(latents, noise, t), t, cond).float()
        wanted = noise if self.parameterization == "eps" else latents
        error, logvar = (wanted - predicted).square(), self.logvar[t]
        if share is None:
            simple, weight = error.flatten(1).mean(dim=1), None
        else:
            weight = share.flatten(1).mean(dim=1)
            simple = (error * share).flatten(1).mean(dim=1) / weight.masked_fill(weight == 0, 1)
        return weighted_mean(simple / logvar.exp() + logvar, weight), weighted_mean(simple, weight)
