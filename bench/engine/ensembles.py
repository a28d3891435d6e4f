"""Ensembles in an evaluation: how members are drawn, and what each metric sees of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from bench import registry
from bench.api import Samples, Shape, metric_traits, samples_with
from bench.errors import ConfigError, ContractError, RunFailedError, UsageError, did_you_mean
from bench.metrics.names import ADDED, MEMBERS, OWN
from bench.tasks.task import Task

Sees = Literal["forecast", "ensemble", "each member"]


@dataclass(frozen=True)
class Ensemble:
    """The number of members to draw for each sequence, and their seed."""

    members: int
    seed: int = 0


@dataclass(frozen=True)
class Scoring:
    """One metric of an evaluation."""

    metric: str
    """Registered name."""
    options: dict[str, Any]
    sees: Sees
    """The forecast (for an ensemble, its mean), all members at once, or each member as a separate forecast."""
    ending: str = ""
    """Suffix of the names of its scores."""
    channel: int | None = None
    """The only channel that it sees; None for all."""


def scorings_of(
    task: Task, ensemble: Ensemble | None, added: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Scoring]:
    """Returns the metrics of an evaluation by name: the task's, and further ones for an ensemble.

    Metrics that take members score an ensemble as a whole: always `probabilistic`, and `frechet` if the task has
    `skill` (its hand-made features are for radar). The task's other metrics score the mean and, if there are several
    members, each member as a separate forecast, under names that end in `_members`.

    Args:
        task: Names its metrics; with several channels, these are for the first, and errors of the others follow.
        ensemble: The ensemble to score; None for a single forecast.
        added: `evaluate.metrics`, further metrics under names with an `@`.

    Raises:
        ConfigError: an added metric has the name of one of the task's.
    """
    metrics: dict[str, dict[str, Any]] = dict(task.metrics)
    if ensemble is not None:
        extra = {"probabilistic": _probabilistic_options(task), **({"frechet": {}} if "skill" in metrics else {})}
        metrics = metrics | extra | metrics  # the task's own options stay
    channel = 0 if task.further_channels else None
    found = {}
    for name, options in metrics.items():
        metric, _, of = name.partition(ADDED)
        whole, ending = _takes_members(metric), f"_{of}" if of else ""
        found[name] = Scoring(metric, options, "ensemble" if whole else "forecast", ending, channel)
        if ensemble is not None and ensemble.members > 1 and not whole:
            found[name + MEMBERS] = Scoring(metric, options, "each member", ending + MEMBERS, channel)
    for number, variable in enumerate(task.further_channels, start=1):
        for name in ("mse", "mae"):
            found[f"{name}{ADDED}{variable}"] = Scoring(name, task.metrics[name], "forecast", f"_{variable}", number)
    for key, given in (added or {}).items():
        name, options = str(given.get("metric", key)), {k: v for k, v in given.items() if k != "metric"}
        options = _options_like(task, name) | options
        of = key if "metric" in given else OWN
        sees: Sees = "ensemble" if _takes_members(name) else "forecast"
        if f"{name}{ADDED}{of}" in found:
            raise ConfigError(f"evaluate.metrics.{key}: the task has a {name}_{of} already: choose another name")
        found[f"{name}{ADDED}{of}"] = Scoring(name, options, sees, f"_{of}", channel)
    return found


def _options_like(task: Task, metric: str) -> dict[str, Any]:
    """Returns the task's options of a metric; for a metric that the task lacks, those that its metrics share."""
    if metric in task.metrics:
        return dict(task.metrics[metric])
    card = registry.find("metric", metric).card()
    found: dict[str, Any] = {"t_out": task.target_shape[0]}
    for options in task.metrics.values():
        found |= {key: options[key] for key in ("convention", "missing_value", "scale") if key in options}
    return {key: value for key, value in found.items() if key in card.parameters}


