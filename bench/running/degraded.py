"""Sequences for which a model fell back on a simpler forecast, counted over an evaluation."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class Degraded:
    """Counts by reason, of a model that keeps such counts in its `degraded`; the model's own are taken from it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @contextmanager
    def counted(self, model: nn.Module) -> Iterator[None]:
        """Adds what the model counts within."""
        own = getattr(model, "degraded", Counter())
        own.clear()
        yield
        self.counts.update(own)

    def gathered(self) -> dict[str, int]:
        """Returns the counts of all processes of a run, by name."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[Counter[str]] = [Counter()] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, self.counts)
            return dict(sorted(sum(parts, Counter()).items()))
        return dict(sorted(self.counts.items()))


def warn_of(degraded: Mapping[str, int], model: str, sequences: int) -> None:
    """Warns that a model fell back on simpler forecasts, of how many sequences and why."""
    why = ", ".join(f"{count} {reason}" for reason, count in degraded.items())
    warnings.warn(
        f"{model} fell back on a simpler forecast for {sum(degraded.values())} of {sequences} sequences: {why}",
        stacklevel=2,
    )
