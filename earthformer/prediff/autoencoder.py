"""The frame-wise autoencoder: every frame is encoded as a small image of latent channels.

Source: PreDiff, section 3.1; the network is Stable Diffusion's (Rombach et al. 2022) for frames of one channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

RELEASED: dict[str, Any] = {"latent_channels": 64}
"""The released autoencoder, 84,499,393 parameters."""
PAPER: dict[str, Any] = {"latent_channels": 4}
"""The paper's: 4 latent channels."""


class FrameAutoencoder(AutoencoderKL):
    """diffusers' autoencoder with a Gaussian posterior, which also takes sequences (B, T, H, W, C).

    ``encode`` and ``decode`` are diffusers' own, on images (N, C, H, W).
    """

    @property
    def factor(self) -> int:
        """Returns how many pixels of a side become one latent pixel."""
        return int(2 ** (len(self.config.block_out_channels) - 1))

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int, int]:
        """Returns T, H, W, C of the latents of frames of `shape` (T, H, W, C).

        Raises:
            ValueError: a wrong number of channels, or sides that the factor does not divide.
        """
        frames, height, width, channels = shape
        if channels != self.config.in_channels:
            raise ValueError(f"autoencoder: expected frames of {self.config.in_channels} channels, found {channels}")
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"autoencoder: expected frames whose height and width are multiples of {self.factor}, found "
                f"{height} x {width}"
            )
        return frames, height // self.factor, width // self.factor, int(self.config.latent_channels)

    def posterior(self, frames: Tensor) -> DiagonalGaussianDistribution:
        """Returns the distribution of the latents (B*T, C, h, w) of frames (B, T, H, W, C)."""
        self.latent_shape(frames.shape[1:])
        return self.posterior_of_images(frames.flatten(0, 1).permute(0, 3, 1, 2).contiguous())

    def posterior_of_images(self, images: Tensor) -> DiagonalGaussianDistribution:
        """Returns the distribution of the latents of images (N, C, H, W), float32 whatever the network computes in."""
        return DiagonalGaussianDistribution(self.encode(images).latent_dist.parameters.float())

    def to_latents(self, frames: Tensor, noise: Tensor | None = None) -> Tensor:
        """Returns latents (B, T, h, w, C) of frames (B, T, H, W, C): the posterior's mean, or a draw from it.

        Args:
            frames: on the 0-1 scale.
            noise: standard normal noise (B, T, h, w, C) for the draw; None for the mean.
        """
        posterior = self.posterior(frames)
        latents = posterior.mean
        if noise is not None:
            latents = latents + posterior.std * noise.flatten(0, 1).permute(0, 3, 1, 2)
        return latents.permute(0, 2, 3, 1).unflatten(0, frames.shape[:2])

    def to_frames(self, latents: Tensor) -> Tensor:
        """Returns frames (B, T, H, W, C) of latents (B, T, h, w, C), not clipped.

        Raises:
            ValueError: a wrong number of latent channels.
        """
        if latents.shape[-1] != self.config.latent_channels:
            raise ValueError(
                f"autoencoder: expected latents of {self.config.latent_channels} channels, found {latents.shape[-1]}"
            )
        frames = self.decode(latents.flatten(0, 1).permute(0, 3, 1, 2).contiguous()).sample.float()
        return frames.permute(0, 2, 3, 1).unflatten(0, latents.shape[:2])


def make_autoencoder(
    *,
    in_channels: int = 1,
    latent_channels: int = 64,
    block_out_channels: Sequence[int] = (128, 256, 512, 512),
    layers_per_block: int = 2,
    norm_num_groups: int = 32,
    act_fn: str = "silu",
) -> FrameAutoencoder:
    """Returns an untrained autoencoder; the defaults are those of the released one.

    Args:
        in_channels: channels of a frame.
        latent_channels: channels of its latents.
        block_out_channels: channels of the levels; each but the last halves height and width.
        layers_per_block: residual blocks of a level (one more in the decoder).
        norm_num_groups: groups of the group norms.
        act_fn: activation.

    Raises:
        ValueError: the number of groups does not divide the channels.
    """
    channels = [int(count) for count in block_out_channels]
    if not channels or any(count % norm_num_groups for count in channels):
        raise ValueError(f"block_out_channels: expected multiples of {norm_num_groups} groups, found {channels}")
    model: FrameAutoencoder = FrameAutoencoder(
        in_channels=in_channels,
        out_channels=in_channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=tuple(channels),
        layers_per_block=layers_per_block,
        act_fn=act_fn,
        latent_channels=latent_channels,
        norm_num_groups=norm_num_groups,
        scaling_factor=1.0,
    )
    return model
