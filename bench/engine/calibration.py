"""Conversion of a compute budget to steps without a run, done once for all seeds of a board's row."""

from __future__ import annotations

import tempfile
from pathlib import Path

import lightning
import torch

from bench.api import HasStages
from bench.config import Config
from bench.engine.callbacks.signals import SignalWatch
from bench.engine.processes import Processes
from bench.engine.train import steps_of_budget
from bench.engine.trainer import arithmetic, trainer_device
from bench.errors import ConfigError
from bench.models import load_model
from bench.records.provenance import hardware
from bench.tasks import load_task


def calibrated(config: Config) -> tuple[int, str]:
    """Returns the optimiser steps of a config's budget, and the name of the CPU or device that they were timed on.

    Args:
        config: With `train.max_cpu_s` or `train.max_device_s`.

    Raises:
        ConfigError: no data root, several devices, or a model that is trained in stages.
    """
    if config.data.root is None:
        raise ConfigError("data.root is not set: give data.root=DIR")
    if config.devices * config.nodes > 1:
        raise ConfigError("a budget in seconds is timed on one device: set devices=1, or give the budget in steps")
    where = trainer_device(config.device, 1, 1, config.strategy)
    task = load_task(config.task.name, config.data.root, **config.task.options)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    model = load_model(config.model.name, task, **config.model.options)
    if isinstance(model, HasStages):
        raise ConfigError(f"{config.model.name} is trained in stages: give the board's budget in steps")
    accelerator = torch.cuda.get_device_name() if where["accelerator"] == "gpu" else None
    name = accelerator or str(hardware()["cpu"])
    with tempfile.TemporaryDirectory() as folder, SignalWatch() as watch, arithmetic(config.train.matmul_precision):
        return steps_of_budget(model, task, config, watch, Processes(), folder=Path(folder)), name
