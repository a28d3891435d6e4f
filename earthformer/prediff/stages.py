"""The trainings of PreDiff and LDM, one after the other: autoencoder, denoiser and, in PreDiff, alignment network.

Each stage is a module with its own loss for contexts and targets (B, T, H, W, C), and can be trained by any loop.
Networks of earlier stages are used but not changed. Missing pixels of targets are NaN; see `losses`.

Source: PreDiff, section 3 and the authors' released settings: quarter turns and flips of sequences ("2"), any angle for
single frames ("1").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from earthformer.prediff.alignment import KnowledgeAlignment
from earthformer.prediff.autoencoder import FrameAutoencoder
from earthformer.prediff.diffusion import LatentDiffusion, NoiseSchedule
from earthformer.prediff.losses import (
    AdversarialLoss,
    PatchDiscriminator,
    filled,
    joined_truth,
    known_share,
    latent_share,
)
from earthformer.prediff.noise import content_seeds, members_of
from earthformer.prediff.upstream import load_part

# The scale of the latents is measured on at least this many sequences (the authors' batch), or on all.
_SCALE_SEQUENCES = 64

Encode = Callable[[Tensor, bool], Tensor]
"""Function from frames (B, T, H, W, C) to latents (B, T, h, w, C): a draw from the posterior if True, else its mean."""


@dataclass(frozen=True)
class Stage:
    """One training of a model that is trained in stages.

    Attributes:
        name: name of the stage.
        module: the module to train; it shares its networks with the model. It has
            ``training_loss(context, target, *, step, total_steps)`` -> {name: term} and
            ``validation_loss(context, target)``, which uses no random numbers. If ``takes_labels`` is true, both take
            ``labels`` too: the data's arrays after context and target. If ``verifies_context`` is true, both take
            ``context_known``: where the context was observed.
        part: the network that the stage trains.
        depends_on: hyperparameters that its weights depend on, besides those of earlier stages.
        prepare: called once before training, with contexts, targets and labels of the whole training split.
    """

    name: str
    module: nn.Module
    part: nn.Module
    depends_on: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Iterable[Sequence[Tensor]]], None] | None = None

    def load(self, path: str | Path) -> None:
        """Loads a checkpoint of the network, ours or the authors', instead of training it.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the checkpoint does not fit; all differences are named.
        """
        load_part(self.part, path)


class AutoencoderStage(nn.Module):
    """Trains the autoencoder on single frames; from a certain step on, against a discriminator."""

    # The discriminator takes part only from a later step on.
    parameters_without_gradient = ("discriminator.*",)
    verifies_context = True

    def __init__(self, autoencoder: FrameAutoencoder, loss: AdversarialLoss, *, augment: bool = True) -> None:
        """Combines the autoencoder with an untrained discriminator."""
        super().__init__()
        self.autoencoder = autoencoder
        self.discriminator = PatchDiscriminator(autoencoder.config.in_channels)
        self.loss = loss
        self.augment = augment

    def training_loss(
        self, context: Tensor, target: Tensor, *, step: int, total_steps: int, context_known: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns the loss terms of the autoencoder and of the discriminator, which share no gradient."""
        frames = _as_images(joined_truth(context, target, context_known))
        truth = frames
        if self.augment:  # a turn leaves corners of 0; frames without known pixels stay unknown
            truth = random_turn(frames).masked_fill((known_share(frames) == 0)[:, None, None, None], torch.nan)
        image, share = filled(truth), known_share(truth)
        posterior = self.autoencoder.posterior_of_images(image)
        reconstructed = self.autoencoder.decode(posterior.sample()).sample.float()
        losses = {
            "reconstruction": self.loss.reconstruction(truth, reconstructed),
            "divergence": self.loss.divergence(posterior, share),
        }
        if self.loss.is_adversarial(step):
            # The discriminator must not see pixels that the reconstruction is not trained on.
            judged = torch.where(torch.isnan(truth), image, reconstructed)
            deception = self.loss.deception(self.discriminator, judged, share)
            last = self.autoencoder.decoder.conv_out.weight
            losses["deception"] = self.loss.adaptive_weight(losses["reconstruction"], deception, last) * deception
            losses["discrimination"] = self.loss.discrimination(self.discriminator, image, judged, share)
        return losses

    def validation_loss(self, context: Tensor, target: Tensor, *, context_known: Tensor | None = None) -> Tensor:
        """Returns reconstruction and divergence of all frames, decoded from the posterior's mean."""
        truth = _as_images(joined_truth(context, target, context_known))
        posterior = self.autoencoder.posterior_of_images(filled(truth))
        reconstructed = self.autoencoder.decode(posterior.mean).sample.float()
        return self.loss.reconstruction(truth, reconstructed) + self.loss.divergence(posterior, known_share(truth))


