"""A grid of settings tried on the validation split: each point is trained, and the test split is not looked at.

A point is a run with `split=val` whose record goes to `WORK/tuning`, beside checkpoints: a trial is not a result.
Its training is that of the same config with `split=test`, which finds the weights and trains nothing again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.ablation.records import finished_record, tasks_of
from bench.config import Config, compose
from bench.errors import ConfigError, EarthbenchError
from bench.metrics.names import better_of
from bench.protocols.entries import layered
from bench.records.schema import RunRecord

Launch = Callable[[Sequence[Sequence[str]]], EarthbenchError | None]
"""Runs the jobs of some lists of overrides that have no record yet; returns the first failure."""


@dataclass(frozen=True)
class Trial:
    """A point of a grid."""

    overrides: tuple[str, ...]
    config: Config
    record: RunRecord | None
    """None where its training failed."""

    @property
    def score(self) -> float | None:
        """Returns the monitored score of the best validation; None where none was finite."""
        return self.record.training.best_score if self.record is not None and self.record.training else None

    @property
    def badness(self) -> float:
        """Returns what is the lower the better; infinite without a score."""
        stop = self.config.train.early_stopping
        better = better_of(stop.monitor.removeprefix("val/")) if stop.mode == "auto" else stop.mode
        if self.score is None:
            return float("inf")
        if isinstance(better, float):
            return abs(self.score - better)
        return -self.score if better in ("higher", "max") else self.score


def tried(points: Sequence[Sequence[str]], launch: Launch) -> list[Trial]:
    """Returns the points of a grid with their validation scores, after training those that are missing.

    Args:
        points: The overrides of each.
        launch: Trains.

    Raises:
        EarthbenchError: no point has a score; that of the first failure.
    """
    jobs = [layered(point, on_validation(point)) for point in points]
    configs = [compose(job) for job in jobs]
    finished_record(configs[0])  # data that cannot be used is told before anything is trained
    for config in configs:
        _refuse_no_validation(config)
    failure = launch(jobs)
    trials = [
        Trial(tuple(point), config, finished_record(config)) for point, config in zip(points, configs, strict=True)
    ]
    if all(trial.score is None for trial in trials):
        raise failure or ConfigError(
            "no point of the grid has a validation score: the training needs a validation split, and a validation "
            "before it ends (train.val_every_epochs, or train.val_every_steps)"
        )
    return trials


def _refuse_no_validation(config: Config) -> None:
    """Raises `ConfigError` for a training that ends before its first validation: it would have no score."""
    train = config.train
    if train.max_steps is None or train.val_every_steps is not None or train.stages:
        return
    count = len(tasks_of(config)[0].dataset("train"))
    first = math.ceil(min(count, train.limit or count) / config.data.batch_size) * train.val_every_epochs
    if train.max_steps < first:
        raise ConfigError(
            f"train.max_steps={train.max_steps} ends the training before its first validation, after {first} steps "
            f"(train.val_every_epochs={train.val_every_epochs}), and a grid needs its score: give "
            f"train.val_every_steps, e.g. {train.max_steps}"
        )


def on_validation(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides that make a run one of a grid."""
    return ["split=val", f"results.root='{compose(overrides).work}/tuning'", "picture=false"]


def best_of(trials: Sequence[Trial]) -> Trial:
    """Returns the trial with the best validation score; of equal ones the first."""
    return min(trials, key=lambda trial: trial.badness)
