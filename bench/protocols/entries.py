"""Overrides in layers: the base, the row's own, the decided ones, those on the command line; and their config."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from bench.config import Config, compose
from bench.config.overrides import is_sweep


class Strict(BaseModel):
    """A part of a protocol: unknown keys are refused, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _is_override(text: str) -> str:
    if "=" not in text:
        raise ValueError("expected KEY=VALUE, e.g. train.lr=1e-3")
    return text


def _has_one_value(text: str) -> str:
    if is_sweep(_is_override(text)):
        raise ValueError("several values; a row has one, written in brackets if it is a list: model.channels=[24,48]")
    return text


def _has_several_values(text: str) -> str:
    if not is_sweep(_is_override(text)):
        raise ValueError("one value; a grid has several: train.lr=1e-3,2e-3")
    return text


Override = Annotated[str, AfterValidator(_is_override)]
"""One of Hydra's, with one value or several."""
Setting = Annotated[str, AfterValidator(_has_one_value)]
"""An override with one value."""
Alternatives = Annotated[str, AfterValidator(_has_several_values)]
"""An override with several values."""


def key_of(override: str) -> str:
    """Returns the key of an override, without `+` or `~`."""
    return override.lstrip("+~").partition("=")[0]


def value_of(override: str) -> str:
    """Returns what an override sets its key to, as it is written."""
    return override.partition("=")[2]


def layered(*layers: Iterable[str]) -> list[str]:
    """Returns overrides in the order of their layers, each key once: a later one replaces an earlier one."""
    last: dict[str, str] = {}
    for override in (one for layer in layers for one in layer):
        last.pop(key_of(override), None)
        last[key_of(override)] = override
    return list(last.values())


def hydra_overrides(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides that are for the launcher, not for a run."""
    return [override for override in overrides if key_of(override).startswith("hydra")]


@functools.lru_cache(maxsize=1024)
def composed(overrides: tuple[str, ...]) -> Config:
    """Returns the config of some overrides, composed once: tables, checks and reports ask for the same rows again."""
    return compose(overrides)
