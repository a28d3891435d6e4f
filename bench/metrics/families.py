"""Scores as pure functions of sufficient statistics, with numpy alone: a record's scores can be resampled anywhere.

Each family takes `(statistics, options)`.  A statistic is an array `(..., T, ...)`: any axes in front, one set of
scores for each; then lead times; then what the family says.  It gives `{name: array of the axes in front}`, with
`NAME_lead_L` for lead L = 1.. of each name that exists per lead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.metrics.energy.formulas import energy_values
from bench.metrics.ensemble.formulas import probabilistic_values
from bench.metrics.enso.formulas import correlation_values
from bench.metrics.frames.formulas import error_values, frame_values
from bench.metrics.skill.formulas import skill_values

Values = dict[str, np.ndarray]
Family = Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Values]

FAMILIES: dict[str, Family] = {
    "correlation": correlation_values,
    "energy": energy_values,
    "errors": error_values,
    "frames": frame_values,
    "probabilistic": probabilistic_values,
    "skill": skill_values,
}
"""By the name that a metric gives with its statistics."""

__all__ = ["FAMILIES", "Family", "Values"]
