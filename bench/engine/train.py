"""Training: Lightning's trainer, bit-identical resuming, and signals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch import nn

from bench.api import model_traits
from bench.checkpoint_format import seal_of
from bench.config import Config, Train, numbers_only
from bench.data.augmentation import symmetries_of
from bench.data.loading import TrainingLoader, evaluation_loader, training_loader, workers
from bench.data.plausibility import refuse_constant
from bench.engine.accumulation import Accumulation
from bench.engine.budget import STEPS, budget_steps, kept_steps
from bench.engine.callbacks.divergence import DivergenceMonitor
from bench.engine.callbacks.progress import shown_progress
from bench.engine.callbacks.resume import Resume
from bench.engine.callbacks.selection import KeepBest, Monitor, choose_monitor
from bench.engine.callbacks.signals import SignalWatch, StopAndSave
from bench.engine.callbacks.spent import Spent
from bench.engine.callbacks.training_log import TrainingLog
from bench.engine.callbacks.validations import Validations
from bench.engine.checkpoints import (
    BEST,
    LAST,
    CheckpointFiles,
    KeptCheckpoints,
    newest_intact,
    remove_all,
    remove_parts,
    seals,
)
from bench.engine.compiling import compiled
from bench.engine.fitting import fit_in_one_pass
from bench.engine.forecaster import Forecaster
from bench.engine.identity import refuse_another_training, stored_identity
from bench.engine.loggers import LOGS, finished, make_loggers, part_folder
from bench.engine.micro_batch import REMEMBERED, FindMicroBatch, evaluation_batch, known_micro_batch
from bench.engine.optimizers import has_own_optimizers, refuse_settings
from bench.engine.processes import Processes
from bench.engine.summaries import SUMMARY, read_summary, settings_and_data, write_summary
from bench.engine.trainer import quiet_lightning, trainer_device, translated_errors
from bench.errors import ConfigError, DataError, counted
from bench.logs import log
from bench.models import is_fitted
from bench.paths import AnyPath, as_path, local_folder
from bench.records.schema import TrainingIdentity, TrainingSummary
from bench.tasks.task import Task


def train(
    model: nn.Module,
    task: Task,
    config: Config,
    watch: SignalWatch,
    processes: Processes,
    *,
    folder: Path,
    checkpoints: AnyPath,
    identity: TrainingIdentity,
    whole: nn.Module | None = None,
) -> TrainingSummary:
    """Trains a model and returns a summary; `summary.weights` names the checkpoint to use.

    Called again with the same folders, it resumes or, if the training has ended, returns its summary.

    Args:
        model: Trained in place.
        task: Gives the train and val splits.
        config: The run's config.
        watch: Signals, which may end it.
        processes: Rank and number of the processes that train together.
        folder: The run's own local folder, for logs.
        checkpoints: Where checkpoints and, at the end, the summary go.
        identity: Identity of the training; weights of another one in these folders are refused.
        whole: The model that makes forecasts, if only its last stage is trained.

    Raises:
        DataError: the train split is empty, or no checkpoint can be read.
        ConfigError: the monitored score does not exist, batches cannot be shared, or the weights in the folder are of
            another training or of other code.
        RunFailedError: a number is not finite, the training diverged, or memory or disk ran out.
        InterruptedRunError: a signal arrived; the checkpoint is written.
    """
    done = _finished_training(config, checkpoints, identity)
    if done is not None:
        log.info(f"training had ended ({done.stopped_because}, {done.steps} steps): its weights are used")
        return done
    if is_fitted(model):
        return fit_in_one_pass(model, task, config, checkpoints, processes, identity)
    refuse_strategy(config, model)
    refuse_settings(model, config.train)
    where = _devices(config, model)
    on_gpu = where["accelerator"] == "gpu"
    micro_batch = known_micro_batch(model, task, config, on_gpu=on_gpu)
    new_loader, val_loader = _loaders(task, config, processes, micro_batch, on_gpu=on_gpu)
    loader = new_loader()
    stop = config.train.early_stopping
    monitor = choose_monitor(model, task, stop) if val_loader is not None else None
    if monitor is None:
        log.info("no validation data: no early stopping, the last weights are used")
    resume_from = _resume_from(config, processes, folder=folder, checkpoints=checkpoints)

    quiet_lightning()
    max_epochs, max_steps, kept = config.train.max_epochs, config.train.max_steps, stored_identity(identity, task)
    if config.train.budget is not None:
        max_steps = kept_steps(resume_from) or steps_of_budget(model, task, config, watch, processes, folder=folder)
        max_epochs = math.ceil(max_steps / loader.batches.steps)
        kept |= {STEPS: max_steps}
    steps, accumulation = total_steps(loader.batches.steps, max_epochs, max_steps), Accumulation(model, loader.batches)
    forecaster = Forecaster(model, task, config.train, steps, accumulation=accumulation)
    loggers = []
    if processes.main:
        called = f"{config.task.name} {config.model.name} {folder.name}"  # a stage's folder begins with its name
        logs, work = part_folder(folder / LOGS), local_folder(config.work, "work")
        loggers = make_loggers(config.train.loggers, called, logs, work)
    anyway = config.train.resume == "anyway"
    resume = Resume(loader, processes, identity, kept, seed=config.seed, max_steps=max_steps, anyway=anyway)
    watching = _callbacks(config, watch, resume, monitor, checkpoints, processes)
    found = _micro_batch_search(config, loader, micro_batch, folder, processes)
    shown: list[Callback] = []
    if processes.main:
        score = monitor.name if monitor is not None else None
        meter, *shown = shown_progress(folder, wanted=config.progress, score=score)
        settings = numbers_only(config, training=True)
        del settings["train"]["deterministic"]  # not as it was set
        shown = [meter, *shown, TrainingLog(settings, meter, monitor, lambda: watching.best_score, whole)]
    trainer = lightning.Trainer(
        **where,
        max_epochs=max_epochs,
        accumulate_grad_batches=loader.batches.per_step,
        gradient_clip_val=config.train.clip_norm,
        precision=config.train.precision,
        deterministic=config.train.deterministic,
        # `Validations` counts steps.
        check_val_every_n_epoch=None if config.train.val_every_steps else config.train.val_every_epochs,
        val_check_interval=config.train.val_every_steps,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=loggers,
        callbacks=[*found, *watching.callbacks, *shown],
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in shown),
        enable_model_summary=False,
        default_root_dir=folder,
    )
    models = {id(one): one for one in (model, forecaster.evaluated)}.values() if config.train.compile else ()
    phase = f"training at micro-batch {micro_batch or config.data.micro_batch} of {config.data.batch_size} sequences"
    ends = translated_errors(phase, watch.then, config.model.name)
    with compiled(*models), ends, finished(loggers):
        trainer.fit(forecaster, loader, val_loader, ckpt_path=resume_from, weights_only=True)
        if not (checkpoints / LAST).exists():  # max_steps inside the first epoch
            trainer.save_checkpoint(str(checkpoints / LAST))
        trainer.strategy.barrier()
    watch.deferring = False
    if watching.found_none:
        ran = stop.monitor in trainer.callback_metrics
        why = f"gave a finite {stop.monitor}" if ran else "was due (see train.val_every_steps)"
        log.info(f"no validation {why}: the last weights are used")
    summary = TrainingSummary(
        **settings_and_data(task, config.train, identity),
        checkpoints=seals(checkpoints),
        sequence_count=loader.order.count,
        validation_sequence_count=len(val_loader.dataset) if val_loader is not None else 0,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        resumed_count=watching.resume.count,
        stopped_because=watching.stopped_because(trainer, config.train),
        monitor=monitor.name if monitor is not None else None,
        best_score=watching.best_score,
        weights="last" if watching.best_score is None else "best",
        averaged=forecaster.average is not None,
        final_loss=forecaster.losses.last,
        wall_s=forecaster.trained_s,
        micro_batch=loader.batches.micro_batch,
        cpu_s=watching.spent.cpu_s,
        device_s=watching.spent.device_s if on_gpu else None,
        validation_s=watching.spent.validation_s,
        budget_steps=kept.get(STEPS),
    )
    if processes.main:
        write_summary(summary, checkpoints / SUMMARY)
    log.info(
        f"training ended ({summary.stopped_because}): {counted(summary.epochs, 'epoch')}, "
        f"{counted(summary.steps, 'step')}"
    )
    if watch.received:
        watch.interrupt(f"training had ended and is saved in {checkpoints}")
    return summary


def steps_of_budget(
    model: nn.Module, task: Task, config: Config, watch: SignalWatch, processes: Processes, *, folder: Path
) -> int:
    """Returns the optimiser steps of a training with a compute budget, without training.

    Args:
        model: The model to train.
        task: Gives the train split.
        config: With `train.max_cpu_s` or `train.max_device_s`.
        watch: Signals, which end the trial at once.
        processes: Rank and number of the processes that train together.
        folder: The run's own local folder, which stores the micro-batch.
    """
    where = _devices(config, model)
    on_gpu = where["accelerator"] == "gpu"
    micro_batch = known_micro_batch(model, task, config, on_gpu=on_gpu)
    new_loader, _ = _loaders(task, config, processes, micro_batch, on_gpu=on_gpu)
    trial = new_loader()
    found = _micro_batch_search(config, trial, micro_batch, folder, processes)
    return budget_steps(model, task, config, trial, where, found, watch, processes)


@dataclass(frozen=True)
class _Callbacks:
    """The callbacks that save, select and end a training."""

    callbacks: list[Callback]
    resume: Resume
    spent: Spent
    keep_best: KeepBest | None

    def stopped_because(self, trainer: lightning.Trainer, train: Train) -> str:
        if self.keep_best is not None and self.keep_best.stopped:
            return f"no better {self.keep_best.monitor.name} for {self.keep_best.patience} validations"
        if trainer.global_step == trainer.max_steps:
            return train.budget[0] if train.budget else "max_steps"
        return "max_epochs"

    @property
    def best_score(self) -> float | None:
        return self.keep_best.best if self.keep_best is not None else None

    @property
    def found_none(self) -> bool:
        return self.keep_best is not None and self.keep_best.best is None


def _callbacks(
    config: Config,
    watch: SignalWatch,
    resume: Resume,
    monitor: Monitor | None,
    checkpoints: AnyPath,
    processes: Processes,
) -> _Callbacks:
    patience, best = config.train.early_stopping.patience, None
    if monitor is not None:
        best = KeepBest(monitor, str(checkpoints / BEST), patience)
    spent, validations = Spent(processes), Validations(config.train.val_every_steps if monitor is not None else None)
    callbacks = [
        resume,
        spent,
        DivergenceMonitor(),
        validations,
        best,
        # Last, because they save the state of those above.
        StopAndSave(watch, str(checkpoints / LAST), config.train.save_every_minutes, validations),
        KeptCheckpoints(
            str(checkpoints), "last", save_on_train_epoch_end=True,
            enable_version_counter=False, auto_insert_metric_name=False,
        ),
    ]  # fmt: skip
    return _Callbacks([callback for callback in callbacks if callback is not None], resume, spent, best)


def _micro_batch_search(
    config: Config, loader: TrainingLoader, micro_batch: int | None, folder: Path, processes: Processes
) -> list[Callback]:
    """Returns the callback that finds the micro-batch of a loader on the device, if it is unknown."""
    if micro_batch:
        return []
    return [FindMicroBatch(loader, config.micro_batch_limit, folder / REMEMBERED, processes)]


def _devices(config: Config, model: nn.Module) -> dict[str, Any]:
    unused = bool(model_traits(model).parameters_without_gradient) or has_own_optimizers(model)
    where = trainer_device(config.device, config.devices, config.nodes, config.strategy, unused_parameters=unused)
    return {**where, "plugins": [*where.get("plugins", []), CheckpointFiles()]}


def checkpoints_of(config: Config, folder: Path) -> AnyPath:
    """Returns the folder of a run's or a stage's checkpoints: in its own folder, or under `train.checkpoints`."""
    if config.train.checkpoints is None:
        return folder / "checkpoints"
    return as_path(config.train.checkpoints, "train.checkpoints").joinpath(*folder.parts[-3:])


def _finished_training(config: Config, checkpoints: AnyPath, identity: TrainingIdentity) -> TrainingSummary | None:
    """Returns the summary of an ended training, if it belongs to the weights in the folder.

    Raises:
        ConfigError: the weights are of another training, or of other code.
    """
    done = read_summary(checkpoints / SUMMARY) if config.train.resume else None
    if done is None:
        return None
    weights = checkpoints / f"{done.weights}.ckpt"
    if done.checkpoints.get(done.weights) != (seal_of(weights) or "none"):
        log.warning(f"WARNING: {checkpoints / SUMMARY} belongs to other weights than {weights}, and is ignored")
        return None
    anyway = config.train.resume == "anyway"
    refuse_another_training(done.identity, identity, weights, anyway=anyway, continued=False)
    return done


def refuse_strategy(config: Config, model: nn.Module) -> None:
    """Refuses settings that several processes do not support.

    Raises:
        ConfigError: a step has fewer sequences than processes, or FSDP lacks an option.
    """
    world, batch = config.devices * config.nodes, config.data.batch_size
    if batch < world:
        raise ConfigError(
            f"data.batch_size={batch} sequences of an optimiser step cannot be shared by {world} processes "
            f"(devices={config.devices} nodes={config.nodes}): it is the batch over all devices. "
            f"Make it at least {world}"
        )
    if config.strategy == "fsdp" and config.train.ema_decay is not None:
        raise ConfigError("strategy=fsdp keeps no running average of weights in shards: set train.ema_decay=null")


def _resume_from(config: Config, processes: Processes, *, folder: Path, checkpoints: AnyPath) -> Path | None:
    if isinstance(checkpoints, Path) and processes.main:
        remove_parts(checkpoints)
    if not config.train.resume:
        if processes.main:
            (checkpoints / SUMMARY).unlink(missing_ok=True)  # first, because it describes weights that are removed next
            remove_all(checkpoints)
        return None
    scratch = folder / "fetched" / str(processes.rank)
    resume_from = newest_intact(checkpoints, scratch)
    if resume_from:
        log.info(f"resuming from {resume_from}")
    return resume_from


def total_steps(steps_per_epoch: int, max_epochs: int, max_steps: int | None) -> int:
    """Returns the optimiser steps of a whole training.

    Asking Lightning would set up the loaders before a checkpoint's position in the epoch is restored, and a resumed run
    would see the epoch's first batches again.
    """
    steps = steps_per_epoch * max_epochs
    return min(steps, max_steps or steps)


def _loaders(
    task: Task, config: Config, processes: Processes, micro_batch: int | None, *, on_gpu: bool
) -> tuple[Callable[[], TrainingLoader], Any]:
    """Returns a function that makes a loader of the training split, and the loader of the validation split, if any."""
    data, val = task.dataset("train"), task.dataset("val")
    if not len(data):
        raise DataError(
            f"the train split of task {task.name!r} has no sequences under {task.data_root}. {data.why_empty}"
            "`earthbench data info` shows what each split has; task.val_from moves the date that ends it."
        )
    refuse_constant(data)
    refuse_constant(val)
    feed: dict[str, Any] = {
        "num_workers": workers(config.data.num_workers, on_gpu=on_gpu, devices=config.devices),
        "pinned": on_gpu,
        "timeout_s": config.data.timeout_s,
        "rank": processes.rank,
        "world": processes.world,
    }
    new_loader = partial(
        training_loader,
        data.source,
        batch_size=config.data.batch_size,
        micro_batch=micro_batch or 1,  # until the callback finds it
        seed=config.seed,
        limit=config.train.limit,
        symmetries=symmetries_of(*task.input_shape[1:3]) if task.augments else (),
        **feed,
    )
    if not len(val):
        return new_loader, None
    size = evaluation_batch(task, config, len(val), on_gpu=on_gpu, world=processes.world)
    return new_loader, evaluation_loader(val.source, batch_size=size, limit=None, **feed)
