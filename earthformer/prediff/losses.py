"""Losses over known pixels, and the losses of the autoencoder.

A missing pixel of the true frames is NaN; networks read 0 there, losses ignore it. Terms that span several pixels (a
latent, a frame's measure, the discriminator's output) are weighted by their share of known pixels.

The autoencoder is trained by reconstruction, divergence from the normal distribution, and a discriminator of patches.

Source: PreDiff's released training settings; Esser et al. 2021 ("Taming Transformers") for the adaptive weight,
Isola et al. 2017 (pix2pix) for the discriminator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

_SLOPE = 0.2
_WEIGHT_STD = 0.02
# For the adaptive weight: added to its denominator, and its upper bound.
_SMALLEST_GRADIENT = 1e-4
_LARGEST_WEIGHT = 1e4


def joined_truth(context: Tensor, target: Tensor, context_known: Tensor | None) -> Tensor:
    """Returns contexts and targets as one (B, T, H, W, C), NaN where they are missing.

    Args:
        context: (B, T_in, H, W, C), filled where it was missing.
        target: (B, T_out, H, W, C), NaN where it is missing.
        context_known: where the context was observed; None for everywhere.
    """
    if context_known is not None:
        context = context.masked_fill(~context_known, torch.nan)
    return torch.cat((context, target), dim=1)


def filled(frames: Tensor) -> Tensor:
    """Returns frames with 0 where they are missing."""
    return frames.masked_fill(torch.isnan(frames), 0)


def known_share(frames: Tensor, *, keep: int = 1) -> Tensor:
    """Returns the share of known pixels for each index of the first `keep` axes of the frames."""
    return (~torch.isnan(frames)).float().flatten(keep).mean(-1)


def latent_share(frames: Tensor, latents: Tensor) -> Tensor:
    """Returns the share of known pixels (B, T, h, w, 1) in the patch of each latent (B, T, h, w, C)."""
    height, width = latents.shape[2:4]
    known = (~torch.isnan(frames)).float().mean(-1)
    return known.unflatten(3, (width, -1)).unflatten(2, (height, -1)).mean((3, 5)).unsqueeze(-1)


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Returns the mean of `values` with weights of that shape; 0 if all weights are 0, the plain mean if None."""
    if weight is None:
        return values.mean()
    total = weight.sum()
    return (values * weight).sum() / total.masked_fill(total == 0, 1)


class PatchDiscriminator(nn.Module):
    """Scores each overlapping patch of an image as real (high) or reconstructed (low)."""

    def __init__(self, in_channels: int = 1, channels: int = 64, layers: int = 3) -> None:
        """Makes `layers` convolutions of stride 2 and two of stride 1; the first has `channels` channels."""
        super().__init__()
        widths = [channels * min(2**step, 8) for step in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, 2, 1), nn.LeakyReLU(_SLOPE)]
        for step in range(1, layers + 1):
            stride = 2 if step < layers else 1
            parts += [
                nn.Conv2d(widths[step - 1], widths[step], 4, stride, 1, bias=False),
                nn.BatchNorm2d(widths[step]),
                nn.LeakyReLU(_SLOPE),
            ]
        self.main = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for layer in self.main:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, _WEIGHT_STD)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, _WEIGHT_STD)

    def forward(self, image: Tensor) -> Tensor:
        """Returns a score per patch (N, 1, h, w) for images (N, C, H, W)."""
        verdict: Tensor = self.main(image)
        return verdict

    def judge(self, image: Tensor) -> Tensor:
        """Returns the scores with gradients for the image alone, from which the autoencoder learns."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        verdict: Tensor = torch.func.functional_call(self, frozen, (image,))
        return verdict


@dataclass(frozen=True)
class AdversarialLoss:
    """The losses of the autoencoder and of its discriminator.

    Attributes:
        kl_weight: weight of the divergence of the posterior from the standard normal distribution.
        discriminator_weight: factor of the adaptive weight.
        discriminator_from: optimiser steps of the autoencoder before the discriminator takes part. The authors' 50,001
            counts the steps of both optimisers, so it is 25,000 here.
    """

    kl_weight: float = 1e-6
    discriminator_weight: float = 0.5
    discriminator_from: int = 25_000

    def is_adversarial(self, step: int) -> bool:
        """Returns whether the discriminator takes part in this step."""
        return step >= self.discriminator_from

    def reconstruction(self, image: Tensor, reconstructed: Tensor) -> Tensor:
        """Returns the absolute error summed over pixels, per image; scaled up to make up for missing pixels (NaN).

        The authors divide by a learned scale that none of their optimisers updates: it stays 1.
        """
        missing = torch.isnan(image)
        error = (image - reconstructed).masked_fill(missing, 0).abs()
        return error.sum() / ((~missing).sum().clamp(min=1) / image[0].numel())

    def divergence(self, posterior: DiagonalGaussianDistribution, weight: Tensor | None = None) -> Tensor:
        """Returns the divergence of a posterior from N(0, 1), summed over latents, per image (weighted by (N,))."""
        return self.kl_weight * weighted_mean(posterior.kl(), weight)

    def adaptive_weight(self, reconstruction: Tensor, deception: Tensor, last_weight: Tensor) -> Tensor:
        """Returns the weight at which both losses have equal gradients at the decoder's last weights."""
        if not torch.is_grad_enabled():
            return reconstruction.new_zeros(())
        pulls = [
            torch.autograd.grad(loss, last_weight, retain_graph=True)[0].norm() for loss in (reconstruction, deception)
        ]
        ratio = (pulls[0] / (pulls[1] + _SMALLEST_GRADIENT)).clamp(0.0, _LARGEST_WEIGHT)
        return self.discriminator_weight * ratio.detach()

    def deception(
        self, discriminator: PatchDiscriminator, reconstructed: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Returns how badly reconstructions pass for real; its gradient reaches the images, not the discriminator."""
        return -weighted_mean(_per_image(discriminator.judge(reconstructed)), weight)

    def discrimination(
        self, discriminator: PatchDiscriminator, image: Tensor, reconstructed: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Returns the discriminator's hinge loss; its gradient reaches the discriminator alone."""
        real, made = discriminator(image), discriminator(reconstructed.detach())
        losses = F.relu(1.0 - real), F.relu(1.0 + made)
        return 0.5 * (weighted_mean(_per_image(losses[0]), weight) + weighted_mean(_per_image(losses[1]), weight))


def _per_image(verdict: Tensor) -> Tensor:
    return verdict.flatten(1).mean(1)
