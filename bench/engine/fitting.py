"""Models that are fitted in closed form: one pass over the training split."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.api import FitsInOnePass
from bench.config import Config
from bench.data.loading import evaluation_loader, workers
from bench.data.plausibility import refuse_constant
from bench.engine.summaries import settings_and_data
from bench.errors import DataError
from bench.records.schema import TrainingIdentity, TrainingSummary
from bench.tasks.task import Task


def fit_model(model: nn.Module, task: Task, config: Config, identity: TrainingIdentity) -> TrainingSummary:
    """Fits a model to the training split and returns how it went.

    Args:
        model: Changed in place.
        task: Gives the train split, of which `config.train.limit` sequences are used.
        config: The run's config; of its training settings only the limit matters.
        identity: Of the training.

    Raises:
        DataError: the model refuses the data (by a ValueError).
    """
    assert isinstance(model, FitsInOnePass)
    started = time.perf_counter()
    data = task.dataset("train")
    refuse_constant(data)
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
                f"{type(model).__name__} cannot be fitted to the training data of {task.name}: {error}"
            ) from error
    return TrainingSummary(
        **settings_and_data(task, config, identity),
        sequence_count=len(data) if config.train.limit is None else min(config.train.limit, len(data)),
        validation_sequence_count=0,
        epochs=1,
        steps=0,
        resumed_count=0,
        stopped_because="fitted in closed form",
        monitor=None,
        best_score=None,
        weights="last",
        averaged=False,
        final_loss=None,
        wall_s=time.perf_counter() - started,
    )
