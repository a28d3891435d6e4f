"""Logs of a training besides losses and scores: config, throughput, and a forecast after each validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from bench.api import Palette
from bench.engine.callbacks.progress import ProgressMeter
from bench.engine.loggers import log_picture, takes_pictures
from bench.tables.pictures import pixels_of

FORECAST = "val/forecast"
"""Name of the pictures, with a row each for context, target and forecast of the first validation sequence."""


class TrainingLog(Callback):
    """Logs hyperparameters, throughput and pictures to all loggers of a training that support them.

    Args:
        config: The run's config, without credentials.
        palette: The task's colours.
        meter: Measures the speed.
        best: Returns the best validation score so far, or None.
    """

    def __init__(
        self, config: dict[str, Any], palette: Palette, meter: ProgressMeter, best: Callable[[], float | None]
    ) -> None:
        self.config, self.palette, self.meter, self.best = config, palette, meter, best

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Logs the config."""
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Logs the speed."""
        now = self.meter.progress
        if now is None:
            return
        speed = {
            "perf/sequences_per_s": now.sequences_per_s,
            "perf/waiting_share": now.waiting_share,
            "perf/device_gb": now.device_gb,
        }
        known = {name: value for name, value in speed.items() if value is not None}
        for logger in trainer.loggers:
            logger.log_metrics(known, trainer.global_step - 1)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Logs the first forecast; models with their own validation loss have none."""
        first = getattr(pl_module, "first", None)
        takers = [logger for logger in trainer.loggers if takes_pictures(logger)]
        if first is None or not takers:
            return
        rows = [first[name][..., 0].numpy() for name in ("context", "target", "forecast")]
        pixels = pixels_of(rows, self.palette)
        for logger in takers:
            log_picture(logger, FORECAST, pixels, trainer.global_step - 1)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Logs the best score of the training for TensorBoard's page of hyperparameters."""
        if (best := self.best()) is not None:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.log_metrics({"hp_metric": best}, trainer.global_step - 1)
