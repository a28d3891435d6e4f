"""A grid of settings tried on the validation split: each point is trained, and the test split is not used.

A point is a run with `split=val` whose record goes to `WORK/tuning`, beside checkpoints: a trial is not a result.
It shares its training with the same config at `split=test`, which finds the weights and does not train again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.ablation.records import finished_record, tasks_of
from bench.config import Config, compose
from bench.errors import ConfigError, EarthbenchError, counted
from bench.metrics.names import better_of
from bench.protocols.entries import layered
from bench.records.schema import RunRecord

_NEEDS = (
    "the training needs a validation split, and a validation before it ends (train.val_every_epochs, or "
    "train.val_every_steps)"
)
Launch = Callable[[Sequence[Sequence[str]]], EarthbenchError | None]
"""Runs the jobs, each a list of overrides, that have no record yet; returns the first failure."""


@dataclass(frozen=True)
class Trial:
    """A point of a grid."""

    overrides: tuple[str, ...]
    config: Config
    record: RunRecord | None
    """None if its training failed."""

    @property
    def score(self) -> float | None:
        """Returns the monitored score of the best validation; None if none was finite."""
        return self.record.training.best_score if self.record is not None and self.record.training else None

    @property
    def badness(self) -> float:
        """Returns the score as a number that is better when lower; infinite without a score."""
        stop = self.config.train.early_stopping
        better = better_of(stop.monitor.removeprefix("val/")) if stop.mode == "auto" else stop.mode
        if self.score is None:
            return float("inf")
        if isinstance(better, float):
            return abs(self.score - better)
        return -self.score if better in ("higher", "max") else self.score


def run_grid(points: Sequence[Sequence[str]], launch: Launch) -> list[Trial]:
    """Returns the points of a grid with their validation scores, after training those that are missing.

    Args:
        points: The overrides of each.
        launch: Trains.

    Raises:
        ConfigError: a point has no validation, or none before its training ends.
        EarthbenchError: no point has a score; the first failure, if there was one.
    """
    jobs = [layered(point, on_validation(point)) for point in points]
    configs = [compose(job) for job in jobs]
    for config in configs:  # reports unusable settings and data before anything is trained
        _refuse_without_validation(config)
    failure = launch(jobs)
    trials = [
        Trial(tuple(point), config, finished_record(config)) for point, config in zip(points, configs, strict=True)
    ]
    if all(trial.score is None for trial in trials):
        raise failure or ConfigError(f"no point of the grid has a validation score: {_NEEDS}")
    return trials


def _refuse_without_validation(config: Config) -> None:
    """Refuses a point whose training validates nothing or ends before its first validation, as far as that is known.

    Raises:
        ConfigError: says how many steps there are, and after how many the first validation is.
        DataError: the data cannot be read.
    """
    task, _ = tasks_of(config)
    train, sequences = config.train, len(task.dataset("train"))
    none = f"a point of the grid would have no validation score: {_NEEDS}"
    if not len(task.dataset("val")):
        raise ConfigError(f"{none}, and {config.data.root} has none for this task's split")
    if train.val_every_steps is not None or train.budget is not None or train.stages:
        return
    epoch = math.ceil(min(sequences, train.limit or sequences) / config.data.batch_size)
    steps = min(train.max_epochs * epoch, train.max_steps or train.max_epochs * epoch)
    if 0 < steps < (first := train.val_every_epochs * epoch):
        raise ConfigError(
            f"{none}: this one has {counted(steps, 'step')}, and its first validation is after {first:,} "
            f"({counted(train.val_every_epochs, 'epoch')} of {epoch:,}). Set train.val_every_steps, e.g. to {steps}"
        )


def on_validation(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides that make a run a trial of a grid."""
    return ["split=val", f"results.root='{compose(overrides).work}/tuning'", "picture=false"]


def best_of(trials: Sequence[Trial]) -> Trial:
    """Returns the trial with the best validation score; of equal ones the first."""
    return min(trials, key=lambda trial: trial.badness)
