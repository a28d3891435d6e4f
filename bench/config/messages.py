"""Messages about invalid configs: one line per problem."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from bench import registry
from bench.config.hydra_keys import INSTALL_LAUNCHERS, LAUNCHER_GROUP
from bench.errors import did_you_mean

ACCUMULATE = "accumulate"
"""A key of `train` until schema 3 of the records."""


def explain(error: ValidationError, schema: type[BaseModel], *, prefix: str = "") -> list[str]:
    """Returns one line per problem of a pydantic error: key, value found, what was expected, nearest key."""
    lines = []
    for problem in error.errors():
        *parents, last = [str(part) for part in problem["loc"]] or [""]
        where = prefix + ".".join([*parents, last])
        if problem["type"] == "extra_forbidden" and last == ACCUMULATE:
            lines.append(f"{where}: {instead_of_accumulate(problem['input'], section=prefix or 'data.')}")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key. {did_you_mean(last, fields_at(schema, parents))}")
        elif problem["type"] == "missing":
            lines.append(f"{where}: missing")
        elif isinstance(problem["input"], dict):  # a rule about several keys, whose message names their values
            lines.append(f"{where.removesuffix('.') or 'config'}: {reason(problem)}")
        else:
            lines.append(f"{where} = {problem['input']!r}: {reason(problem)}")
    return lines


def reason(problem: Any) -> str:
    """Returns the message of one of `ValidationError.errors()`, without pydantic's prefix."""
    return str(problem["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")


def instead_of_accumulate(accumulate: Any, micro_batch: Any = None, section: str = "data.") -> str:
    """Returns the message that replaces the former key `accumulate` by the present ones.

    Args:
        accumulate: The value of the former key.
        micro_batch: The former `data.batch_size`, if known.
        section: Prefix of the present keys: a stage's, or `data.`.
    """
    own = micro_batch or "N"
    total, rest = f"N times {accumulate}", ", where N is the former batch size"
    with suppress(TypeError, ValueError):
        total, rest = str(int(accumulate) * int(micro_batch)), ""
    return (
        f"this key was removed: {section}batch_size is the total batch of an optimiser step over all devices, "
        f"{section}micro_batch what one device takes at a time. Instead of {ACCUMULATE}={accumulate} with a batch size "
        f"of {own}, write {section}batch_size={total} {section}micro_batch={own}{rest}"
    )


def fields_at(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Returns the keys that a schema has below a path; none if the path is no section."""
    for part in path:
        inner = schema.model_fields[part].annotation if part in schema.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        schema = inner
    return list(schema.model_fields)


_GROUP_ERROR = "Config group override"
"""Beginning of Hydra's plain ValueError when a group is given a number, as in `model=1`."""
_UNREADABLE = UnicodeDecodeError | RecursionError
"""Further errors of YAML files: text that is not UTF-8, or nested too deeply for Hydra."""
_GLOB = "ConfigLoader is not set"
_GROUPS = ("task", "model")


def is_of_hydra(error: BaseException) -> bool:
    """Returns whether an error comes from Hydra, OmegaConf or the YAML reader refusing a user's input.

    OmegaConf also raises Python's own errors: a key below a list (`train.loggers.first=csv`) is a TypeError.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if isinstance(error, HydraException | OmegaConfBaseException | YAMLError | _UNREADABLE):
        return True
    frames = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    plain = isinstance(error, TypeError | ValueError | LookupError | AttributeError)
    return plain and frames[-1].partition(".")[0] in ("hydra", "omegaconf")


def message(error: BaseException, overrides: Sequence[str], fields_at: Callable[[Sequence[str]], list[str]]) -> str:
    """Returns the message for an error of Hydra, OmegaConf or the YAML reader.

    Args:
        error: As raised.
        overrides: Those that were being composed.
        fields_at: Returns the keys that the config has below a path.
    """
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from yaml import YAMLError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    first = lines[0]
    if first.startswith(_GROUP_ERROR):
        groups = [word for word in overrides if "." not in word.partition("=")[0]]
        why, _, _ = first.partition(" : ")
        return f"{' '.join(groups)}: a group takes the name of one of its configs, as in model=unet; {why}"
    if isinstance(error, YAMLError | _UNREADABLE):
        return "a YAML file cannot be read: " + " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        if kind := next((one for one in _GROUPS if error.override in registry.names(one)), None):  # type: ignore[arg-type]
            return f"{error.override!r} is not KEY=VALUE. Did you mean {kind}={error.override}?"
        return (
            f"{error.override!r} is not KEY=VALUE. Quote values with spaces or special characters twice: "
            "'data.root=\"my folder\"'"
        )
    if first == _GLOB:
        return "glob(...) is not supported: list the names, as in model=unet,persistence"
    if sweep := next((word for word in overrides if f"'{word}'" in str(error) and _is_sweep(str(error))), None):
        key, _, value = sweep.partition("=")
        return (
            f"{sweep}: several values are a sweep, which `earthbench run -m` makes; give one value, or a list in "
            f"brackets: {key}=[{value}]"
        )
    values = dict(override.lstrip("+~").partition("=")[::2] for override in overrides)
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key == f"train.{ACCUMULATE}" and ACCUMULATE in first:
            return f"{override}: {instead_of_accumulate(value, values.get('data.batch_size', 8))}"
        if key in _GROUPS and isinstance(error, MissingConfigException) and f"{key}/{value}" in str(error):
            return f"unknown {key} {value!r}. {did_you_mean(value, registry.names(key))}"  # type: ignore[arg-type]
        if isinstance(error, MissingConfigException) and f"{key}/{value}" in str(error):
            options = getattr(error, "options", None) or []
            extra = f" {INSTALL_LAUNCHERS}" if key == LAUNCHER_GROUP else ""
            return f"{override}: no such config. {did_you_mean(value, options)}{extra}"
        if key.startswith("hydra.") and f"'{key.rpartition('.')[2]}'" in first:
            return f"{override}: {first}. A new key is added with a plus: +{key}=..."
        if key.startswith("hydra") and override in first:
            return first
        if f"'{key}'" in first or f"'{override}'" in first:
            parts = key.split(".")
            for depth, part in enumerate(parts):
                fields = fields_at(parts[:depth])
                if fields and part not in fields:
                    meant = f"Did you mean {part!r}?" if depth and part in fields_at([]) else did_you_mean(part, fields)
                    return f"{override}: unknown key {key!r}. {meant}"
    given = "" if isinstance(error, HydraException) else f" ({' '.join(overrides)})"
    return "config: " + " ".join(lines) + given


def _is_sweep(text: str) -> bool:
    return text.startswith("Ambiguous value") or "requires --multirun" in text
