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
    """Counts by reason, of a model that keeps such counts in its `degraded`; the model's own are taken from it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    @contextmanager
    def counted(self, model: nn.Module) -> Iterator[None]:
        """Adds what the model counts within."""
        own = model_traits(model).degraded
        own.clear()
        yield
        self.counts.update(own)

    def told(self, model: str, sequences: int, *, speaks: bool) -> dict[str, int]:
        """Returns the counts of all processes of a run, and warns of them if there are any.

        Args:
            model: Its name.
            sequences: How many were forecast.
            speaks: Whether this process warns.
        """
        counts = self.counts
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[Counter[str]] = [Counter()] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, counts)
            counts = sum(parts, Counter())
        found = dict(sorted(counts.items()))
        if found and speaks:
            why = ", ".join(f"{count} {reason}" for reason, count in found.items())
            warnings.warn(
                f"{model} fell back on a simpler forecast for {counts.total()} of {sequences} sequences: {why}",
                stacklevel=3,
            )
        return found
