"""The loss of a batch, and the losses and gradient norms of a training, without waiting for the device.

Reading a value makes Python wait for the device, which then waits for Python: a training that reads every loss never
has work queued. On a GPU, values are therefore read together, some steps late; each keeps its step.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.api import TrainsWithOwnLoss
from bench.engine.accumulation import total_loss
from bench.errors import RunFailedError
from bench.metrics.states import ExactMetric

_MAX_WAITING = 50
_MAX_WAIT_S = 5.0
"""Losses are read after this many micro-batches or seconds; on the CPU, where nothing waits, after each one."""


@dataclass(frozen=True)
class _Loss:
    step: int
    epoch: int
    batch: int
    names: tuple[str, ...]
    values: tuple[Tensor, ...]
    """The loss, whether the context and the target have missing values, and the parts of the loss."""


@dataclass(frozen=True)
class _Norm:
    step: int
    epoch: int
    lr: float
    norm: Tensor | None


@dataclass(frozen=True)
class Step:
    """An optimiser step whose losses were read."""

    step: int
    epoch: int
    lr: float
    losses: dict[str, float]
    """Losses of its last micro-batch: `train/loss`, and its parts by name."""


def masked_mse(forecast: Tensor, target: Tensor) -> Tensor:
    """Returns the mean squared error `()` over the pixels of a batch whose target is not NaN; 0 if there are none.

    Missing pixels have no gradient.  Nothing waits for the device, because no value is read here.
    """
    missing = torch.isnan(target)
    error = (forecast.float() - target).masked_fill(missing, 0)
    return error.square().sum() / (~missing).sum().clamp(min=1)


def training_loss(
    model: nn.Module, context: Tensor, target: Tensor, *, step: int = 0, total_steps: int, **options: Any
) -> Tensor:
    """Returns the loss of a batch `()`: the model's own, else the mean squared error, see `TrainsWithOwnLoss`."""
    if not isinstance(model, TrainsWithOwnLoss):
        return masked_mse(model(context), target)
    return total_loss(model.training_loss(context, target, step=step, total_steps=total_steps, **options))


