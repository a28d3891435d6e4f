"""Random turns and flips of training sequences, drawn from the seed, the epoch and the number of the sequence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bench.data.sequences import Example, SequenceDataset

_STREAM = 0x7475
"""Separates these random numbers from those of the order, which have the same seed and epoch."""


def symmetries_of(height: int, width: int) -> tuple[int, ...]:
    """Returns the turns and flips that keep the shape of a frame: all eight for a square, four for other rectangles."""
    return tuple(range(8)) if height == width else (0, 2, 4, 6)


def transformed(frames: Tensor, symmetry: int) -> Tensor:
    """Returns frames `(T,H,W,C)`, mirrored if `symmetry` is 4 or more, then turned by `symmetry % 4` quarter turns."""
    mirrored = frames.flip(2) if symmetry >= 4 else frames
    return torch.rot90(mirrored, symmetry % 4, (1, 2)).contiguous()


def drawn_symmetries(symmetries: tuple[int, ...], count: int, seed: int, epoch: int) -> Iterator[int]:
    """Yields the symmetry of each sequence of an epoch, in the order of their numbers."""
    yield from np.random.default_rng([seed, epoch, _STREAM]).choice(symmetries, count).tolist()


class AugmentedSequences:
    """A map-style data set whose key is a number and a symmetry; a number alone returns the sequence as stored."""

    def __init__(self, source: SequenceDataset) -> None:
        self.source = source

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> Example:
        """Returns a sequence with context and target turned the same way."""
        index, symmetry = key if isinstance(key, tuple) else (key, 0)
        example = self.source[index]
        return example._replace(
            context=transformed(example.context, symmetry), target=transformed(example.target, symmetry)
        )
