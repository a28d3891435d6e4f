"""Fitting of models in closed form instead of a training, and publishing of weights that no trainer wrote."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.api import FitsInOnePass, model_traits
from bench.config import Config
from bench.data.loading import evaluation_loader, workers
from bench.data.plausibility import refuse_constant
from bench.engine.checkpoints import LAST, CheckpointFiles, seals
from bench.engine.identity import stored_identity
from bench.engine.processes import Processes
from bench.engine.summaries import SUMMARY, settings_and_data, write_summary
from bench.errors import ConfigError, DataError
from bench.paths import AnyPath
from bench.records.schema import TrainingIdentity, TrainingSummary
from bench.tasks.task import Task


def fit_in_one_pass(
    model: nn.Module, task: Task, config: Config, checkpoints: AnyPath, processes: Processes, identity: TrainingIdentity
) -> TrainingSummary:
    """Fits a model in closed form, in one pass over a split; its weights are stored like those of a training.

    The split is the training split, or a non-empty validation split for a model with `fitted_on = "val"`. Of the
    training settings, only the limit matters.

    Raises:
        ConfigError: several processes.
        DataError: the model refuses the data (with a ValueError).
    """
    if processes.world > 1:
        raise ConfigError("this model is fitted by one process, in one pass over the data: set devices=1")
    assert isinstance(model, FitsInOnePass)
    started, cpu_from = time.perf_counter(), time.process_time()
    on_validation = model_traits(model).fitted_on == "val" and len(task.dataset("val")) > 0
    data, what = (task.dataset("val"), "validation") if on_validation else (task.dataset("train"), "training")
    refuse_constant(data)
    used = len(data) if config.train.limit is None else min(config.train.limit, len(data))
    loader = evaluation_loader(
        data.source,
        batch_size=config.data.batch_size,
        num_workers=workers(config.data.num_workers, on_gpu=False, devices=1),
        limit=config.train.limit,
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for batch in loader:
            context = task.to_context(batch.context).masked_fill(~task.context_known(batch.context), torch.nan)
            yield context, task.normalise(task.to_target(batch.target))

    with torch.no_grad():
        try:
            model.fit(batches())
        except ValueError as error:
            raise DataError(
                f"{type(model).__name__} cannot be fitted to the {what} data of {task.name}: {error}"
            ) from error
    summary = TrainingSummary(
        **settings_and_data(task, config.train, identity),
        sequence_count=0 if on_validation else used,
        validation_sequence_count=used if on_validation else 0,
        epochs=1,
        steps=0,
        resumed_count=0,
        stopped_because="fitted in closed form" + (" on the validation split" if on_validation else ""),
        monitor=None,
        best_score=None,
        weights="last",
        averaged=False,
        final_loss=None,
        wall_s=time.perf_counter() - started,
        cpu_s=time.process_time() - cpu_from,
    )
    content = {"state_dict": model.state_dict(), **stored_identity(identity, task)}
    return publish_weights(content, summary, checkpoints)


def publish_weights(content: dict[str, Any], summary: TrainingSummary, checkpoints: AnyPath) -> TrainingSummary:
    """Writes weights that no trainer wrote as the last checkpoint, with the summary of their training beside it."""
    (checkpoints / SUMMARY).unlink(missing_ok=True)
    CheckpointFiles().save_checkpoint(content, checkpoints / LAST)
    summary = summary.model_copy(update={"checkpoints": seals(checkpoints)})
    write_summary(summary, checkpoints / SUMMARY)
    return summary
