"""The identity of a training, stored with its weights and compared at every use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.api import Split
from bench.checkpoint_format import OURS
from bench.config import Config, canonical_json, numbers_only
from bench.engine.accumulation import uses_batch_statistics
from bench.errors import ConfigError, one_message
from bench.files import sha256_of
from bench.models import TrainedEvents, made_from, trained_hyperparameters
from bench.paths import as_path
from bench.records.identity import ExpectedRun, run_differences, source_differences
from bench.records.provenance import libraries
from bench.records.schema import SplitPart, TrainingIdentity
from bench.records.sources import class_source, sources_of
from bench.tasks.task import NormalisedSequences, Task

if TYPE_CHECKING:
    from torch import nn

    from bench.api import Stage

_ADVICE = "train.resume=false trains again, train.resume=anyway uses the weights anyway"


def identify(model: nn.Module, task: Task, config: Config) -> TrainingIdentity:
    """Returns the identity of a model's training.

    Args:
        model: Made by `load_model`.
        task: On the training data.
        config: The run's config.
    """
    made = made_from(model)
    return TrainingIdentity(
        model=made.name,
        hyperparameters=trained_hyperparameters(model),
        settings=_settings(config, model),
        sources=sources_of(type(model), type(task), task.metrics),
        **_data_and_seed(task, config),
    )


def expected_run(
    config: Config, task: Task, test_task: Task, *, trained: bool, model: type | None = None
) -> ExpectedRun:
    """Returns the properties by which a record of a run is found.

    Args:
        config: The run's config.
        task: On the training data.
        test_task: On the data to evaluate on.
        trained: Whether there is something to train.
        model: The model's class; by default the registered one.
    """
    has_val = trained and len(task.dataset("val")) > 0
    return ExpectedRun(
        task_version=task.version,
        tested_on=test_task.data_fingerprint(config.split),
        trained_on=task.data_fingerprint("train") if trained else None,
        selected_on=task.data_fingerprint("val") if has_val else None,
        sources=sources_of(model or registry.find("model", config.model.name).load(), type(task), task.metrics),
    )


def identify_stage(
    stage: Stage, task: Task, config: Config, *, before: Sequence[str], settings: Mapping[str, Any], seed: int
) -> TrainingIdentity:
    """Returns the identity of a stage's training; models with the same stage share its weights.

    Args:
        stage: A stage of a model.
        task: On the training data.
        config: The run's config.
        before: Identities of the weights of earlier stages.
        settings: The stage's own training settings.
        seed: Seed of the stage.
    """
    of_run = sources_of(type(stage.module), type(task), task.metrics)
    module: type = type(stage.module)
    sources = {**of_run, "model": class_source(module, f"{module.__module__}:{module.__qualname__}")}
    return TrainingIdentity(
        model=stage.name,
        stage=stage.name,
        hyperparameters=json.loads(canonical_json(dict(stage.depends_on))),  # as read from a checkpoint
        settings={**_settings(config, stage.module), "train": dict(settings)},
        sources=sources,
        before=tuple(before),
        **{**_data_and_seed(task, config), "seed": seed},
    )


def _settings(config: Config, model: nn.Module) -> dict[str, Any]:
    plain = numbers_only(config, training=True)
    if uses_batch_statistics(model):
        plain["data"]["micro_batch"] = config.micro_batch_limit
    for stage in plain["train"]["stages"].values():
        if "checkpoint" in stage:  # its content counts, not its path
            stage["checkpoint"] = _sha256_or_path(str(stage["checkpoint"]))
    return {key: value for key, value in plain.items() if key not in ("task", "model", "seed")}


def _sha256_or_path(path: str) -> str:
    try:
        return sha256_of(as_path(path, "checkpoint"))
    except OSError:  # loading it reports the error
        return path


def _data_and_seed(task: Task, config: Config) -> dict[str, Any]:
    return {
        "task": task.name,
        "task_version": task.version,
        "task_fields": task.fields(),
        "seed": config.seed,
        "train": _split(task, "train"),
        "val": _split(task, "val") if len(task.dataset("val")) else None,
        "libraries": libraries(),
    }


def _split(task: Task, split: Split) -> SplitPart:
    data = task.dataset(split)
    return SplitPart(
        fingerprint=task.data_fingerprint(split),
        event_count=len(data.ids),
        sequence_count=len(data),
        incomplete=data.incomplete,
    )


def stored_identity(
    identity: TrainingIdentity, task: Task, given: Iterable[Mapping[str, TrainedEvents]] = ()
) -> dict[str, Any]:
    """Returns a checkpoint's description of its weights: their training, and every event that it saw; plain values.

    Args:
        identity: Identity of the training.
        task: On the training data.
        given: Events seen by weights that the training started from.
    """
    splits: tuple[Split, ...] = ("train", "val")
    given = list(given)
    events = {}
    for split in splits:
        seen = [events_of(task.dataset(split)), *(one[split] for one in given if split in one)]
        events[split] = {
            "ids": sorted({name for one in seen for name in one.ids}),
            "contents": sorted({content for one in seen for content in one.contents}),
        }
    return {OURS: {"identity": identity.model_dump(mode="json"), "events": events}}


def refuse_another_training(
    trained: TrainingIdentity | None, now: TrainingIdentity, where: object, *, anyway: bool, continued: bool
) -> None:
    """Refuses weights in a run's folder that are of another training.

    Args:
        trained: Identity of the weights; None if they have none.
        now: Identity of the run's training.
        where: Names the weights in messages.
        anyway: Accept other code and libraries.
        continued: Whether training resumes from the weights: then libraries count, too.

    Raises:
        ConfigError: names the differences, and the remedy.
    """
    if trained is None:
        raise ConfigError(f"{where} does not state its training; {_ADVICE.partition(',')[0]}")
    problems = run_differences(trained, now)
    if problems:
        raise ConfigError(one_message(f"{where} is of another training; train.resume=false trains again:", problems))
    code = source_differences(trained.sources, {"harness": now.sources["harness"]})
    if continued:
        code += [
            f"{name}: trained with {trained.libraries.get(name)}, now {version}"
            for name, version in now.libraries.items()
            if trained.libraries.get(name) != version
        ]
    if code and not anyway:
        raise ConfigError(one_message(f"{where} was trained by other code ({_ADVICE}):", code))


def seen_events(seen: TrainedEvents, data: NormalisedSequences) -> list[str]:
    """Returns the events of a data set that a training saw, under the same id or with the same values."""
    shared = seen.ids.intersection(data.ids)
    if seen.contents and data.source.contents:
        contents = zip(data.ids, data.source.contents, strict=True)
        shared |= {name for name, content in contents if content in seen.contents}
    return sorted(shared)


def events_of(data: NormalisedSequences) -> TrainedEvents:
    """Returns the events of a split as stored with a training that sees it."""
    return TrainedEvents(frozenset(data.ids), frozenset(data.source.contents or ()))
