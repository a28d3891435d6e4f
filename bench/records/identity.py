"""Differences between two trainings in words, the same for every reader of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.config import Config, fingerprint, numbers_only
from bench.records.schema import RunRecord, SourcePart, TrainingIdentity

if TYPE_CHECKING:
    from bench.tasks.task import Task


_ABSENT = object()
"""The value of a key that one side does not set."""


def model_differences(trained: TrainingIdentity, model: str, hyperparameters: Mapping[str, Any]) -> list[str]:
    """Returns how a model differs from the one whose weights were trained.

    Args:
        trained: Identity of the weights.
        model: Registered name of the model to load them into.
        hyperparameters: All of the model's hyperparameters that weights depend on.
    """
    if trained.model != model:
        return [f"model: trained {trained.model}, asked for {model}"]
    return _differing("model", trained.hyperparameters, hyperparameters)


def task_differences(trained: TrainingIdentity, task: Task) -> list[str]:
    """Returns how a task differs from the one that weights were trained for, in fields that a forecast depends on.

    The events of each split may differ: overlap with the training events is checked separately.
    """
    if task.name != trained.task and not _related(task, trained.task):
        return [f"task: trained for {trained.task}, asked for {task.name}"]
    ours = {key: value for key, value in task.fields().items() if key not in task.selection_fields}
    theirs = {key: value for key, value in trained.task_fields.items() if key not in task.selection_fields}
    if task.name != trained.task:  # only fields that both have are compared
        ours, theirs = ({k: part[k] for k in ours.keys() & theirs.keys()} for part in (ours, theirs))
    return _differing("task", theirs, ours)


def _related(task: Task, other: str) -> bool:
    """Returns whether two tasks are compatible: one's class derives from the other's, or they share presets."""
    from bench import registry

    if other not in registry.names("task"):
        return False
    theirs = registry.find("task", other).load()
    same_presets = (task.presets_of or task.name) == (theirs.presets_of or other)
    return same_presets or isinstance(task, theirs) or issubclass(theirs, type(task))


def source_differences(trained: Mapping[str, SourcePart], now: Mapping[str, SourcePart]) -> list[str]:
    """Returns which of the given sources differ from those that weights were trained with."""
    lines = []
    for key, source in now.items():
        before = trained.get(key)
        if before is None or before.sha256 != source.sha256:
            then = "unknown" if before is None else _named(before)
            lines.append(f"{key}: trained with {then}, now {_named(source)}")
    return lines


def run_differences(trained: TrainingIdentity, now: TrainingIdentity) -> list[str]:
    """Returns the differences of two trainings in everything that belongs to their identity."""
    lines = model_differences(trained, now.model, now.hyperparameters)
    lines += _differing("", {"task": trained.task, "task.version": trained.task_version}, {
        "task": now.task, "task.version": now.task_version,
    })  # fmt: skip
    lines += _differing("task", trained.task_fields, now.task_fields)
    lines += _differing("", trained.settings, now.settings)
    lines += _differing("", {"seed": trained.seed, "stage": trained.stage}, {"seed": now.seed, "stage": now.stage})
    for split in ("train", "val"):
        before, after = getattr(trained, split), getattr(now, split)
        if before != after:
            lines.append(f"data of {split}: trained on {_data(before)}, now {_data(after)}")
    if trained.before != now.before:
        lines.append("weights of an earlier stage")
    keys = sorted((trained.sources.keys() | now.sources.keys()) - {"harness"})
    lines += source_differences(trained.sources, {key: now.sources[key] for key in keys if key in now.sources})
    return lines


def _data(part: Any) -> str:
    return "nothing" if part is None else f"{part.sequence_count} sequences, fingerprint {part.fingerprint[:10]}"


def _named(source: SourcePart) -> str:
    at = f" at {source.commit[:10]}{', changed' if source.dirty else ''}" if source.commit else ""
    return f"{source.module} {source.version or ''}{at} (source {source.sha256[:10]})".replace("  ", " ")


def _differing(prefix: str, trained: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = []
    for key in sorted(trained.keys() | now.keys()):
        before, after = trained.get(key, _ABSENT), now.get(key, _ABSENT)
        where = f"{prefix}.{key}" if prefix else key
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += _differing(where, before, after)
        else:
            lines.append(f"{where}: trained with {_shown(before)}, asked for {_shown(after)}")
    return lines


def _shown(value: Any) -> str:
    return "the default" if value is _ABSENT else repr(value)


@dataclass(frozen=True)
class ExpectedRun:
    """The properties of a run besides its config, by which its record is found."""

    task_version: int
    tested_on: str
    """Fingerprint of the data to evaluate on."""
    trained_on: str | None
    """Fingerprint of the training data; None if there is nothing to train."""
    selected_on: str | None
    """Fingerprint of the validation data; None without any."""
    sources: Mapping[str, SourcePart]
    """The code that would run."""


def newest_of_same_run(records: Iterable[RunRecord], config: Config, expected: ExpectedRun) -> RunRecord | None:
    """Returns the newest record of an identical run, or None.

    The config's fingerprint contains neither data nor code, so both are compared.  With `train.resume=anyway`, the
    harness may differ.

    Args:
        records: Oldest first, as returned by `read_records`.
        config: The config of the run.
        expected: Its data and code.
    """
    wanted = fingerprint(numbers_only(config))
    anyway = config.train.resume == "anyway"
    sources = {key: source for key, source in expected.sources.items() if key != "harness" or not anyway}
    same = [
        record
        for record in records
        if record.status == "ok"
        and record.config_fingerprint == wanted
        and record.task.version == expected.task_version
        and record.data is not None
        and record.data.fingerprint == expected.tested_on
        and not source_differences(record.code.sources, sources)
        and _same_training(record, config, expected, sources)
    ]
    return same[-1] if same else None


def _same_training(record: RunRecord, config: Config, expected: ExpectedRun, sources: Mapping[str, SourcePart]) -> bool:
    if record.training is None:
        return True
    trained = record.training.identity
    return (
        trained is not None
        and trained.train.fingerprint == expected.trained_on
        and (trained.val.fingerprint if trained.val else None) == expected.selected_on
        and not source_differences(trained.sources, sources)
        # Recorded for models with batch statistics only.
        and trained.settings["data"].get("micro_batch") in (None, config.micro_batch_limit)
    )
