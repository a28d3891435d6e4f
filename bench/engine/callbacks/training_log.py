"""Logs of a training besides its losses: hyperparameters, validation scores and forecasts, throughput."""

from __future__ import annotations

import math
import re
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
from bench.engine.callbacks.selection import Monitor
from bench.engine.ensembles import Ensemble, can_draw, draw_members
from bench.engine.forecaster import Forecaster
from bench.engine.loggers import log_picture, takes_pictures
from bench.engine.randomness import random_states, restore_random_states
from bench.engine.weights import averaged
from bench.errors import EarthbenchError, first_line
from bench.logs import log
from bench.tables.thumbnails import pixels_of

BEST = "val/best"
"""The best validation so far, in the score that selects weights."""
_DETAIL = re.compile(r"_(\d|pool)")
"""Scores at single thresholds and of pooled frames, which have a section to themselves: there may be over a hundred."""
FORECAST = "val/forecast"
"""Name of the pictures of the first validation sequence: context, target, forecast and, of a model that draws members,
one of them, a row each."""
_ROWS = ("context", "target", "forecast", "member")
_DRAWING = 0.05
"""Members are drawn after a validation unless those drawn before took more than this share of the training's time."""


class TrainingLog(Callback):
    """Logs hyperparameters, validation scores, throughput and pictures to all loggers of a training that support them.

    Args:
        hyperparameters: The part of the config that weights depend on; settings of None are left out.
        meter: Measures the speed.
        monitor: The score that selects weights, if any.
        best: Returns its best value before the current validation, or None.
        whole: The model that makes forecasts, if only its last stage is trained.
    """

    def __init__(
        self,
        hyperparameters: dict[str, Any],
        meter: ProgressMeter,
        monitor: Monitor | None,
        best: Callable[[], float | None],
        whole: nn.Module | None = None,
    ) -> None:
        self.hyperparameters = _given(hyperparameters)
        self.meter, self.monitor, self.best, self.whole = meter, monitor, best, whole
        self._validated = False
        self._drawing_s = 0.0
        self._pictured_at: int | None = None

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Logs the hyperparameters."""
        for logger in trainer.loggers:
            logger.log_hyperparams(self.hyperparameters)

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
        """Logs the scores, and the first forecast."""
        assert isinstance(pl_module, Forecaster)
        self._log_scores(trainer)
        self._log_forecast(trainer, pl_module, draws=self._drawing_s <= _DRAWING * pl_module.trained_s)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Logs the last forecast."""
        assert isinstance(pl_module, Forecaster)
        if "forecast" not in (pl_module.first or {}):
            self._log_forecast(trainer, pl_module, draws=True)

    def _log_scores(self, trainer: lightning.Trainer) -> None:
        known = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        selecting = self.monitor.name if self.monitor is not None else None
        details = {name: known.pop(name) for name in list(known) if _DETAIL.search(name) and name != selecting}
        if self.monitor is not None:
            scores = [known.get(self.monitor.name), self.best()]
            if finite := [score for score in scores if score is not None and math.isfinite(score)]:
                # TensorBoard's page of hyperparameters shows the first
                known = {BEST: min(finite, key=self.monitor.badness), **known}
        step = trainer.global_step - 1
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and not self._validated:
                # its page of hyperparameters has the scores that are logged with them
                logger.log_hyperparams(self.hyperparameters, known, step)
            else:
                logger.log_metrics(known, step)
            if details:
                logger.log_metrics({name.replace("val/", "val_details/"): one for name, one in details.items()}, step)
        self._validated = True

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
        rows = {name: parts[name][0, ..., 0].float().numpy() for name in _ROWS if name in parts}
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


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings without those of None, and without sections that are then empty."""
    kept = {key: _given(value) if isinstance(value, dict) else value for key, value in settings.items()}
    return {key: value for key, value in kept.items() if value is not None and value != {}}


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
