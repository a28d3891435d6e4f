"""Conversion of a compute budget to optimiser steps: a few real steps are timed once, before the first."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from bench.checkpoint_format import read_checkpoint
from bench.config import Config
from bench.data.loading import TrainingLoader
from bench.engine.accumulation import Accumulation
from bench.engine.callbacks.divergence import DivergenceMonitor
from bench.engine.callbacks.signals import InstallSignalHandlers, SignalWatch, any_process
from bench.engine.compiling import compiled
from bench.engine.forecaster import Forecaster
from bench.engine.optimizers import MAX_ALTERNATION, has_own_optimizers
from bench.engine.processes import Processes
from bench.engine.randomness import random_states, restore_random_states
from bench.engine.trainer import translated_errors
from bench.engine.trial import trial_steps
from bench.logs import log
from bench.tasks.task import Task

STEPS = "budget_steps"
"""Key under which a checkpoint keeps the number of steps."""
_WARM_UP = 3
"""Steps that allocate memory and fill caches; not counted."""
_MIN_STEPS, _MAX_STEPS = 5, 100
"""Steps that are timed."""
_TRIAL_SHARE = 0.05
"""Share of the budget that timing may take, once it has the fewest steps."""
_SCHEDULE_STEPS = 1_000_000
"""Length of the schedule in the trial: so long that learning rates stay close to the first one."""
_TIME_OF = {"max_cpu_s": "processor time", "max_device_s": "device time"}


class _Clock(Callback):
    """Times optimiser steps from the end of one to the end of the next, including data, until there are enough.

    Args:
        key: Key of the budget.
        budget_s: Its seconds.
        period: Period of a model whose steps differ by design.
    """

    def __init__(self, key: str, budget_s: float, period: int) -> None:
        self.key, self.budget_s, self.period = key, budget_s, period
        self.times: list[float] = []
        self._states: Callable[[], object] = lambda: None
        self._from, self._step = 0.0, 0

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Keeps the random states, once the device is known."""
        device = trainer.strategy.root_device
        states = random_states(device)
        self._states = lambda: restore_random_states(states, device)

    def restore(self) -> None:
        """Restores the random states, so that the training draws what it would without a trial."""
        self._states()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self._from = self._now(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts a step, with the running average of the weights."""
        assert isinstance(pl_module, Forecaster)
        pl_module.update_average()
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self.times.append(self._now(trainer) - self._from)
        (enough,) = any_process(trainer, self._has_enough_steps)
        trainer.should_stop = enough
        self._from = self._now(trainer)

    def _now(self, trainer: lightning.Trainer) -> float:
        if self.key == "max_cpu_s":
            return time.process_time()
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        return time.perf_counter()

    @property
    def _has_enough_steps(self) -> bool:
        count = len(self.times) - _WARM_UP
        if count < max(_MIN_STEPS, self.period) or count % self.period:
            return False
        return count >= _MAX_STEPS or sum(self.times) >= _TRIAL_SHARE * self.budget_s


def seconds_per_step(times: Sequence[float], period: int = 1) -> float:
    """Returns the seconds of a step: the median over the timed ones, or over means of `period` steps.

    Args:
        times: Seconds of all steps; the first ones are warm-up.
        period: Period of steps that differ by design.
    """
    counted = times[_WARM_UP:]
    return statistics.median(
        statistics.fmean(counted[first : first + period]) for first in range(0, len(counted) - period + 1, period)
    )


def steps_within(budget_s: float, step_s: float) -> int:
    """Returns the steps that fit into a budget, at least one."""
    return max(1, int(budget_s / step_s))


def budget_steps(
    model: nn.Module,
    task: Task,
    config: Config,
    loader: TrainingLoader,
    where: dict[str, Any],
    callbacks: Sequence[Callback],
    watch: SignalWatch,
    processes: Processes,
) -> int:
    """Returns the optimiser steps of a training with a compute budget, the same in all processes.

    Steps of a copy of the model are timed; the training itself is not affected.

    Args:
        model: The model to train.
        task: Gives the splits.
        config: With `train.max_cpu_s` or `train.max_device_s`.
        loader: The trial's own loader, because its position in the epoch moves.
        where: Lightning's arguments for the device.
        callbacks: Those that the training needs before its first step, such as `FindMicroBatch`.
        watch: Signals, which end the trial at once.
        processes: Rank and number of the processes that train together.
    """
    assert config.train.budget is not None
    key, budget_s = config.train.budget
    period = MAX_ALTERNATION if has_own_optimizers(model) else 1
    tried, clock = copy.deepcopy(model), _Clock(key, budget_s, period)
    forecaster = Forecaster(
        tried, task, config.train, total_steps=_SCHEDULE_STEPS, accumulation=Accumulation(tried, loader.batches)
    )
    ends = translated_errors(f"timing steps for train.{key}", watch.then, config.model.name)
    with compiled(*([tried] if config.train.compile else [])), ends:
        # The clock comes last, so that a step includes the other callbacks.
        trial_steps(
            forecaster,
            loader,
            config.train,
            where,
            [*callbacks, InstallSignalHandlers(watch), DivergenceMonitor(), clock],
        )
    clock.restore()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    step_s = _over_processes(seconds_per_step(clock.times, period), processes, sums=key == "max_cpu_s")
    steps = steps_within(budget_s, step_s)
    log.info(f"train.{key}={budget_s:g}: {step_s:.3g} s of {_TIME_OF[key]} per step, {steps:,} steps")
    return steps


def _over_processes(step_s: float, processes: Processes, *, sums: bool) -> float:
    """Returns the time of a step over all processes: their sum, or that of the main one, which all devices take."""
    if processes.world == 1:
        return step_s
    found: list[Any] = [None] * processes.world
    torch.distributed.all_gather_object(found, step_s)
    return float(sum(found) if sums else found[0])


def kept_steps(checkpoint: Path | None) -> int | None:
    """Returns the steps that a resumed training decided on before its first step; None without a checkpoint."""
    if checkpoint is None:
        return None
    steps = read_checkpoint(checkpoint, sealed=True).get(STEPS)
    return None if steps is None else int(steps)
