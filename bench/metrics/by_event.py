"""Metrics whose statistics add up: over batches, over processes, and per event, which scores are resampled from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bench.errors import ContractError
from bench.metrics.states import ExactMetric


class EventMetric(ExactMetric):
    """A metric that is a pure function, `bench.scores.FAMILIES[family]`, of sums over sequences.

    After `track_events(n)` it keeps the same sums per event too, if `update` is told the event of each sequence.  Both
    are plain sums, so that neither batches nor order nor processes matter.
    """

    takes_events = True
    family: ClassVar[str]
    event_count: int = 0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._statistics: list[str] = []

    @abstractmethod
    def score_options(self) -> dict[str, Any]:
        """Returns what the scores depend on besides the statistics, as JSON types."""

    def add_statistic(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Declares a sum `(T, ...)`; T may be 0 and is then that of the first update."""
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")
        self._statistics.append(name)

    def track_events(self, count: int) -> None:
        """Keeps the statistics of each of `count` events from now on."""
        self.event_count = count
        for name in self._statistics:
            total = self._defaults[name]
            self.add_state(_by_event(name), total.new_zeros((count, *total.shape)), dist_reduce_fx="sum")

    def add(self, found: Mapping[str, Tensor], events: Tensor | None) -> None:
        """Adds statistics of sequences, each `(B, T, ...)`.

        Args:
            found: By name, all that were declared.
            events: The event of each sequence, `(B,)`; None where they are not known.

        Raises:
            ContractError: the number of lead times changed.
        """
        for name, each in found.items():
            total = self._sized(name, each.shape[1:])
            setattr(self, name, total + each.sum(0).to(total))
            if self.event_count and events is not None:
                by_event = self._sized(_by_event(name), (self.event_count, *each.shape[1:]))
                by_event.index_add_(0, events.to(by_event.device), each.to(by_event))
                setattr(self, _by_event(name), by_event)

    def _sized(self, name: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
        state: Tensor = getattr(self, name)
        if state.shape != torch.Size(shape):
            if state.numel():
                lead = -len(shape) if name in self._statistics else 1 - len(shape)
                raise ContractError(
                    f"{self.family} counts {state.shape[lead]} lead times, this batch has {shape[lead]}"
                )
            state = state.new_zeros(shape)
        return state

    def statistics(self) -> dict[str, np.ndarray]:
        """Returns the sums over everything, `(T, ...)`, by name."""
        return {name: getattr(self, name).cpu().numpy() for name in self._statistics}

    def event_statistics(self) -> dict[str, np.ndarray]:
        """Returns the sums of each event, `(events, T, ...)`, by name; empty where events are not tracked."""
        if not self.event_count:
            return {}
        return {name: getattr(self, _by_event(name)).cpu().numpy().copy() for name in self._statistics}

    def compute(self) -> dict[str, float]:
        """Returns the scores by name; see the class."""
        from bench.scores import FAMILIES

        found = FAMILIES[self.family](self.statistics(), self.score_options())
        return {name: float(value) for name, value in found.items()}


def _by_event(name: str) -> str:
    return f"{name}_by_event"