class DenoiserStage(nn.Module):
    """Trains the denoiser, and the log-variance of every step's loss, on latents of the frozen autoencoder."""

    def __init__(self, diffusion: LatentDiffusion, encode: Encode, *, augment: bool) -> None:
        """Joins them; `encode` is a function, so that the autoencoder is not part of this module's weights."""
        super().__init__()
        self.diffusion = diffusion
        self.encode = encode
        self.augment = augment

    def prepare(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Measures the scale of the latents on targets spread evenly over `batches`, unless a checkpoint gave it.

        Raises:
            ValueError: latents are constant or not finite.
        """
        if self.diffusion.has_scale:
            return
        targets: list[Tensor] = []
        every = 1
        for number, row in enumerate(row for _, target, *_ in batches for row in target):
            if number % every == 0:
                targets.append(row)
            if len(targets) == 2 * _SCALE_SEQUENCES:
                targets, every = targets[::2], 2 * every
        if targets:
            self.diffusion.set_scale(torch.cat([self.encode(filled(row[None]), True) for row in targets]))

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> dict[str, Tensor]:
        """Returns the weighted loss of the denoiser at one random step per sequence."""
        if self.augment:
            both = random_symmetry(torch.cat((context, target), dim=1))
            context, target = both[:, : context.shape[1]], both[:, context.shape[1] :]
        latents = self.diffusion.scaled(self.encode(filled(target), True))
        t = torch.randint(self.diffusion.schedule.timesteps, (len(latents),), device=latents.device)
        noise, share = torch.randn_like(latents), latent_share(target, latents)
        cond = self.diffusion.conditioned(self.encode(context, False))
        weighted, _ = self.diffusion.losses(latents, cond, t, noise, share)
        return {"denoising": weighted}

    def validation_loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Returns the plain loss, at steps and with noise that are derived from the context."""
        latents = self.diffusion.scaled(self.encode(filled(target), False))
        t, noise = _reproducible(context, latents, self.diffusion.schedule.timesteps)
        cond = self.diffusion.conditioned(self.encode(context, False))
        return self.diffusion.losses(latents, cond, t, noise, latent_share(target, latents))[1]


class AlignmentStage(nn.Module):
    """Trains the alignment network to estimate the constraint's measure from noised latents of the true future."""

    def __init__(
        self,
        alignment: KnowledgeAlignment,
        schedule: NoiseSchedule,
        encode: Encode,
        *,
        scale_factor: float,
        augment: bool,
    ) -> None:
        """Joins them; `encode` is a function, so that the autoencoder is not part of this module's weights."""
        super().__init__()
        self.alignment = alignment
        self.schedule = schedule
        self.encode = encode
        self.scale_factor = scale_factor
        self.augment = augment

    @property
    def takes_labels(self) -> bool:
        """Returns whether the constraint needs labels beyond the pixels."""
        return self.alignment.constraint.takes_labels

    def prepare(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Sets mean and standard deviation of the measure from all contexts, targets and labels."""
        self.alignment.fit(self.alignment.constraint.measure(target, labels) for _, target, *labels in batches)

    def training_loss(
        self, context: Tensor, target: Tensor, *, step: int, total_steps: int, labels: Sequence[Tensor] = ()
    ) -> dict[str, Tensor]:
        """Returns the mean squared error of the estimates at one random step per sequence."""
        if self.augment:
            target = random_symmetry(target)
        latents = self.encode(filled(target), True) * self.scale_factor
        t = torch.randint(self.schedule.timesteps, (len(latents),), device=latents.device)
        return {"alignment": self._loss(latents, t, torch.randn_like(latents), target, labels)}

    def validation_loss(self, context: Tensor, target: Tensor, *, labels: Sequence[Tensor] = ()) -> Tensor:
        """Returns the error at steps and with noise that are derived from the context."""
        latents = self.encode(filled(target), False) * self.scale_factor
        return self._loss(latents, *_reproducible(context, latents, self.schedule.timesteps), target, labels)

    def _loss(self, latents: Tensor, t: Tensor, noise: Tensor, target: Tensor, labels: Sequence[Tensor]) -> Tensor:
        noised = self.schedule.add_noise(latents, noise, t)
        share = known_share(target, keep=2)
        return self.alignment.loss(noised, t, self.alignment.constraint.measure(target, labels), share)


def random_symmetry(sequences: Tensor) -> Tensor:
    """Returns sequences (B, T, H, W, C), each transformed by a random symmetry of its frame (flips and quarter turns).

    Frames that are not square are rotated by half turns only.
    """
    square = sequences.shape[2] == sequences.shape[3]
    turned = []
    for sequence, draw in zip(sequences, torch.randint(8, (len(sequences),)).tolist(), strict=True):
        if draw & 4:
            sequence = sequence.flip(1)
        turned.append(sequence.rot90((draw & 3) if square else 2 * (draw & 1), (1, 2)))
    return torch.stack(turned)


def random_turn(frames: Tensor) -> Tensor:
    """Returns frames (N, C, H, W), each flipped at random and rotated by a random angle; uncovered pixels are 0."""
    count, _, height, width = frames.shape
    angle = (torch.rand(count) * 2 - 1) * math.pi
    flip = torch.randint(2, (2, count)).float() * 2 - 1
    cos, sin = angle.cos(), angle.sin()
    # In the grid's units a pixel is 2/W wide and 2/H high: the rotation must not stretch the frame.
    rows = (cos * flip[0], -sin * (height / width) * flip[0]), (sin * (width / height) * flip[1], cos * flip[1])
    turn = torch.stack([torch.stack((*row, torch.zeros(count)), dim=1) for row in rows], dim=1).to(
        frames, non_blocking=True
    )
    grid = F.affine_grid(turn, list(frames.shape), align_corners=False)
    return F.grid_sample(frames, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _as_images(frames: Tensor) -> Tensor:
    """Returns frames (B, T, H, W, C) as images (B*T, C, H, W)."""
    return frames.flatten(0, 1).permute(0, 3, 1, 2).contiguous()


def _reproducible(context: Tensor, latents: Tensor, timesteps: int) -> tuple[Tensor, Tensor]:
    """Returns a step and noise per sequence, derived from its context alone."""
    noise = members_of(content_seeds(context), 1)
    return noise.integers(timesteps), noise.normal(tuple(latents.shape[1:]), 0)
