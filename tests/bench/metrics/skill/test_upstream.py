"""Every score of the convention 'upstream' on edge cases, against the formulas in numpy."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import max_pool2d

import bench

THRESHOLDS = (16, 74, 133, 160, 181, 219)
_SHAPE = (5, 3, 16, 16, 1)


def _pair(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    f, t = (torch.randint(0, 256, _SHAPE, generator=random).float() for _ in range(2))
    on = [torch.tensor(THRESHOLDS)[torch.randint(0, 6, _SHAPE, generator=random)].float() for _ in range(2)]
    return {
        "all zero": lambda: (f * 0, t * 0),
        "nothing above 100": lambda: (f.clamp(max=100), t.clamp(max=100)),
        "missing": lambda: (f.masked_fill(f < 30, math.nan), t.masked_fill(t > 200, math.nan)),
        "infinite": lambda: (f.masked_fill(f > 250, math.inf), t),
        "on thresholds": lambda: (on[0], on[1]),
        "on thresholds in half precision": lambda: (on[0].half(), on[1].half()),
        "un-scaled": lambda: (f / 255 / torch.tensor(1 / 255), t * torch.tensor(1 / 255) / torch.tensor(1 / 255)),
        "stored in half precision": lambda: ((f / 255).half().float() / torch.tensor(1 / 255), t),
        "bytes": lambda: (f, t.to(torch.uint8)),
        "one sequence": lambda: (on[0][:1], on[1][:1]),
    }[case]()


def _formulas(forecast: torch.Tensor, target: torch.Tensor) -> dict[str, np.ndarray]:
    """Returns scores `(1 + T, K)`: from the counts over everything, then of each lead time."""
    f, t = (side.float().numpy() for side in (forecast, target))
    known = ~(np.isnan(f) | np.isnan(t))
    tables = []
    for lead in range(f.shape[1]):
        a, b, k = f[:, lead], t[:, lead], known[:, lead]
        rows = [((a >= x) & k, (b >= x) & k) for x in map(np.float32, THRESHOLDS)]
        tables.append([[(p & o).sum(), (~p & o).sum(), (p & ~o).sum()] for p, o in rows])
    counts = np.array(tables, float)
    h, m, fa = np.moveaxis(np.concatenate([counts.sum(0, keepdims=True), counts]), -1, 0)
    return {
        "csi": h / (h + m + fa + 1e-4),
        "pod": h / (h + m + 1e-4),
        "sucr": h / (h + fa + 1e-4),
        "bias": ((h + fa) / (h + m + 1e-4) / math.log(2)) ** 2,
    }


def _expected(tables: dict[str, np.ndarray], pool: str) -> dict[str, float]:
    found = {}
    for score, table in tables.items():
        for column, label in [*enumerate(THRESHOLDS), (slice(None), "m")]:
            for row, lead in enumerate(["", *(f"_lead_{number}" for number in range(1, len(table)))]):
                found[f"{score}_{label}{pool}{lead}"] = table[row, column].mean()
            found[f"{score}_{label}{pool}_per_lead_mean"] = table[1:, column].mean()
    return found


@pytest.mark.parametrize(
    "case",
    ["all zero", "nothing above 100", "missing", "infinite", "on thresholds", "on thresholds in half precision",
     "un-scaled", "stored in half precision", "bytes", "one sequence"],
)  # fmt: skip
def test_scores_agree_with_the_formulas(case: str) -> None:
    forecast, target = _pair(case)
    metric = bench.load_metric("skill", convention="upstream", pool=(1, 4))
    for first, last in pairwise([0, 2, 3, 5] if len(forecast) > 1 else [0, 1]):
        metric.update(forecast[first:last], target[first:last])
    cells = [
        max_pool2d(side.float().squeeze(-1).flatten(0, 1)[:, None], 4).reshape(*side.shape[:2], 4, 4, 1)
        for side in (forecast, target)
    ]
    expected = _expected(_formulas(forecast, target), "") | _expected(_formulas(*cells), "_pool4")
    found = metric.compute()
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-12, abs=1e-15)
