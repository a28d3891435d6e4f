"""One run from config to record: train if there is something to train, evaluate, publish, draw."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bench.api import HasStages, model_traits
from bench.checkpoint_format import SHARED, fetched, local_weights
from bench.config import Config, fingerprint, numbers_only, stored
from bench.cost.speed import peak_memory_bytes
from bench.data.loading import workers
from bench.data.plausibility import refuse_constant, refuse_empty
from bench.engine.callbacks.progress import evaluation_meter
from bench.engine.callbacks.signals import InstallSignalHandlers, SignalWatch
from bench.engine.ensembles import Ensemble, check_added
from bench.engine.evaluate import (
    EvaluationSettings,
    evaluate_with_sample,
    failed_record,
    sample_arrays,
    work_folder,
)
from bench.engine.identity import events_of, expected_run, identify, seen_events
from bench.engine.loggers import LOGS, logged_curve
from bench.engine.micro_batch import evaluation_batch
from bench.engine.pictured import coastlines_of
from bench.engine.processes import Processes, has_to_launch, launch, main_process_lock, process_rank
from bench.engine.runfolder import checkpoint_lock, run_lock
from bench.engine.summaries import summary_beside
from bench.engine.train import checkpoints_of
from bench.engine.trainer import arithmetic, form_group, trainer_device
from bench.errors import ConfigError, DataError, RunFailedError, counted, first_line, one_message
from bench.files import check_writable
from bench.logs import console_level, log, only_in_files, run_log, said_to
from bench.models import has_weights, load_model, load_weights, made_from, options_of_weights
from bench.paths import AnyPath, as_path, local_folder
from bench.records.identity import newest_of_same_run
from bench.records.learning_curves import write_learning_curve
from bench.records.samples import write_sample
from bench.records.schema import RunRecord, TrainingIdentity, TrainingSummary
from bench.records.store import read_records, record_path, write_record
from bench.safe_text import without_secrets
from bench.tables.look import Look
from bench.tables.pictures import draw_forecasts
from bench.tasks import Task, load_task


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    record: RunRecord
    record_path: AnyPath
    picture_path: Path | None
    sample: dict[str, np.ndarray]
    """First sequence: context, target and forecast, physical units, `(T,H,W)`."""
    folder: Path | None = None
    """The run's folder of checkpoints, logs and pictures; None for a record of an earlier run."""
    peak_memory_bytes: int | None = None
    """Peak use of the GPU's memory, or of the machine's without a GPU."""


def run(config: Config, *, training: bool, again: bool = True, say: Callable[[str], None] | None = None) -> Outcome:
    """Runs a config to its record, with several devices in as many processes.

    Args:
        config: The checked config.
        training: Train a model that has weights; False evaluates `config.checkpoint` or the fresh weights.
        again: Run even if there is a record of this config on this data; False returns that record.
        say: Deprecated: its messages are now logged by the logger `earthbench`.

    Raises:
        EarthbenchError: of the class that fits the failure; a run that had started leaves a failure record.
    """
    if say is not None:
        with said_to(say):
            return run(config, training=training, again=again)
    if has_to_launch(config.devices, config.nodes):
        trainer_device(config.device, config.devices, config.nodes, config.strategy)  # refuses before anything starts
        found: Outcome = launch(run, config.devices, config=config, training=training, again=again)
        return found
    processes = process_rank(config.devices, config.nodes)
    with SignalWatch() as watch, nullcontext() if processes.main else only_in_files():
        return _run(config, watch, processes, training=training, again=again)


@dataclass(frozen=True)
class _Job:
    """A run after its config was checked and its data were opened."""

    config: Config
    task: Task
    test_task: Task
    """The task on the data to evaluate on."""
    results: AnyPath
    watch: SignalWatch
    processes: Processes
    train: bool
    """Whether there is something to train."""
    identity: TrainingIdentity | None
    """Identity of the training; None if there is nothing to train."""
    described: dict[str, Any]
    """Fields that every record of the run repeats."""


