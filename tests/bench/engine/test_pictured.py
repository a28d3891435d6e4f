"""The data that an evaluation keeps for pictures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.data.sequences import Example
from bench.engine.pictured import Pictured

TASK: Any = SimpleNamespace(event_threshold=5, denormalise=lambda x: 2 * x, to_context=lambda x: x)
VALUES = torch.arange(20.0).reshape(20, 1, 1, 1, 1)


def _batch(first: int, end: int) -> Example:
    return Example(VALUES[first:end], VALUES[first:end], [], torch.arange(first, end)[: len(VALUES[first:end])])


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_the_same_sequences_are_kept_for_any_batch_size(batch_size: int) -> None:
    kept = Pictured(TASK, len(VALUES))
    for first in range(0, len(VALUES), batch_size):
        batch = _batch(first, min(len(VALUES), first + batch_size))
        kept.see_members(torch.stack([batch.target, batch.target - 4]))
        kept.add(batch, batch.target, batch.target + 0.5)
    sample = {name: part.flatten().tolist() for name, part in kept.sample().items()}
    assert sample == {
        "context": [0, 12, 26], "target": [0, 6, 13], "forecast": [0.5, 6.5, 13.5], "probability": [0, 0.5, 1],
    }  # fmt: skip


def test_one_of_several_processes_keeps_its_first_sequence() -> None:
    kept = Pictured(TASK)
    assert kept.sample() == {}
    for first in (3, 8):
        kept.add(_batch(first, first + 5), VALUES[first : first + 5], VALUES[first : first + 5])
    assert kept.sample()["target"].flatten().tolist() == [3]
