"""Diffusion of latent sequences: what the denoiser is trained on.

Source: PreDiff, section 3.2; Ho et al. 2020 (DDPM); Rombach et al. 2022 for the learned weight of each step's loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from earthformer.prediff.denoiser import CuboidUNet
from earthformer.prediff.masking import weighted_mean
from earthformer.prediff.schedule import NoiseSchedule

PARAMETERIZATIONS = ("eps", "x0")


class LatentDiffusion(nn.Module):
    """A denoiser, its noise schedule and the learned log-variance of every step's loss.

    Attributes:
        denoiser: predicts noise, or the latents themselves.
        logvar: (timesteps,), a parameter or, if it is not learned, a buffer.
    """

    def __init__(
        self,
        denoiser: CuboidUNet,
        schedule: NoiseSchedule,
        *,
        parameterization: str = "eps",
        learn_logvar: bool = True,
        logvar_init: float = 0.0,
    ) -> None:
        """Join them.

        Args:
            denoiser: called with noised latents, steps and the context's latents.
            schedule: of the noise.
            parameterization: ``eps`` if the denoiser predicts the noise, ``x0`` if the latents.
            learn_logvar: whether each step's log-variance is trained.
            logvar_init: where it starts.

        Raises:
            ValueError: unknown parameterization.
        """
        super().__init__()
        if parameterization not in PARAMETERIZATIONS:
            raise ValueError(
                f"parameterization: expected one of {', '.join(PARAMETERIZATIONS)}, found {parameterization!r}"
            )
        self.denoiser = denoiser
        self.schedule = schedule
        self.parameterization = parameterization
        logvar = torch.full((schedule.timesteps,), float(logvar_init))
        self.logvar: Tensor
        if learn_logvar:
            self.logvar = nn.Parameter(logvar)
        else:
            self.register_buffer("logvar", logvar)

    def predicted_noise(self, noised: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Return the noise that the denoiser sees in latents (B, T, h, w, C), whatever it predicts itself."""
        predicted: Tensor = self.denoiser(noised, t, cond).float()
        return predicted if self.parameterization == "eps" else self.schedule.noise_in(noised, predicted, t)

    def losses(
        self, latents: Tensor, cond: Tensor, t: Tensor, noise: Tensor, share: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss to minimise and the plain one: the mean squared error of the prediction.

        The first weights every step's error by its learned variance and goes below zero in normal training; judge by
        the second.

        Args:
            latents: of the target (B, T_out, h, w, C).
            cond: latents of the context (B, T_in, h, w, C).
            t: diffusion steps (B,).
            noise: standard normal, shaped as `latents`.
            share: of known pixels behind each latent (B, T_out, h, w, 1), by which it weighs; None for alike.
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
