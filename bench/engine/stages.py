"""Training of models in stages: each stage has its own folder, where it resumes and other runs reuse it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import lightning
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bench.api import Stage
from bench.checkpoint_format import fetched, read_checkpoint
from bench.config import Config, Data, Train, explain
from bench.data.loading import evaluation_loader, workers
from bench.engine.callbacks.signals import SignalWatch
from bench.engine.checkpoints import LAST
from bench.engine.fitting import publish_weights
from bench.engine.identity import identify_stage, stored_identity
from bench.engine.processes import Processes, main_process_lock
from bench.engine.runfolder import run_lock
from bench.engine.summaries import settings_and_data
from bench.engine.train import checkpoints_of, train
from bench.errors import ConfigError, DataError, did_you_mean, one_message
from bench.logs import log
from bench.models import Trained, load_weights, provenance_of
from bench.paths import AnyPath, local_folder
from bench.records.identity import model_differences, source_differences, task_differences
from bench.records.schema import TrainingIdentity, TrainingSummary
from bench.tasks.task import Task

_CHECKPOINT = "checkpoint"
_OF_DATA = ("batch_size", "micro_batch")
# Settings of a stage that its weights do not depend on.
_NO_NUMBERS = {"loggers", "resume", "stages"}


def train_stages(
    model: nn.Module,
    task: Task,
    config: Config,
    watch: SignalWatch,
    processes: Processes,
    *,
    folder: Path,
    checkpoints: AnyPath,
    identity: TrainingIdentity,
) -> TrainingSummary:
    """Trains all stages of a model in place, in order, and returns a common summary.

    A stage's folder is named by what its weights depend on: its own hyperparameters and settings, the data, the seed
    and the stages before it. Other models and runs with the same stage use its weights. The whole model's weights go to
    `checkpoints`.

    Args:
        model: Trained in place.
        task: Gives the train and val splits.
        config: The run's config; `train.stages` holds the settings that differ by stage.
        watch: Signals, which may end it.
        processes: Rank and number of the processes that train together.
        folder: The run's own folder.
        checkpoints: Where the weights of the whole model and the summary go.
        identity: Identity of the training of the whole model.

    Raises:
        ConfigError: settings of a stage are unknown or not allowed, or given weights do not belong to the stage.
        DataError: the train split is empty, or a file of weights is missing or damaged.
        RunFailedError: the loss is not finite, or memory ran out.
        InterruptedRunError: a signal arrived; the checkpoint of the stage is written.
    """
    stages: Sequence[Stage] = model.stages()  # type: ignore[operator]
    settings = {stage.name: _settings(config, stage.name) for stage in stages}
    _refuse_unknown(config.train, list(settings))
    if config.train.budget is not None:
        key, seconds = config.train.budget
        raise ConfigError(
            f"train.{key}={seconds:g}: {config.model.name} is trained in stages, each with its own budget: set "
            + " ".join(f"train.stages.{name}.{key}=S" for name in settings)
        )
    summaries: dict[str, TrainingSummary | None] = {}
    before: list[str] = []
    given: list[Trained] = []
    for number, stage in enumerate(stages):
        stage_train, data, checkpoint = settings[stage.name]
        stage_config = config.model_copy(update={"train": stage_train, "data": data})
        train_settings = {k: v for k, v in stage_train.model_dump(mode="json").items() if k not in _NO_NUMBERS}
        train_settings["deterministic"] = "warn"  # see `numbers_only`
        own_identity = identify_stage(
            stage, task, stage_config, before=before, settings=train_settings, seed=config.seed + number
        )
        if checkpoint is not None:
            given.append(_load(stage, checkpoint, own_identity, task, anyway=config.train.resume == "anyway"))
            before.append(given[-1].sha256)
            log.info(f"stage {stage.name}: weights of {checkpoint}")
            summaries[stage.name] = None
            _prepare(stage, task, config)
            continue
        before.append(own_identity.name)
        own = folder.parent.parent / "stages" / f"{stage.name}-{before[-1][:12]}"
        stage_checkpoints = checkpoints_of(stage_config, own)
        log.info(f"stage {stage.name} ({number + 1} of {len(stages)}): {own}")
        # A stage starts from the same random state whether the one before it was trained now or earlier.
        lightning.seed_everything(config.seed + number, workers=True, verbose=False)
        if not (config.train.resume and (stage_checkpoints / LAST).exists()):
            _prepare(stage, task, config)
        with main_process_lock(processes, partial(run_lock, own, before[-1], wait=True)):
            done = train(
                stage.module, task, stage_config, watch, processes,
                folder=own, checkpoints=stage_checkpoints, identity=own_identity,
                whole=model if stage is stages[-1] else None,
            )  # fmt: skip
            load_weights(stage.module, fetched(stage_checkpoints / f"{done.weights}.ckpt", own / "fetched"))
        summaries[stage.name] = done
    summary = _combined(summaries, task, config.train, identity)
    if processes.main:
        stored = stored_identity(identity, task, [weights.events for weights in given])
        summary = publish_weights({"state_dict": model.state_dict(), **stored}, summary, checkpoints)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return summary


def _settings(config: Config, stage: str) -> tuple[Train, Data, str | None]:
    """Returns the training and data settings of a stage, and the file of weights to use instead of training it."""
    own = dict(config.train.stages.get(stage, {}))
    checkpoint = own.pop(_CHECKPOINT, None)
    of_data = {key: own.pop(key) for key in _OF_DATA if key in own}
    part: type[Data | Train] = Data
    try:
        data = Data.model_validate({**config.data.model_dump(), **of_data})
        part = Train
        settings = Train.model_validate({**config.train.model_dump(), "stages": {}, **own})
    except ValidationError as error:
        problems = explain(error, part, prefix=f"train.stages.{stage}.")
        raise ConfigError(one_message("the config is not valid:", problems)) from error
    # A stage has no other score.
    stop = settings.early_stopping.model_copy(update={"monitor": "val/loss", "mode": "min"})
    return settings.model_copy(update={"early_stopping": stop}), data, checkpoint


def _refuse_unknown(base: Train, names: list[str]) -> None:
    unknown = [name for name in base.stages if name not in names]
    if unknown:
        lines = [f"train.stages.{name}: {did_you_mean(name, names)}" for name in unknown]
        raise ConfigError(one_message("the model has no such stage:", lines))


def _load(stage: Stage, path: str, identity: TrainingIdentity, task: Task, *, anyway: bool) -> Trained:
    """Loads a stage's weights from a file, and returns where they come from.

    Raises:
        ConfigError: they are of another stage or task, or were trained with other hyperparameters or by other code.
        DataError: the file is missing or damaged.
    """
    key = f"train.stages.{stage.name}.checkpoint={path}"
    file = local_folder(path, f"train.stages.{stage.name}.checkpoint")
    if not file.is_file():
        raise DataError(f"{key}: no such file. Leave the key out to train this stage.")
    given = provenance_of(read_checkpoint(file), file) if file.suffix != ".safetensors" else provenance_of(None, file)
    if given.identity is not None and given.identity.stage is not None:  # written by this function's trainings
        problems = model_differences(given.identity, stage.name, identity.hyperparameters)
        problems += task_differences(given.identity, task)
        if problems:
            message = f"{key} was trained with other settings; give those of its training:"
            raise ConfigError(one_message(message, problems))
        sources = {name: source for name, source in identity.sources.items() if name in ("model", "task")}
        changed = source_differences(given.identity.sources, sources)
        if changed and not anyway:
            raise ConfigError(one_message(f"{key} was trained by other code; train.resume=anyway uses it:", changed))
        load_weights(stage.module, file)
        return given
    try:
        stage.load(file)
    except ValueError as error:
        raise ConfigError(f"{key} does not fit: {error}") from error
    return given


def _prepare(stage: Stage, task: Task, config: Config) -> None:
    """Passes all training data once to a stage that asks for it."""
    if stage.prepare is None:
        return
    try:
        stage.prepare(_training_batches(task, config))
    except ValueError as error:  # models know nothing of our errors
        raise ConfigError(f"stage {stage.name} cannot be trained on task {task.name!r}: {error}") from error


def _training_batches(task: Task, config: Config) -> Iterator[Sequence[Tensor]]:
    """Yields normalised contexts and targets, and labels, of the training data in batches."""
    data, processes = task.dataset("train"), workers(config.data.num_workers, on_gpu=False, devices=1)
    loader = evaluation_loader(
        data.source, batch_size=config.data.batch_size, num_workers=processes, limit=config.train.limit
    )
    for batch in loader:
        yield task.to_context(batch.context), task.normalise(task.to_target(batch.target)), *batch.labels


def _combined(
    summaries: dict[str, TrainingSummary | None], task: Task, train: Train, identity: TrainingIdentity
) -> TrainingSummary:
    """Returns one summary of all stages: sums of steps and times, and the last stage's loss."""
    trained = {name: summary for name, summary in summaries.items() if summary is not None}
    because = [
        f"{name}: {summary.stopped_because if summary else 'given weights'}" for name, summary in summaries.items()
    ]
    last = next(reversed(trained.values()), None)
    return TrainingSummary(
        **settings_and_data(task, train, identity),
        sequence_count=max((summary.sequence_count for summary in trained.values()), default=0),
        validation_sequence_count=max((summary.validation_sequence_count for summary in trained.values()), default=0),
        epochs=sum(summary.epochs for summary in trained.values()),
        steps=sum(summary.steps for summary in trained.values()),
        resumed_count=sum(summary.resumed_count for summary in trained.values()),
        stopped_because="; ".join(because),
        monitor=None,
        best_score=None,
        weights="last",
        averaged=any(summary.averaged for summary in trained.values()),
        final_loss=last.final_loss if last else None,
        wall_s=sum(summary.wall_s for summary in trained.values()),
        cpu_s=_sum(summary.cpu_s for summary in trained.values()),
        device_s=_sum(summary.device_s for summary in trained.values()),
        validation_s=_sum(summary.validation_s for summary in trained.values()),
    )


def _sum(seconds: Iterable[float | None]) -> float | None:
    """Returns the sum over the stages; None without stages, or if a value is unknown."""
    known = list(seconds)
    return sum(s for s in known if s is not None) if known and None not in known else None
