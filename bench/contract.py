"""Checks that models and metrics spell the members of their contract as `bench.api` does.

Optional members are found by name, so a misspelt one would be silently ignored.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from difflib import get_close_matches

from bench.api import (
    METRIC_CAPABILITIES,
    MODEL_CAPABILITIES,
    MetricTraits,
    ModelTraits,
    TracksEvents,
    methods_of,
    metric_traits,
    model_traits,
)
from bench.errors import ContractError, one_message

_NEARLY = 0.85
"""Ratio of `difflib` above which a name counts as a misspelling of another."""


def check_model_members(model: object) -> None:
    """Refuses a model, or a stage's module, whose members misspell the contract or have invalid values.

    Raises:
        ContractError: lists all such members.
    """
    problems = _wrong_members(model, ModelTraits, MODEL_CAPABILITIES)
    declared = model_traits(model)
    if declared.loss_reduction not in ("mean", "sum"):
        problems.append(f"loss_reduction: expected 'mean' or 'sum', found {declared.loss_reduction!r}")
    for name in ("evaluation_only", "parameters_without_gradient"):
        if isinstance(found := getattr(declared, name), str):  # its characters would be taken for names
            problems.append(f"{name}: expected a tuple of texts, found {found!r}")
    _refuse(model, problems)


def check_metric_members(metric: object) -> None:
    """Refuses a metric whose members misspell the contract or keep only part of it.

    Raises:
        ContractError: lists all such members.
    """
    problems = _wrong_members(metric, MetricTraits, METRIC_CAPABILITIES)
    if metric_traits(metric).takes_events and not isinstance(metric, TracksEvents):
        problems.append("takes_events: expected family, track_events(), event_statistics() and score_options(), too")
    _refuse(metric, problems)


def _refuse(thing: object, problems: list[str]) -> None:
    if problems:
        raise ContractError(one_message(f"{type(thing).__name__} does not keep the contract (bench.api):", problems))


def _wrong_members(thing: object, traits: type, capabilities: tuple[type, ...]) -> list[str]:
    """Returns the problems of an object's public members, except those inherited from a library.

    Names of the constructor's parameters are hyperparameters, not misspellings.
    """
    attributes = [one.name for one in fields(traits)]
    methods = [name for one in capabilities for name in methods_of(one)]
    package = type(thing).__module__.partition(".")[0]
    classes = [one for one in type(thing).__mro__ if one.__module__.partition(".")[0] == package]
    own = {name: member for one in classes for name, member in vars(one).items()} | vars(thing)
    allowed = {*methods, *attributes, *inspect.signature(type(thing)).parameters}
    problems = []
    for name in sorted(own):
        if name.startswith("_") or name in allowed:
            continue
        meant = get_close_matches(name, methods if callable(own[name]) else attributes, n=1, cutoff=_NEARLY)
        if meant and meant[0] not in own:
            problems.append(f"{name}: no member of the contract. Did you mean {meant[0]}? If not, choose another name")
    return problems
