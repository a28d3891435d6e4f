"""Training steps on throw-away state, to time them with the trainer, data and precision of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from bench.config import Train
from bench.data.loading import TrainingLoader
from bench.engine.forecaster import Forecaster
from bench.engine.trainer import quiet_lightning


def trial_steps(
    forecaster: Forecaster,
    loader: TrainingLoader,
    train: Train,
    where: dict[str, Any],
    callbacks: Sequence[Callback],
    max_steps: int = -1,
) -> None:
    """Trains as a run does, without validation, loggers and checkpoints.

    Args:
        forecaster: Trained in place; pass a copy if its weights matter.
        loader: Gives the batches; its position in the epoch moves.
        train: Settings of the run.
        where: Lightning's arguments for the device, see `trainer_device`.
        callbacks: Observe the steps; without `max_steps`, one of them ends the trial.
        max_steps: Optimiser steps; -1 for no limit.
    """
    quiet_lightning()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            **where,
            max_epochs=-1,
            max_steps=max_steps,
            accumulate_grad_batches=loader.batches.per_step,
            precision=train.precision,
            deterministic=train.deterministic,
            gradient_clip_val=train.clip_norm,
            logger=False,
            callbacks=list(callbacks),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(forecaster, loader)
