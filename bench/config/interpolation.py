"""Interpolations of a config: all are resolved except locations that come from the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from bench.errors import ConfigError, first_line
from bench.paths import FROM_ENVIRONMENT
from bench.safe_text import remember_secret


def resolved(composed: Any, addresses: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Returns an OmegaConf node as plain Python containers, without Hydra's own section.

    Configs are stored, and the environment may hold a secret that is part of an address: addresses keep their
    `${oc.env:NAME}` as written, and `bench.paths` looks it up.

    Args:
        composed: The node.
        addresses: Keys of addresses by section; those of the top level under an empty name.

    Raises:
        ConfigError: an interpolation that does not resolve, or a value left missing (`???`).
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    remember_named_secrets(composed)
    written: dict[str, str] = {}
    try:
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)  # reports what is missing
        raw = OmegaConf.to_container(composed, resolve=False)
        for holder, key in _texts_at(raw, addresses):
            holder[key] = _with_placeholders(holder[key], written)
        if written:
            plain = OmegaConf.to_container(OmegaConf.create(raw), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config: {first_line(error)}") from error
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    return {str(key): _as_written(value, written) for key, value in plain.items()}


def remember_named_secrets(composed: Any) -> None:
    """Masks the secrets that a config takes from the environment in all output from now on."""
    from omegaconf import OmegaConf

    for found in FROM_ENVIRONMENT.finditer(str(OmegaConf.to_container(composed, resolve=False))):
        remember_secret(found["name"], os.environ.get(found["name"], ""))


def _texts_at(raw: Any, addresses: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the container and key of every address in a config."""
    for section, keys in addresses.items():
        holder = raw.get(section) if section else raw
        if isinstance(holder, dict):
            yield from ((holder, key) for key in keys if isinstance(holder.get(key), str))
    train = raw.get("train")
    stages = train.get("stages") if isinstance(train, dict) else None
    for stage in stages.values() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and isinstance(stage.get("checkpoint"), str):
            yield stage, "checkpoint"


def _with_placeholders(text: str, written: dict[str, str]) -> str:
    """Replaces each `${oc.env:...}` of a text by a placeholder, which is noted in `written`."""
    while found := FROM_ENVIRONMENT.search(text):
        if (found["default"] or "").strip() == "null" and found["name"] not in os.environ:
            break  # null, not a text
        name = f"EARTHBENCH-WRITTEN-{len(written)}-"
        written[name] = found[0]
        text = text.replace(found[0], name)
    return text


def _as_written(value: Any, written: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name, text in reversed(list(written.items())):  # a default may contain another placeholder
            value = value.replace(name, text)
    elif isinstance(value, dict):
        return {key: _as_written(inner, written) for key, inner in value.items()}
    elif isinstance(value, list):
        return [_as_written(inner, written) for inner in value]
    return value
