"""Quotients, and means over the last axis of arrays, that are NaN where undefined."""

from __future__ import annotations

import numpy as np


def quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns numerator / denominator in float64: 0/0 is NaN, x/0 infinite, both without a warning."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(numerator, np.float64) / np.asarray(denominator, np.float64)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis, ignoring NaN; NaN if nothing is left."""
    known = ~np.isnan(values)
    return quotient(np.where(known, values, 0.0).sum(-1), known.sum(-1))


def geometric_mean_of_positive(values: np.ndarray) -> np.ndarray:
    """Returns the geometric mean over the last axis of finite positive values; NaN if there are none."""
    known = np.isfinite(values) & (values > 0)
    logarithms = np.log2(np.where(known, values, 1.0))
    return 2.0 ** quotient(logarithms.sum(-1), known.sum(-1))


def with_leads(name: str, overall: np.ndarray, per_lead: np.ndarray) -> dict[str, np.ndarray]:
    """Returns `{name: overall, name_lead_1: ...}` for scores per lead `(..., T)`."""
    found = {name: overall}
    for lead in range(per_lead.shape[-1]):
        found[f"{name}_lead_{lead + 1}"] = per_lead[..., lead]
    return found
