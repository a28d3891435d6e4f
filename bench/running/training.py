"""Training: Lightning's trainer, checkpoints that resume to the same bits, and signals that are obeyed."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pydantic import ValidationError
from torch import nn

from bench.config import Config, Train
from bench.data.loading import TrainingLoader, evaluation_loader, training_loader
from bench.errors import ConfigError, DataError, did_you_mean
from bench.files import replacing
from bench.models import is_fitted
from bench.places import Place, place
from bench.records.schema import TrainingSummary
from bench.running.checkpoints import BEST, LAST, CheckpointFiles, newest_intact, remove_all, remove_parts
from bench.running.fitting import fit_model
from bench.running.forecaster import Forecaster
from bench.running.processes import Processes
from bench.running.resuming import Resume
from bench.running.stopping import Astray, SignalWatch, StopAndSave
from bench.running.trainer import quiet_lightning, trainer_device, translated_errors
from bench.tasks.task import Task

SUMMARY = "training.json"


def train(
    model: nn.Module,
    task: Task,
    config: Config,
    folder: Path,
    checkpoints: Place,
    say: Callable[[str], None],
    *,
    watch: SignalWatch,
    processes: Processes,
) -> TrainingSummary:
    """Trains a model and returns how it went; the weights to use are then in `checkpoints`, named by `weights`.

    Called again with the same folders, it continues or, when the training had ended, does nothing.

    Args:
        model: Trained in place.
        task: Gives the train and val splits.
        config: The run's config.
        folder: The run's own local folder, for logs.
        checkpoints: Where checkpoints and, when it has ended, the summary go.
        say: Takes one line of progress.
        watch: Notes signals.
        processes: This process among those that train together.

    Raises:
        DataError: the train split is empty, or no checkpoint can be read.
        ConfigError: the monitored score does not exist, batches cannot be shared, or other code wrote the checkpoint.
        RunFailedError: a number is not finite, the training diverged, or memory or disk ran out.
        InterruptedRunError: a signal came; the checkpoint is written.
    """
    finished = read_summary(checkpoints / SUMMARY) if config.train.resume else None
    if finished is not None:
        say(f"training had ended ({finished.stopped_because}, {finished.steps} steps): its weights are used")
        return finished
    if is_fitted(model):
        return _fitted(model, task, config, checkpoints, processes)
    refuse_strategy(config, model)
    loader, val_loader = _loaders(task, config, processes)
    monitor = _monitor(task, config) if val_loader is not None else None
    if monitor is None:
        say("no validation data: no early stopping, the last weights are used")
    resume_from = _resume_from(checkpoints, folder, config, processes, say)

    quiet_lightning()
    forecaster = Forecaster(model, task, config.train, total_steps(config.train, loader.batches.total))
    keep: dict[str, Any] = {"dirpath": str(checkpoints), "enable_version_counter": False}
    keep |= {"auto_insert_metric_name": False}
    keep_best = ModelCheckpoint(**keep, filename="best", monitor=monitor, mode=config.train.early_stopping.mode)
    # Not `save_last` of the above: that is written only when the best one is.  After it: its state is in this one.
    keep_last = ModelCheckpoint(**keep, filename="last", save_on_train_epoch_end=True)
    last, resume = str(checkpoints / LAST), Resume(loader, config, processes)
    callbacks: list[Callback] = [
        resume,
        Astray(config.train.divergence_factor),
        StopAndSave(watch, last, config.train.save_every_minutes),
        *([keep_best] if monitor else []),
        keep_last,
    ]
    early = None
    if monitor:
        stop = config.train.early_stopping
        early = EarlyStopping(
            monitor, patience=stop.patience, mode=stop.mode, check_finite=True, check_on_train_epoch_end=False
        )
        callbacks.append(early)
    part = len(list((folder / "logs").glob("part_*")))
    loggers = _loggers(config, folder / "logs" / f"part_{part}") if processes.main else []
    callbacks += [LearningRateMonitor("step")] if loggers else []
    callbacks += [RichProgressBar(leave=True)] if config.progress and processes.main else []
    where = trainer_device(config.device, config.devices, config.nodes, config.strategy)
    if where.get("strategy") == "ddp" and getattr(model, "parameters_without_gradient", ()):
        where["strategy"] = "ddp_find_unused_parameters_true"
    where["plugins"] = [*where.get("plugins", []), CheckpointFiles()]
    trainer = lightning.Trainer(
        **where,
        max_epochs=config.train.max_epochs,
        max_steps=config.train.max_steps or -1,
        accumulate_grad_batches=config.train.accumulate // processes.world,
        gradient_clip_val=config.train.clip_norm,
        precision=config.train.precision,
        deterministic=config.train.deterministic,
        check_val_every_n_epoch=config.train.val_every_epochs,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=callbacks,
        enable_progress_bar=config.progress and processes.main,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with translated_errors(f"training at batch size {config.data.batch_size}"), _finished(loggers):
        trainer.fit(forecaster, loader, val_loader, ckpt_path=resume_from, weights_only=True)
        if not (checkpoints / LAST).exists():  # max_steps inside the first epoch
            trainer.save_checkpoint(last)
        trainer.strategy.barrier()
    watch.deferring = False
    if early and early.stopped_epoch:
        because = f"no better {monitor} for {early.patience} validations"
    else:
        because = "max_steps" if trainer.global_step == config.train.max_steps else "max_epochs"
    best = keep_best.best_model_score
    summary = TrainingSummary(
        settings=config.train.model_dump(mode="json"),
        data_fingerprint=task.data_fingerprint("train"),
        data_origin=str(task.dataset("train").identity().get("origin", "files")),
        sequence_count=loader.order.count,
        validation_sequence_count=len(val_loader.dataset) if val_loader is not None else 0,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        resumed_count=resume.count,
        stopped_because=because,
        monitor=monitor,
        best_score=float(best) if best is not None and monitor else None,
        weights="best" if monitor is not None and (checkpoints / BEST).exists() else "last",
        averaged=forecaster.average is not None,
        final_loss=forecaster.last_finite_loss,
        wall_s=forecaster.trained_s,
    )
    if processes.main:
        write_summary(summary, checkpoints / SUMMARY)
    if watch.received:
        watch.leave(f"training had ended and is saved in {checkpoints}")
    return summary


def checkpoints_of(config: Config, folder: Path) -> Place:
    """Returns where the checkpoints of a run's or a stage's folder go: into it, or where `train.checkpoints` says."""
    if config.train.checkpoints is None:
        return folder / "checkpoints"
    return place(config.train.checkpoints, "train.checkpoints").joinpath(*folder.parts[-3:])


def _fitted(model: nn.Module, task: Task, config: Config, checkpoints: Place, processes: Processes) -> TrainingSummary:
    """Fits a model in closed form, and leaves its weights and the summary where a training would."""
    if processes.world > 1:
        raise ConfigError("this model is fitted in one pass over the data, which one process does: set devices=1")
    summary = fit_model(model, task, config)
    CheckpointFiles().save_checkpoint({"state_dict": model.state_dict()}, checkpoints / LAST)
    write_summary(summary, checkpoints / SUMMARY)
    return summary


def refuse_strategy(config: Config, model: nn.Module) -> None:
    """Refuses what processes cannot share.

    Raises:
        ConfigError: batches that do not divide by the number of processes, or options that FSDP does not have.
    """
    world, accumulate = config.devices * config.nodes, config.train.accumulate
    if accumulate % world:
        batch = config.data.batch_size * accumulate
        raise ConfigError(
            f"train.accumulate={accumulate} batches per optimiser step cannot be shared by {world} processes "
            f"(devices={config.devices} nodes={config.nodes}). The effective batch, data.batch_size * "
            f"train.accumulate = {batch}, stays whatever the devices: make train.accumulate a multiple of {world} and "
            "data.batch_size smaller by as much"
        )
    if config.strategy == "fsdp" and config.train.ema_decay is not None:
        raise ConfigError("strategy=fsdp keeps no running average of weights in shards: set train.ema_decay=null")


def _resume_from(
    checkpoints: Place, folder: Path, config: Config, processes: Processes, say: Callable[[str], None]
) -> Path | None:
    if isinstance(checkpoints, Path) and processes.main:
        remove_parts(checkpoints)
    if not config.train.resume:
        if processes.main:
            remove_all(checkpoints)
        return None
    scratch = folder / "fetched" / str(processes.rank)
    resume_from = newest_intact(checkpoints, scratch, say)
    if resume_from:
        say(f"continues from {resume_from}")
    return resume_from


def total_steps(train: Train, batches_per_epoch: int) -> int:
    """Returns the optimiser steps of a whole training.

    Lightning could tell, but asking it sets up the loaders before a checkpoint's place in the epoch is restored, and
    a resumed run would see the epoch's first batches again.
    """
    steps = math.ceil(batches_per_epoch / train.accumulate) * train.max_epochs
    return min(steps, train.max_steps or steps)


def _loaders(task: Task, config: Config, processes: Processes) -> tuple[TrainingLoader, Any]:
    data, val = task.dataset("train"), task.dataset("val")
    if not len(data):
        raise DataError(
            f"the train split of task {task.name!r} has no sequences under {task.data_root}. "
            "`earthbench data info` shows what each split has; task.val_from moves the date that ends it."
        )
    feed: dict[str, Any] = {
        "batch_size": config.data.batch_size,
        "num_workers": config.data.num_workers,
        "timeout_s": config.data.timeout_s,
        "rank": processes.rank,
        "world": processes.world,
    }
    loader = training_loader(data, **feed, seed=config.seed, limit=config.train.limit)
    return loader, evaluation_loader(val, **feed, limit=None) if len(val) else None


def _monitor(task: Task, config: Config) -> str:
    monitor = config.train.early_stopping.monitor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns of compute() before update(): only the names are wanted
        names = Forecaster(nn.Identity(), task).computed()
    known = ["val/loss", *(f"val/{name}" for name in names if "_lead" not in name)]
    if monitor not in known:
        raise ConfigError(f"train.early_stopping.monitor={monitor}: no such score. {did_you_mean(monitor, known)}")
    return monitor


def _loggers(config: Config, folder: Path) -> list[Logger]:
    place: dict[str, Any] = {"save_dir": str(folder.parent), "name": None, "version": folder.name}
    made: list[Logger] = []
    for name in config.train.loggers:
        try:
            if name == "csv":
                made.append(CSVLogger(**place))
            elif name == "tensorboard":
                made.append(TensorBoardLogger(**place))
            elif name == "wandb":
                made.append(WandbLogger(save_dir=str(folder), project="earthbench", name=f"{config.model.name}"))
            else:
                # Newer versions of MLflow write to a folder only when told so; a server needs nothing of the kind.
                server = os.environ.get("MLFLOW_TRACKING_URI")
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
                made.append(MLFlowLogger("earthbench", tracking_uri=server, save_dir=str(folder / "mlruns")))
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"train.loggers has {name!r}: {error}. Install it: pip install 'earthbench[{name}]'"
            ) from error
    return made


@contextmanager
def _finished(loggers: list[Logger]) -> Iterator[None]:
    """Ends the W&B run, which Lightning leaves open: the next run of this process would write into it."""
    try:
        yield
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()


def read_summary(path: Place) -> TrainingSummary | None:
    """Returns the summary that a training left, or None."""
    if not path.is_file():
        return None
    try:
        return TrainingSummary.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        raise DataError(f"{path} is not a readable training summary: delete it to train again ({error})") from error


def write_summary(summary: TrainingSummary, path: Place) -> None:
    """Writes how a training went: a run that finds it there has nothing left to train."""
    text = summary.model_dump_json(indent=1) + "\n"
    if isinstance(path, Path):
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
    else:
        path.fs.pipe_file(path.path, text.encode())  # object stores publish an object whole
