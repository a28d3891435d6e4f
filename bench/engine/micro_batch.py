"""The number of sequences that one device takes at a time: as given, by a rule, or the most that fits."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import default_collate

from bench.config import Config
from bench.data.loading import TrainingLoader
from bench.data.sequences import Example
from bench.engine.accumulation import loss_options, uses_batch_statistics
from bench.engine.forecaster import Forecaster
from bench.engine.losses import training_loss
from bench.engine.optimizers import MAX_ALTERNATION, has_own_optimizers
from bench.engine.processes import Processes
from bench.engine.randomness import random_states, restore_random_states
from bench.files import replacing
from bench.logs import log
from bench.tasks.task import Task

PIXELS_ON_CPU = 2**23
"""Pixels of a micro-batch without a trial: two sequences of SEVIR, the authors' micro-batch, or 39 of SEVIR-LR."""
_EVALUATION_ON_CPU, _EVALUATION_ON_GPU = 8, 64
"""Most sequences of an evaluation batch; more are not faster."""
_WITHOUT_GRADIENTS = 4
"""Factor of pixels over training when no gradients are kept: 9 sequences of SEVIR."""
_MAX_MEMORY_SHARE = 0.9
"""Share of a GPU's memory that a trial may take; the exchange between processes and running averages take more."""
REMEMBERED = "micro_batch.json"


def known_micro_batch(model: nn.Module, task: Task, config: Config, *, on_gpu: bool) -> int | None:
    """Returns the micro-batch of a training, or None if only a trial on the GPU can find it.

    Args:
        model: If the micro-batch changes its numbers, the device must not decide it.
        task: Gives the shapes.
        config: The run's config.
        on_gpu: Whether a GPU computes.
    """
    most = config.micro_batch_limit
    if config.data.micro_batch != "auto" or uses_batch_statistics(model):
        return most
    if on_gpu and config.strategy != "fsdp":  # a sharded model cannot be tried whole
        return None
    return min(most, _by_rule(task))


def evaluation_batch(task: Task, config: Config, count: int, *, on_gpu: bool, world: int) -> int:
    """Returns the batch size of an evaluation in one process; scores do not depend on it.

    Args:
        task: Gives the shapes.
        config: The run's config.
        count: Sequences to evaluate, of which every process gets a share.
        on_gpu: Whether a GPU computes.
        world: Processes.
    """
    asked = config.data.micro_batch
    by_rule = min(_WITHOUT_GRADIENTS * _by_rule(task), _EVALUATION_ON_GPU if on_gpu else _EVALUATION_ON_CPU)
    size = by_rule if asked == "auto" else asked
    # Otherwise as with one process, so that forecasts are bit-identical to its own.
    return max(1, count // world) if math.ceil(count / size) < world else size


def _by_rule(task: Task) -> int:
    return max(1, PIXELS_ON_CPU // (math.prod(task.input_shape) + math.prod(task.target_shape)))


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """Returns the largest of 1, 2, 4, ... and `most` that fits; 1 if none does, so that training reports the error.

    Args:
        fits: Tries a number of sequences.
        most: Upper limit.
    """
    best = 1
    while best < most and fits(min(2 * best, most)):
        best = min(2 * best, most)
    return best


class FindMicroBatch(Callback):
    """Finds the largest micro-batch that fits on all devices, once these are known, and stores it.

    Args:
        loader: The loader whose micro-batch is set.
        most: Upper limit.
        file: File in the run's folder that stores it for the same kind of device.
        processes: Processes of the run.
    """

    def __init__(self, loader: TrainingLoader, most: int, file: Path, processes: Processes) -> None:
        self.loader, self.most, self.file, self.processes = loader, most, file, processes

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Sets the micro-batch of the loader, and the number of micro-batches per step."""
        assert isinstance(pl_module, Forecaster)
        device, most = trainer.strategy.root_device, self.most
        kind = f"{torch.cuda.get_device_name(device)}, world {self.processes.world}, at most {most}"
        found = _remembered(self.file, kind)
        if found is None:
            found = largest_that_fits(_trial(pl_module, self.loader, device, trainer.precision_plugin), most)
        found = _smallest(found, self.processes.world)
        self.loader.batches.micro_batch = found
        trainer.accumulate_grad_batches = self.loader.batches.per_step
        if self.processes.main:
            with replacing(self.file) as part:
                part.write_text(json.dumps({"device": kind, "micro_batch": found}) + "\n", encoding="utf-8")
        whole = self.loader.batches.batch_size
        log.info(f"micro-batch {found} of {whole} sequences an optimiser step (data.micro_batch=auto)")


def _remembered(file: Path, kind: str) -> int | None:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        return int(said["micro_batch"]) if said["device"] == kind else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # missing or damaged: the trial is repeated


def _smallest(found: int, world: int) -> int:
    if world == 1:
        return found
    all_found: list[Any] = [None] * world
    torch.distributed.all_gather_object(all_found, found)
    return min(all_found)


def _trial(
    forecaster: Forecaster, loader: TrainingLoader, device: torch.device, precision: Any
) -> Callable[[int], bool]:
    """Returns a function that tests whether a training step with a number of sequences fits into a GPU's memory.

    It trains a copy of the model on repetitions of the first sequence, and restores the random states.
    """
    sequence = loader.dataset[0]
    autocast: Callable[[], AbstractContextManager[Any]] = precision.train_step_context

    def fits(size: int) -> bool:
        states = random_states()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            batch = move_data_to_device(default_collate([sequence] * size), device)
            with autocast():
                model = copy.deepcopy(forecaster.model).to(device)
                for step in range(MAX_ALTERNATION if has_own_optimizers(model) else 1):
                    _one_step(model, forecaster, batch, step)
            _, whole = torch.cuda.mem_get_info(device)
            return torch.cuda.max_memory_reserved(device) <= _MAX_MEMORY_SHARE * whole
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
            restore_random_states(states)

    return fits


def _one_step(model: nn.Module, forecaster: Forecaster, batch: Example, step: int = 0) -> None:
    task = forecaster.task
    context, target = task.to_context(batch.context), task.normalise(task.to_target(batch.target))
    options = loss_options(model, task, batch)
    training_loss(model, context, target, step=step, total_steps=forecaster.total_steps, **options).backward()
    torch.optim.AdamW(model.parameters()).step()
    model.zero_grad()
