"""PreDiff: probabilistic forecasts by latent diffusion with a denoiser of cuboid attention, and control by knowledge.

Source: Gao et al., "PreDiff: Precipitation Nowcasting with Latent Diffusion Models", NeurIPS 2023, arXiv 2307.10422;
settings as in the authors' released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from earthformer.prediff.denoiser import CuboidUNet
from earthformer.prediff.forecaster import LatentForecaster
from earthformer.prediff.sampling import Sampler


class PreDiff(LatentForecaster):
    """PreDiff: latent diffusion with a denoiser of cuboid attention, sampled member by member."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir_lr": {},
        "nbody_mnist": {},
        "tiny": {
            "latent_channels": 4,
            "autoencoder_channels": [8, 8, 8],
            "autoencoder_layers": 1,
            "autoencoder_groups": 4,
            "base_units": 8,
            "depth": [1],
            "num_heads": 2,
            "sampler": "dpm_solver++",
            "steps": 2,
            "members": 2,
        },
    }

    @staticmethod
    def size_multiple(hyperparameters: Mapping[str, Any]) -> int:
        """Returns what height and width must be divisible by; the autoencoder halves them between its levels."""
        return int(2 ** (len(hyperparameters["autoencoder_channels"]) - 1))

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        latent_channels: int = 64,
        autoencoder_channels: Sequence[int] = (128, 256, 512, 512),
        autoencoder_layers: int = 2,
        autoencoder_groups: int = 32,
        discriminator_from: int = 25_000,
        base_units: int = 256,
        depth: Sequence[int] = (4, 4),
        num_heads: int = 4,
        pattern: str = "axial",
        dropout: float = 0.1,
        checkpoint_level: int = 0,
        timesteps: int = 1000,
        beta_schedule: str = "linear",
        linear_start: float = 1e-4,
        linear_end: float = 2e-2,
        parameterization: str = "eps",
        learn_logvar: bool = True,
        scale_factor: float = 1.0,
        augment: bool = True,
        sampler: str = "ddpm",
        steps: int = 1000,
        eta: float = 0.0,
        members: int = 8,
        seed: int = 0,
        bfloat16: bool = False,
    ) -> None:
        """Makes the networks; the defaults are those of the released model, with the authors' only sampler.

        Args:
            input_shape: T, H, W, C of the context.
            target_shape: T, H, W, C of the target.
            latent_channels: latent channels of the autoencoder; 64 in the released model, 4 in the paper.
            autoencoder_channels: channels of its levels; each but the last halves height and width.
            autoencoder_layers: residual blocks of a level.
            autoencoder_groups: groups of its norms.
            discriminator_from: optimiser steps before the discriminator takes part in its training.
            base_units: channels of the denoiser's finest level.
            depth: attention blocks of its levels.
            num_heads: its attention heads.
            pattern: its cuboid pattern.
            dropout: dropout of denoiser and alignment network.
            checkpoint_level: 0 keeps their activations, 1 recomputes feed-forward layers, 2 attention too.
            timesteps: diffusion steps.
            beta_schedule: ``linear`` (in the square root of beta), ``sqrt_linear``, ``sqrt`` or ``cosine``.
            linear_start: first beta.
            linear_end: last beta.
            parameterization: ``eps`` if the denoiser predicts the noise, ``x0`` if the latents.
            learn_logvar: whether the log-variance of every step's loss is trained.
            scale_factor: factor of the target's latents before noise is added.
            augment: whether to flip and rotate frames in training.
            sampler: ``ddpm``, ``ddim`` or ``dpm_solver++``.
            steps: steps of the sampler.
            eta: noise of ``ddim``.
            members: number of members that `forward` averages.
            seed: seed of those members.
            bfloat16: whether the denoiser samples in mixed precision.

        Raises:
            ValueError: shapes or hyperparameters do not fit.
        """
        levels: dict[str, Any] = {
            "num_heads": num_heads,
            "block_attn_patterns": pattern,
            "checkpoint_level": checkpoint_level,
            **dict.fromkeys(("attn_drop", "proj_drop", "ffn_drop"), dropout),
        }
        denoiser: dict[str, Any] = {"base_units": base_units, "depth": list(depth), **levels}
        super().__init__(
            input_shape,
            target_shape,
            make_denoiser=lambda context, target: CuboidUNet(context, target, **denoiser),
            denoiser=denoiser,
            autoencoder={
                "latent_channels": latent_channels,
                "block_out_channels": list(autoencoder_channels),
                "layers_per_block": autoencoder_layers,
                "norm_num_groups": autoencoder_groups,
            },
            noise={"beta_schedule": beta_schedule, "timesteps": timesteps, "linear": [linear_start, linear_end]},
            diffusion={
                "parameterization": parameterization,
                "learn_logvar": learn_logvar,
                "scale_factor": scale_factor,
            },
            discriminator_from=discriminator_from,
            augment=augment,
            sampler=Sampler(sampler, steps, eta),
            members=members,
            seed=seed,
            bfloat16=bfloat16,
        )
        self._levels = levels
