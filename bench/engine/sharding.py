"""Models in shards (`strategy=fsdp`): torch's `fully_shard`, and checkpoints that shards and whole models share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from bench.api import TrainsWithOwnLoss, ValidatesWithOwnLoss


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a model's weights over processes in place; they are gathered where it computes.

    Args:
        model: Whole and alike in all processes.
        mesh: The processes.
    """
    if isinstance(model, FSDPModule):
        return
    fully_shard(model, mesh=mesh)
    for capability, name in ((TrainsWithOwnLoss, "training_loss"), (ValidatesWithOwnLoss, "validation_loss")):
        if isinstance(model, capability):
            register_fsdp_forward_method(model, name)  # gathers the weights, too


def number_as_in_module(states: list[dict[str, Any]], optimizers: Sequence[Optimizer], module: nn.Module) -> None:
    """Numbers the parameters of whole optimisers' states in the order in which the module has them, in place.

    torch counts them group by group; Lightning takes the numbers of a checkpoint that it reads into shards for the
    module's own order. Read into a whole model, the numbers do not matter.
    """
    place = {id(parameter): number for number, parameter in enumerate(module.parameters())}
    for state, optimizer in zip(states, optimizers, strict=True):
        known = [place[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
        state["state"] = {known[number]: content for number, content in state["state"].items()}
        state["param_groups"] = [
            {**group, "params": [known[number] for number in group["params"]]} for group in state["param_groups"]
        ]