def _run(config: Config, watch: SignalWatch, processes: Processes, *, training: bool, again: bool) -> Outcome:
    import lightning

    # refuses a missing device before data is read
    trainer_device(config.device, config.devices, config.nodes, config.strategy)
    if config.device == "mps":
        log.info("device=mps: operations that it lacks run on the CPU, and scores are summed there in float64")
    results, work = as_path(config.results.root, "results.root"), local_folder(config.work, "work")
    check_writable(results, "results.root")
    check_writable(work, "work")
    if config.train.checkpoints is not None:
        check_writable(as_path(config.train.checkpoints, "train.checkpoints"), "train.checkpoints")
    task, test_task = _tasks(config)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    model = load_model(config.model.name, task, **config.model.options)
    if not has_weights(model):  # it then takes its defaults from the data to evaluate on
        model = load_model(config.model.name, test_task, **config.model.options)
    named = fingerprint(numbers_only(config))
    described = {"config": stored(config), "config_fingerprint": named, "seed": config.seed}
    check_added(test_task, config.evaluate.metrics)
    tested = test_task.dataset(config.split)
    refuse_empty(tested)  # before hours of training
    refuse_constant(tested)
    train = training and has_weights(model)
    if train:  # an evaluation starts again
        without = "" if config.train.resume else " without train.resume=false"
        watch.then = f"The same command{without} continues."
    if train and config.checkpoint is not None:
        raise ConfigError("checkpoint=... is for `earthbench evaluate`; `earthbench run` trains from fresh weights")
    if train:
        refuse_shared_events(task, test_task, config)
    identity = identify(model, task, config) if train else None
    job = _Job(config, task, test_task, results, watch, processes, train, identity, described)
    if not again:
        done = _earlier_outcome(job, type(model))
        if done is not None:
            log.info(f"already recorded: {done.record_path}")
            return done
    names_folder = named if identity is None else identity.name
    folder = work_folder(work, task.name, config.model.name, names_folder)

    @contextmanager
    def locked() -> Iterator[None]:
        with ExitStack() as locks:
            locks.enter_context(run_lock(folder, named, wait=not again))
            checkpoints = checkpoints_of(config, folder)
            if train and config.train.checkpoints is not None and isinstance(checkpoints, Path):
                locks.enter_context(checkpoint_lock(checkpoints, wait=not again))
            yield

    form_group(config.device, config.devices, config.nodes)
    with (
        main_process_lock(processes, locked),
        run_log(folder, processes.rank),
        arithmetic(config.train.matmul_precision),
    ):
        return _in_folder(job, model, folder)


def _in_folder(job: _Job, model: nn.Module, folder: Path) -> Outcome:
    config, task, test_task, processes = job.config, job.task, job.test_task, job.processes
    summary = None
    phase = "training"
    named = job.described["config_fingerprint"]
    log.debug("process %d of %d (%d), config %s", processes.rank + 1, processes.world, os.getpid(), named)
    try:
        if job.train:
            model, summary = _train(job, model, folder)
        elif config.checkpoint is not None:
            given = as_path(config.checkpoint, "checkpoint")
            local = local_weights(config.checkpoint, "checkpoint", folder / "fetched" / str(processes.rank))
            load_weights(model, local, other_code=config.train.resume == "anyway")
            summary = summary_beside(local if local.name == SHARED else given, model)
        elif has_weights(model):
            log.info("no checkpoint given: these are the scores of untrained weights")
        phase = "evaluation"
        _log_forecast_options(model, config.model.options)
        strategy = "ddp" if config.strategy == "fsdp" else config.strategy  # evaluated weights are whole on each device
        where = trainer_device(config.device, config.devices, config.nodes, strategy)
        on_gpu = where["accelerator"] == "gpu"
        count = min(config.limit or math.inf, len(test_task.dataset(config.split)))
        asked = config.evaluate
        settings = EvaluationSettings(
            where=where,
            split=config.split,
            limit=config.limit,
            batch_size=evaluation_batch(test_task, config, int(count), on_gpu=on_gpu, world=processes.world),
            num_workers=workers(config.data.num_workers, on_gpu=on_gpu, devices=config.devices),
            timeout_s=config.data.timeout_s,
            compile=config.train.compile,
            progress=config.progress and console_level() <= logging.INFO and sys.stdout.isatty(),
            ensemble=None if asked.members is None else Ensemble(asked.members, asked.member_seed),
            added_metrics=asked.metrics,
            processes=processes,
        )
        meter = [evaluation_meter(folder, wanted=config.progress)] if processes.main else []
        record, sample = evaluate_with_sample(
            model,
            test_task,
            settings,
            job.described,
            training=summary,
            callbacks=[InstallSignalHandlers(job.watch), *meter],
        )
    except RunFailedError as error:
        try:
            failed = failed_record(model, task, job.described, phase=phase, message=str(error))
            path = write_record(failed, job.results)
        except RunFailedError as unwritten:
            raise RunFailedError(f"{error}\nThe failure record could not be written either: {unwritten}") from error
        raise RunFailedError(f"{error}\nA failure record is in {path}") from error
    if not processes.main:
        return Outcome(record, record_path(job.results, record), None, {})
    path = write_record(record, job.results)
    sequences = sample_arrays(sample)
    picture = _keep_for_pictures(job, record, sequences, folder)
    return Outcome(
        record,
        path,
        picture,
        {name: frames[0] for name, frames in sequences.items()},
        folder,
        peak_memory_bytes(on_gpu=on_gpu),
    )


