"""PreDiff: probabilistic forecasts by latent diffusion with a denoiser of cuboid attention, and control by knowledge.

Source: Gao et al., "PreDiff: Precipitation Nowcasting with Latent Diffusion Models", NeurIPS 2023, arXiv 2307.10422;
settings as in the authors' released code.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from earthformer.layers import HasReference
from earthformer.prediff.adversarial import AdversarialLoss
from earthformer.prediff.autoencoder import make_autoencoder
from earthformer.prediff.batching import in_parts
from earthformer.prediff.constraints import Control
from earthformer.prediff.denoiser import CuboidUNet
from earthformer.prediff.diffusion import LatentDiffusion
from earthformer.prediff.down_path import checked_shape
from earthformer.prediff.noise import RowNoise, content_seeds, members_of
from earthformer.prediff.sampling import Guide, Sampler, sample_latents
from earthformer.prediff.schedule import NoiseSchedule, make_betas
from earthformer.prediff.stages import AutoencoderStage, DenoiserStage, Encode, Stage

_SEEDS = 1 << 62
# Rows (members of sequences) that are sampled together at most: a step of few is spent on starting kernels.
_MOST_ROWS = 64
# And values in a layer of them on a CPU, which gains nothing by more and has no message for when memory is short.
_MOST_VALUES_ON_A_CPU = 1 << 23
# The decoder needs far more memory per row than the denoiser.
_ROWS_DECODED = 8
# A trace of more steps than this takes longer than the forecast itself.
_MOST_STEPS_COUNTED = 100

Advance = Callable[[int, int], None]


class PreDiff(HasReference):
    """PreDiff: latent diffusion with a denoiser of cuboid attention, sampled member by member."""

    evaluation_only: ClassVar[tuple[str, ...]] = ("sampler", "steps", "eta", "members", "seed", "bfloat16")
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
        """Make the networks; the defaults are the released model's, and the authors' only sampler.

        Args:
            input_shape: T, H, W, C of the context.
            target_shape: T, H, W, C of the target.
            latent_channels: of the autoencoder; 64 in the released model, 4 in the paper.
            autoencoder_channels: of its levels; each but the last halves height and width.
            autoencoder_layers: residual blocks of a level.
            autoencoder_groups: groups of its norms.
            discriminator_from: optimiser steps before the discriminator takes part in its training.
            base_units: channels of the denoiser's finest level.
            depth: attention blocks of its levels.
            num_heads: its attention heads.
            pattern: its cuboid pattern.
            dropout: of denoiser and alignment network.
            checkpoint_level: 0 keeps their activations, 1 recomputes feed-forward layers, 2 attention too.
            timesteps: diffusion steps.
            beta_schedule: ``linear`` (in the square root of beta), ``sqrt_linear``, ``sqrt`` or ``cosine``.
            linear_start: first beta.
            linear_end: last beta.
            parameterization: ``eps`` if the denoiser predicts the noise, ``x0`` if the latents.
            learn_logvar: whether the log-variance of every step's loss is trained.
            scale_factor: of the target's latents before noise is added.
            augment: flips and turns in training.
            sampler: ``ddpm``, ``ddim`` or ``dpm_solver++``.
            steps: of the sampler.
            eta: noise of ``ddim``.
            members: averaged by `forward`.
            seed: of its members.
            bfloat16: the denoiser samples in mixed precision.

        Raises:
            ValueError: shapes or hyperparameters that do not fit.
        """
        super().__init__()
        self.input_shape = checked_shape("input_shape", input_shape)
        self.target_shape = checked_shape("target_shape", target_shape)
        self.scale_factor, self.augment = float(scale_factor), augment
        self.members, self.seed, self.mixed_precision = _checked_members(members), seed, bfloat16
        self.sampler = Sampler(sampler, steps, eta)
        self._rows_that_fit: int | None = None  # found where fewer fit than are tried first
        schedule = make_betas(beta_schedule, timesteps=timesteps, linear_start=linear_start, linear_end=linear_end)
        self.schedule = NoiseSchedule(schedule)
        if steps > timesteps:
            raise ValueError(f"steps: expected at most timesteps = {timesteps}, found {steps}")
        autoencoder: dict[str, Any] = {
            "latent_channels": latent_channels,
            "block_out_channels": list(autoencoder_channels),
            "layers_per_block": autoencoder_layers,
            "norm_num_groups": autoencoder_groups,
        }
        self.autoencoder = make_autoencoder(in_channels=self.input_shape[3], **autoencoder)
        self.adversarial_loss = AdversarialLoss(discriminator_from=discriminator_from)
        self.latent_shape = self.autoencoder.latent_shape(self.target_shape)
        levels: dict[str, Any] = {
            "num_heads": num_heads,
            "block_attn_patterns": pattern,
            "checkpoint_level": checkpoint_level,
            **dict.fromkeys(("attn_drop", "proj_drop", "ffn_drop"), dropout),
        }
        denoiser: dict[str, Any] = {"base_units": base_units, "depth": list(depth), **levels}
        self.diffusion = LatentDiffusion(
            CuboidUNet(self.autoencoder.latent_shape(self.input_shape), self.latent_shape, **denoiser),
            self.schedule,
            parameterization=parameterization,
            learn_logvar=learn_logvar,
        )
        noise = {"beta_schedule": beta_schedule, "timesteps": timesteps, "linear": [linear_start, linear_end]}
        self._levels = levels
        self._depends_on: dict[str, dict[str, Any]] = {
            "autoencoder": {**autoencoder, "discriminator_from": discriminator_from, "augment": augment},
            "denoiser": {
                **denoiser, **noise, "parameterization": parameterization, "learn_logvar": learn_logvar,
                "scale_factor": scale_factor, "augment": augment,
            },
        }  # fmt: skip

    def forward(self, context: Tensor) -> Tensor:
        """Return the mean of `members` members (B, T_out, H, W, C): the same for the same context in any batch.

        The paper's scores of single forecasts are those of a mean; a single member has the sharpness of the truth and a
        larger squared error. Under `reference`, which is for counting, it is one member.

        Raises:
            ValueError: a context of another shape, or sampling that diverged.
        """
        if self.plain and self.sampler.steps > _MOST_STEPS_COUNTED:
            raise ValueError(
                f"a forecast of {self.sampler.steps} steps is not counted: count one of at most {_MOST_STEPS_COUNTED}"
            )
        noise = members_of(content_seeds(context, self.seed), 1 if self.plain else self.members)
        return self._draw(context, noise, None, None).mean(dim=0)

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
        """Return members (M, B, T_out, H, W, C) for contexts (B, T_in, H, W, C), not clipped.

        A member depends on its context, its number and what it is seeded by, not on the device, the number of members
        or what it is batched with.

        Args:
            context: on the 0-1 scale.
            members: at least 1.
            generator: seeds all members, together with their contexts: one number is drawn from it. Without it, and
                without `seeds`, they are those that `forward` averages.
            seeds: instead, a seed of each sequence (B,), int64, from 0 to 2^63 - 1.
            control: where a model with knowledge alignment is steered to; a number is n in mean + n sigma.
            advance: called with (done, total) after every step of every row.

        Raises:
            ValueError: no members, both a generator and seeds, a context of another shape, another number of seeds, a
                control that fits no alignment, or sampling that diverged.
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
        """Compile the denoiser, where sampling and the longest training spend their time, as `nn.Module.compile`."""
        self.diffusion.denoiser.compile(*args, **kwargs)

    def stages(self) -> tuple[Stage, ...]:
        """Return the trainings of the model, in their order; see `Stage`."""
        options: dict[str, Any] = {"scale_factor": self.scale_factor, "augment": self.augment}
        first = AutoencoderStage(self.autoencoder, self.adversarial_loss, augment=self.augment)
        second = DenoiserStage(self.diffusion, self._encoder(), **options)
        depends_on = self._depends_on
        return (
            Stage("autoencoder", first, self.autoencoder, depends_on["autoencoder"]),
            Stage("denoiser", second, self.diffusion.denoiser, depends_on["denoiser"]),
        )

    def _encoder(self) -> Encode:
        # A closure: copies of a stage, such as running averages of its weights, do not copy the model through it.
        return lambda frames, draw: self._encode(frames, draw)

    @torch.no_grad()
    def _encode(self, frames: Tensor, draw: bool) -> Tensor:
        """Return latents of frames by the autoencoder as it is, moved to where the frames are."""
        self.autoencoder.to(frames.device)
        with _in_eval_mode(self.autoencoder):
            latents = self.autoencoder.to_latents(frames)
            if not draw:
                return latents
            return self.autoencoder.to_latents(frames, torch.randn_like(latents))

    @torch.no_grad()
    def _draw(self, context: Tensor, noise: RowNoise, control: Control | None, advance: Advance | None) -> Tensor:
        """Return members (M, B, ...) of contexts (B, ...), given what each is drawn from, sequence by sequence."""
        if tuple(context.shape[1:]) != self.input_shape:
            raise ValueError(
                f"PreDiff: expected a context (B, T, H, W, C) with {self.input_shape} behind B, found "
                f"{tuple(context.shape)}"
            )
        batch, total = len(context), len(noise)
        members = total // batch
        with _in_eval_mode(self):
            cond = self.autoencoder.to_latents(context)
            targets = self._targets(cond, noise, control)
            cond = cond.repeat_interleave(members, dim=0)

            def frames_of(rows: slice) -> Tensor:
                """Return the frames (N, ...) of some rows."""
                latents = sample_latents(
                    lambda noised, t: self._predicted_noise(noised, t, cond[rows]),
                    self.latent_shape,
                    sampler=self.sampler,
                    schedule=self.schedule,
                    noise=noise[rows],
                    guide=self._guide(None if targets is None else targets[rows]),
                    advance=_of_rows(advance, rows, total),
                )
                parts = (latents / self.scale_factor).split(_ROWS_DECODED)
                return torch.cat([self.autoencoder.to_frames(part) for part in parts])

            together = members if self._couples_members else self._rows_that_fit or self._rows_at_once(context.device)
            frames, fitted = in_parts(frames_of, total, together, divisible=not self._couples_members)
        if fitted < together:
            self._rows_that_fit = fitted
        return frames.unflatten(0, (batch, members)).transpose(0, 1)

    def _predicted_noise(self, noised: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        with torch.autocast(noised.device.type, torch.bfloat16) if self.mixed_precision else contextlib.nullcontext():
            return self.diffusion.predicted_noise(noised, t, cond)

    def _rows_at_once(self, device: torch.device) -> int:
        """Return how many rows are tried first."""
        if device.type != "cpu":
            return _MOST_ROWS
        return max(1, min(_MOST_ROWS, _MOST_VALUES_ON_A_CPU // math.prod(self.diffusion.denoiser.shapes[0])))

    @property
    def _couples_members(self) -> bool:
        """Return whether the members of a sequence depend on one another, so that they are drawn together."""
        return False

    def _targets(self, cond: Tensor, noise: RowNoise, control: Control | None) -> Tensor | None:
        """Return what each row (N, K) is steered to, given the contexts' latents (B, ...); None for nothing."""
        if control is not None:
            raise ValueError("control: this model has no alignment network, use prediff_ka")
        return None

    def _guide(self, targets: Tensor | None) -> Guide | None:
        """Return what steers rows to their targets."""
        return None


def _of_rows(advance: Advance | None, rows: slice, total: int) -> Advance | None:
    """Return what tells of the steps of some rows as of those of all."""
    if advance is None:
        return None
    return lambda done, steps: advance(rows.start * steps + (rows.stop - rows.start) * done, total * steps)


@contextlib.contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode inside the context, and its modules back into their own modes behind it."""
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
