"""The few sequences of an evaluation that are kept for pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bench.tables.look import Look

if TYPE_CHECKING:
    from bench.api import Split
    from bench.data.sequences import Example
    from bench.tasks.task import Task


def pictured_sequences(count: int) -> list[int]:
    """Returns the numbers of the sequences that are kept of an evaluation of so many."""
    return sorted({0, count // 3, 2 * count // 3})


def coastlines_of(task: Task, split: Split, count: int) -> np.ndarray | None:
    """Returns the coastlines of the sequences that are kept, `(N,K,2)`, see `Look.coast`; None where there are none.

    Args:
        task: On the data that were evaluated.
        split: The split.
        count: Sequences of the evaluation.
    """
    look = Look.of(task)
    lines = [look.at(task.coordinates(split, number)).coast for number in pictured_sequences(count)]
    if all(line is None or not len(line) for line in lines):
        return None
    stacked = np.full((len(lines), max(len(line) for line in lines if line is not None), 2), np.nan)
    for place, line in zip(stacked, lines, strict=True):
        place[: 0 if line is None else len(line)] = np.nan if line is None else line
    return stacked


class Pictured:
    """The first sequence, and those at a third and two thirds of what a single process sees.

    Which they are does not depend on the batch size: forecasts of several runs are drawn beside one another.

    Args:
        task: Gives physical units and the event of ensembles.
        count: Sequences of the evaluation; None keeps the first that comes alone.
    """

    def __init__(self, task: Task, count: int | None = None) -> None:
        self.task, self.count = task, count
        self.wanted = {0} if count is None else {*pictured_sequences(count)}
        self._kept: dict[int, dict[str, Tensor]] = {}
        self._probability: Tensor | None = None

    def see_members(self, members: Tensor) -> None:
        """Takes the members of the batch that is added next, `(M,B,T,H,W,C)`, for the share of them in an event."""
        if self.task.event_threshold is not None:
            self._probability = (members >= self.task.event_threshold).float().mean(0)

    def add(self, batch: Example, target: Tensor, forecast: Tensor) -> None:
        """Keeps those of a batch that are wanted; target and forecast are physical, `(B,T,H,W,C)`."""
        numbers = range(len(target)) if self.count is None else batch.index.tolist()
        for at, number in enumerate(numbers):
            if number not in self.wanted or number in self._kept:
                continue
            context = self.task.denormalise(self.task.to_context(batch.context[at : at + 1]))
            parts = {"context": context[0], "target": target[at], "forecast": forecast[at]}
            if self._probability is not None:
                parts["probability"] = self._probability[at]
            self._kept[number] = {name: part.detach().float().cpu().clone() for name, part in parts.items()}

    def sample(self) -> dict[str, Tensor]:
        """What was kept, by part: `(N,T,H,W,C)`."""
        kept = [self._kept[number] for number in sorted(self._kept)]
        return {name: torch.stack([one[name] for one in kept]) for name in (kept[0] if kept else ())}
