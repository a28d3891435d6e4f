"""Models that are fitted in closed form: one pass over a split."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.api import FitsInOnePass, model_traits
from bench.config import Config
from bench.data.loading import evaluation_loader, workers
from bench.data.plausibility import refuse_constant
from bench.engine.summaries import settings_and_data
from bench.errors import DataError
from bench.records.schema import TrainingIdentity, TrainingSummary
from bench.tasks.task import Task


def fit_model(model: nn.Module, task: Task, config: Config, identity: TrainingIdentity) -> TrainingSummary:
    """Fits a model to a split and returns how it went.

    It is the training split, or the validation split for a model that is `fitted_on` it, where that has sequences.

    Args:
        model: Changed in place.
        task: Gives the splits, of which `config.train.limit` sequences are used.
        config: The run's config; of its training settings only the limit matters.
        identity: Of the training.

    Raises:
        DataError: the model refuses the data (by a ValueError).
    """
    assert isinstance(model, FitsInOnePass)
    started = time.perf_counter()
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
    return TrainingSummary(
        **settings_and_data(task, config, identity),
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
    )
