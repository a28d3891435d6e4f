"""Comparability of runs, and labels that distinguish the runs of one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from bench import registry
from bench.config import canonical_json
from bench.errors import EarthbenchError
from bench.metrics.names import ADDED
from bench.records.schema import RunRecord
from bench.tables.admission import of_ensembles

_NOT_SET = "null"
_NO_NUMBERS = ("loggers", "resume")


def comparable_key(record: RunRecord) -> tuple[Any, ...]:
    """Returns a key that must be equal for two records to be comparable.

    It has data, split, task, its version and options, and the conventions of its metrics.  It does not have the metrics
    that an ensemble adds, because ensembles are shown beside single forecasts in their own rows, nor metrics added on
    the command line, nor options that only change what models see.
    """
    assert record.data is not None
    conventions = {
        name: how for name, how in record.conventions.items() if not of_ensembles(name) and ADDED not in name
    }
    context = _context_fields(record.task.name)
    fields = {name: value for name, value in record.task.fields.items() if name not in context}
    task = canonical_json([fields, conventions])
    return (record.task.name, record.data.fingerprint, record.data.split, record.task.version, task)


@cache
def _context_fields(task: str) -> frozenset[str]:
    """Returns the options of a task that only change what models see; none for a task that is not installed."""
    try:
        found: frozenset[str] = getattr(registry.find("task", task).load(), "context_fields", frozenset())
    except EarthbenchError:
        return frozenset()
    return found


def differing_options(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Returns, for groups of comparable runs, the task's options and the metrics' conventions that not all have alike.

    As `, task.KEY=VALUE, METRIC.KEY=VALUE`; a convention that follows from an option is named once, and an option that
    is not set is not named.
    """
    firsts = [group[0] for group in groups]
    given = {key for record in firsts for key in _given_options(record)}
    told = _differing([{key: record.task.fields.get(key) for key in sorted(given)} for record in firsts], "task.")
    options = {key.removeprefix("task.") for one in told for key in one}
    conventions = [
        {
            f"{name}.{key}": value
            for name, how in sorted(record.conventions.items())
            if not of_ensembles(name) and ADDED not in name
            for key, value in sorted(how.items())
            if key not in options
        }
        for record in firsts
    ]
    versions = _differing([{"version": record.task.version} for record in firsts], "task ")
    texts = [{**a, **b, **c} for a, b, c in zip(versions, told, _differing(conventions), strict=True)]
    return ["".join(f", {key}={value}" for key, value in one.items() if value != _NOT_SET) for one in texts]


def _given_options(record: RunRecord) -> set[str]:
    """Returns the names of the given task options; for a run from Python, where these are unknown, of all options."""
    given = record.config.get("task")
    return set(given) - {"name"} if isinstance(given, dict) else set(record.task.fields)


def _differing(settings: Sequence[dict[str, Any]], prefix: str = "") -> list[dict[str, str]]:
    """Returns the settings whose values differ, as on the command line."""
    texts = [
        {key: value if isinstance(value, str) else canonical_json(value) for key, value in one.items()}
        for one in settings
    ]
    unlike = [
        key for key in dict.fromkeys(key for one in texts for key in one) if len({one.get(key) for one in texts}) > 1
    ]
    return [{prefix + key: one[key] for key in unlike if key in one} for one in texts]


def variant_labels(group: Sequence[RunRecord]) -> list[str]:
    """Returns labels that distinguish each run from others of its model, except by seed: differing hyperparameters etc.

    Hyperparameters common to all runs of a model, `shared_choices`, are left out.
    """
    shared = shared_choices(group)
    settings = [_training_settings(record) for record in group]
    of_model = Counter(record.model.name for record in group)
    equal: Counter[tuple[str, str, str]] = Counter()  # runs of a model that have this value of this setting
    for record, mine in zip(group, settings, strict=True):
        equal.update((record.model.name, key, repr(value)) for key, value in mine.items())
    ensembles = [_ensemble_options(record) for record in group]
    values: dict[tuple[str, str], set[str]] = {}  # among the ensembles of a model
    for record, options in zip(group, ensembles, strict=True):
        for key, value in options.items():
            values.setdefault((record.model.name, key), set()).add(repr(value))
    labels = []
    for record, mine, options in zip(group, settings, ensembles, strict=True):
        name = record.model.name
        told = {key: value for key, value in _chosen(record).items() if key not in shared[name]}
        told |= {key: value for key, value in mine.items() if equal[name, key, repr(value)] < of_model[name]}
        told |= {key: value for key, value in options.items() if len(values[name, key]) > 1}
        labels.append(f"{name} ({listed(told)})" if told else name)
    return labels


def shared_choices(group: Sequence[RunRecord]) -> dict[str, dict[str, Any]]:
    """Returns the hyperparameters that were given equally to all runs of a model, by model."""
    shared: dict[str, dict[str, Any]] = {}
    for record in group:
        mine = _chosen(record)
        so_far = shared.setdefault(record.model.name, mine)
        shared[record.model.name] = {key: v for key, v in so_far.items() if key in mine and mine[key] == v}
    return shared


def listed(options: dict[str, Any]) -> str:
    """Returns options as `KEY=VALUE, ...`, in order of the keys."""
    return ", ".join(f"{key}={value}" for key, value in sorted(options.items()))


def _chosen(record: RunRecord) -> dict[str, Any]:
    """Returns the hyperparameters that were given, without those that came with the model's preset."""
    if record.model.is_preset:
        return {}
    given = record.config.get("model")
    if not isinstance(given, dict):  # from Python, where the preset's share is unknown
        return dict(record.model.hyperparameters)
    return {key: value for key, value in record.model.hyperparameters.items() if key in given}


def _ensemble_options(record: RunRecord) -> dict[str, Any]:
    """Returns the conventions of the metrics that an ensemble adds, by `METRIC.OPTION`."""
    added = ((name, how) for name, how in record.conventions.items() if of_ensembles(name))
    return {f"{name}.{key}": value for name, how in added for key, value in how.items()}


def _flat(settings: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Yields settings with those of stages under `stages.NAME.KEY`: runs differ in some of them, seldom in all."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{within}{key}.")
        else:
            yield f"{within}{key}", value


def _training_settings(record: RunRecord) -> dict[str, Any]:
    ensemble = {"members": record.members.count} if record.members else {}
    if record.training is None:
        return ensemble | ({"weights": record.checkpoint_sha256[:10]} if record.checkpoint_sha256 else {})
    settings = ensemble | dict(_flat({k: v for k, v in record.training.settings.items() if k not in _NO_NUMBERS}))
    if record.training.steps:  # a model that is fitted does not depend on it
        settings["batch_size"] = record.config.get("data", {}).get("batch_size")
    return {**settings, "trained on": record.training.data_fingerprint[:10], "weights": record.training.weights}
