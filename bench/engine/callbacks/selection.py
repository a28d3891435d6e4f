"""Selection of the weights with the best validation score, and early stopping."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint
from torch import nn

from bench.api import ValidatesWithOwnLoss
from bench.config import EarlyStopping
from bench.engine.forecaster import Forecaster
from bench.errors import ConfigError, did_you_mean
from bench.logs import log
from bench.metrics.names import Better
from bench.tasks.task import Task

_LOSS = "val/loss"
_BY_MODE: dict[str, Better] = {"min": "lower", "max": "higher"}


@dataclass(frozen=True)
class Monitor:
    """The validation score that decides, and its direction."""

    name: str
    better: Better

    def badness(self, value: float) -> float:
        """Returns the score as a number that is better when lower."""
        if isinstance(self.better, float):
            return abs(value - self.better)
        return value if self.better == "lower" else -value


def choose_monitor(model: nn.Module, task: Task, settings: EarlyStopping) -> Monitor:
    """Returns the monitor that a config names; its direction is the score's own unless `mode` is set.

    Args:
        model: A model with its own validation loss has no other score.
        task: Names the metrics.
        settings: Section of the config.

    Raises:
        ConfigError: no such score, or one without a direction and no `mode`.
    """
    own: dict[str, Better | None] = {_LOSS: "lower"}
    if not isinstance(model, ValidatesWithOwnLoss):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # only names are needed, and compute() before update() warns
            found = Forecaster(nn.Identity(), task).directions()
        own |= {f"val/{name}": better for name, better in found.items() if "_lead" not in name}
    name, mode = settings.monitor, settings.mode
    if name not in own:
        raise ConfigError(f"train.early_stopping.monitor={name}: no such score. {did_you_mean(name, list(own))}")
    better = own[name] if mode == "auto" else _BY_MODE[mode]
    if better is None:
        raise ConfigError(
            f"train.early_stopping.monitor={name}: it is not known whether higher or lower is better. Set "
            "train.early_stopping.mode=min or max; a plugin's metric declares it by `better` or `higher_is_better`"
        )
    if own[name] not in (None, better):
        best = f"best at {own[name]:.3g}" if isinstance(own[name], float) else f"better when it is {own[name]}"
        log.warning(
            f"WARNING: {name} is {best}; train.early_stopping.mode={mode} keeps the weights where it is {mode}imal"
        )
    return Monitor(name, better)


class KeepBest(Checkpoint):
    """Saves `best.ckpt` after the best validation so far, and ends a training after `patience` others in a row.

    It replaces Lightning's two callbacks, with which a NaN score ends the training or counts as the best, no score can
    be best at 1, and a training that had ended continues when it is resumed.

    Validations before the first finite score do not count; a later one that is not finite is not better.

    Args:
        monitor: The score that decides.
        path: Path of the checkpoint.
        patience: Validations in a row without a better score that end the training.
    """

    def __init__(self, monitor: Monitor, path: str, patience: int) -> None:
        self.monitor, self.path, self.patience = monitor, path, patience
        self.best: float | None = None
        """The score of the best validation, always finite."""
        self.waited = 0
        """Validations since the best one."""
        self._due = False

    @property
    def stopped(self) -> bool:
        """Returns whether patience has ended the training."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Returns the best score and the validations since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores both from a checkpoint."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Ends a training at once if it had ended when the checkpoint was written."""
        trainer.should_stop = trainer.should_stop or self.stopped

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compares the score with the best; it is over all processes, so that all decide alike."""
        score = float(trainer.callback_metrics.get(self.monitor.name, math.nan))
        finite = math.isfinite(score)
        if not finite:
            log.info(
                f"{self.monitor.name} is {score} after step {trainer.global_step}: this validation is not the best"
            )
        if finite and (self.best is None or self.monitor.badness(score) < self.monitor.badness(self.best)):
            self.best, self.waited, self._due = score, 0, True
        elif self.best is not None:
            self.waited += 1
            trainer.should_stop = trainer.should_stop or self.stopped
        if not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves at the end of the epoch, from which a training can be resumed."""
        self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        if self._due:
            self._due = False
            trainer.save_checkpoint(self.path)
