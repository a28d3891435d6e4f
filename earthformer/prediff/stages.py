"""The three trainings of PreDiff, one after the other: autoencoder, denoiser, alignment network.

Each stage is a module with a loss of its own for contexts and targets (B, T, H, W, C), and can be trained by any loop.
What an earlier stage trained is used and not changed. Missing pixels of targets are NaN; see `masking`.

Source: PreDiff, section 3 and the authors' released settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from earthformer.prediff.adversarial import AdversarialLoss, PatchDiscriminator
from earthformer.prediff.alignment import KnowledgeAlignment
from earthformer.prediff.augmentation import random_symmetry, random_turn
from earthformer.prediff.autoencoder import FrameAutoencoder
from earthformer.prediff.diffusion import LatentDiffusion
from earthformer.prediff.masking import filled, joined_truth, known_share, latent_share
from earthformer.prediff.noise import content_seeds, members_of
from earthformer.prediff.schedule import NoiseSchedule
from earthformer.prediff.upstream import load_part

Encode = Callable[[Tensor, bool], Tensor]
"""From frames (B, T, H, W, C) to latents (B, T, h, w, C): a draw from the posterior if True, else its mean."""


@dataclass(frozen=True)
class Stage:
    """One training of a model that is trained in stages.

    Attributes:
        name: of the stage.
        module: what is trained; it shares its networks with the model. It has
            ``training_loss(context, target, *, step, total_steps)`` -> {name: summand} and
            ``validation_loss(context, target)``, which draws nothing at random. With a true ``takes_labels``, both take
            ``labels`` too: what the data hold behind context and target. With a true ``verifies_context``, both take
            ``context_known``: where the context was observed.
        part: the network that the stage is about.
        depends_on: hyperparameters that its weights depend on, besides those of earlier stages.
        prepare: called once, before the training, with contexts, targets and labels of the whole training split.
    """

    name: str
    module: nn.Module
    part: nn.Module
    depends_on: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Iterable[Sequence[Tensor]]], None] | None = None

    def load(self, path: str | Path) -> None:
        """Copy a checkpoint of the network, ours or the authors', into it instead of training it.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a checkpoint that does not fit; everything that differs is named.
        """
        load_part(self.part, path)


class AutoencoderStage(nn.Module):
    """Trains the autoencoder on single frames, from some step on against a discriminator."""

    # The discriminator takes part only from a later step on.
    parameters_without_gradient = ("discriminator.*",)
    verifies_context = True

    def __init__(self, autoencoder: FrameAutoencoder, loss: AdversarialLoss, *, augment: bool = True) -> None:
        """Join the autoencoder with a fresh discriminator."""
        super().__init__()
        self.autoencoder = autoencoder
        self.discriminator = PatchDiscriminator(autoencoder.config.in_channels)
        self.loss = loss
        self.augment = augment

    def training_loss(
        self, context: Tensor, target: Tensor, *, step: int, total_steps: int, context_known: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the summands of the loss of the autoencoder and of the discriminator, which share no gradient."""
        frames = _as_images(joined_truth(context, target, context_known))
        truth = frames
        if self.augment:  # what a turn leaves free is 0, which nothing is to be learnt from where no pixel is known
            truth = random_turn(frames).masked_fill((known_share(frames) == 0)[:, None, None, None], torch.nan)
        image, share = filled(truth), known_share(truth)
        posterior = self.autoencoder.posterior_of_images(image)
        reconstructed = self.autoencoder.decode(posterior.sample()).sample.float()
        losses = {
            "reconstruction": self.loss.reconstruction(truth, reconstructed),
            "divergence": self.loss.divergence(posterior, share),
        }
        if self.loss.is_adversarial(step):
            # The discriminator must not tell the two by what nobody asked of the reconstruction.
            judged = torch.where(torch.isnan(truth), image, reconstructed)
            deception = self.loss.deception(self.discriminator, judged, share)
            last = self.autoencoder.decoder.conv_out.weight
            losses["deception"] = self.loss.adaptive_weight(losses["reconstruction"], deception, last) * deception
            losses["discrimination"] = self.loss.discrimination(self.discriminator, image, judged, share)
        return losses

    def validation_loss(self, context: Tensor, target: Tensor, *, context_known: Tensor | None = None) -> Tensor:
        """Return reconstruction and divergence of all frames, decoded from the posterior's mean."""
        truth = _as_images(joined_truth(context, target, context_known))
        posterior = self.autoencoder.posterior_of_images(filled(truth))
        reconstructed = self.autoencoder.decode(posterior.mean).sample.float()
        return self.loss.reconstruction(truth, reconstructed) + self.loss.divergence(posterior, known_share(truth))


