"""Widths that give a model about a target number of parameters, so that models of equal size can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bench.cards import TARGET

_TOLERANCE = 0.1
_STEPS_PER_OCTAVE = 24
_GUESSES = 8


def widths_for(
    target: Any, widths: Mapping[str, int], known: Mapping[str, Any], make: Callable[[dict[str, Any]], nn.Module]
) -> dict[str, Any]:
    """Returns the widths, all scaled by one factor, whose number of parameters is nearest to a target.

    Models are built on PyTorch's meta device, which holds no values and draws no random numbers. Scales that the model
    refuses, such as a width that is not divisible by its heads, are skipped.

    Args:
        target: Number of parameters.
        widths: Hyperparameters to scale, each with the number that it must be a multiple of.
        known: Their values at scale 1, numbers or lists of them.
        make: Returns the model with other widths.

    Raises:
        ValueError: the target is not a positive integer, or no widths come within 10 % of it; names the nearest.
    """
    if isinstance(target, bool) or not isinstance(target, int) or target < 1:
        raise ValueError(f"{TARGET} must be a positive integer, got {target!r}")
    counts: dict[str, tuple[int, dict[str, Any]]] = {}
    refused: list[ValueError] = []

    def counted(scale: float) -> int | None:
        scaled = {name: _scaled(known[name], scale, multiple) for name, multiple in widths.items()}
        key = repr(scaled)
        if key not in counts:
            try:
                with torch.device("meta"):
                    made = make(scaled)
            except ValueError as error:
                refused.append(error)
                return None
            counts[key] = (sum(parameter.numel() for parameter in made.parameters()), scaled)
        return counts[key][0]

    scale = 1.0
    for _ in range(_GUESSES):  # most parameters grow with the square of the widths
        near = (2 ** (sign * step / _STEPS_PER_OCTAVE) for step in range(_STEPS_PER_OCTAVE) for sign in (1, -1))
        found = next(((factor, count) for factor in near if (count := counted(scale * factor)) is not None), None)
        if found is None:  # too small or large for the model
            break
        scale *= found[0] * math.sqrt(target / found[1])
    for sign in (1, -1):
        for step in range(_STEPS_PER_OCTAVE // 2 + 1):
            count = counted(scale * 2 ** (sign * step / _STEPS_PER_OCTAVE))
            if count is not None and sign * (count - target) >= 0:  # wider models have more, narrower ones fewer
                break
    if not counts:
        raise refused[0]
    count, nearest = min(counts.values(), key=lambda one: (abs(one[0] - target), one[0]))
    if abs(count - target) > _TOLERANCE * target:
        shown = " ".join(f"{name}={value}" for name, value in nearest.items())
        raise ValueError(
            f"{TARGET}={target}: no widths come within {_TOLERANCE:.0%} of it; the nearest, {shown}, have {count} "
            "parameters: take that number, or another depth"
        )
    return nearest


def _scaled(width: Any, scale: float, multiple: int) -> Any:
    if isinstance(width, list | tuple):
        return [_scaled(one, scale, multiple) for one in width]
    return max(multiple, multiple * round(width * scale / multiple))
