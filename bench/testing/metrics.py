"""The contract that any metric must keep."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from bench.api import metric_traits
from bench.contract import check_metric_members
from bench.errors import ContractError, one_message

Batch = tuple[Tensor, ...]


def check_metric(
    metric_class: Callable[..., Metric],
    *,
    shape: tuple[int, int, int, int] = (3, 24, 48, 1),
    scale: float = 255.0,
    labels: Sequence[Tensor] = (),
    tolerance: float = 1e-9,
    **options: Any,
) -> Metric:
    """Returns a metric that passed every check of the contract.

    Checked: `compute()` returns a flat dict of floats; scores do not depend on how sequences are batched, ordered or
    distributed over processes; sums are int64 or float64; updates do not change their arguments; `reset()` clears all
    state.

    Args:
        metric_class: Class or factory of the metric.
        shape: `(T,H,W,C)` of the random forecasts to try.
        scale: Largest value of the forecasts.
        labels: Labels of six sequences, `(6, ...)` each, for a metric with `takes_labels` that needs some.
        tolerance: Allowed relative difference of scores whose float64 sums were added in another order.
        **options: Passed to the class.

    Raises:
        ContractError: checks failed; the message lists all of them.
    """
    made = metric_class(**options)
    if not isinstance(made, Metric):
        raise ContractError(f"{metric_class!r} makes {type(made).__name__}, expected a torchmetrics.Metric")
    generator = torch.Generator().manual_seed(0)
    check_metric_members(made)
    members = (4,) if metric_traits(made).takes_members else ()
    forecast, target = (torch.rand((*lead, 6, *shape), generator=generator) * scale for lead in (members, ()))
    problems: list[str] = []
    everything = (forecast, target, *labels)
    before = [argument.clone() for argument in everything]
    whole = _scores(made, [everything], problems)
    if not all(torch.equal(argument, kept) for argument, kept in zip(everything, before, strict=True)):
        problems.append("update changed its arguments")
    _state(made, problems)
    pieces: list[Batch] = [
        (forecast[:, i:j] if members else forecast[i:j], target[i:j], *(label[i:j] for label in labels))
        for i, j in ((0, 1), (1, 3), (3, 6))
    ]
    for words, batches in (("batches of another size", pieces), ("another order", pieces[::-1])):
        _compare(whole, _scores(copy.deepcopy(made), batches, problems, reset=True), words, problems, tolerance)
    _compare(
        whole, _scores(made, [everything], problems, reset=True), "reset() and the same again", problems, tolerance
    )
    _compare(whole, _merged_scores(made, pieces), "three processes", problems, tolerance)
    if problems:
        name = type(made).__name__
        raise ContractError(one_message(f"{name} does not keep the metric contract:", list(dict.fromkeys(problems))))
    made.reset()
    return made


def _scores(metric: Metric, batches: list[Batch], problems: list[str], *, reset: bool = False) -> dict[str, float]:
    if reset:
        metric.reset()
    for batch in batches:
        metric.update(*batch)
    found = metric.compute()
    if not isinstance(found, dict) or not all(isinstance(k, str) and isinstance(v, float) for k, v in found.items()):
        problems.append(f"compute() gives {type(found).__name__}; expected a flat dict of names and floats")
        return {}
    return found


def _state(metric: Metric, problems: list[str]) -> None:
    for name in metric._defaults:
        value = getattr(metric, name)
        if isinstance(value, list):
            continue  # stored as a list, not summed
        if value.dtype not in (torch.int64, torch.float64):
            problems.append(f"state {name} is {value.dtype}; expected int64 or float64, which are exact")


def _merged_scores(metric: Metric, pieces: list[Batch]) -> dict[str, float]:
    """Returns the scores of several metrics' states, combined as torchmetrics combines those of processes."""
    parts = []
    for batch in pieces:
        part = copy.deepcopy(metric)
        part.reset()
        part.update(*batch)
        parts.append(part)
    joined = parts[0]
    for name, reduce in metric._reductions.items():
        states: list[Any] = [getattr(part, name) for part in parts]
        if isinstance(states[0], list):
            setattr(joined, name, [item for state in states for item in state])
        elif callable(reduce):
            setattr(joined, name, reduce(torch.stack(states)))
    joined._computed = None
    found = joined.compute()
    return found if isinstance(found, dict) else {}


def _compare(
    expected: dict[str, float], found: dict[str, float], words: str, problems: list[str], tolerance: float
) -> None:
    for name, value in expected.items():
        other = found.get(name, math.nan)
        same = math.isclose(value, other, rel_tol=tolerance, abs_tol=1e-12) or (math.isnan(value) and math.isnan(other))
        if not same:
            problems.append(f"{name} depends on {words}: {value!r} and {other!r}")
