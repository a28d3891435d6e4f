"""Data sets of stored sequences, and the independent events that scores are resampled over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped
    from torch import Tensor


class Example(NamedTuple):
    """One sequence, or a batch of them with a leading dimension, in stored units and dtype."""

    context: Shaped[Tensor, "*b t_in h w c_in"]
    target: Shaped[Tensor, "*b t_out h w c_out"]
    labels: Sequence[Tensor]
    """Labels of any shape, for metrics and losses with `takes_labels`."""
    index: Int[Tensor, "*b"]  # type: ignore[assignment]  # hides `tuple.index`
    """Its number in the data set, int64."""


@dataclass(frozen=True)
class Units:
    """The units that scores are resampled over: events or records, in the order of their sequences."""

    kind: Literal["event", "record"]
    """`record`: a long record with overlapping windows, of which blocks are resampled."""
    ids: tuple[str, ...]
    counts: tuple[int, ...]
    """Number of sequences of each."""

    @classmethod
    def events(cls, ids: Iterable[str], each: int = 1) -> Units:
        """Returns independent events with `each` sequences each."""
        ids = tuple(ids)
        return cls("event", ids, (each,) * len(ids))

    @classmethod
    def ungrouped(cls, count: int) -> Units:
        """Returns `count` sequences, each of which is an event."""
        return cls.events(f"sequence {at}" for at in range(count))


class SequenceDataset(ABC):
    """The stored sequences of one split, as a map-style data set for a `DataLoader`.

    A reader must have `ids`, `units`, `__len__`, `stored` and `identity`; the rest has defaults.
    """

    @property
    @abstractmethod
    def ids(self) -> tuple[str, ...]:
        """Returns one identifier per independent event (not per sequence): splits must not share any."""

    @property
    @abstractmethod
    def units(self) -> Units:
        """Returns the independent events, or long records, of the sequences."""

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of sequences."""

    @abstractmethod
    def stored(self, index: int) -> tuple[Tensor, ...]:
        """Returns context and target of a sequence, `(T,H,W,C)` in any dtype, and labels if there are any.

        Raises:
            IndexError: the index is out of range.
        """

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Returns the identity of the data (JSON types), equal for equal data wherever they lie."""

    @property
    def times(self) -> tuple[tuple[Any, Any], ...] | None:
        """Returns first and last time of each event, of any comparable type; None if the data have no times."""
        return None

    @property
    def contents(self) -> tuple[str, ...] | None:
        """Returns a digest of each event's values; None if events are identified by id only."""
        return None

    @property
    def skipped_ids(self) -> tuple[str, ...]:
        """Returns the events that were left out because they cannot be read."""
        return ()

    @property
    def why_empty(self) -> str | None:
        """Returns why there are no sequences, if known."""
        return None

    def checked_index(self, index: int) -> int:
        """Returns the number of a sequence, 0 or more; a negative index counts from the end.

        Raises:
            IndexError: the index is out of range.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        return index % len(self)

    def scaled(self, index: int, scale: float) -> tuple[Tensor, Tensor]:
        """Returns context and target as float32 times `scale`; a reader may have a faster way."""
        context, target = self.stored(index)[:2]
        return context.float() * scale, target.float() * scale

    def __getitem__(self, index: int) -> Example:
        """Returns a stored sequence with its number."""
        import torch

        context, target, *labels = self.stored(index)
        return Example(context, target, labels, torch.tensor(index))


class Reader(Protocol):
    """Any object that returns stored sequences, see `SequenceDataset`."""

    def __len__(self) -> int:
        """Returns the number of sequences."""
        ...

    def stored(self, index: int) -> tuple[Tensor, ...]:
        """Returns context and target of one sequence, and its labels if there are any."""
        ...


class PlainSequences(SequenceDataset):
    """Adapter for a plugin's reader that is no `SequenceDataset` but has `__len__`, `stored`, `ids` and `identity`.

    Such a reader declares no units, so they are inferred from the numbers of ids and sequences: one id, or more ids
    than sequences (the months of a record), mean a long record; else sequences are ordered by event, equally many for
    each; if the numbers do not divide, each sequence is an event.
    """

    times = contents = why_empty = None
    skipped_ids = ()

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        for name in ("times", "contents", "skipped_ids", "why_empty"):
            setattr(self, name, getattr(reader, name, getattr(self, name)))

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns one identifier per independent event."""
        return tuple(getattr(self.reader, "ids", ()))

    @property
    def units(self) -> Units:
        """Returns the units inferred from the numbers of ids and sequences."""
        ids, count = self.ids, len(self)
        if len(ids) > count:
            return Units("record", (f"{ids[0]}..{ids[-1]}",), (count,))
        if not ids or count % len(ids):
            return Units.ungrouped(count)
        return Units.events(ids, count // len(ids))

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.reader)

    def stored(self, index: int) -> tuple[Tensor, ...]:
        """Returns the reader's sequence."""
        found: tuple[Tensor, ...] = self.reader.stored(index)
        return found

    def identity(self) -> dict[str, Any]:
        """Returns the reader's identity."""
        return dict(self.reader.identity())


def as_sequences(reader: Reader) -> SequenceDataset:
    """Returns a reader as a `SequenceDataset`."""
    return reader if isinstance(reader, SequenceDataset) else PlainSequences(reader)


@dataclass(frozen=True)
class Events:
    """The events of the evaluated sequences."""

    kind: Literal["event", "block"]
    """`block`: consecutive windows of a long record, as many as a window has frames."""
    ids: tuple[str, ...]
    of_sequence: np.ndarray
    """The number of each sequence's event, `(sequences,)`."""


def events_of(units: Units, *, window: int, used: int) -> Events:
    """Returns the events of the first sequences of a data set.

    The windows of a long record overlap, so blocks of `window` consecutive windows are resampled instead (a block
    bootstrap, Kunsch 1989, Ann. Statist. 17, 1217-1241); likewise for the only event of a data set. No block spans two
    records.

    Args:
        units: Units of the sequences.
        window: Frames of context and target; windows that start this far apart share no frame.
        used: Number of evaluated sequences.
    """
    if units.kind == "record" or (len(units.ids) == 1 and units.counts[0] > 1):
        names: list[str] = []
        of_sequence: list[int] = []
        for name, count in zip(units.ids, units.counts, strict=True):
            of_sequence += [len(names) + at // window for at in range(count)]
            names += [f"{name}[{block}]" for block in range(-(-count // window))]
        numbers = np.array(of_sequence[:used])
        return Events("block", tuple(names[: int(numbers[-1]) + 1]), numbers)
    numbers = np.repeat(np.arange(len(units.ids)), units.counts)[:used]
    return Events("event", units.ids[: int(numbers[-1]) + 1], numbers)
