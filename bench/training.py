"""Training: Lightning's trainer, checkpoints that resume to the same bits, and signals that are obeyed."""

from __future__ import annotations

import json
import math
import signal
import threading
import warnings
from collections.abc import Callable
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
from bench.errors import ConfigError, DataError, InterruptedRunError, did_you_mean
from bench.files import replacing
from bench.fitting import fit_model
from bench.forecaster import Forecaster
from bench.models import is_fitted, load_weights
from bench.records.schema import TrainingSummary
from bench.tasks.task import Task
from bench.trainer import quiet_lightning, trainer_device, translated_errors

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C, a scheduler's notice, SLURM's early warning


def train(model: nn.Module, task: Task, config: Config, folder: Path, say: Callable[[str], None]) -> TrainingSummary:
    """Trains a model in place, leaves the best weights in it, and returns how it went.

    Checkpoints, logs and the summary go to `folder`; called again with the same folder, it continues or, when the
    training had ended, only loads the weights.

    Args:
        model: Trained in place.
        task: Gives the train and val splits.
        config: The run's config.
        folder: The run's own folder.
        say: Takes one line of progress.

    Raises:
        DataError: the train split is empty.
        ConfigError: the monitored score does not exist.
        RunFailedError: the loss is not finite, or memory ran out.
        InterruptedRunError: a signal came; the checkpoint is written.
    """
    checkpoints, summary_path = folder / "checkpoints", folder / "training.json"
    finished = read_summary(summary_path) if config.train.resume else None
    if finished is not None:
        load_weights(model, checkpoints / f"{finished.weights}.ckpt")
        say(f"training had ended ({finished.stopped_because}, {finished.steps} steps): its weights are used")
        return finished

    loader, val_loader = _loaders(task, config)
    if is_fitted(model):
        summary = fit_model(model, task, config, checkpoints / "last.ckpt")
        _write_summary(summary, summary_path)
        return summary
    monitor = _monitor(task, config) if val_loader is not None else None
    if monitor is None:
        say("no validation data: no early stopping, the last weights are used")
    last = checkpoints / "last.ckpt"
    resume_from = last if config.train.resume and last.is_file() else None
    if not config.train.resume:
        for old in checkpoints.glob("*.ckpt"):
            old.unlink()
    resumed = len(list((folder / "logs").glob("part_*")))
    if resume_from:
        say(f"continues from {resume_from}")

    quiet_lightning()
    forecaster = Forecaster(model, task, config.train, total_steps(config.train, len(loader)))
    after_step = _AfterStep(loader)
    keep: dict[str, Any] = {"dirpath": checkpoints, "enable_version_counter": False, "auto_insert_metric_name": False}
    keep_best = ModelCheckpoint(**keep, filename="best", monitor=monitor, mode=config.train.early_stopping.mode)
    # Not `save_last` of the above: that is written only when the best one is.
    keep_last = ModelCheckpoint(**keep, filename="last")
    callbacks: list[Callback] = [after_step, _StopOnSignal(last), keep_last, *([keep_best] if monitor else [])]
    early = None
    if monitor:
        stop = config.train.early_stopping
        early = EarlyStopping(monitor, patience=stop.patience, mode=stop.mode, check_finite=True)
        callbacks.append(early)
    loggers = _loggers(config, folder / "logs" / f"part_{resumed}")
    callbacks += [LearningRateMonitor("step")] if loggers else []
    callbacks += [RichProgressBar(leave=True)] if config.progress else []
    trainer = lightning.Trainer(
        **trainer_device(config.device),
        max_epochs=config.train.max_epochs,
        max_steps=config.train.max_steps or -1,
        accumulate_grad_batches=config.train.accumulate,
        gradient_clip_val=config.train.clip_norm,
        precision=config.train.precision,
        deterministic=config.train.deterministic,
        check_val_every_n_epoch=config.train.val_every_epochs,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=callbacks,
        enable_progress_bar=config.progress,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    _fit(trainer, forecaster, loader, val_loader, resume_from)
    if early and early.stopped_epoch:
        because = f"no better {monitor} for {early.patience} validations"
    else:
        because = "max_steps" if trainer.global_step == config.train.max_steps else "max_epochs"
    use_best = monitor is not None and (checkpoints / "best.ckpt").is_file()
    best = keep_best.best_model_score
    train_data = task.dataset("train").identity()
    summary = TrainingSummary(
        settings=config.train.model_dump(mode="json"),
        data_fingerprint=task.data_fingerprint("train"),
        data_origin=str(train_data.get("origin", "files")),
        sequence_count=loader.order.count,
        validation_sequence_count=len(val_loader.dataset) if val_loader is not None else 0,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        resumed_count=resumed,
        stopped_because=because,
        monitor=monitor,
        best_score=float(best) if best is not None and monitor else None,
        weights="best" if use_best else "last",
        averaged=forecaster.average is not None,
        final_loss=forecaster.last_finite_loss,
        wall_s=forecaster.trained_s,
    )
    if not (checkpoints / "last.ckpt").is_file():  # max_steps inside the first epoch
        trainer.save_checkpoint(checkpoints / "last.ckpt")
    load_weights(model, checkpoints / f"{summary.weights}.ckpt")
    _write_summary(summary, summary_path)
    return summary


def total_steps(train: Train, batches_per_epoch: int) -> int:
    """Returns the optimiser steps of a whole training.

    Lightning could tell, but asking it sets up the loaders before a checkpoint's place in the epoch is restored, and
    a resumed run would see the epoch's first batches again.
    """
    steps = math.ceil(batches_per_epoch / train.accumulate) * train.max_epochs
    return min(steps, train.max_steps or steps)


def _loaders(task: Task, config: Config) -> tuple[TrainingLoader, Any]:
    data, val = task.dataset("train"), task.dataset("val")
    if not len(data):
        raise DataError(
            f"the train split of task {task.name!r} has no sequences under {task.data_root}. "
            "`earthbench data info` shows what each split has; task.val_from moves the date that ends it."
        )
    feed = {"batch_size": config.data.batch_size, "num_workers": config.data.num_workers}
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
                made.append(MLFlowLogger(experiment_name="earthbench", save_dir=str(folder / "mlruns")))
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"train.loggers has {name!r}: {error}. Install it: pip install 'earthbench[{name}]'"
            ) from error
    return made


