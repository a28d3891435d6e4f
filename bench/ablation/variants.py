"""Ablations: named sweeps over a model's hyperparameters, and which of their runs are there already.

A sweep is data (`bench/conf/ablation/NAME.yaml`); Hydra runs it, the pipeline makes the records, and a record that
has the config and the data of a variant is used again.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict

from bench import registry
from bench.config import Config, canonical_json, compose, expand_sweep, fingerprint, numbers_only, validate
from bench.engine.identity import expected_run
from bench.errors import ConfigError, UnknownNameError, did_you_mean
from bench.records.identity import newest_of_same_run
from bench.records.schema import RunRecord
from bench.records.store import read_records
from bench.tasks import Task, load_task

_SUFFIX = ".yaml"


class Ablation(BaseModel):
    """What is varied: the union of some sweeps over a common base."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    base: list[str]
    """Hydra overrides of all sweeps; a caller's override of the same key replaces one."""
    sweeps: list[list[str]]
    """Each a list of overrides such as `model.num_global_vectors=1,2`: their Cartesian product."""
    labels: dict[str, str]
    """Varied key -> heading of its column."""

    def override_lists(self, overrides: Sequence[str]) -> list[list[str]]:
        """Returns one list of sweeping overrides per sweep, the caller's behind the ablation's own."""
        given = {_key(override) for override in overrides}
        return [[*(own for own in [*self.base, *sweep] if _key(own) not in given), *overrides] for sweep in self.sweeps]


@dataclass(frozen=True)
class Variant:
    """One run of an ablation."""

    config: Config
    settings: dict[str, str]
    """Overridden key -> value."""


def _folder() -> Any:
    return importlib.resources.files("bench.conf") / "ablation"


def ablation_names() -> list[str]:
    """Returns the names of the ablations."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in _folder().iterdir() if path.name.endswith(_SUFFIX))


def load_ablation(name: str) -> Ablation:
    """Returns the ablation `name`.

    Raises:
        UnknownNameError: there is none of this name.
    """
    from omegaconf import OmegaConf

    if name not in ablation_names():
        raise UnknownNameError(f"unknown ablation {name!r}. {did_you_mean(name, ablation_names())}")
    text = (_folder() / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
    return Ablation.model_validate(OmegaConf.to_container(OmegaConf.create(text)))


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def variants(ablation: Ablation, overrides: Sequence[str]) -> list[Variant]:
    """Returns every run of an ablation, each once, in the order of its sweeps; all configs are checked.

    Args:
        ablation: What is varied.
        overrides: Hydra overrides for all runs; they may sweep too (`seed=0,1`).

    Raises:
        ConfigError: an override that does not parse, or a config that is not valid.
    """
    found: dict[str, Variant] = {}
    for sweep in ablation.override_lists(overrides):
        for combination in expand_sweep(sweep):
            config = compose(combination)
            settings = {_key(override): override.partition("=")[2] for override in combination}
            found.setdefault(fingerprint(numbers_only(config)), Variant(config, settings))
    return list(found.values())


def varied_keys(runs: Sequence[Variant]) -> list[str]:
    """Returns the overridden keys that do not have one value in all runs, in the order of their first use."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def seeds_together(runs: Sequence[Variant]) -> list[list[int]]:
    """Returns the indexes of the runs that differ by their seed alone, variant by variant."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, run in enumerate(runs):
        key = tuple(sorted((name, value) for name, value in run.settings.items() if name != "seed"))
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def reference_configs(config: Config) -> list[Config]:
    """Returns the configs of the trivial references on the data of a run, none for a run on part of them."""
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
    if config.data.root is None:
        raise ConfigError("data.root is not set: give data.root=DIR, or --count-only for what needs no data")
    records, _ = read_records(config.results.root, config.task.name)
    task, test_task = (
        _task(config.task.name, root, canonical_json(config.task.options))
        for root in (config.data.root, config.data.test_root or config.data.root)
    )
    return newest_of_same_run(records, config, expected_run(config, task, test_task, trained=True))


@lru_cache(maxsize=8)
def _task(name: str, root: str, options: str) -> Task:
    import json

    return load_task(name, root, **json.loads(options))
