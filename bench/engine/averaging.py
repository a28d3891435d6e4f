"""The running average of a model's weights."""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import nn


class RunningAverage(ModelEmaV3):
    """timm's running average, of what an optimiser changes; all else is as the model has it.

    timm averages every number that a state_dict holds, or every parameter: a frozen one may be a mask of minus
    infinity, whose difference from itself is not a number, or an integer, which has no average. Buffers are the model's
    too: a running variance or a count is no weight.
    """

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Moves the average towards the model's weights; weights that stayed as they were give an average as they are.

        Args:
            model: The one that was given first.
            step: Optimiser steps so far; with a warm-up, the decay grows with them.
        """
        new_weight = 1 - self.get_decay(step)
        averages, buffers = dict(self.module.named_parameters()), dict(self.module.named_buffers())
        for name, weight in model.named_parameters():
            if name not in averages:
                continue  # made after the first forecast, which the contract of models does not allow
            if weight.requires_grad:
                average = torch.lerp(averages[name], weight, new_weight)
                averages[name].copy_(torch.where(torch.isfinite(average), average, weight))
            else:
                averages[name].copy_(weight)
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffers[name].copy_(buffer)
