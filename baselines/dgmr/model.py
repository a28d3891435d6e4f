"""DGMR: a generator of forecasts, trained against two discriminators: of single frames and of whole sequences.

Ravuri et al., "Skilful precipitation nowcasting using deep generative models of radar", Nature 597:672, 2021.

Adapted from DeepMind's pseudocode of DGMR, copyright 2021 DeepMind Technologies Limited, licensed under CC BY 4.0
(creativecommons.org/licenses/by/4.0): `pseudocode/{generator,discriminator,layers,train}.txt` in the history of
github.com/openclimatefix/skillful_nowcasting (commit 1743e060). Changes: rewritten in PyTorch; any number of frames
and any channels; a latent for every sequence; weights of the grid loss for values from 0 to 1; missing pixels.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from baselines.dgmr.discriminators import VOLUME_HALVINGS, Discriminators
from baselines.dgmr.generator import Generator
from baselines.masking import filled, known_error
from baselines.members import RowNoise, row_seeds
from baselines.rollout import HasReference
from baselines.shapes import checked_shapes, checked_sizes, require_divisible

Weight = Literal["intensity", "none"]

_LARGEST_WEIGHT = 24.0
_WEIGHT_PER_UNIT = 255 / 10.6
_FRAMES_FOR_VOLUMES = 2**VOLUME_HALVINGS


class DGMR(HasReference):
    """Deep generative model of radar: a recurrent generator trained against two discriminators.

    Source: Ravuri et al. 2021 (Nature 597:672), adapted from DeepMind's pseudocode (CC BY 4.0), which is for 4 -> 18
    frames of 256x256 pixels. The context stack has the channels of the pseudocode; the paper prints half of them. The
    weight of a pixel in the grid loss is ours: the authors' is the rain rate in mm/h, clipped to 0..24; here it is
    `255 y / 10.6` for values y in 0..1, clipped to 1..24, so that dry pixels count. With the defaults and 7 -> 6
    frames, the generator has 57.0 of the 89.8 million parameters; the discriminators, which forecasts do not need,
    have the rest.

    Args:
        input_shape: `(T_in, H, W, C)`.
        target_shape: `(T_out, H, W, C)`.
        channels: Channels of the generator's recurrent states, finest level (a quarter of the grid) first; each
            further level halves the grid.
        context_channels: Channels of each context frame at these levels.
        latent_widths: Channels of the latent stack's blocks; they rise from 8 or more, the last is a multiple of 8.
        discriminator_channels: Channels of the discriminators' blocks.
        discriminator_halvings: Number of these blocks that halve the grid; None for all. In the temporal discriminator
            the first two also halve time.
        discriminator_steps: Optimiser steps of the discriminators before each one of the generator.
        generator_lr: Learning rate of the generator, which the schedule multiplies.
        discriminator_lr: Learning rate of the discriminators, likewise.
        betas: Betas of Adam.
        grid_weight: Factor of the grid loss, the weighted absolute error of the mean of samples.
        grid_samples: Number of samples in that mean.
        weight: Weight of a pixel in the grid loss: `intensity`, or `none` for equal weights.
        members: Number of members that `forward` averages.
        seed: Seed of those members.

    Raises:
        ValueError: Shapes or hyperparameters do not fit.
    """

    evaluation_only: ClassVar[tuple[str, ...]] = ("members", "seed")
    uses_batch_statistics: ClassVar[bool] = True
    # A constant added to all scores cancels out as long as neither real nor generated futures have passed the hinge.
    parameters_without_gradient: ClassVar[tuple[str, ...]] = (
        "discriminators.*.head.score.bias",
        "discriminators.*.head.norm.offset",
    )
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "sevir": {},
        "sevir_lr": {},
        "nbody_mnist": {"discriminator_halvings": 4},
        "tiny": {
            "channels": [8, 16, 32],
            "context_channels": [4, 8, 16],
            "latent_widths": [8, 16, 32],
            "discriminator_channels": [8, 16, 32],
            "discriminator_halvings": 3,
            "grid_samples": 2,
            "members": 2,
        },
    }

    @staticmethod
    def size_multiple(hyperparameters: Mapping[str, Any]) -> int:
        """Returns what height and width must be divisible by, in the generator and in the discriminators."""
        halvings = hyperparameters["discriminator_halvings"]
        halvings = len(hyperparameters["discriminator_channels"]) if halvings is None else halvings
        return int(2 ** max(len(hyperparameters["channels"]) + 1, halvings + 2))

    def __init__(
        self,
        input_shape: Sequence[int],
        target_shape: Sequence[int],
        *,
        channels: Sequence[int] = (48, 96, 192, 384),
        context_channels: Sequence[int] = (48, 96, 192, 384),
        latent_widths: Sequence[int] = (24, 48, 192),
        discriminator_channels: Sequence[int] = (48, 96, 192, 384, 768),
        discriminator_halvings: int | None = None,
        discriminator_steps: int = 2,
        generator_lr: float = 5e-5,
        discriminator_lr: float = 2e-4,
        betas: tuple[float, float] = (0.0, 0.999),
        grid_weight: float = 20.0,
        grid_samples: int = 6,
        weight: Weight = "intensity",
        members: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.input_shape, self.target_shape = checked_shapes(name, input_shape, target_shape, feeds_back=False)
        channels = checked_sizes(name, "channels", channels)
        context_channels = checked_sizes(name, "context_channels", context_channels, count=len(channels))
        latent_widths = checked_sizes(name, "latent_widths", latent_widths)
        discriminator_channels = checked_sizes(name, "discriminator_channels", discriminator_channels)
        halvings = len(discriminator_channels) if discriminator_halvings is None else discriminator_halvings
        self._check_sizes(len(channels), latent_widths, len(discriminator_channels), halvings)
        for what, value in (
            ("discriminator_steps", discriminator_steps), ("grid_samples", grid_samples), ("members", members),
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name}: {what} must be at least 1, got {value}")
        if weight not in get_args(Weight):
            raise ValueError(f"{name}: weight must be one of {', '.join(get_args(Weight))}, got {weight!r}")
        self.generator = Generator(
            self.input_shape,
            self.target_shape,
            channels=channels,
            context_channels=context_channels,
            latent_widths=latent_widths,
        )
        self.discriminators = Discriminators(self.input_shape[3], discriminator_channels, halvings)
        self.discriminator_steps, self.grid_samples = discriminator_steps, grid_samples
        self.learning_rates, self.betas = (generator_lr, discriminator_lr), (float(betas[0]), float(betas[1]))
        self.grid_weight, self.weight = grid_weight, weight
        self.members, self.seed = members, seed

    def _check_sizes(self, levels: int, latent_widths: Sequence[int], blocks: int, halvings: int) -> None:
        """Checks that the sizes fit together.

        Raises:
            ValueError: They do not; the message says what was expected and found.
        """
        name = type(self).__name__
        (t_in, height, width, c_in), (t_out, *_, c_out) = self.input_shape, self.target_shape
        if c_in != c_out:
            raise ValueError(
                f"{name}: its discriminators see context and forecast as one sequence, so both need the same channels, "
                f"got {c_in} and {c_out}"
            )
        if t_in + t_out < _FRAMES_FOR_VOLUMES:
            raise ValueError(
                f"{name}: the temporal discriminator needs at least {_FRAMES_FOR_VOLUMES} frames of context and "
                f"forecast together, got {t_in} + {t_out}"
            )
        if not VOLUME_HALVINGS <= halvings <= blocks:
            raise ValueError(
                f"{name}: discriminator_halvings must be from {VOLUME_HALVINGS} to {blocks}, the number of "
                f"discriminator_channels, got {halvings}"
            )
        rising = [8, *latent_widths]  # of the noise
        if any(wide > wider for wide, wider in itertools.pairwise(rising)) or latent_widths[-1] % 8:
            raise ValueError(
                f"{name}: latent_widths must rise from 8 or more to a multiple of 8, got {tuple(latent_widths)}"
            )
        for axis, size in (("height", height), ("width", width)):
            require_divisible(name, f"{axis} (for {levels} levels, one per entry of channels)", size, 2 ** (levels + 1))
            if size % 2 ** (halvings + 2):
                fitting = (size & -size).bit_length() - 3
                raise ValueError(
                    f"{name}: {axis} must be divisible by {2 ** (halvings + 2)} for {halvings} halvings in the "
                    f"discriminators, got {size}: discriminator_halvings={fitting} would fit"
                    + ("" if fitting >= VOLUME_HALVINGS else f", but at least {VOLUME_HALVINGS} are needed")
                )

    # Forecasts

    def forward(self, context: Tensor) -> Tensor:
        """Returns the mean of `members` members (B, T_out, H, W, C), the same for a context in any batch.

        Under `reference`, which is for counting, it is a single member.

        Raises:
            ValueError: A context of another shape.
        """
        seeds = [self.seed] * len(context) if self.plain else row_seeds(context, seed=self.seed)
        return self._drawn(context, seeds, 1 if self.plain else self.members).mean(0)

    def sample(
        self,
        context: Tensor,
        *,
        members: int,
        generator: torch.Generator | None = None,
        seeds: Tensor | None = None,
    ) -> Tensor:
        """Returns members (M, B, T_out, H, W, C) for contexts (B, T_in, H, W, C), not clipped.

        A member depends on its context, its number and its seed, not on the device, the number of members or the rest
        of the batch.

        Args:
            context: Normalised context.
            members: Number of members, at least 1.
            generator: Gives one number, which seeds all members together with their contexts. Without generator and
                seeds, the members are those that `forward` averages.
            seeds: Instead of a generator, one seed per sequence (B,), int64, from 0 to 2^63 - 1.

        Raises:
            ValueError: No members, both a generator and seeds, or a context or seeds of the wrong shape.
        """
        if members < 1:
            raise ValueError(f"members: expected at least 1, found {members}")
        own = row_seeds(context, seed=self.seed, generator=generator, seeds=seeds)
        return self._drawn(context, own, members)

    @torch.no_grad()
    def _drawn(self, context: Tensor, seeds: Sequence[int], members: int) -> Tensor:
        """Returns members (M, B, T_out, H, W, C), drawn in evaluation mode."""
        if tuple(context.shape[1:]) != self.input_shape:
            raise ValueError(
                f"{type(self).__name__}: expected a context (B, T, H, W, C) with {self.input_shape} behind B, found "
                f"{tuple(context.shape)}"
            )
        noise = RowNoise(seeds)
        with _in_eval_mode(self.generator):
            return self._made(context, lambda: noise.normal(self.generator.noise_shape, context), members)

    def _made(self, context: Tensor, draw: Callable[[], Tensor], count: int) -> Tensor:
        """Returns forecasts (count, B, T_out, H, W, C), each from fresh noise (B, 8, h, w).

        Each weight is normalised once and cached, except while tracing, which torch does not support with the cache.
        """
        with contextlib.nullcontext() if torch.jit.is_tracing() else parametrize.cached():
            states = self.generator.context(context)
            return torch.stack([self.generator.from_states(states, draw()) for _ in range(count)])

    # Training

    def optimizers(self) -> list[tuple[list[nn.Parameter], float, tuple[float, float]]]:
        """Returns parameters, learning rate and betas of both Adam optimisers: generator, then discriminators."""
        parts = (self.generator, self.discriminators)
        return [(list(part.parameters()), lr, self.betas) for part, lr in zip(parts, self.learning_rates, strict=True)]

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> dict[str, Tensor]:
        """Returns the terms of the loss: of the discriminators or, after `discriminator_steps` of them, the generator.

        Missing pixels are 0 in real and generated futures, so that nothing tells them apart there; each sequence is
        weighted by its number of known pixels.

        Args:
            context: (B, T_in, H, W, C).
            target: (B, T_out, H, W, C), NaN where it is missing.
            step: Step number, from 0; `discriminator_steps` discriminator steps precede each generator step.
            total_steps: Not used.
        """
        missing = torch.isnan(target)
        weight = (~missing).sum((1, 2, 3, 4)).float()
        real = filled(target)
        if step % (self.discriminator_steps + 1) < self.discriminator_steps:
            with torch.no_grad():
                made = self._samples(context, 1)[0].masked_fill(missing, 0)
            of_real, of_made = self.discriminators.compared(context, real, made)
            hinge = F.relu(1 - of_real) + F.relu(1 + of_made)
            return {
                "spatial_hinge": _weighted_mean(hinge[:, 0], weight),
                "temporal_hinge": _weighted_mean(hinge[:, 1], weight),
            }
        samples = self._samples(context, self.grid_samples).masked_fill(missing, 0)
        judged = [self.discriminators.compared(context, real, made, frozen=True)[1] for made in samples]
        scores = torch.stack(judged).mean(0)
        return {
            "spatial_deception": -_weighted_mean(scores[:, 0], weight),
            "temporal_deception": -_weighted_mean(scores[:, 1], weight),
            "grid": self.grid_weight * self._grid_loss(samples.mean(0), target),
        }

    def _samples(self, context: Tensor, count: int) -> Tensor:
        """Returns forecasts (count, B, T_out, H, W, C) in the generator's current mode.

        The noise is drawn on the CPU, so that it is the same on every device.
        """
        shape = (len(context), *self.generator.noise_shape)
        return self._made(context, lambda: torch.randn(shape).to(context, non_blocking=True), count)

    def _grid_loss(self, mean: Tensor, target: Tensor) -> Tensor:
        """Returns the weighted absolute error of the mean of samples, as a mean over known pixels."""
        error = known_error(mean, target).abs()
        if self.weight == "intensity":
            error = error * (filled(target) * _WEIGHT_PER_UNIT).clamp(1.0, _LARGEST_WEIGHT)
        return error.sum() / (~torch.isnan(target)).sum().clamp(min=1)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the sampler, where most of the work is, as `nn.Module.compile`."""
        self.generator.sampler.compile(*args, **kwargs)


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Returns the mean of values (B,) by weights (B,); 0 if all of these are 0."""
    return (values * weight).sum() / weight.sum().clamp(min=1)


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
