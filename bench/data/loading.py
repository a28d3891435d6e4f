"""Batches of stored sequences, in an order that depends only on the seed and the epoch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from bench.data.augmentation import AugmentedSequences, drawn_symmetries
from bench.data.sequences import Reader, as_sequences
from bench.errors import ConfigError

_MAX_WORKERS = 8
"""As used by the authors of Earthformer and PreDiff."""


class EpochOrder(Sampler[Any]):
    """A permutation per epoch, which depends only on `(seed, epoch)`.

    Args:
        count: Number of sequences.
        seed: Seed of the training.
        symmetries: Turns and flips of frames, one of which is drawn for each sequence; none leaves frames unchanged.
    """

    def __init__(self, count: int, seed: int, symmetries: tuple[int, ...] = ()) -> None:
        self.count, self.seed, self.symmetries, self.epoch = count, seed, symmetries, 0

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch; the trainer calls it before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        """Yields the indices of the epoch, each with its symmetry if sequences are augmented."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count).tolist()
        if not self.symmetries:
            yield from order
            return
        of_sequence = [*drawn_symmetries(self.symmetries, self.count, self.seed, self.epoch)]
        yield from ((index, of_sequence[index]) for index in order)

    def __len__(self) -> int:
        """Returns the number of sequences of an epoch."""
        return self.count


