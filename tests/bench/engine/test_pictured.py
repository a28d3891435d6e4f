"""What an evaluation keeps for pictures."""

from __future__ import annotations

import pytest
import torch

from bench.engine.pictured import Pictured


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_the_same_sequences_are_kept_whatever_the_batch_size(batch_size: int) -> None:
    values = torch.arange(20.0).reshape(20, 1, 1, 1, 1)
    kept = Pictured(len(values))
    for first in range(0, len(values), batch_size):
        part = values[first : first + batch_size]
        kept.add(range(first, first + len(part)), {"target": part, "forecast": part + 0.5})
    sample = kept.sample()
    assert sample["target"].flatten().tolist() == [0, 6, 13] and sample["forecast"].flatten().tolist() == [
        0.5,
        6.5,
        13.5,
    ]


def test_one_of_several_processes_keeps_the_first_and_an_empty_part_nothing() -> None:
    kept = Pictured()
    assert kept.sample() == {}
    kept.add(range(3), {"target": torch.zeros(3, 2, 4, 4, 1)})
    kept.add(range(3), {"target": torch.ones(3, 2, 4, 4, 1)})
    assert kept.sample()["target"].shape == (1, 2, 4, 4, 1) and not kept.sample()["target"].any()
