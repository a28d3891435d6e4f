"""The splits of SEVIR: by date, or a random part of the sequences for SEVIR-LR.

Imports torch only when used, because listings import this module.

Source: Gao et al. 2022, Earthformer: `(-inf, 2019-01-01]`, `(2019-01-01, 2019-06-01]`, `(2019-06-01, inf)`, by the time
of an event's centre. Gao et al. 2023, PreDiff: `random_split` 90/10 of the sequences up to the test date, seed 0; the
windows of an event overlap and may lie on both sides, so its validation scores are optimistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Literal

from bench.api import Split
from bench.data.folds import blocks, leave_out
from bench.data.sequences import SequenceDataset, Units

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Subset

    from bench.data.sevir.dataset import SevirSequences

VAL_FROM = datetime(2019, 1, 1)
TEST_FROM = datetime(2019, 6, 1)
FRACTIONS = (0.9, 0.1)
SEED = 0


def split_dates(val_from: datetime, test_from: datetime) -> dict[Split, tuple[datetime | None, datetime | None]]:
    """Returns the exclusive lower and inclusive upper bound of an event's centre time for each split."""
    return {"train": (None, val_from), "val": (val_from, test_from), "test": (test_from, None), "all": (None, None)}


def days_of_splits(days: Sequence[date], folds: int, fold: int, val_days: int | None) -> dict[Split, frozenset[date]]:
    """Returns the days of each split in a cross-validation over blocks of days; no day is in two splits.

    Args:
        days: All days that have events, in order.
        folds: Number of blocks.
        fold: The block to test on; the next one is for validation.
        val_days: Days of that block for validation, the rest of which is for training; None for all.

    Raises:
        ConfigError: there are too few days.
    """
    parts = leave_out(blocks(len(days), folds, "days"), fold, val_days)
    return {
        split: frozenset(day for first, last in stretches for day in days[first:last])
        for split, stretches in parts.items()
    }


class RandomPart(SequenceDataset):
    """The sequences of one side of a random split, in the order of the draw.

    Args:
        source: The sequences to split.
        side: train (90 %) or val (10 %).
    """

    def __init__(self, source: SevirSequences, side: Literal["train", "val"]) -> None:
        import torch
        from torch.utils.data import random_split

        generator = torch.Generator().manual_seed(SEED)
        parts: list[Subset] = random_split(range(len(source)), FRACTIONS, generator)  # type: ignore[arg-type]
        self.source, self.side = source, side
        self.indices = list(parts[side == "val"].indices)
        per_event = max(1, source.windows_per_event)
        self._events = sorted({index // per_event for index in self.indices})

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns the id of every event with at least one window here."""
        return tuple(self.source.ids[number] for number in self._events)

    @property
    def times(self) -> tuple[tuple[datetime, datetime], ...]:
        """Returns first and last time of each of these events."""
        return tuple(self.source.times[number] for number in self._events)

    @property
    def contents(self) -> tuple[str, ...]:
        """Returns the digest of each of these events."""
        return tuple(self.source.contents[number] for number in self._events)

    @property
    def why_empty(self) -> str | None:
        """Returns why the source has no events, or None if it has some."""
        return self.source.why_empty

    @property
    def skipped_ids(self) -> tuple[str, ...]:
        """Returns the events that the source left out."""
        return self.source.skipped_ids

    @property
    def units(self) -> Units:
        """Returns the sequences, each as a unit, in the order of the draw."""
        return Units.ungrouped(len(self))

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.indices)

    def stored(self, index: int) -> tuple[Tensor, ...]:
        """Returns context and target as stored by the source."""
        return self.source.stored(self.indices[index])

    def scaled(self, index: int, scale: float) -> tuple[Tensor, Tensor]:
        """Returns context and target, float32, `codes x scale`."""
        return self.source.scaled(self.indices[index], scale)

    def identity(self) -> dict[str, Any]:
        """Returns the identity of these data."""
        part = {"random_split": [*FRACTIONS, SEED, self.side], "sequence_count": len(self)}
        return {**self.source.identity(), **part}
