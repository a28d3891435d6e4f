"""Folds of a time series: blocks are left out in turn, so that each is forecast once.

Source: Wilks 2011, Statistical Methods in the Atmospheric Sciences, ch. 7.4.4: cross-validation of climate series
leaves out whole stretches, because neighbouring months are not independent.
"""

from __future__ import annotations

from itertools import pairwise

from bench.api import Split
from bench.errors import ConfigError

Stretch = tuple[int, int]
"""First and last + 1."""
MIN_FOLDS = 3
"""One block to test on, one to validate on, one or more to train on."""


def blocks(count: int, folds: int, what: str = "of the data") -> list[Stretch]:
    """Returns consecutive blocks of equal length; the last one may be shorter.

    Args:
        count: Number of frames or years to divide.
        folds: Number of blocks.
        what: The word for frames or years in messages.

    Raises:
        ConfigError: there are too few.
    """
    length = -(-count // folds)
    edges = [*range(0, count, length or 1), count]
    if len(edges) - 1 != folds:
        raise ConfigError(f"task.folds={folds}: {count} {what} make {len(edges) - 1} blocks of {length}")
    return list(pairwise(edges))


def leave_out(parts: list[Stretch], fold: int, val: int | None = None) -> dict[Split, tuple[Stretch, ...]]:
    """Returns the stretches of each split: one block is the test, the next one (cyclically) validation.

    Adjacent blocks leave the training as few borders as possible, which no window may cross.

    Args:
        parts: All blocks, in order.
        fold: The number of the block to test on.
        val: Length of the validation from the beginning of its block, whose rest is for training; None for the whole
            block.
    """
    begin, end = parts[(fold + 1) % len(parts)]
    middle = end if val is None else min(end, begin + val)
    rest = [part for part in parts if part not in (parts[fold], (begin, end))]
    train: list[Stretch] = []
    for part in sorted(rest + [(middle, end)] * (middle < end)):
        if train and train[-1][1] == part[0]:
            train[-1] = (train[-1][0], part[1])
        else:
            train.append(part)
    return {
        "train": tuple(train),
        "val": ((begin, middle),),
        "test": (parts[fold],),
        "all": ((parts[0][0], parts[-1][1]),),
    }


def check_fold(folds: int | None, fold: int | None, instead_of: frozenset[str], given: set[str]) -> None:
    """Refuses options of a task that do not name a fold.

    Args:
        folds: Number of folds.
        fold: The chosen one.
        instead_of: Options that folds replace.
        given: Names of the given options.

    Raises:
        ValueError: names the expected options.
    """
    if (folds is None) != (fold is None):
        raise ValueError(f"folds={folds} and fold={fold}: expected both, or neither")
    if folds is None or fold is None:
        return
    if folds < MIN_FOLDS or not 0 <= fold < folds:
        raise ValueError(
            f"folds={folds}, fold={fold}: expected {MIN_FOLDS} folds or more, and a fold of 0..{folds - 1}"
        )
    if both := sorted(instead_of & given):
        raise ValueError(f"{', '.join(both)}: folds replace them; leave them out")
