"""One run from config to record: train where there is something to train, evaluate, publish, draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bench.config import Config, fingerprint, numbers_only
from bench.errors import ConfigError, RunFailedError, one_message
from bench.evaluation import evaluate_with_sample, failed_record, sample_arrays, work_folder
from bench.files import check_writable
from bench.models import has_weights, load_model, load_weights
from bench.records.schema import RunRecord, TrainingSummary
from bench.records.store import write_record
from bench.tables.pictures import draw_forecasts
from bench.tasks import Task, load_task
from bench.trainer import trainer_device

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    record: RunRecord
    record_path: Path
    picture_path: Path | None
    sample: dict[str, np.ndarray]
    """First sequence: context, target and forecast, physical units, `(T,H,W)`."""


def run(config: Config, *, training: bool, say: Say = print) -> Outcome:
    """Runs a config to its record.

    Args:
        config: The checked config.
        training: Train a model that has weights; without, evaluate `config.checkpoint` or the fresh weights.
        say: Takes one line of progress.

    Raises:
        EarthbenchError: of the kind that says what went wrong; a run that had started leaves a failure record.
    """
    import lightning

    trainer_device(config.device)  # refuses a device that is not there before data is read
    results = Path(config.results.root).expanduser()
    check_writable(results, "results.root")
    check_writable(Path(config.work).expanduser(), "work")
    if config.data.root is None:
        raise ConfigError(
            "data.root is not set: give data.root=DIR, or try `earthbench quickstart`, which makes its own data"
        )
    task = load_task(config.task.name, config.data.root, **config.task.options)
    test_task = task
    if config.data.test_root is not None:
        test_task = load_task(config.task.name, config.data.test_root, **config.task.options)
        if test_task.input_shape != task.input_shape:
            raise ConfigError(
                f"data.test_root has contexts of {test_task.input_shape}, data.root of {task.input_shape}: (T, H, W, C)"
            )
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    model = load_model(config.model.name, task, **config.model.options)
    named = fingerprint(numbers_only(config))
    run_config: dict[str, Any] = {
        "config": config.model_dump(mode="json"),
        "config_fingerprint": named,
        "seed": config.seed,
    }
    summary, checkpoint_sha256 = None, None
    train_here = training and has_weights(model)
    if train_here and config.checkpoint is not None:
        raise ConfigError("checkpoint=... is for `earthbench evaluate`; `earthbench run` trains from fresh weights")
    phase = "training"
    try:
        if train_here:
            refuse_shared_events(task, test_task, config)
            trained = {"config": numbers_only(config, training=True), "data": task.data_fingerprint("train")}
            folder = work_folder(config.work, task.name, config.model.name, fingerprint(trained))
            summary = _train(model, task, config, folder, say)
            checkpoint_sha256 = load_weights(model, folder / "checkpoints" / f"{summary.weights}.ckpt")
        else:
            folder = work_folder(config.work, task.name, config.model.name, named)
            if config.checkpoint is not None:
                checkpoint_sha256 = load_weights(model, config.checkpoint)
                summary = _summary_beside(Path(config.checkpoint))
            elif has_weights(model):
                say("no checkpoint given: these are the scores of untrained weights")
        phase = "evaluation"
        record, sample = evaluate_with_sample(
            model,
            test_task,
            config.split,
            config.limit,
            batch_size=config.data.batch_size,
            num_workers=config.data.num_workers,
            device=config.device,
            progress=config.progress,
            **run_config,
            training=summary,
            partial_because=_partial(config, summary, model, checkpoint_sha256, task, test_task),
            checkpoint_sha256=checkpoint_sha256,
        )
    except RunFailedError as error:
        path = write_record(failed_record(model, task, **run_config, phase=phase, message=str(error)), results)
        raise RunFailedError(f"{error}\nA failure record is in {path}") from error
    record_path = write_record(record, results)
    picture, parts = None, sample_arrays(sample)
    if config.picture:
        picture = draw_forecasts(
            folder / f"forecast-{record.run_id}.png",
            context=parts["context"],
            target=parts["target"],
            forecasts={config.model.name: parts["forecast"]},
            palette=task.palette,
            units=task.units,
            cadence_minutes=test_task.cadence_minutes,
            title=f"{config.model.name} on {task.name}, {config.split} split, first sequence of {test_task.data_root}",
        )
    return Outcome(record, record_path, picture, parts)


def _train(model: nn.Module, task: Task, config: Config, folder: Path, say: Say) -> TrainingSummary:
    from bench.stages import has_stages, train_stages
    from bench.training import train

    say(f"run folder: {folder}")
    if has_stages(model):
        return train_stages(
            model, task, config, folder, say, lambda module, own, place: train(module, task, own, place, say)
        )
    return train(model, task, config, folder, say)


def _summary_beside(checkpoint: Path) -> TrainingSummary | None:
    """Returns how the weights of a run's own checkpoint came about; None for a file from elsewhere."""
    from bench.training import read_summary

    summary = read_summary(checkpoint.parent.parent / "training.json")
    known = summary is not None and checkpoint.stem in ("best", "last")
    return summary.model_copy(update={"weights": checkpoint.stem}) if summary is not None and known else None


def _partial(
    config: Config,
    summary: TrainingSummary | None,
    model: nn.Module,
    checkpoint_sha256: str | None,
    task: Task,
    test_task: Task,
) -> str | None:
    if has_weights(model) and checkpoint_sha256 is None:
        return "untrained weights"
    if summary is None:
        return None
    if summary.settings.get("limit") is not None:
        return f"trained on {summary.sequence_count} sequences only"
    if config.split in ("train", "all") and summary.data_fingerprint == task.data_fingerprint("train"):
        shared = set(task.dataset("train").ids) & set(test_task.dataset(config.split).ids)
        if shared:
            return f"evaluated on {len(shared)} events that it was trained on"
    return None


def refuse_shared_events(task: Task, test_task: Task, config: Config) -> None:
    """Refuses a run that would train on what it is selected or evaluated on.

    Raises:
        ConfigError: lists the shared events.
    """
    trained_on = set(task.dataset("train").ids)
    problems = []
    shared = sorted(trained_on & set(task.dataset("val").ids))
    if shared:
        problems.append(f"train and val share {len(shared)} events: {', '.join(shared[:5])}")
    if config.split in ("val", "test"):
        shared = sorted(trained_on & set(test_task.dataset(config.split).ids))
        if shared:
            problems.append(
                f"train and the evaluated {config.split} share {len(shared)} events: {', '.join(shared[:5])}"
            )
    if config.split == "test":
        shared = sorted(set(task.dataset("val").ids) & set(test_task.dataset("test").ids))
        if shared:
            problems.append(f"val and the evaluated test share {len(shared)} events: {', '.join(shared[:5])}")
    if problems:
        raise ConfigError(one_message("the splits are not separate; the scores would be optimistic:", problems))
