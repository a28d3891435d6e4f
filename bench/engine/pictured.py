"""The few sequences of an evaluation that are kept for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class Pictured:
    """The first sequence, and those at a third and two thirds of what a single process sees.

    Which they are does not depend on the batch size: forecasts of several runs are drawn beside one another.

    Args:
        count: Sequences of the evaluation; 1 keeps the first alone.
    """

    def __init__(self, count: int = 1) -> None:
        self.wanted = {0, count // 3, 2 * count // 3}
        self._kept: dict[int, dict[str, Tensor]] = {}

    def add(self, numbers: Sequence[int], parts: Mapping[str, Tensor]) -> None:
        """Keeps those of a batch that are wanted.

        Args:
            numbers: Of the batch's sequences.
            parts: `context`, `target`, `forecast` and, of an ensemble, `probability`, physical units `(B,T,H,W,C)`.
        """
        for at, number in enumerate(numbers):
            if number in self.wanted and number not in self._kept:
                self._kept[number] = {name: part[at].detach().float().cpu().clone() for name, part in parts.items()}

    def sample(self) -> dict[str, Tensor]:
        """What was kept, by part: `(N,T,H,W,C)`."""
        kept = [self._kept[number] for number in sorted(self._kept)]
        return {name: torch.stack([one[name] for one in kept]) for name in (kept[0] if kept else ())}
