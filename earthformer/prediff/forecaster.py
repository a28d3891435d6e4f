"""Base of the latent diffusion models: an autoencoder of frames, a denoiser, their training stages and sampling.

Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", CVPR 2022, arXiv 2112.10752;
PreDiff (NeurIPS 2023), section 3.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from earthformer.layers import HasReference
from earthformer.prediff.autoencoder import make_autoencoder
from earthformer.prediff.constraints import Control
from earthformer.prediff.diffusion import Denoiser, LatentDiffusion, NoiseSchedule, make_betas
from earthformer.prediff.down_path import checked_shape
from earthformer.prediff.losses import AdversarialLoss
from earthformer.prediff.noise import RowNoise, content_seeds, members_of
from earthformer.prediff.sampling import Guide, Sampler, in_parts, sample_latents
from earthformer.prediff.stages import AutoencoderStage, DenoiserStage, Encode, Stage

_SEEDS = 1 << 62
# Most rows (members of sequences) that are sampled together; with few rows, launching kernels dominates a step.
_MOST_ROWS = 64
# Most values in a layer of these rows on a CPU, which gains nothing from more and does not report a lack of memory.
_MOST_VALUES_ON_A_CPU = 1 << 23
# The decoder needs far more memory per row than the denoiser.
_ROWS_DECODED = 8

Advance = Callable[[int, int], None]
LatentShape = tuple[int, int, int, int]
"""T, h, w, C."""


class LatentForecaster(HasReference):
    """Forecasts by latent diffusion, member by member, with a denoiser that a subclass passes in."""

    evaluation_only: ClassVar[tuple[str, ...]] = ("sampler", "steps", "eta", "members", "seed", "bfloat16")

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        make_denoiser: Callable[[LatentShape, LatentShape], Denoiser],
        denoiser: Mapping[str, Any],
        autoencoder: Mapping[str, Any],
        noise: Mapping[str, Any],
        diffusion: Mapping[str, Any],
        discriminator_from: int,
        augment: bool,
        sampler: Sampler,
        members: int,
        seed: int,
        bfloat16: bool,
    ) -> None:
        """Makes the networks.

        Args:
            input_shape: T, H, W, C of the context.
            target_shape: T, H, W, C of the target.
            make_denoiser: makes the denoiser from the shapes of the context's and the target's latents.
            denoiser: hyperparameters of the denoiser, on which its weights depend.
            autoencoder: arguments of `make_autoencoder`.
            noise: ``beta_schedule``, ``timesteps`` and ``linear``, the first and last beta.
            diffusion: arguments of `LatentDiffusion`.
            discriminator_from: optimiser steps before the discriminator takes part in the autoencoder's training.
            augment: whether to flip and rotate frames in training.
            sampler: sampler and its number of steps.
            members: number of members that `forward` averages.
            seed: seed of those members.
            bfloat16: whether the denoiser samples in mixed precision.

        Raises:
            ValueError: shapes or hyperparameters that do not fit.
        """
        super().__init__()
        self.input_shape = checked_shape("input_shape", input_shape)
        self.target_shape = checked_shape("target_shape", target_shape)
        self.augment, self.sampler = augment, sampler
        self.members, self.seed, self.mixed_precision = _checked_members(members), seed, bfloat16
        self._rows_that_fit: int | None = None  # set if fewer fit than are tried first
        timesteps, (first, last) = noise["timesteps"], noise["linear"]
        betas = make_betas(noise["beta_schedule"], timesteps=timesteps, linear_start=first, linear_end=last)
        self.schedule = NoiseSchedule(betas)
        if sampler.steps > timesteps:
            raise ValueError(f"steps: expected at most timesteps = {timesteps}, found {sampler.steps}")
        self.autoencoder = make_autoencoder(in_channels=self.input_shape[3], **autoencoder)
        self.adversarial_loss = AdversarialLoss(discriminator_from=discriminator_from)
        self.latent_shape = self.autoencoder.latent_shape(self.target_shape)
        network = make_denoiser(self.autoencoder.latent_shape(self.input_shape), self.latent_shape)
        self.diffusion = LatentDiffusion(network, self.schedule, **diffusion)
        self._depends_on: dict[str, dict[str, Any]] = {
            "autoencoder": {**autoencoder, "discriminator_from": discriminator_from, "augment": augment},
            "denoiser": {**denoiser, **noise, **diffusion, "augment": augment},
        }

    def forward(self, context: Tensor) -> Tensor:
        """Returns the mean of `members` members (B, T_out, H, W, C), the same for a context in any batch.

        The paper's scores of single forecasts are those of a mean; a single member is as sharp as the truth and has a
        larger squared error. Under `reference`, which is for counting, the result has the cost of one member and is
        not a forecast.

        Raises:
            ValueError: a context of the wrong shape, or diverged sampling.
        """
        if self.plain:
            return self._counted(context)
        return self._draw(context, members_of(content_seeds(context, self.seed), self.members), None, None).mean(dim=0)

    def sample(
        self,
        context: Tensor,
        *,
        members: int,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
        control: Control | float | None = None,
        advance: Advance | None = None,
    ) -> Tensor:
        """Returns members (M, B, T_out, H, W, C) for contexts (B, T_in, H, W, C), not clipped.

        A member depends on its context, its number and its seed, not on the device, the number of members or the rest
        of the batch.

        Args:
            context: context on the 0-1 scale.
            members: number of members, at least 1.
            generator: gives one number, which seeds all members together with their contexts. Without generator and
                seeds, the members are those that `forward` averages.
            seeds: instead of a generator, one seed per sequence (B,), int64, from 0 to 2^63 - 1.
            control: target of a model with knowledge alignment; a number is n in mean + n sigma.
            advance: called with (done, total) after every step of every row.

        Raises:
            ValueError: no members, both a generator and seeds, a context of the wrong shape, a wrong number of seeds, a
                control that does not fit the alignment, or diverged sampling.
        """
        _checked_members(members)
        if seeds is None:
            base: int | Tensor = self.seed
            if generator is not None:
                drawn = torch.randint(_SEEDS, (1,), generator=generator, device=generator.device)
                base = drawn.to(context.device)
            seeds = content_seeds(context, base)
        elif generator is not None:
            raise ValueError("sample: expected a generator or seeds, found both")
        elif seeds.shape != context.shape[:1] or seeds.dtype != torch.long:
            raise ValueError(
                f"seeds: expected int64 ({len(context)},), one for each sequence, found {seeds.dtype} "
                f"{tuple(seeds.shape)}"
            )
        if isinstance(control, int | float):
            control = Control(sigmas=float(control))
        return self._draw(context, members_of(seeds.to(context.device), members), control, advance)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the denoiser, where sampling and the longest training spend their time, as `nn.Module.compile`."""
        self.diffusion.denoiser.compile(*args, **kwargs)

    def stages(self) -> tuple[Stage, ...]:
        """Returns the trainings of the model, in their order; see `Stage`."""
        first = AutoencoderStage(self.autoencoder, self.adversarial_loss, augment=self.augment)
        second = DenoiserStage(self.diffusion, self._encoder(), augment=self.augment)
        prepare = second.prepare if self.diffusion.measures_scale else None
        depends_on = self._depends_on
        return (
            Stage("autoencoder", first, self.autoencoder, depends_on["autoencoder"]),
            Stage("denoiser", second, self.diffusion.denoiser, depends_on["denoiser"], prepare),
        )

    def _encoder(self) -> Encode:
        # A closure, so that copies of a stage (such as running averages of its weights) do not copy the whole model.
        return lambda frames, draw: self._encode(frames, draw)

    @torch.no_grad()
    def _encode(self, frames: Tensor, draw: bool) -> Tensor:
        """Returns latents of frames; the autoencoder is moved to the frames' device."""
        self.autoencoder.to(frames.device)
        with _in_eval_mode(self.autoencoder):
            latents = self.autoencoder.to_latents(frames)
            if not draw:
                return latents
            return self.autoencoder.to_latents(frames, torch.randn_like(latents))

    @torch.no_grad()
    def _draw(self, context: Tensor, noise: RowNoise, control: Control | None, advance: Advance | None) -> Tensor:
        """Returns members (M, B, ...) of contexts (B, ...), given the noise of each row, sequence by sequence."""
        self._check(context)
        batch, total = len(context), len(noise)
        members = total // batch
        with _in_eval_mode(self):
            cond = self.autoencoder.to_latents(context)
            targets = self._targets(cond, noise, control)
            cond = self.diffusion.conditioned(cond).repeat_interleave(members, dim=0)

            def frames_of(rows: slice) -> Tensor:
                """Returns the frames (N, ...) of some rows."""
                latents = sample_latents(
                    lambda noised, t: self._predicted_noise(noised, t, cond[rows]),
                    self.latent_shape,
                    sampler=self.sampler,
                    schedule=self.schedule,
                    noise=noise[rows],
                    guide=self._guide(None if targets is None else targets[rows]),
                    advance=_of_rows(advance, rows, total),
                )
                parts = self.diffusion.unscaled(latents).split(_ROWS_DECODED)
                return torch.cat([self.autoencoder.to_frames(part) for part in parts])

            together = members if self._couples_members else self._rows_that_fit or self._rows_at_once(context.device)
            frames, fitted = in_parts(frames_of, total, together, divisible=not self._couples_members)
        if fitted < together:
            self._rows_that_fit = fitted
        return frames.unflatten(0, (batch, members)).transpose(0, 1)

    @torch.no_grad()
    def _counted(self, context: Tensor) -> Tensor:
        """Returns frames (B, T_out, H, W, C) with the cost of one member: the sampler's steps are rows of one batch.

        Tracing all steps would take longer than the forecast itself.
        """
        self._check(context)
        steps = self.sampler.steps
        with _in_eval_mode(self):
            cond = self.diffusion.conditioned(self.autoencoder.to_latents(context)).repeat_interleave(steps, dim=0)
            noised = cond.new_zeros((len(cond), *self.latent_shape))
            t = torch.zeros(len(cond), dtype=torch.long, device=cond.device)
            seen = self._predicted_noise(noised, t, cond)
            if (guide := self._guide(None)) is not None:
                seen = seen + guide.noise_shift(noised, t, self.schedule)
            return self.autoencoder.to_frames(seen[::steps])

    def _check(self, context: Tensor) -> None:
        if tuple(context.shape[1:]) != self.input_shape:
            raise ValueError(
                f"{type(self).__name__}: expected a context (B, T, H, W, C) with {self.input_shape} behind B, found "
                f"{tuple(context.shape)}"
            )

    def _predicted_noise(self, noised: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        with torch.autocast(noised.device.type, torch.bfloat16) if self.mixed_precision else contextlib.nullcontext():
            return self.diffusion.predicted_noise(noised, t, cond)

    def _rows_at_once(self, device: torch.device) -> int:
        """Returns how many rows to try first."""
        if device.type != "cpu":
            return _MOST_ROWS
        return max(1, min(_MOST_ROWS, _MOST_VALUES_ON_A_CPU // math.prod(self.diffusion.denoiser.shapes[0])))

    @property
    def _couples_members(self) -> bool:
        """Returns whether the members of a sequence depend on one another, so that they are drawn together."""
        return False

    def _targets(self, cond: Tensor, noise: RowNoise, control: Control | None) -> Tensor | None:
        """Returns the target of each row (N, K), given the contexts' latents (B, ...); None without guidance."""
        if control is not None:
            raise ValueError("control: this model has no alignment network, use prediff_ka")
        return None

    def _guide(self, targets: Tensor | None) -> Guide | None:
        """Returns the guide that steers rows to their targets."""
        return None


def _of_rows(advance: Advance | None, rows: slice, total: int) -> Advance | None:
    """Returns a callback that reports the steps of some rows as a share of those of all rows."""
    if advance is None:
        return None
    return lambda done, steps: advance(rows.start * steps + (rows.stop - rows.start) * done, total * steps)


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, and restores the mode of each module afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _checked_members(members: int) -> int:
    if members < 1:
        raise ValueError(f"members: expected at least 1, found {members}")
    return members
