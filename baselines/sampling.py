"""Which frames a recurrent model reads in training: scheduled and reverse scheduled sampling.

Scheduled sampling (Bengio et al. 2015, arXiv:1506.03099) weans a model off the truth while it forecasts.
Reverse scheduled sampling (PredRNN v2, Wang et al. 2022, arXiv:2103.09504) also replaces half of the context
with forecasts at first and then moves to the truth, so that the encoder learns long memory.

A flag is 1 where the model reads the truth. `T_out - 1` flags belong to the steps t >= T_in (the steps before
read the truth); `T_in + T_out - 2` flags belong to all steps t >= 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Sampling: TypeAlias = Literal["scheduled", "reverse_scheduled", "none"]


def scheduled_probability(iteration: float, *, rate: float = 2e-5, stop: float = 50_000) -> float:
    """Returns the probability that a forecasting step reads the truth at an iteration counted from 1.

    Source: trainer of github.com/thuml/predrnn-pytorch: 1 - rate * iteration, and 0 from `stop` on.
    """
    return max(0.0, 1.0 - rate * iteration) if iteration < stop else 0.0


def reverse_scheduled_probabilities(
    iteration: float, *, first: float = 25_000, second: float = 50_000, alpha: float = 2_500
) -> tuple[float, float]:
    """Returns the probabilities that a step reads the truth within the context, and after it.

    Both are 1/2 before iteration `first`; then the first one rises exponentially and the second one falls
    linearly, to reach 1 and 0 at iteration `second`.

    Source: trainer of github.com/thuml/predrnn-pytorch with the numbers of its Moving MNIST script.
    """
    if iteration < first:
        return 0.5, 0.5
    if iteration < second:
        since = iteration - first
        return 1.0 - 0.5 * math.exp(-since / alpha), 0.5 - 0.5 * since / (second - first)
    return 1.0, 0.0


@dataclass(frozen=True)
class SamplingSchedule:
    """The transition from reading the truth to reading forecasts in training.

    Attributes:
        kind: "scheduled", "reverse_scheduled", or "none" for a free roll-out from the first step on.
        rate: Decrease of the probability per iteration (scheduled).
        stop: Iteration from which no truth is read (scheduled).
        reverse_steps: Iterations at which the probabilities start and stop changing (reverse scheduled).
        reverse_alpha: Time constant of the exponential rise, in iterations (reverse scheduled).
        iterations: Length of the run that the numbers above are for. For a run of another length the schedule
            is stretched in proportion; None takes its steps as iterations.
    """

    kind: Sampling = "scheduled"
    rate: float = 2e-5
    stop: float = 50_000
    reverse_steps: Sequence[float] = (25_000, 50_000)
    reverse_alpha: float = 2_500
    iterations: int | None = 80_000

    def __post_init__(self) -> None:
        """Refuses values that would fail only in the middle of a training run."""
        if self.kind not in get_args(Sampling):
            raise ValueError(f"sampling must be one of {', '.join(get_args(Sampling))}, got {self.kind!r}")
        if len(self.reverse_steps) != 2 or self.reverse_steps[0] > self.reverse_steps[1]:
            raise ValueError(f"reverse_steps must be two rising iterations, got {tuple(self.reverse_steps)}")

    def iteration(self, step: int, total_steps: int) -> float:
        """Returns the iteration (from 1) of the schedule at a step (from 0) of a run."""
        return step + 1 if self.iterations is None else (step + 1) * self.iterations / total_steps

    def draw(self, batch: int, t_in: int, t_out: int, *, step: int, total_steps: int) -> Tensor | None:
        """Returns flags (B, T_out - 1) or (B, T_in + T_out - 2) of zeros and ones on the CPU; None for "none".

        Numbers come from torch's global CPU generator whatever the model's device, so that a resumed run, or a
        run on another device, draws the same flags.
        """
        if self.kind == "none":
            return None
        iteration = self.iteration(step, total_steps)
        if self.kind == "scheduled":
            probability = scheduled_probability(iteration, rate=self.rate, stop=self.stop)
            return (torch.rand(batch, t_out - 1) < probability).float()
        context, forecast = reverse_scheduled_probabilities(
            iteration, first=self.reverse_steps[0], second=self.reverse_steps[1], alpha=self.reverse_alpha
        )
        drawn = (torch.rand(batch, t_in - 1) < context, torch.rand(batch, t_out - 1) < forecast)
        return torch.cat(drawn, dim=1).float()


def truths_by_step(mask: Tensor, t_in: int, t_out: int) -> tuple[int, Tensor]:
    """Returns how many leading steps always read the truth, and the flags (B, K) of the K steps after them.

    Args:
        mask: Flags (B, T_out - 1) of scheduled or (B, T_in + T_out - 2) of reverse scheduled sampling.
        t_in: Frames in the context.
        t_out: Frames in the forecast.

    Raises:
        ValueError: The mask has neither number of flags.
    """
    if mask.ndim == 2 and mask.shape[1] == t_out - 1:
        return t_in, mask
    if mask.ndim == 2 and mask.shape[1] == t_in + t_out - 2:
        return 1, mask
    raise ValueError(
        f"mask must be (B, {t_out - 1}) for scheduled or (B, {t_in + t_out - 2}) for reverse scheduled "
        f"sampling, got {tuple(mask.shape)}"
    )


def mixed(flag: Tensor, truth: Tensor, prediction: Tensor) -> Tensor:
    """Returns the truth (B, C, H, W) where the flag (B,) is 1 and the prediction where it is 0."""
    flag = flag.to(truth.dtype).view(-1, 1, 1, 1)
    return flag * truth + (1 - flag) * prediction
