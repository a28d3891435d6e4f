"""Ablations: sweeps over a model's hyperparameters, as data (`bench/conf/ablation/NAME.yaml`, or a file of one's own).

Hydra runs them, the pipeline makes the records, and a record that has the config and the data of a variant is used
again.
"""

from __future__ import annotations

import importlib.resources
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from bench.config import Config, expand_sweep, fingerprint, numbers_only
from bench.errors import UnknownNameError, did_you_mean
from bench.protocols.entries import Override, Setting, Strict, composed, key_of, layered, value_of
from bench.protocols.files import read_protocol

_SUFFIX = ".yaml"
Paired = dict[str, dict[str, tuple[Setting, ...]]]
"""Heading -> value -> the settings that are made together, such as a pattern with the depth that equals its layers."""


class Ablation(Strict):
    """An ablation: the union of some sweeps over a common base."""

    title: str
    base: tuple[Override, ...] = ()
    """Hydra overrides of all sweeps; a caller's override of the same key replaces one."""
    sweeps: tuple[tuple[Override | Paired, ...], ...]
    """Each a list of overrides such as `model.num_global_vectors=1,2` and of paired settings: their product."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Varied key -> heading of its column."""


@dataclass(frozen=True)
class Variant:
    """One run of an ablation."""

    config: Config
    settings: dict[str, str]
    """Overridden key, or heading of paired settings -> value."""
    overrides: tuple[str, ...]
    """Which give the config."""


def _folder() -> Any:
    return importlib.resources.files("bench.conf") / "ablation"


def ablation_names() -> list[str]:
    """Returns the names of the ablations."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in _folder().iterdir() if path.name.endswith(_SUFFIX))


def load_ablation(name: str) -> Ablation:
    """Returns the ablation `name`, or that of a user's own file `NAME.yaml`.

    Raises:
        UnknownNameError: no ablation has this name.
        ConfigError: the file is not readable, or no ablation; names every key that is wrong.
    """
    if name.endswith(_SUFFIX):
        return read_protocol(Path(name).expanduser(), Ablation)
    if name not in ablation_names():
        near = did_you_mean(name, ablation_names())
        raise UnknownNameError(f"unknown ablation {name!r}. {near} A file of your own ends in {_SUFFIX}")
    with importlib.resources.as_file(_folder() / f"{name}{_SUFFIX}") as path:
        return read_protocol(path, Ablation)


def variants(ablation: Ablation, overrides: Sequence[str], base: Sequence[str] = ()) -> list[Variant]:
    """Returns every run of an ablation, each once, in the order of its sweeps; all configs are checked.

    Args:
        ablation: The ablation.
        overrides: Hydra overrides for all runs, which replace the ablation's own; they may sweep too (`seed=0,1`).
        base: Overrides that the ablation's own replace.

    Raises:
        ConfigError: an override that does not parse, or a config that is not valid.
    """
    given = {key_of(override) for override in overrides}
    found: dict[str, Variant] = {}
    for sweep in ablation.sweeps:
        plain = [one for one in sweep if isinstance(one, str) and key_of(one) not in given]
        paired = [
            [(heading, value, settings) for value, settings in values.items()]
            for one in sweep if not isinstance(one, str)
            for heading, values in one.items()
        ]  # fmt: skip
        for chosen in itertools.product(*paired):
            together = [one for _, _, settings in chosen for one in settings if key_of(one) not in given]
            for combination in expand_sweep(layered(base, ablation.base, together, plain, overrides)):
                config = composed(tuple(combination))
                names = {key_of(one) for one in together}
                settings = {heading: value for heading, value, _ in chosen}
                settings |= {key_of(one): value_of(one) for one in combination if key_of(one) not in names}
                named = fingerprint(numbers_only(config))
                found.setdefault(named, Variant(config, settings, tuple(combination)))
    return list(found.values())


def varied_keys(runs: Sequence[Variant]) -> list[str]:
    """Returns the overridden keys that do not have one value in all runs, in the order of their first use."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]


def runs_by_variant(runs: Sequence[Variant]) -> list[list[int]]:
    """Returns the indexes of the runs that differ by their seed alone, variant by variant."""
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for index, run in enumerate(runs):
        key = tuple(sorted((name, value) for name, value in run.settings.items() if name != "seed"))
        groups.setdefault(key, []).append(index)
    return list(groups.values())