class Losses:
    """Keeps losses and gradient norms on the device until they are read.

    Args:
        task: Its name, for messages.
        model: Its name, for messages.
        factor: Multiple of the first loss that counts as divergence; None to allow any.
    """

    def __init__(self, task: str, model: str, factor: float | None = None) -> None:
        self.task, self.model, self.factor = task, model, factor
        self.first: float | None = None
        """The first loss of a batch with a known pixel."""
        self.last: float | None = None
        """The last finite loss, as of the last check."""
        self._waiting: list[_Loss | _Norm] = []
        self._seen: dict[str, float] = {}
        self._checked_at = time.monotonic()

    def add(
        self,
        loss: Tensor,
        parts: Mapping[str, Tensor],
        *,
        step: int,
        epoch: int,
        batch: int,
        missing: tuple[Tensor, Tensor | None],
    ) -> None:
        """Keeps the loss of a micro-batch.

        Args:
            loss: `()`, with or without a gradient.
            parts: Terms of the loss by name.
            step: Optimiser steps done before.
            epoch: Number of the epoch, from 0.
            batch: Number of the micro-batch in the epoch, from 0.
            missing: Whether the context has missing values, and whether the target has, if the model's own loss must
                handle them; booleans `()`.
        """
        in_context, in_target = missing
        values = (loss.detach(), in_context, torch.zeros_like(in_context) if in_target is None else in_target)
        parts = {name: part.detach() for name, part in parts.items()}
        self._waiting.append(_Loss(step, epoch, batch, tuple(parts), (*values, *parts.values())))

    def add_step(self, norm: Tensor | None, *, step: int, epoch: int, lr: float) -> None:
        """Keeps the gradient norm of an optimiser step, `()`; None if a gradient scaler checks it."""
        self._waiting.append(_Norm(step, epoch, lr, None if norm is None else norm.detach()))

    def is_due(self) -> bool:
        """Returns whether it is time to read the losses."""
        tensors = [entry.values[0] for entry in self._waiting if isinstance(entry, _Loss)]
        if not tensors:
            return False
        late = len(tensors) >= _MAX_WAITING or time.monotonic() - self._checked_at >= _MAX_WAIT_S
        return late or tensors[-1].device.type == "cpu"

    def checked_steps(self) -> Iterator[Step]:
        """Yields the optimiser steps since the last call; the only place that waits for the device.

        Raises:
            RunFailedError: a loss or a gradient is not finite, or the loss diverged; names the step. Earlier steps
                have been yielded.
        """
        waiting, self._waiting, self._checked_at = self._waiting, [], time.monotonic()
        numbers = _numbers(waiting)
        for entry, after in itertools.zip_longest(waiting, waiting[1:]):
            if isinstance(entry, _Loss):
                self._check(entry, [next(numbers) for _ in entry.values])
                if not isinstance(after, _Norm):  # else the norm is checked first
                    self._check_size(entry.step)
                continue
            norm = 0.0 if entry.norm is None else next(numbers)
            if not math.isfinite(norm):
                raise RunFailedError(
                    f"a gradient is not finite at step {entry.step} (epoch {entry.epoch}), though the loss was "
                    f"{self.last}. Lower train.lr, or look for a square root or logarithm at 0 in the model."
                )
            self._check_size(entry.step + 1)
            yield Step(entry.step, entry.epoch, entry.lr, self._seen)

    def _check(self, entry: _Loss, numbers: list[float]) -> None:
        value, in_context, in_target, *parts = numbers
        if not math.isfinite(value):
            advice = "Lower train.lr or train.clip_norm."
            if in_context:
                advice = f"The context has missing values, which task {self.task!r} must fill in to_context()."
            elif in_target:
                advice = (
                    f"The target has missing values (NaN), which training_loss of {self.model} must leave out: it is "
                    "the mean over known pixels. Or train without missing pixels."
                )
            raise RunFailedError(
                f"the training loss is {value} at step {entry.step} (epoch {entry.epoch}, batch {entry.batch}); last "
                f"finite loss {self.last}. {advice}"
            )
        self._seen = {"train/loss": value} | {
            f"train/{name}": part for name, part in zip(entry.names, parts, strict=True)
        }
        if value or self.last is None:  # the loss of a batch without a known pixel is 0
            self.last = value

    def _check_size(self, step: int) -> None:
        size = abs(self.last or 0.0)
        if not self.first:  # None, or 0 from a batch without a known pixel
            self.first = size
        elif self.factor is not None and size > self.factor * self.first:
            raise RunFailedError(
                f"the training diverged: loss {size:.6g} at step {step} is more than "
                f"train.divergence_factor={self.factor:g} times the first one, {self.first:.6g}. Lower train.lr."
            )


def _numbers(waiting: list[_Loss | _Norm]) -> Iterator[float]:
    tensors: list[Tensor] = []
    for entry in waiting:
        tensors += entry.values if isinstance(entry, _Loss) else [] if entry.norm is None else [entry.norm]
    yield from torch.stack([value.double() for value in tensors]).tolist() if tensors else ()


class WeightedMean(ExactMetric):
    """Mean over all pixels, from the means of batches and their numbers of pixels; NaN without any pixel.

    It depends neither on batches nor on processes, and nothing waits for the device before `compute()`.  torchmetrics'
    `MeanMetric` either reads every value or, with `nan_strategy="disable"`, ignores the weights.
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, count: Tensor) -> None:
        """Adds the mean of `count` pixels, both `()`."""
        self.total = self.total + mean.detach().double() * count
        self.count = self.count + count

    def compute(self) -> Tensor:
        """Returns the mean, float64 `()`."""
        return self.total / self.count
