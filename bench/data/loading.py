"""Batches of stored sequences, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset


class Stored(Protocol):
    """Whatever gives sequences in the units and dtype they are stored in."""

    def __len__(self) -> int:
        """Returns the number of sequences."""
        ...

    def stored(self, index: int) -> tuple[Tensor, ...]:
        """Returns context and target of one sequence, and its labels where there are any."""
        ...


class Numbered:
    """Sequences with the index of each behind what is stored of it, whatever order or process they are read in."""

    def __init__(self, source: Stored) -> None:
        self.source = source

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.source)

    def stored(self, index: int) -> tuple[Tensor, ...]:
        """Returns what the source does, and the index as int64 `()`."""
        return (*self.source.stored(index), torch.tensor(index))


class StoredView(Dataset):
    """The stored sequences of a data set: compact types travel between processes and to the device."""

    def __init__(self, source: Stored) -> None:
        self.source = source

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """Returns context and target as stored, `(T,H,W,C)`, and the labels where there are any."""
        return self.source.stored(index)


class EpochOrder(Sampler[int]):
    """A permutation per epoch, drawn from `(seed, epoch)`; it can start in the middle of an epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch, self.skip = count, seed, 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch whose order comes next; the trainer calls it before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of the epoch, without the `skip` first ones, once."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        skip, self.skip = self.skip, 0
        yield from order[skip:].tolist()

    def __len__(self) -> int:
        """Returns the number of sequences of a whole epoch."""
        return self.count


class TrainingLoader(DataLoader):
    """A shuffled loader whose place in the epoch is part of a checkpoint.

    Lightning saves `state_dict()` with its own loops.  `batches_done` is set by the training loop after each step:
    counting what was *fetched* would run ahead of what was learnt from.
    """

    order: EpochOrder
    batches_done: int = 0

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch and how many of its batches were used."""
        return {"epoch": self.order.epoch, "batches_done": self.batches_done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues after the batches of a checkpoint."""
        ended = state["batches_done"] >= len(self)
        self.order.epoch = state["epoch"] + ended
        self.batches_done = 0 if ended else state["batches_done"]
        self.order.skip = self.batches_done * (self.batch_size or 1)


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)  # workers share the machine with the model


def training_loader(
    source: Stored, *, batch_size: int, num_workers: int, seed: int, limit: int | None
) -> TrainingLoader:
    """Returns a shuffled loader of stored sequences; the last, smaller batch of an epoch is kept."""
    view: Dataset = StoredView(source)
    order = EpochOrder(len(source) if limit is None else min(limit, len(source)), seed)
    loader = TrainingLoader(
        view,
        batch_size=batch_size,
        sampler=order,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=_one_thread,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    loader.order = order
    return loader


def evaluation_loader(source: Stored, *, batch_size: int, num_workers: int, limit: int | None) -> DataLoader[Any]:
    """Returns a loader of stored sequences in order, every one exactly once."""
    view: Dataset = StoredView(source)
    if limit is not None and limit < len(source):
        view = Subset(view, range(limit))
    return DataLoader(
        view,
        batch_size=batch_size,
        num_workers=num_workers,
        worker_init_fn=_one_thread,
        pin_memory=torch.cuda.is_available(),
    )
