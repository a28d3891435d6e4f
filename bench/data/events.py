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

    Sequences lie event by event, as many of each.  A data set of long records (one id; more ids than windows: its
    months; or a source that says `windows_per_record`, and `record_names` where its ids are not those of its records)
    has no events: its windows overlap, so blocks of `window` consecutive windows of a record are resampled in their
    place (a block bootstrap, Kunsch 1989, Ann. Statist. 17, 1217-1241).  Where the numbers of events and sequences tell
    neither, each sequence is its own event.

    Args:
        data: The data set.
        window: Frames of context and target: windows that start so many frames apart share none.
        used: How many sequences are evaluated.
    """
    count = len(data)
    ids = tuple(data.ids)
    source = getattr(data, "source", data)
    records = getattr(source, "windows_per_record", None)
    if records is None and len(ids) > count:  # the months of one record
        ids, records = (f"{ids[0]}..{ids[-1]}",), (count,)
    elif records is None and len(ids) == 1 and count > 1:
        records = (count,)
    if records is not None:
        return _blocks(getattr(source, "record_names", ids), records, window, used)
    if len(ids) > 1 and count % len(ids) == 0:
        of_sequence = np.arange(used) // (count // len(ids))
        return Events("event", ids[: int(of_sequence[-1]) + 1], of_sequence)
    return Events("event", tuple(f"sequence {at}" for at in range(used)), np.arange(used))


def _blocks(ids: tuple[str, ...], records: tuple[int, ...], window: int, used: int) -> Events:
    """Returns the blocks of `window` consecutive windows of each record; none reaches over two records."""
    names: list[str] = []
    of_sequence: list[int] = []
    for name, count in zip(ids, records, strict=True):
        of_sequence += [len(names) + at // window for at in range(count)]
        names += [f"{name}[{block}]" for block in range(-(-count // window))]
    numbers = np.array(of_sequence[:used])
    return Events("block", tuple(names[: int(numbers[-1]) + 1]), numbers)
