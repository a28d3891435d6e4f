from __future__ import annotations

import torch

from bench.metrics.pairs import shared, shared_work

calls = []


@shared
def _total(values: torch.Tensor, power: int) -> float:
    calls.append(power)
    return float((values**power).sum())


def test_shared_work_computes_a_pair_once() -> None:
    calls.clear()
    values = torch.ones(3)
    with shared_work():
        assert _total(values, 1) == _total(values, 1) == 3
        assert len(calls) == 1 and _total(values, 2) == 3 and len(calls) == 2
        # tensors that are gone at once, whose ids would come up again
        assert [_total(torch.full((3,), float(k)), 1) for k in range(50)] == [3.0 * k for k in range(50)]
    values += 1
    assert _total(values, 1) == 6  # nothing is remembered outside
    with shared_work():
        assert _total(values, 1) == 6