class DenoiserStage(nn.Module):
    """Trains the denoiser, and the log-variance of every step's loss, on latents of the frozen autoencoder."""

    def __init__(self, diffusion: LatentDiffusion, encode: Encode, *, scale_factor: float, augment: bool) -> None:
        """Join them; `encode` is a function, so that the autoencoder is no part of this module's weights."""
        super().__init__()
        self.diffusion = diffusion
        self.encode = encode
        self.scale_factor = scale_factor
        self.augment = augment

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> dict[str, Tensor]:
        """Return the weighted loss of the denoiser at one random step per sequence."""
        if self.augment:
            both = random_symmetry(torch.cat((context, target), dim=1))
            context, target = both[:, : context.shape[1]], both[:, context.shape[1] :]
        latents = self.encode(filled(target), True) * self.scale_factor
        t = torch.randint(self.diffusion.schedule.timesteps, (len(latents),), device=latents.device)
        noise, share = torch.randn_like(latents), latent_share(target, latents)
        # As in the authors' code the context's latents are not scaled.
        weighted, _ = self.diffusion.losses(latents, self.encode(context, False), t, noise, share)
        return {"denoising": weighted}

    def validation_loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Return the plain loss, at steps and with noise that follow from the context."""
        latents = self.encode(filled(target), False) * self.scale_factor
        t, noise = _reproducible(context, latents, self.diffusion.schedule.timesteps)
        share = latent_share(target, latents)
        return self.diffusion.losses(latents, self.encode(context, False), t, noise, share)[1]


class AlignmentStage(nn.Module):
    """Trains the alignment network to read the constraint's measure off noised latents of the true future."""

    def __init__(
        self,
        alignment: KnowledgeAlignment,
        schedule: NoiseSchedule,
        encode: Encode,
        *,
        scale_factor: float,
        augment: bool,
    ) -> None:
        """Join them; `encode` is a function, so that the autoencoder is no part of this module's weights."""
        super().__init__()
        self.alignment = alignment
        self.schedule = schedule
        self.encode = encode
        self.scale_factor = scale_factor
        self.augment = augment

    @property
    def takes_labels(self) -> bool:
        """Return whether the constraint needs what the data know beyond the pixels."""
        return self.alignment.constraint.takes_labels

    def prepare(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Set mean and standard deviation of the measure from all contexts, targets and labels."""
        self.alignment.fit(self.alignment.constraint.measure(target, labels) for _, target, *labels in batches)

    def training_loss(
        self, context: Tensor, target: Tensor, *, step: int, total_steps: int, labels: Sequence[Tensor] = ()
    ) -> dict[str, Tensor]:
        """Return the mean squared error of the estimates at one random step per sequence."""
        if self.augment:
            target = random_symmetry(target)
        latents = self.encode(filled(target), True) * self.scale_factor
        t = torch.randint(self.schedule.timesteps, (len(latents),), device=latents.device)
        return {"alignment": self._loss(latents, t, torch.randn_like(latents), target, labels)}

    def validation_loss(self, context: Tensor, target: Tensor, *, labels: Sequence[Tensor] = ()) -> Tensor:
        """Return the error at steps and with noise that follow from the context."""
        latents = self.encode(filled(target), False) * self.scale_factor
        return self._loss(latents, *_reproducible(context, latents, self.schedule.timesteps), target, labels)

    def _loss(self, latents: Tensor, t: Tensor, noise: Tensor, target: Tensor, labels: Sequence[Tensor]) -> Tensor:
        noised = self.schedule.add_noise(latents, noise, t)
        share = known_share(target, keep=2)
        return self.alignment.loss(noised, t, self.alignment.constraint.measure(target, labels), share)


def _as_images(frames: Tensor) -> Tensor:
    """Return frames (B, T, H, W, C) as images (B*T, C, H, W)."""
    return frames.flatten(0, 1).permute(0, 3, 1, 2).contiguous()


def _reproducible(context: Tensor, latents: Tensor, timesteps: int) -> tuple[Tensor, Tensor]:
    """Return a step and noise per sequence that follow from its context alone."""
    noise = members_of(content_seeds(context), 1)
    return noise.integers(timesteps), noise.normal(tuple(latents.shape[1:]), 0)
