"""Counts of sequences for which a model fell back on a simpler forecast."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bench.api import model_traits


class Degraded:
    """Counts by reason, collected from a model that keeps them in its `degraded`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @contextmanager
    def counted(self, model: nn.Module) -> Iterator[None]:
        """Adds the model's counts within a block."""
        own = model_traits(model).degraded
        own.clear()
        yield
        self.counts.update(own)

    def total(self, model: str, sequences: int, *, warn: bool) -> dict[str, int]:
        """Returns the counts over all processes of a run, and warns if there are any.

        Args:
            model: The model's name.
            sequences: Number of sequences forecast.
            warn: Whether this process warns.
        """
        counts = self.counts
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[Counter[str]] = [Counter()] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, counts)
            counts = sum(parts, Counter())
        found = dict(sorted(counts.items()))
        if found and warn:
            why = ", ".join(f"{count} {reason}" for reason, count in found.items())
            warnings.warn(
                f"{model} fell back on a simpler forecast for {counts.total()} of {sequences} sequences: {why}",
                stacklevel=3,
            )
        return found