def check_added(task: Task, added: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses added metrics that cannot be created, before hours of training.

    Raises:
        ConfigError: an unknown metric or option, or a value that the metric refuses; names the key.
    """
    from bench.metrics import load_metric

    for key, given in added.items():
        try:
            for scoring in scorings_of(task, None, {key: given}).values():
                _check_weights(load_metric(scoring.metric, **scoring.options), task)
        except UsageError as error:
            raise ConfigError(f"evaluate.metrics.{key}: {error}") from error


def _check_weights(metric: object, task: Task) -> None:
    names = getattr(metric, "weights", ()) if metric_traits(metric).takes_cells else ()
    known = task.cell_weights() if names else {}
    for name in names:
        if name not in known:
            raise ConfigError(f"task {task.name!r} has no weights {name!r} of cells. {did_you_mean(name, known)}")


def _takes_members(metric: str) -> bool:
    return metric_traits(registry.find("metric", metric).load()).takes_members


def _probabilistic_options(task: Task) -> dict[str, Any]:
    """Returns options consistent with the task's own metrics: convention, scale, thresholds."""
    given = task.metrics.values()
    skill = task.metrics.get("skill")
    options: dict[str, Any] = {"t_out": task.target_shape[0], "scale": 1.0}
    for key in ("scale", "convention"):
        options |= next(({key: own[key]} for own in given if key in own), {})
    options["thresholds"] = list(skill.get("thresholds", ())) if skill else []
    if skill is not None and not options["thresholds"]:
        del options["thresholds"]  # the default of both metrics
    return options


def check_can_draw(model: nn.Module, ensemble: Ensemble) -> None:
    """Refuses several members of a deterministic model.

    Raises:
        ConfigError: the model cannot draw members.
    """
    if ensemble.members > 1 and not can_draw(model):
        raise ConfigError(
            f"evaluate.members={ensemble.members}: {type(model).__name__} is deterministic: it has no sample(). "
            "Set it to 1, or null."
        )


def can_draw(model: nn.Module) -> bool:
    """Returns whether a model draws members."""
    return isinstance(model, Samples)


def member_seed(seed: int, index: int) -> int:
    """Returns the seed of a sequence's members, below 2^63, independent of the other sequences.

    Args:
        seed: Seed of the ensemble.
        index: Index of the sequence in its split.
    """
    words = np.random.SeedSequence([seed, index]).generate_state(2)
    return int(words[0]) << 31 ^ int(words[1])


def draw(
    model: Any, context: Tensor, seeds: Sequence[int], members: int, target_shape: Shape, **options: Any
) -> Tensor:
    """Returns the members `(M,B,T,H,W,C)` of a batch, normalised.

    A model that takes no seeds gets one sequence at a time, and a generator on the CPU, because a device's own
    generator would draw other members. Members that it returns on the CPU are moved to the context's device.

    Args:
        model: Has `sample(context, *, members, generator)`, or `sample` with `seeds`.
        context: Normalised, `(B,T,H,W,C)`.
        seeds: Seeds of the sequences, see `member_seed`.
        members: How many.
        target_shape: Expected shape of each member, `(T,H,W,C)`.
        **options: Further arguments of `sample`.

    Raises:
        ContractError: the result has the wrong type, shape, dtype or device, or the model draws on another device than
            its generator's.
    """
    name = type(model).__name__
    if samples_with(model, "seeds"):
        on_device = torch.tensor(seeds, dtype=torch.long).to(context.device, non_blocking=True)
        drawn = model.sample(context, members=members, seeds=on_device, **options)
        return _checked(drawn, (members, len(context), *target_shape), context.device, name)
    each = []
    for row, seed in zip(context, seeds, strict=True):
        try:
            drawn = model.sample(row[None], members=members, generator=torch.Generator().manual_seed(seed), **options)
        except RuntimeError as error:
            if "device type for generator" not in str(error):
                raise
            raise ContractError(
                f"{name}.sample draws on {context.device} from a generator on the CPU: expected it to draw with "
                "device=generator.device and to move what it drew"
            ) from error
        drawn = drawn.to(context.device) if isinstance(drawn, Tensor) else drawn
        each.append(_checked(drawn, (members, 1, *target_shape), context.device, name))
    return torch.cat(each, 1)


def _checked(members: Any, expected: tuple[int, ...], device: torch.device, name: str) -> Tensor:
    if not isinstance(members, Tensor) or tuple(members.shape) != expected:
        found = tuple(members.shape) if isinstance(members, Tensor) else type(members).__name__
        raise ContractError(f"{name}.sample returned {found}; expected (M, B, T, H, W, C) = {expected}")
    if not members.is_floating_point() or members.device != device:
        raise ContractError(f"{name}.sample returned {members.dtype} on {members.device}; expected floats on {device}")
    return members


def draw_members(model: Any, context: Tensor, indices: Tensor, ensemble: Ensemble, target_shape: Shape) -> Tensor:
    """Returns the members `(M,B,T,H,W,C)` of a batch, normalised.

    They depend on the ensemble's seed and the sequence's index only, not on batch size, order, device or number of
    processes.

    Args:
        model: Has `sample(context, *, members, generator)`, or `sample` with `seeds`.
        context: Normalised, `(B,T,H,W,C)`.
        indices: Indices of the sequences in their split, `(B,)`.
        ensemble: Number of members, and their seed.
        target_shape: Expected shape of each member, `(T,H,W,C)`.

    Raises:
        ContractError: the model refuses, or its result is invalid.
        RunFailedError: the model reports that its numbers diverged.
    """
    name = type(model).__name__
    seeds = [member_seed(ensemble.seed, index) for index in indices.tolist()]
    try:
        return draw(model, context, seeds, ensemble.members, target_shape)
    except ArithmeticError as error:
        raise RunFailedError(f"{name}: {error}") from error
    except ValueError as error:
        raise ContractError(f"{name} draws no members: {error}") from error
