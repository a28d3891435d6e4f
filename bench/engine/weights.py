"""The running average of weights, and sharding over processes (`strategy=fsdp`).

Sharding uses torch's `fully_shard`; checkpoints are those of whole models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from bench.api import TrainsWithOwnLoss, ValidatesWithOwnLoss

WARMUP: dict[str, Any] = {"use_warmup": True, "warmup_gamma": 9.0, "warmup_power": 1.0}
"""With these, timm's decay after n updates is (1 + n) / (10 + n), if `WARMUP_LAG` is added to the updates it counts."""
WARMUP_LAG = 2


class RunningAverage(ModelEmaV3):
    """timm's running average, limited to the parameters that an optimiser changes; others are copied from the model.

    timm averages every number in a state_dict, or every parameter: a frozen one may be a mask of minus infinity, whose
    difference from itself is NaN, or an integer, which has no average. Buffers, such as a running variance or a count,
    are copied, too.
    """

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Moves the average towards the model's weights; frozen weights are copied.

        Args:
            model: The model that the average was created for.
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


@contextmanager
def averaged(model: nn.Module, average: RunningAverage | None) -> Iterator[None]:
    """Gives a model the weights and buffers of its running average within it, if there is one."""
    if average is None:
        yield
        return
    _exchange(model, average.module)
    try:
        yield
    finally:
        _exchange(model, average.module)


@torch.no_grad()
def _exchange(one: nn.Module, other: nn.Module) -> None:
    for mine, others in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        kept = mine.clone()
        mine.copy_(others)
        others.copy_(kept)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a model's weights over processes in place; they are gathered when it computes.

    Args:
        model: Whole, and equal in all processes.
        mesh: The processes.
    """
    if isinstance(model, FSDPModule):
        return
    fully_shard(model, mesh=mesh)
    for capability, name in ((TrainsWithOwnLoss, "training_loss"), (ValidatesWithOwnLoss, "validation_loss")):
        if isinstance(model, capability):
            register_fsdp_forward_method(model, name)  # gathers the weights, too


def number_as_in_module(states: list[dict[str, Any]], optimizers: Sequence[Optimizer], module: nn.Module) -> None:
    """Renumbers the parameters in states of unsharded optimisers to the order of the module, in place.

    torch counts them group by group, but Lightning assumes the module's order when it loads a checkpoint into a sharded
    model. For an unsharded model, the numbers do not matter.
    """
    place = {id(parameter): number for number, parameter in enumerate(module.parameters())}
    for state, optimizer in zip(states, optimizers, strict=True):
        known = [place[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        state["state"] = {known[number]: content for number, content in state["state"].items()}
        state["param_groups"] = [
            {**group, "params": [known[number] for number in group["params"]]} for group in state["param_groups"]
        ]
