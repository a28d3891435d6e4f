"""Correlation and error of an index per lead time, from moments over windows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.metrics.means import mean_of_defined, quotient, with_leads

MOMENTS = ("count", "p", "o", "pp", "oo", "po")
_UPSTREAM_EPS = 1e-6
# Ratio of variance to second moment below which values count as equal; round-off leaves about 1e-16.
_NO_VARIANCE = 1e-12


def lead_weights(leads: int) -> np.ndarray:
    """Returns the weights b_k ln(k) of C-Nino3.4-WM for leads k = 1..K; the first is 0."""
    k = np.arange(1, leads + 1)
    return np.select([k <= 4, k <= 11, k <= 18], [1.5, 2.0, 3.0], 4.0) * np.log(k)


def moments(predicted: np.ndarray, observed: np.ndarray, events: np.ndarray, event_count: int) -> dict[str, np.ndarray]:
    """Returns the moments `(events, K)` of indices `(windows, K)`, summed over the windows of each event."""
    p, o = predicted.astype(np.float64), observed.astype(np.float64)
    each = {"count": np.ones_like(p), "p": p, "o": o, "pp": p * p, "oo": o * o, "po": p * o}
    found = {name: np.zeros((event_count, p.shape[1])) for name in each}
    for name, values in each.items():
        np.add.at(found[name], events, values)
    return found


def correlation_values(statistics: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns C-Nino3.4-M and -WM, the RMSE, and the correlation and RMSE of each lead.

    From moments, the correlation is exact to about 1e-12 if values are of the size of their spread, as anomalies are.

    Args:
        statistics: `MOMENTS` of forecast p and observation o, each `(..., K)`.
        options: `convention`.
    """
    n, p, o, pp, oo, po = (np.asarray(statistics[name], np.float64) for name in MOMENTS)
    with np.errstate(invalid="ignore"):
        covariance = po - quotient(p * o, n)
        of_p, of_o = pp - quotient(p * p, n), oo - quotient(o * o, n)
        if options["convention"] == "upstream":
            correlation = covariance / (np.sqrt(np.maximum(of_p * of_o, 0)) + _UPSTREAM_EPS)
        else:
            varies = (of_p > _NO_VARIANCE * pp) & (of_o > _NO_VARIANCE * oo)
            correlation = np.where(varies, quotient(covariance, np.sqrt(np.maximum(of_p * of_o, 0))), math.nan)
        rmse = np.sqrt(np.maximum(quotient(pp + oo - 2 * po, n), 0))
    leads = correlation.shape[-1]
    if options["convention"] == "upstream":
        mean, weighted = correlation.mean(-1), (lead_weights(leads) * correlation).sum(-1) / leads
    else:
        mean = mean_of_defined(correlation)
        weighted = mean_of_defined(lead_weights(leads) * correlation) * (~np.isnan(correlation)).sum(-1) / leads
    found = {"c_nino34_m": mean, "c_nino34_wm": weighted, **with_leads("rmse_nino34", rmse.mean(-1), rmse)}
    for lead in range(leads):
        found[f"c_nino34_lead_{lead + 1}"] = correlation[..., lead]
    return found
