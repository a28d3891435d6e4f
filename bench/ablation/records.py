"""Records of a sweep's runs: a record with a run's config and data is used instead of running again."""

from __future__ import annotations

from functools import lru_cache

from bench import registry
from bench.config import Config, canonical_json, validate
from bench.engine.identity import expected_run
from bench.errors import ConfigError
from bench.records.identity import newest_of_same_run
from bench.records.schema import RunRecord
from bench.records.store import read_records
from bench.tasks import Task, load_task


def reference_configs(config: Config) -> list[Config]:
    """Returns the configs of the trivial references on the data of a run; none for a run on part of the data."""
    if config.limit is not None or config.train.limit is not None:
        return []
    plain = config.model_dump(mode="json")
    names = [name for name in registry.names("model") if registry.find("model", name).card().trivial]
    return [validate({**plain, "model": {"name": name}, "seed": 0}) for name in names if name != config.model.name]


def finished_record(config: Config) -> RunRecord | None:
    """Returns the newest complete record of a config on its data, or None.

    Raises:
        ConfigError: no data root, or task options that are not valid.
        DataError: the data cannot be read.
    """
    records, _ = read_records(config.results.root, config.task.name)
    return newest_of_same_run(records, config, expected_run(config, *tasks_of(config), trained=True))


def tasks_of(config: Config) -> tuple[Task, Task]:
    """Returns the task on the training data, and on the data to evaluate on.

    Raises:
        ConfigError: no data root, or task options that are not valid.
    """
    if config.data.root is None:
        raise ConfigError("data.root is not set: give data.root=DIR")
    options = canonical_json(config.task.options)
    roots = (config.data.root, config.data.test_root or config.data.root)
    train, test = (_task(config.task.name, root, options) for root in roots)
    return train, test


@lru_cache(maxsize=8)
def _task(name: str, root: str, options: str) -> Task:
    import json

    return load_task(name, root, **json.loads(options))