class SharedBatches(Sampler[list[int]]):
    """The batches of one evaluating process out of several: batch `j` goes to process `j % world`.

    The batches are those of a single process.  Some processes may get one batch fewer than others.
    """

    def __init__(self, count: int, batch_size: int, rank: int, world: int) -> None:
        self.count, self.batch_size, self.rank, self.world = count, batch_size, rank, world

    @property
    def total(self) -> int:
        """Returns the batches of all processes."""
        return math.ceil(self.count / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields this process's batches of indices."""
        for number in range(self.rank, self.total, self.world):
            start = number * self.batch_size
            yield list(range(start, min(start + self.batch_size, self.count)))

    def __len__(self) -> int:
        """Returns the number of this process's batches."""
        return len(range(self.rank, self.total, self.world))


class Share(NamedTuple):
    """The share of a process's micro-batch in the batch of an optimiser step."""

    own: int
    """Its sequences; 0 for one that only keeps its process in step with the others."""
    step: int
    """Sequences of the step, over all processes."""


class MicroBatches(Sampler[list[Any]]):
    """The micro-batches of one training process out of several.

    An epoch is cut into the batches of its optimiser steps, the last of which may be smaller, and each of these into
    micro-batches, of which micro-batch `j` goes to process `j % world`.  All processes get equally many: one without a
    remaining micro-batch repeats a sequence of the step, whose `Share` does not count.

    Args:
        sampler: The order of the epoch; Lightning finds it by this name to set its epoch.
        batch_size: Sequences of a step, over all processes.
        micro_batch: Sequences of a micro-batch; it may be changed between epochs.
        rank: Rank of this process.
        world: Number of processes.
    """

    def __init__(self, sampler: EpochOrder, batch_size: int, micro_batch: int, rank: int = 0, world: int = 1) -> None:
        self.sampler, self.batch_size, self.micro_batch = sampler, batch_size, micro_batch
        self.rank, self.world = rank, world
        self.skip = 0
        """Steps to skip at the beginning of the next epoch only."""

    @property
    def steps(self) -> int:
        """Returns the optimiser steps of an epoch."""
        return math.ceil(len(self.sampler) / self.batch_size)

    @property
    def per_step(self) -> int:
        """Returns the number of micro-batches per process in a full step."""
        return self._rounds(self.batch_size)

    def share(self, number: int) -> Share:
        """Returns the share of this process's micro-batch `number`, counted from 0 in the epoch, in its step."""
        step, round_ = divmod(number, self.per_step)
        size = min(self.batch_size, len(self.sampler) - step * self.batch_size)
        start = (round_ * self.world + self.rank) * self.micro_batch
        return Share(max(0, min(self.micro_batch, size - start)), size)

    def __iter__(self) -> Iterator[list[Any]]:
        """Yields this process's micro-batches of indices."""
        indices = list(self.sampler)
        skip, self.skip = self.skip, 0
        for first in range(skip * self.batch_size, len(indices), self.batch_size):
            of_step = indices[first : first + self.batch_size]
            for round_ in range(self._rounds(len(of_step))):
                start = (round_ * self.world + self.rank) * self.micro_batch
                yield of_step[start : start + self.micro_batch] or of_step[:1]

    def __len__(self) -> int:
        """Returns the number of this process's micro-batches of a whole epoch."""
        full, rest = divmod(len(self.sampler), self.batch_size)
        return full * self.per_step + self._rounds(rest)

    def _rounds(self, size: int) -> int:
        return math.ceil(size / (self.micro_batch * self.world))


class TrainingLoader(DataLoader):
    """A shuffled loader whose position in the epoch is part of a checkpoint.

    Lightning saves `state_dict()` with its own loops.  The training loop sets `batches_done` after each micro-batch,
    because the number of fetched batches would run ahead of those trained on.  A checkpoint counts optimiser steps, so
    that a training can resume with another number of processes or another micro-batch.
    """

    batches: MicroBatches
    order: EpochOrder
    batches_done: int = 0
    """Micro-batches of this process that were trained on in this epoch."""

    def state_dict(self) -> dict[str, int]:
        """Returns the epoch, its finished steps, and the number of micro-batches per step."""
        per_step = self.batches.per_step
        return {
            "epoch": self.order.epoch,
            "steps_done": math.ceil(self.batches_done / per_step),
            "batches_per_step": per_step,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues after the steps of a checkpoint."""
        ended = state["steps_done"] >= self.batches.steps
        self.order.epoch = state["epoch"] + ended
        self.batches.skip = 0 if ended else state["steps_done"]
        self.batches_done = self.batches.skip * self.batches.per_step


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)  # workers share the machine with the model


def training_loader(
    source: Reader,
    *,
    batch_size: int,
    micro_batch: int,
    seed: int,
    limit: int | None,
    num_workers: int,
    pinned: bool = False,
    timeout_s: int = 0,
    rank: int = 0,
    world: int = 1,
    symmetries: tuple[int, ...] = (),
) -> TrainingLoader:
    """Returns a shuffled loader of stored sequences; the last, smaller batch of an epoch is kept.

    Args:
        source: The sequences; batches are `Example`s, which travel to other processes and the device as stored.
        batch_size: Sequences of an optimiser step, over all processes.
        micro_batch: Sequences that one process takes at a time.
        seed: Seed of the order.
        limit: Use only the first `limit` sequences.
        num_workers: Loader processes, which live as long as the loader.
        pinned: Put batches into pinned memory, for asynchronous copies to a GPU.
        timeout_s: Seconds that a loader process may return nothing; 0 for no limit.
        rank: Rank of this process.
        world: Number of processes.
        symmetries: Turns and flips to draw from, see `bench.data.augmentation`; none leaves sequences unchanged.
    """
    order = EpochOrder(len(source) if limit is None else min(limit, len(source)), seed, symmetries)
    batches = MicroBatches(order, batch_size, micro_batch, rank, world)
    sequences: Any = as_sequences(source)  # map-style, though no subclass of torch's `Dataset`
    if symmetries:
        sequences = AugmentedSequences(sequences)
    loader = TrainingLoader(
        sequences,
        batch_sampler=batches,
        generator=torch.Generator().manual_seed(seed),
        **_feed(num_workers, timeout_s, pinned),
    )
    loader.order, loader.batches = order, batches
    return loader


def evaluation_loader(
    source: Reader,
    *,
    batch_size: int,
    limit: int | None,
    num_workers: int,
    pinned: bool = False,
    timeout_s: int = 0,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Any]:
    """Returns a loader of stored sequences in order, each exactly once over all processes.

    Arguments are those of `training_loader`, except that `batch_size` is what one process takes at a time.

    Raises:
        ConfigError: there are fewer batches than processes.
    """
    count = len(source) if limit is None else min(limit, len(source))
    batches = SharedBatches(count, batch_size, rank, world)
    if batches.total < world:
        raise ConfigError(
            f"{count} sequences in batches of {batch_size} are {batches.total} batches, too few for {world} processes: "
            "lower devices, nodes or data.micro_batch"
        )
    generator = torch.Generator()  # its own, so that a validation does not change the training's random state
    feed = _feed(num_workers, timeout_s, pinned)
    sequences: Any = as_sequences(source)
    return DataLoader(sequences, batch_sampler=batches, generator=generator, **feed)


def workers(asked: int | Literal["auto"], *, on_gpu: bool, devices: int) -> int:
    """Returns the number of loader processes per device.

    On a CPU, they would take cores from the model.  A GPU would wait for data without them, because unpacking an event
    takes longer than a training step of a small model.

    Args:
        asked: `data.num_workers`.
        on_gpu: Whether a GPU computes.
        devices: Devices of this machine, which share its cores.
    """
    if asked != "auto":
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_WORKERS, cores // devices) if on_gpu else 0


def _feed(num_workers: int, timeout_s: int, pinned: bool) -> dict[str, Any]:
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "timeout": timeout_s if num_workers else 0,  # without workers, nothing could notice
        "worker_init_fn": _one_thread,
        "pin_memory": pinned,
    }
