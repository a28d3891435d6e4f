"""Batches of stored sequences, in an order that depends on the seed and the epoch alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bench.errors import ConfigError


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
    """A permutation per epoch, drawn from `(seed, epoch)` alone."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch whose order comes next; the trainer calls it before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of the epoch."""
        yield from np.random.default_rng([self.seed, self.epoch]).permutation(self.count).tolist()

    def __len__(self) -> int:
        """Returns the number of sequences of an epoch."""
        return self.count


class SharedBatches(Sampler[list[int]]):
    """The batches of one process out of several: batch `j` goes to process `j % world`.

    Batches are cut before they are shared, so each is the one that a single process would see.  Processes that train
    need as many batches each: `fill` repeats the first ones at the end, where one that evaluates may get one less.
    """

    def __init__(self, sampler: EpochOrder | range, batch_size: int, rank: int, world: int, *, fill: bool) -> None:
        self.sampler, self.batch_size, self.rank, self.world, self.fill = sampler, batch_size, rank, world, fill
        self.skip = 0
        """Batches of all processes to leave out of the next epoch; then none."""

    @property
    def total(self) -> int:
        """Returns the batches of all processes, without repeated ones."""
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields this process's batches of indices."""
        indices = list(self.sampler)
        batches = [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]
        if self.fill:
            batches += [batches[number % len(batches)] for number in range(-len(batches) % self.world)]
        skip, self.skip = self.skip, 0
        yield from batches[skip + self.rank :: self.world]

    def __len__(self) -> int:
        """Returns the number of this process's batches of a whole epoch."""
        return math.ceil(self.total / self.world) if self.fill else len(range(self.rank, self.total, self.world))


class TrainingLoader(DataLoader):
    """A shuffled loader whose place in the epoch is part of a checkpoint.

    Lightning saves `state_dict()` with its own loops.  `batches_done` is set by the training loop after each step:
    counting what was *fetched* would run ahead of what was learnt from.  A checkpoint counts the batches of all
    processes, so that another number of them can continue.
    """

    batches: SharedBatches
    order: EpochOrder
    batches_done: int = 0
    """Batches of this process that were learnt from in this epoch."""

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch and how many of its batches were used."""
        return {"epoch": self.order.epoch, "batches_done": self.batches_done * self.batches.world}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues after the batches of a checkpoint."""
        ended = state["batches_done"] >= self.batches.total
        self.order.epoch = state["epoch"] + ended
        self.batches.skip = 0 if ended else state["batches_done"]
        self.batches_done = self.batches.skip // self.batches.world


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)  # workers share the machine with the model


def training_loader(
    source: Stored,
    *,
    batch_size: int,
    seed: int,
    limit: int | None,
    num_workers: int,
    timeout_s: int = 0,
    rank: int = 0,
    world: int = 1,
) -> TrainingLoader:
    """Returns a shuffled loader of stored sequences; the last, smaller batch of an epoch is kept."""
    order = EpochOrder(len(source) if limit is None else min(limit, len(source)), seed)
    batches = SharedBatches(order, batch_size, rank, world, fill=True)
    loader = TrainingLoader(
        StoredView(source),
        batch_sampler=batches,
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=num_workers > 0,
        **_feed(num_workers, timeout_s),
    )
    loader.order, loader.batches = order, batches
    return loader


def evaluation_loader(
    source: Stored,
    *,
    batch_size: int,
    limit: int | None,
    num_workers: int,
    timeout_s: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Any]:
    """Returns a loader of stored sequences in order; over all processes, every one exactly once."""
    count = len(source) if limit is None else min(limit, len(source))
    batches = SharedBatches(range(count), batch_size, rank, world, fill=False)
    if batches.total < world:
        raise ConfigError(
            f"{count} sequences in batches of {batch_size} are {batches.total} batches, too few for {world} processes: "
            "lower devices, nodes or data.batch_size"
        )
    draws_from = torch.Generator()  # of its own: a validation must not move the random numbers of the training
    return DataLoader(StoredView(source), batch_sampler=batches, generator=draws_from, **_feed(num_workers, timeout_s))


def _feed(num_workers: int, timeout_s: int) -> dict[str, Any]:
    return {
        "num_workers": num_workers,
        "timeout": timeout_s if num_workers else 0,  # without workers, nothing could notice
        "worker_init_fn": _one_thread,
        "pin_memory": torch.cuda.is_available(),
    }
