"""Validation after a number of optimiser steps, and the schedule's step after each validation."""

from __future__ import annotations

import sys
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from bench.engine.forecaster import Forecaster

_NOT_NOW = sys.maxsize
"""Lightning validates if the number of a batch is a multiple of `trainer.val_check_batch`."""


class Validations(Callback):
    """Validates every `every_steps` optimiser steps and after the last, and steps the schedule `plateau` each time.

    Lightning counts batches, of which the last step of an epoch may have fewer. It also steps such a schedule only
    after saving the checkpoint that follows a validation, so a resumed training would miss that step.

    Args:
        every_steps: None if Lightning validates after epochs.
    """

    def __init__(self, every_steps: int | None) -> None:
        self.every_steps = every_steps
        self.due = False
        """Whether a validation follows the step that was taken last."""
        self._step = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Lets Lightning skip the validation or the epoch's last batch that the checkpoint was saved after."""
        self._step = trainer.global_step
        if self.every_steps is not None:
            trainer.val_check_batch = 1 if trainer.fit_loop.epoch_loop.restarted_on_last else _NOT_NOW

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decides whether to validate now."""
        if self.every_steps is None:
            return
        assert isinstance(pl_module, Forecaster)
        step, before = trainer.global_step, self._step
        self._step = step
        self.due = step > before and (step % self.every_steps == 0 or step == pl_module.total_steps)
        trainer.val_check_batch = 1 if self.due else _NOT_NOW

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Steps the schedule that counts validations."""
        loss = trainer.callback_metrics.get("val/loss")
        for how in trainer.lr_scheduler_configs:
            if how.reduce_on_plateau and loss is not None:
                pl_module.lr_scheduler_step(how.scheduler, loss)
