"""Which sequences belong together: the independent events that scores are resampled over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np


class Sequences(Protocol):
    """What has to be known of a data set."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns one identifier per independent event."""
        ...

    def __len__(self) -> int:
        """Returns the number of sequences."""
        ...


@dataclass(frozen=True)
class Events:
    """The events of the sequences that are evaluated."""

    kind: Literal["event", "block"]
    """`block`: consecutive windows of one long record, as many as make the next block's windows start after its own."""
    ids: tuple[str, ...]
    of_sequence: np.ndarray
    """The number of each sequence's event, `(sequences,)`."""


def events_of(data: Sequences, *, window: int, used: int) -> Events:
    """Returns the events of the first sequences of a data set.

    Sequences lie event by event, as many of each.  A data set of one long record (one id, or more ids than windows:
    its months) has no events: its windows overlap, so blocks of `window` consecutive windows are resampled in their
    place (a block bootstrap, Kunsch 1989, Ann. Statist. 17, 1217-1241).  Where the numbers of events and sequences tell
    neither, each sequence is its own event.

    Args:
        data: The data set.
        window: Frames of context and target: windows that start so many frames apart share none.
        used: How many sequences are evaluated.
    """
    count = len(data)
    ids = tuple(data.ids)
    if len(ids) > count:  # the months of one record: their windows overlap
        ids = (f"{ids[0]}..{ids[-1]}",)
    if len(ids) > 1 and count % len(ids) == 0:
        of_sequence = np.arange(used) // (count // len(ids))
        return Events("event", ids[: int(of_sequence[-1]) + 1], of_sequence)
    if len(ids) == 1 and count > 1:
        of_sequence = np.arange(used) // window
        return Events("block", tuple(f"{ids[0]}[{at}]" for at in range(int(of_sequence[-1]) + 1)), of_sequence)
    return Events("event", tuple(f"sequence {at}" for at in range(used)), np.arange(used))
