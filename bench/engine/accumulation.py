"""Accumulation of micro-batches, over all processes, into the gradient of an optimiser step's whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from bench.api import model_traits
from bench.data.loading import MicroBatches
from bench.data.sequences import Example
from bench.tasks.task import Task


def loss_options(model: nn.Module, task: Task, batch: Example) -> dict[str, Any]:
    """Returns the arguments of a model's losses besides context, target and steps, see `ModelTraits`."""
    traits = model_traits(model)
    labels = {"labels": batch.labels} if traits.takes_labels else {}
    return labels | ({"context_known": task.context_known(batch.context)} if traits.verifies_context else {})


def total_loss(losses: Tensor | Mapping[str, Tensor]) -> Tensor:
    """Returns a training loss as one number `()`: itself, or the sum of its parts."""
    return losses if isinstance(losses, Tensor) else torch.stack(list(losses.values())).sum()


def known_pixels(target: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Returns the number of pixels `()` that a loss averages: the target's, and the context's if it verifies it."""
    known = (~torch.isnan(target)).sum()
    return known + options["context_known"].sum() if "context_known" in options else known


def uses_batch_statistics(model: nn.Module) -> bool:
    """Returns whether a sequence's loss depends on the others of its micro-batch, as with batch normalisation.

    A model may say so itself by a class attribute of this name.
    """
    said = model_traits(model).uses_batch_statistics
    return any(isinstance(module, _BatchNorm) for module in model.modules()) if said is None else bool(said)


class Accumulation:
    """Weights the losses of micro-batches, so that their gradients add up to that of the loss of the whole batch.

    A mean over known pixels is weighted by their number.  The number in the whole step is known only at its end, when
    `correction` accounts for missing pixels.  Losses of a model with `loss_reduction = "sum"` are added up.  Nothing
    waits for the device.

    Args:
        model: Its `loss_reduction` is `mean` (the default) or `sum`.
        batches: Gives the share of each micro-batch in its step.
    """

    def __init__(self, model: nn.Module, batches: MicroBatches) -> None:
        self.batches = batches
        self.sums = model_traits(model).loss_reduction == "sum"
        self._known: Tensor | None = None
        self._expected = 1.0

    @property
    def needed(self) -> bool:
        """Returns whether a step has several micro-batches; else its loss is that of its only one."""
        return self.batches.per_step * self.batches.world > 1

    def weighted(self, loss: Tensor, number: int, known: Tensor, pixels: int) -> Tensor:
        """Returns the weighted loss of a micro-batch, whose gradient is accumulated.

        Args:
            loss: Loss of the micro-batch, `()`.
            number: Number of the micro-batch in the epoch.
            known: Number of pixels that the loss averages, `()`.
            pixels: Pixels of one sequence, missing ones included.
        """
        if not self.needed:
            return loss
        share = self.batches.share(number)
        parts = self.batches.per_step * self.batches.world  # Lightning divides by the one, DDP by the other
        if self.sums:
            return loss * (parts if share.own else 0)
        if not share.own:
            known = torch.zeros_like(known)
        self._known = known if self._known is None else self._known + known
        self._expected = float(share.step * pixels)
        return loss * (known / (self._expected / parts))

    def correction(self) -> Tensor | None:
        """Returns the factor `()` of a step's gradients at its end: 1 if no pixel was missing."""
        known, self._known = self._known, None
        if known is None:
            return None
        if self.batches.world > 1:
            torch.distributed.all_reduce(known)
        return self._expected / known.clamp(min=1)


def scale_gradients(optimizer: torch.optim.Optimizer, factor: Tensor) -> None:
    """Multiplies all gradients of an optimiser in place by a factor `()`."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if any(isinstance(gradient, DTensor) for gradient in gradients):  # in shards: no mixing with a plain tensor
        of_shards: Any = float(factor)
        for gradient in gradients:
            gradient.mul_(of_shards)
    elif gradients:
        torch._foreach_mul_(gradients, factor)
