"""The noise schedule and the tables that follow from it.

Source: Ho et al. 2020 (DDPM); names of the schedules as in the authors' configs, where "linear" is linear in the square
root of beta.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

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
        linear_start: first beta of the first three.
        linear_end: their last.
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
    """The tables of a schedule: `at` gives entries on the device that the module is on, without waiting for it.

    Attributes:
        betas: variance added by each step, float64 (timesteps,) on the CPU.
        tables: all tables by the names of the authors' code, likewise.
    """

    def __init__(self, betas: Tensor) -> None:
        """Checks the variances and derive the tables.

        Raises:
            ValueError: variances that are not a list of numbers in (0, 1).
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
        # No part of the weights: they follow from hyperparameters.
        single = torch.stack(list(self.tables.values())).float()
        self.register_buffer("_single", single.to(torch.get_default_device()), persistent=False)

    @property
    def timesteps(self) -> int:
        """Returns the number of diffusion steps."""
        return len(self.betas)

    def at(self, table: str, t: Tensor, like: Tensor) -> Tensor:
        """Returns entries `t` (B,) of a table, float32, shaped to multiply `like` (B, ...).

        Half precision would make one level of neighbouring levels of noise.
        """
        return self._single[self._place[table]][t].view(-1, *([1] * (like.dim() - 1)))

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Returns latents (B, ...) as they are after steps `t` (B,), given the noise that is in them then."""
        kept = self.at("sqrt_alphas_cumprod", t, latents)
        return kept * latents + self.at("sqrt_one_minus_alphas_cumprod", t, latents) * noise

    def without_noise(self, noised: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Returns the latents in which steps `t` and this noise leave `noised`: the inverse of `add_noise`."""
        scaled = self.at("sqrt_recip_alphas_cumprod", t, noised) * noised
        return scaled - self.at("sqrt_recipm1_alphas_cumprod", t, noised) * noise

    def noise_in(self, noised: Tensor, latents: Tensor, t: Tensor) -> Tensor:
        """Returns the noise that is in `noised` after steps `t`, if these are the latents below it."""
        scaled = self.at("sqrt_recip_alphas_cumprod", t, noised) * noised
        return (scaled - latents) / self.at("sqrt_recipm1_alphas_cumprod", t, noised)
