"""Hydra composes a config from groups, files and overrides; its errors become one message each."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel

from bench import registry
from bench.config.hydra_keys import LAUNCHER_GROUP, may_set_hydra_keys, refuse_forbidden_keys, search_folders
from bench.config.interpolation import remember_named_secrets, resolved
from bench.config.messages import fields_at, is_of_hydra, message
from bench.config.overrides import quoted
from bench.config.schema import ADDRESSES, Config, validate
from bench.config.user_yaml import check_config_folder
from bench.errors import ConfigError


def register_groups() -> None:
    """Registers the schema's defaults and every task and model with Hydra, so `model=NAME` works for plugins, too."""
    _register(tuple((kind, name) for kind in ("task", "model") for name in registry.names(kind)))


@functools.lru_cache(maxsize=1)  # Hydra keeps what was registered; only a new plugin changes it
def _register(named: tuple[tuple[str, str], ...]) -> None:
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    fields = ((name, field.default) for name, field in Config.model_fields.items() if not field.is_required())
    defaults = OmegaConf.create(_plain(fields))
    train = defaults.pop("train")
    # Not a struct: `Train` and the model check the stages and their settings.
    train.stages = OmegaConf.create({}, flags={"struct": False})
    defaults.evaluate.metrics = OmegaConf.create({}, flags={"struct": False})  # the metrics check their options
    store.store(name="earthbench_schema", node=defaults)
    store.store(group="train", name="default", node=train)
    for kind, name in named:
        # Not a struct: the registered class checks further keys, see `Open`.
        store.store(group=kind, name=name, node=OmegaConf.create({"name": name}, flags={"struct": False}))


def _plain(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Returns all fields of a section and its subsections, including those that a serializer leaves out."""
    return {name: _plain(value) if isinstance(value, BaseModel) else value for name, value in fields}


def compose(overrides: Sequence[str]) -> Config:
    """Returns the checked config for a list of Hydra overrides such as `task=sevir`, `train.lr=1e-4`.

    Args:
        overrides: Hydra's override grammar, without sweeps.

    Raises:
        ConfigError: an override that does not parse, an unknown group, key or name, or a value out of range.
    """
    return validate(to_plain(composed_by_hydra(overrides)))


def composed_by_hydra(overrides: Sequence[str]) -> Any:
    """Returns the config that Hydra composes, without Hydra's own section, in which only allowed keys may be set.

    Raises:
        ConfigError: an override does not parse, a group or key is unknown, or a key of Hydra's own is not allowed.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    register_groups()
    for override in overrides:
        _check_utf8(override)
    overrides = quoted(overrides)
    with hydra_errors(overrides):
        for folder in search_folders(overrides):
            check_config_folder(folder)
        GlobalHydra.instance().clear()  # its state is process-wide; an earlier use must not matter
        try:
            with initialize_config_module("bench.conf", version_base="1.3"):
                composed = hydra_compose("config", overrides=list(overrides), return_hydra_config=True)
                if may_set_hydra_keys(overrides):
                    refuse_forbidden_keys(composed, overrides, _hydra_section)
        finally:
            GlobalHydra.instance().clear()
    with open_dict(composed):
        del composed["hydra"]
    remember_named_secrets(composed)
    return composed


def _check_utf8(override: str) -> None:
    """Refuses what no record could say: a name of other bytes would end a run when it has been evaluated."""
    try:
        override.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{override!r}: expected UTF-8, found the bytes {os.fsencode(override[error.start : error.end])!r}. Rename "
            "the file or folder or make a link to it; with PYTHONUTF8=0, unset that."
        ) from error


@functools.cache
def _hydra_section(launcher: str) -> Any:
    """Returns Hydra's own section with a launcher and no user's settings; Hydra must be initialised."""
    from hydra import compose as hydra_compose

    return hydra_compose("config", overrides=[f"{LAUNCHER_GROUP}={launcher}"], return_hydra_config=True).hydra


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Returns the override lists of a sweep such as `model=unet,persistence seed=0,1`: their Cartesian product.

    Raises:
        ConfigError: an override does not parse.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = quoted(overrides)
    with hydra_errors(overrides):
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        axes: list[list[str]] = []
        for override in parsed:
            if override.key_or_group.startswith("hydra") and override.key_or_group != "hydra.searchpath":
                continue  # for the launcher, not for the run
            if override.is_discrete_sweep():
                key = override.get_key_element()
                axes.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            else:
                axes.append([override.input_line or ""])
    return [list(combination) for combination in itertools.product(*axes)]


def to_plain(composed: Any) -> dict[str, Any]:
    """Returns an OmegaConf node as plain Python containers, without Hydra's own section.

    Addresses keep their `${oc.env:NAME}` as written, see `bench.paths.expand_environment`.

    Raises:
        ConfigError: an interpolation that does not resolve, or a value left missing (`???`).
    """
    return resolved(composed, ADDRESSES)


@contextmanager
def hydra_errors(overrides: Sequence[str]) -> Iterator[None]:
    """Turns the errors of Hydra and OmegaConf into one `ConfigError` that names the override and the nearest key."""
    try:
        yield
    except Exception as error:
        if not is_of_hydra(error):
            raise
        raise ConfigError(message(error, list(overrides), lambda path: fields_at(Config, path))) from error