def _keep_for_pictures(job: _Job, record: RunRecord, sequences: dict[str, np.ndarray], folder: Path) -> Path | None:
    """Writes the sample, the learning curve and the picture of a run, and returns the picture's path.

    The record is published by now, so a failure here is only a warning.
    """
    config, task, drawn = job.config, job.task, folder / f"forecast-{record.run_id}.png"

    look = Look.of(task)

    def sample() -> None:
        assert record.data is not None
        coast = coastlines_of(job.test_task, config.split, record.data.sequence_count)
        # with several processes, the main one keeps only its first sequence
        more = {} if coast is None or len(coast) != len(sequences["target"]) else {"coast": coast}
        write_sample(sequences | more, record, job.results)

    def curve() -> None:
        if job.train and (found := logged_curve(folder / LOGS)) is not None:
            write_learning_curve(found, record, job.results)

    def picture() -> None:
        if config.picture:
            draw_forecasts(
                drawn,
                context=sequences["context"][0],
                target=sequences["target"][0],
                forecasts={config.model.name: sequences["forecast"][0]},
                look=look.at(job.test_task.coordinates(config.split, 0)),
                cadence_minutes=job.test_task.cadence_minutes,
                title=f"{config.model.name} on {task.name}, {config.split} split, first sequence of "
                + without_secrets(str(job.test_task.data_root)),
            )

    for write in (sample, curve, picture):
        try:
            write()
        except (DataError, OSError) as error:
            log.warning(f"warning: {error}; the record is complete without it")
        except Exception as error:  # e.g. of matplotlib: hours of training must not fail for a picture
            log.debug("traceback:", exc_info=True)
            log.warning(f"warning: {type(error).__name__}: {first_line(error)}; the record is complete without it")
    return drawn if drawn.is_file() else None


def _log_forecast_options(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Logs options of the model's forecasts that differ from their defaults, e.g. fewer steps of a sampler."""
    made = made_from(model)
    changed = [
        f"{key}={options[key]} (default {made.defaults.get(key)})"
        for key in model_traits(model).evaluation_only
        if key in options and options[key] != made.defaults.get(key)
    ]
    if changed:
        log.info(f"{made.name} forecasts with {', '.join(changed)}")


def _tasks(config: Config) -> tuple[Task, Task]:
    """Returns the task on the training data, and on the data to evaluate on."""
    if config.data.root is None:
        raise ConfigError(
            "data.root is not set: give data.root=DIR, or try `earthbench quickstart`, which makes its own data"
        )
    options = options_of_weights(config.task.name, config.checkpoint) | config.task.options
    task = load_task(config.task.name, config.data.root, **options)
    if config.data.test_root is None:
        return task, task
    options |= task.taken_from_training()
    test_task = load_task(config.task.name, config.data.test_root, **options)
    if test_task.input_shape != task.input_shape:
        raise ConfigError(
            f"data.test_root has contexts of {test_task.input_shape}, data.root of {task.input_shape}: (T, H, W, C)"
        )
    return task, test_task


def _earlier_outcome(job: _Job, model: type) -> Outcome | None:
    """Returns the outcome of an earlier run of the same config on the same data, or None."""
    expected = expected_run(job.config, job.task, job.test_task, trained=job.train, model=model)
    record = newest_of_same_run(read_records(job.results, job.task.name)[0], job.config, expected)
    return Outcome(record, record_path(job.results, record), None, {}) if record else None


def _train(job: _Job, model: nn.Module, folder: Path) -> tuple[nn.Module, TrainingSummary]:
    """Trains a model, and returns it with the weights to evaluate, and the summary of the training."""
    from bench.engine.stages import train_stages
    from bench.engine.train import train

    config, task = job.config, job.task
    log.info(f"run folder: {folder}")
    checkpoints = checkpoints_of(config, folder)
    one_or_all = train_stages if isinstance(model, HasStages) else train
    assert job.identity is not None
    summary = one_or_all(
        model, task, config, job.watch, job.processes, folder=folder, checkpoints=checkpoints, identity=job.identity
    )
    if config.strategy == "fsdp":  # the trained model is sharded
        model = load_model(config.model.name, task, **config.model.options)
    best = fetched(checkpoints / f"{summary.weights}.ckpt", folder / "fetched" / str(job.processes.rank))
    load_weights(model, best)
    return model, summary


def refuse_shared_events(task: Task, test_task: Task, config: Config) -> None:
    """Refuses a run that would train on events that it selects weights by or is evaluated on.

    Raises:
        ConfigError: lists the shared events.
    """
    train, val = events_of(task.dataset("train")), events_of(task.dataset("val"))
    problems = []
    pairs = [("train", train, "val", task.dataset("val"))]
    if frozenset({"train", "val"}) in task.shared_by_design:
        pairs = []
    if config.split in ("val", "test"):
        pairs.append(("train", train, f"the evaluated {config.split}", test_task.dataset(config.split)))
    if config.split == "test":
        pairs.append(("val", val, "the evaluated test", test_task.dataset("test")))
    for one, seen, other, data in pairs:
        if shared := seen_events(seen, data):
            problems.append(f"{one} and {other} share {counted(len(shared), 'event')}: {', '.join(shared[:5])}")
    if problems:
        raise ConfigError(one_message("the splits are not separate; the scores would be optimistic:", problems))