def _fit(
    trainer: lightning.Trainer,
    forecaster: Forecaster,
    loader: TrainingLoader,
    val_loader: Any,
    resume_from: Path | None,
) -> None:
    try:
        with translated_errors(f"training at batch size {loader.batch_size}"):
            trainer.fit(forecaster, loader, val_loader, ckpt_path=resume_from, weights_only=True)
    except RuntimeError as error:
        if resume_from is not None and "weights_only" in str(error).lower():
            raise DataError(f"checkpoint {resume_from} cannot be read safely: {str(error).splitlines()[0]}") from error
        raise


class _AfterStep(Callback):
    """What has to be true of the state before anyone may save it; first in the list of callbacks."""

    def __init__(self, loader: TrainingLoader) -> None:
        self.loader = loader

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(module, Forecaster)
        module.update_average()
        self.loader.batches_done = batch_idx + 1


class _StopOnSignal(Callback):
    """The first signal finishes the step, saves and ends the run; the second ends it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.received: str | None = None
        self.before: dict[int, Any] = {}

    def on_fit_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
                self.before[number] = signal.signal(number, self._receive)

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if self.received:  # it came during validation; the epoch's own checkpoint is complete by now
            raise InterruptedRunError(
                f"stopped by {self.received} after step {trainer.global_step}; {self.path} is written. "
                "The same command continues."
            )

    def _receive(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number).name
        self._put_back()

    def _put_back(self) -> None:
        while self.before:
            signal.signal(*self.before.popitem())

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._stop(trainer)

    def _stop(self, trainer: lightning.Trainer) -> None:
        if self.received:
            trainer.save_checkpoint(self.path)
            raise InterruptedRunError(
                f"stopped by {self.received} after step {trainer.global_step}; {self.path} is written. "
                "The same command continues."
            )

    def on_fit_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._put_back()

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._put_back()


def read_summary(path: Path) -> TrainingSummary | None:
    """Returns the summary that a training left, or None."""
    if not path.is_file():
        return None
    try:
        return TrainingSummary.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, ValidationError) as error:
        raise DataError(f"{path} is not a readable training summary: delete it to train again ({error})") from error


def _write_summary(summary: TrainingSummary, path: Path) -> None:
    with replacing(path) as part:
        part.write_text(summary.model_dump_json(indent=1) + "\n", encoding="utf-8")
