"""Many rows in as few parts as the device's memory holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def in_parts(
    compute: Callable[[slice], Tensor], total: int, most: int, *, divisible: bool = True
) -> tuple[Tensor, int]:
    """Returns what `compute` gives for rows 0 to `total`, as few and as equal parts at a time as fit, and how many do.

    Args:
        compute: from some rows to what there is of each (N, ...).
        total: number of rows.
        most: rows of a part; where they do not fit into the device's memory, half of them are tried.
        divisible: whether parts may be smaller than `most`.

    Raises:
        torch.OutOfMemoryError: not even the smallest part fits.
    """
    done: list[Tensor] = []
    start, size = 0, _even(total, most) if divisible else most
    fitting = most
    while start < total:
        try:
            done.append(compute(slice(start, min(start + size, total))))
        except torch.OutOfMemoryError:
            if size == 1 or not divisible:
                raise
            fitting = size // 2
            size = _even(total - start, fitting)
            continue
        start += size
    return torch.cat(done), fitting


def _even(total: int, most: int) -> int:
    """Returns the size of as few parts as there can be, all alike but the last: a compiled network has few sizes."""
    return -(-total // -(-total // most))
