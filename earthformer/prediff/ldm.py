"""LDM: probabilistic forecasts by latent diffusion with a U-Net for images, the frames stacked on its channels.

The model of that name in PreDiff's tables was not released. This one is our own construction from the same autoencoder,
sampler and training stages, and diffusers' U-Net of Rombach et al.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, arXiv 2112.10752;
widths, attention, noise and scaling of the latents as in the configs of their unconditional image models,
https://github.com/CompVis/latent-diffusion (MIT), with 256 channels for their 224.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from earthformer.prediff.down_path import checked_shape
from earthformer.prediff.forecaster import LatentForecaster
from earthformer.prediff.sampling import Sampler

_GROUPS = 32
_HEAD_CHANNELS = 32


class StackedFramesUNet(nn.Module):
    """Predicts the noise in a latent sequence with a U-Net for images, whose channels are those of all frames.

    An untrained network predicts exactly 0, because its last layer is initialised with zeros.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        channels: Sequence[int] = (256, 512, 768, 1024),
        layers: int = 2,
    ) -> None:
        """Makes the network.

        Args:
            input_shape: T, H, W, C of the context's latents.
            target_shape: T, H, W, C of the target's latents.
            channels: channels of every level; all levels but the finest have attention, with heads of 32 channels.
            layers: residual blocks of a level (one more on the way up).

        Raises:
            ValueError: shapes or hyperparameters do not fit.
        """
        super().__init__()
        self.input_shape = checked_shape("input_shape", input_shape)
        self.target_shape = checked_shape("target_shape", target_shape)
        if self.input_shape[1:] != self.target_shape[1:]:
            raise ValueError(
                f"target_shape: expected H, W, C of input_shape {self.input_shape}, found {self.target_shape}"
            )
        if len(channels) < 2 or any(width < 1 or width % _GROUPS for width in channels):
            raise ValueError(
                f"channels: expected multiples of {_GROUPS}, at two or more levels, found {list(channels)}"
            )
        if layers < 1:
            raise ValueError(f"layers: expected at least 1, found {layers}")
        _, height, width, latent_channels = self.target_shape
        factor = 2 ** (len(channels) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"channels: {len(channels)} levels halve the latents {len(channels) - 1} times; expected a height and "
                f"width of the latents that are multiples of {factor}, found {height} x {width}: take fewer levels or "
                "frames of another size"
            )
        self.shapes = tuple((1, height >> level, width >> level, count) for level, count in enumerate(channels))
        with_attention = len(channels) - 1
        self.unet = UNet2DModel(
            in_channels=(self.input_shape[0] + self.target_shape[0]) * latent_channels,
            out_channels=self.target_shape[0] * latent_channels,
            layers_per_block=layers,
            block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D", *["AttnDownBlock2D"] * with_attention),
            up_block_types=(*["AttnUpBlock2D"] * with_attention, "UpBlock2D"),
            attention_head_dim=_HEAD_CHANNELS,
            norm_num_groups=_GROUPS,
        )
        for parameter in self.unet.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Returns the predicted noise (B, T_out, h, w, C).

        Args:
            x: noised target latents (B, T_out, h, w, C).
            t: diffusion steps (B,), integers from 0.
            cond: the context's latents (B, T_in, h, w, C).

        Raises:
            ValueError: latents do not have the shape that the network was made for.
        """
        for name, given, expected in (("x", x, self.target_shape), ("cond", cond, self.input_shape)):
            if tuple(given.shape[1:]) != expected:
                raise ValueError(
                    f"denoiser: expected {name} (B, T, H, W, C) with {expected} behind B, found {tuple(given.shape)}"
                )
        stacked = torch.cat((cond, x), dim=1).permute(0, 1, 4, 2, 3).flatten(1, 2)
        noise: Tensor = self.unet(stacked, t).sample
        return noise.unflatten(1, (self.target_shape[0], -1)).permute(0, 1, 3, 4, 2)


class LDM(LatentForecaster):
    """Latent diffusion with an image U-Net: the frames are stacked in its channels, without a notion of time."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir_lr": {},
        "nbody_mnist": {},
        "tiny": {
            "autoencoder_channels": [8, 8, 8],
            "autoencoder_layers": 1,
            "autoencoder_groups": 4,
            "channels": [32, 64],
            "layers": 1,
            "sampler": "dpm_solver++",
            "steps": 2,
            "members": 2,
        },
    }

    @staticmethod
    def size_multiple(hyperparameters: Mapping[str, Any]) -> int:
        """Returns what height and width must be divisible by; autoencoder and U-Net halve them between their levels."""
        return int(2 ** (len(hyperparameters["autoencoder_channels"]) + len(hyperparameters["channels"]) - 2))

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        latent_channels: int = 4,
        autoencoder_channels: Sequence[int] = (128, 256, 512, 512),
        autoencoder_layers: int = 2,
        autoencoder_groups: int = 32,
        discriminator_from: int = 25_000,
        channels: Sequence[int] = (256, 512, 768, 1024),
        layers: int = 2,
        timesteps: int = 1000,
        linear_start: float = 1.5e-3,
        linear_end: float = 1.95e-2,
        parameterization: str = "eps",
        augment: bool = True,
        sampler: str = "ddpm",
        steps: int = 1000,
        eta: float = 0.0,
        members: int = 8,
        seed: int = 0,
        bfloat16: bool = False,
    ) -> None:
        """Makes the networks.

        Latents of context and target are scaled to a standard deviation of 1, measured on training sequences once the
        autoencoder is trained.

        Args:
            input_shape: T, H, W, C of the context.
            target_shape: T, H, W, C of the target.
            latent_channels: latent channels of the autoencoder.
            autoencoder_channels: channels of its levels; each but the last halves height and width.
            autoencoder_layers: residual blocks per level of the autoencoder.
            autoencoder_groups: groups of its norms.
            discriminator_from: optimiser steps before the discriminator takes part in its training.
            channels: channels of the denoiser's levels.
            layers: residual blocks per level of the denoiser.
            timesteps: diffusion steps.
            linear_start: first beta; the square roots of beta are linear.
            linear_end: last beta.
            parameterization: ``eps`` if the denoiser predicts the noise, ``x0`` if the latents.
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
        denoiser: dict[str, Any] = {"channels": list(channels), "layers": layers}
        super().__init__(
            input_shape,
            target_shape,
            make_denoiser=lambda context, target: StackedFramesUNet(context, target, **denoiser),
            denoiser=denoiser,
            autoencoder={
                "latent_channels": latent_channels,
                "block_out_channels": list(autoencoder_channels),
                "layers_per_block": autoencoder_layers,
                "norm_num_groups": autoencoder_groups,
            },
            noise={"beta_schedule": "linear", "timesteps": timesteps, "linear": [linear_start, linear_end]},
            diffusion={
                "parameterization": parameterization,
                "learn_logvar": False,
                "scale_factor": None,
                "scale_context": True,
            },
            discriminator_from=discriminator_from,
            augment=augment,
            sampler=Sampler(sampler, steps, eta),
            members=members,
            seed=seed,
            bfloat16=bfloat16,
        )
