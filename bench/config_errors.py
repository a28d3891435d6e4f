"""What is wrong with a config, in words: the errors of pydantic, Hydra and OmegaConf as one message each."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from bench import registry
from bench.errors import ConfigError, did_you_mean

_GROUP_ERROR = "Config group override"
"""How Hydra's plain ValueError begins where a group is given a number, say: `model=1`."""

_UNREADABLE = UnicodeDecodeError | RecursionError
"""What else a YAML file ends in: text that is not UTF-8, or nested more deeply than Hydra follows."""


def explain(error: ValidationError, schema: type[BaseModel], *, prefix: str = "") -> list[str]:
    """Returns one line per problem of a pydantic error: key, value found, what was expected, nearest key."""
    lines = []
    for problem in error.errors():
        *parents, last = [str(part) for part in problem["loc"]] or [""]
        where = prefix + ".".join([*parents, last])
        if problem["type"] == "extra_forbidden" and last == ACCUMULATE:
            lines.append(f"{where}: {instead_of_accumulate(problem['input'])}")
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key. {did_you_mean(last, _fields_at(schema, parents))}")
        elif problem["type"] == "missing":
            lines.append(f"{where}: missing")
        else:
            lines.append(f"{where} = {problem['input']!r}: {problem['msg']}")
    return lines


ACCUMULATE = "accumulate"
"""A key of `train` until schema 3 of the records."""


def instead_of_accumulate(accumulate: Any, micro_batch: Any = None) -> str:
    """Returns how an accumulation of so many batches is written now."""
    total = "ALL"
    with suppress(TypeError, ValueError):
        total = str(int(accumulate) * int(micro_batch))
    return (
        "there is no such key any more: data.batch_size is the total batch of an optimiser step over all devices, "
        "data.micro_batch what one device takes at a time. Instead of this key and data.batch_size="
        f"{micro_batch or 'N'} write data.batch_size={total} data.micro_batch={micro_batch or 'N'}"
        + ("" if micro_batch else f", where ALL is N * {accumulate}")
    )


def _fields_at(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        inner = schema.model_fields[part].annotation if part in schema.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        schema = inner
    return list(schema.model_fields)


class HydraErrors:
    """Turns the errors of Hydra and OmegaConf into one `ConfigError` that names the override and the nearest key."""

    def __init__(self, overrides: Sequence[str], schema: type[BaseModel]) -> None:
        self.overrides, self.schema = list(overrides), schema

    def __enter__(self) -> None:
        """Does nothing: errors are translated on the way out."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Raises `ConfigError` in place of a Hydra or OmegaConf error."""
        if error is None:
            return
        from hydra.errors import HydraException, MissingConfigException
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        of_a_group = isinstance(error, ValueError) and str(error).startswith(_GROUP_ERROR)
        if not (of_a_group or isinstance(error, HydraException | OmegaConfBaseException | YAMLError | _UNREADABLE)):
            return
        raise ConfigError(self._message(error, MissingConfigException)) from error

    def _message(self, error: BaseException, missing_group: type[BaseException]) -> str:
        from hydra.errors import OverrideParseException
        from yaml import YAMLError

        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        if first.startswith(_GROUP_ERROR):
            groups = [word for word in self.overrides if "." not in word.partition("=")[0]]
            why, _, _ = first.partition(" : ")
            return f"{' '.join(groups)}: a group takes the name of one of its configs, as in model=unet; {why}"
        if isinstance(error, YAMLError | _UNREADABLE):
            return "a YAML file cannot be read: " + " ".join(str(error).split())
        if isinstance(error, OverrideParseException):
            return (
                f"{error.override!r} is not KEY=VALUE. Quote values with spaces or special characters twice: "
                "'data.root=\"my folder\"'"
            )
        given = dict(override.lstrip("+~").partition("=")[::2] for override in self.overrides)
        for override in self.overrides:
            key, _, value = override.lstrip("+~").partition("=")
            if key == f"train.{ACCUMULATE}" and ACCUMULATE in first:
                return f"{override}: {instead_of_accumulate(value, given.get('data.batch_size', 8))}"
            if key in ("task", "model") and isinstance(error, missing_group) and f"{key}/{value}" in str(error):
                return f"unknown {key} {value!r}. {did_you_mean(value, registry.names(key))}"  # type: ignore[arg-type]
            if isinstance(error, missing_group) and f"{key}/{value}" in str(error):
                options = getattr(error, "options", None) or []
                return f"{override}: no such config. {did_you_mean(value, options)}"
            if key.startswith("hydra.") and f"'{key.rpartition('.')[2]}'" in first:
                return f"{override}: {first}. A key that is not there yet is added with a plus: +{key}=..."
            if f"'{key}'" in first or f"'{override}'" in first:
                parts = key.split(".")
                for depth, part in enumerate(parts):
                    fields = _fields_at(self.schema, parts[:depth])
                    if fields and part not in fields:
                        return f"{override}: unknown key {key!r}. {did_you_mean(part, fields)}"
        return f"config: {first}"
