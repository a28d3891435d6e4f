"""Logs of a training besides losses and scores: config, throughput, and a forecast after each validation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn

from bench.api import model_traits
from bench.engine.callbacks.progress import ProgressMeter
from bench.engine.ensembles import Ensemble, can_draw, draw_members
from bench.engine.forecaster import Forecaster
from bench.engine.loggers import log_picture, takes_pictures
from bench.engine.randomness import random_states, restore_random_states
from bench.engine.weights import averaged
from bench.errors import EarthbenchError, first_line
from bench.logs import log
from bench.tables.pictures import pixels_of

FORECAST = "val/forecast"
"""Name of the pictures of the first validation sequence: context, target, forecast and, of a model that draws members,
one of them, a row each."""
_ROWS = ("context", "target", "forecast", "member")
_DRAWING = 0.05
"""Members are drawn after a validation unless those drawn before took more than this share of the training's time."""


class TrainingLog(Callback):
    """Logs hyperparameters, throughput and pictures to all loggers of a training that support them.

    Args:
        config: The run's config, without credentials.
        meter: Measures the speed.
        best: Returns the best validation score so far, or None.
        whole: The model that makes forecasts, if only its last stage is trained.
    """

    def __init__(
        self,
        config: dict[str, Any],
        meter: ProgressMeter,
        best: Callable[[], float | None],
        whole: nn.Module | None = None,
    ) -> None:
        self.config, self.meter, self.best, self.whole = config, meter, best, whole
        self._drawing_s = 0.0
        self._pictured_at: int | None = None

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
        """Logs the first forecast."""
        assert isinstance(pl_module, Forecaster)
        self._log_forecast(trainer, pl_module, draws=self._drawing_s <= _DRAWING * pl_module.trained_s)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Logs the last forecast, and gives TensorBoard's page of hyperparameters the best score of the training."""
        assert isinstance(pl_module, Forecaster)
        if "forecast" not in (pl_module.first or {}):
            self._log_forecast(trainer, pl_module, draws=True)
        if (best := self.best()) is not None:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.log_metrics({"hp_metric": best}, trainer.global_step - 1)

    def _log_forecast(self, trainer: lightning.Trainer, forecaster: Forecaster, *, draws: bool) -> None:
        takers = [logger for logger in trainer.loggers if takes_pictures(logger)]
        step, parts = trainer.global_step - 1, dict(forecaster.first or {})
        if not parts or not takers or step == self._pictured_at:
            return
        # in shards, all processes would have to draw
        if draws and can_draw(self.whole or forecaster.model) and forecaster.device_mesh is None:
            started = time.perf_counter()
            try:
                parts |= self._drawn(forecaster, parts)
            except (EarthbenchError, torch.OutOfMemoryError) as error:  # no reason to end a training
                log.warning(f"warning: no member was drawn for a picture after step {step + 1}: {first_line(error)}")
            self._drawing_s += time.perf_counter() - started
        if "forecast" not in parts:
            return
        parts["context"] = forecaster.task.denormalise(parts["context"])
        rows = [parts[name][0, ..., 0].float().numpy() for name in _ROWS if name in parts]
        pixels = pixels_of(rows, forecaster.task.palette)
        for logger in takers:
            log_picture(logger, FORECAST, pixels, step)
        self._pictured_at = step

    def _drawn(self, forecaster: Forecaster, first: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a member, and the mean of members where the validation made no forecast, physical `(1,T,H,W,C)`."""
        model = self.whole or forecaster.model
        count = 1 if "forecast" in first else model_traits(model).members
        context, index = first["context"].to(forecaster.device), torch.zeros(1, dtype=torch.long)
        with averaged(forecaster.model, forecaster.average), _without_side_effects(model, forecaster.device):
            drawn = draw_members(model, context, index, Ensemble(count), forecaster.task.target_shape)
        members = forecaster.task.denormalise(drawn).cpu()
        return {"forecast": members.mean(0), "member": members[0], **first}


@contextmanager
def _without_side_effects(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Lets a model forecast within a training without side effects: restores modes and random states."""
    modes, states = {part: part.training for part in model.modules()}, random_states(device)
    model.to(device).eval()  # of a whole model, what earlier stages trained
    try:
        with torch.compiler.set_stance("force_eager"):  # one sequence is another shape
            yield
    finally:
        restore_random_states(states, device)
        for part, training in modes.items():
            part.training = training
