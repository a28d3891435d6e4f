"""The sequences of an evaluation that are kept for pictures."""

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
    """Returns the numbers of the sequences kept from an evaluation of `count`."""
    return sorted({0, count // 3, 2 * count // 3})


def coastlines_of(task: Task, split: Split, count: int) -> np.ndarray | None:
    """Returns the coastlines of the kept sequences, `(N,K,2)`, see `Look.coast`; None if there are none.

    Args:
        task: On the evaluated data.
        split: The evaluated split.
        count: Number of sequences in the evaluation.
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
    """The first sequence, and those at one and two thirds of an evaluation in a single process.

    The choice does not depend on the batch size, because forecasts of several runs are drawn side by side.

    Args:
        task: Gives physical units and the event threshold of ensembles.
        count: Number of sequences in the evaluation; None keeps the first one only.
    """

    def __init__(self, task: Task, count: int | None = None) -> None:
        self.task, self.count = task, count
        self.wanted = {0} if count is None else {*pictured_sequences(count)}
        self._kept: dict[int, dict[str, Tensor]] = {}
        self._probability: Tensor | None = None

    def see_members(self, members: Tensor) -> None:
        """Keeps the share of members `(M,B,T,H,W,C)` at or above the event threshold, for the batch added next."""
        if self.task.event_threshold is not None:
            self._probability = (members >= self.task.event_threshold).float().mean(0)

    def add(self, batch: Example, target: Tensor, forecast: Tensor) -> None:
        """Keeps the wanted sequences of a batch; target and forecast are in physical units, `(B,T,H,W,C)`."""
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
        """Returns the kept sequences by part, each `(N,T,H,W,C)`."""
        kept = [self._kept[number] for number in sorted(self._kept)]
        return {name: torch.stack([one[name] for one in kept]) for name in (kept[0] if kept else ())}
