"""Comparison of a record's settings with the recipe of its row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from bench.config import BUDGETS, Config, Data, Train, compose
from bench.errors import EarthbenchError
from bench.records.schema import RunRecord
from bench.tables.definitions import Row, Table
from bench.tables.settings import TOTAL_BATCH, equal, overrides_of, training_settings

_LENGTH = {"max_epochs", "max_steps", *BUDGETS, "limit"}
_MEMBERS = "evaluate.members"


def deviations(table: Table, record: RunRecord, row: Row | None = None) -> list[str]:
    """Returns the settings in which a record deviates from its row, as `train.KEY=VALUE (table: VALUE)`.

    Compared are all settings of the training that `earthbench reproduce` plans for the row, except the seed, and the
    number of scored members; for a table that plans no training, only the settings that it states.

    Args:
        table: Published table.
        record: Record of its task.
        row: Row of the table; None compares only with the settings that the table states.
    """
    return list(differing(table, record, row).values())


def differing(table: Table, record: RunRecord, row: Row | None) -> dict[str, str]:
    """Returns the result of `deviations` by key of the config."""
    planned = None if row is None or row.own_runs else _planned(table, row)
    wanted, used = ({}, {}) if planned is None else _ensembles(planned, record)
    if record.training is not None:
        stated = {f"train.{key}": value for key, value in (table.training_of(row) if row else table.training).items()}
        if planned is not None:
            wanted |= _compared(planned)
            used |= _used(planned, record)
        wanted |= stated
        used |= {key: _setting(record.training.settings, key.removeprefix("train.")) for key in stated}
    return {
        key: f"{key}={used[key]!r} (table: {wanted.get(key)!r})"
        for key in used
        if (key in wanted or _last(key) in _LENGTH) and not equal(used[key], wanted.get(key))
    }


def of_length(key: str) -> bool:
    """Returns whether a key of the config sets the length of a training."""
    return _last(key) in _LENGTH


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _setting(settings: Mapping[str, Any], key: str) -> Any:
    """Returns a setting of a training; the cosine schedule is not stored."""
    return settings.get(key, "cosine" if key == "schedule" else None)


def _planned(table: Table, row: Row) -> Config | None:
    """Returns the config of a row; None if it states none, or its model or task is not installed."""
    if not (row.experiment or table.experiment):
        return None
    return _composed(overrides_of(table, row, (), 0))


@lru_cache(maxsize=128)
def _composed(overrides: tuple[str, ...]) -> Config | None:
    try:
        return compose(overrides)
    except EarthbenchError:  # `earthbench reproduce` reports the error
        return None


def _ensembles(planned: Config, record: RunRecord) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the numbers of members that the row scores and the record has, if both are ensembles."""
    if planned.evaluate.members is None or record.members is None:
        return {}, {}
    return {_MEMBERS: planned.evaluate.members}, {_MEMBERS: record.members.count}


def _used(planned: Config, record: RunRecord) -> dict[str, Any]:
    """Returns the settings of a record's training, with each planned stage; without the batch if it is unknown.

    They are empty if they cannot be read, for example those of a version without one of the keys.
    """
    assert record.training is not None
    identity = record.training.identity
    stored = record.config if identity is None else identity.settings
    batch = stored.get("data", {}).get("batch_size") if isinstance(stored.get("data"), dict) else None
    own = record.training.settings
    stages = {name: {} for name in planned.train.stages} | own.get("stages", {})
    try:
        train = Train.model_validate({**own, "stages": stages})
        data = Data() if batch is None else Data(batch_size=batch)
        found = _compared(planned.model_copy(update={"train": train, "data": data}))
    except (ValidationError, EarthbenchError):
        return {}
    return {
        key: value
        for key, value in found.items()
        if batch is not None or _last(key) != "batch_size" or "batch_size" in stages.get(key.split(".")[-2], {})
    }


def _compared(config: Config) -> dict[str, Any]:
    """Returns the settings of a training by their key in the config, without its seed."""
    found = {}
    for key, value in training_settings(config):
        if key == "seed":
            continue
        if _last(key) == TOTAL_BATCH:
            key = key.removesuffix(TOTAL_BATCH) + "batch_size" if key != TOTAL_BATCH else "data.batch_size"
        found[key] = value
    for key in [key for key in found if key.endswith("early_stopping.mode")]:
        if found[key] == "min" and found[key.removesuffix("mode") + "monitor"] == "val/loss":
            found[key] = "auto"  # another name of the same setting
    return found
