"""Energy errors of N-body forecasts, from sums per lead time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.metrics.means import quotient, with_leads

SUMS = ("squared", "squared_target", "absolute", "absolute_target")


def energy_values(statistics: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns every score of `bench.metrics.energy.metric.Energy`.

    Args:
        statistics: `SUMS` of the errors of forecast and observed frames, and `sequence_count`, each `(..., T)`.
        options: None are needed.
    """
    count = statistics["sequence_count"]
    found: dict[str, np.ndarray] = {}
    for name, kind in (("e_mse", "squared"), ("e_mae", "absolute")):
        total, of_target = statistics[kind], statistics[f"{kind}_target"]
        found |= with_leads(name, quotient(total.sum(-1), count.sum(-1)), quotient(total, count))
        found[f"{name}_target"] = quotient(of_target.sum(-1), count.sum(-1))
    return found
