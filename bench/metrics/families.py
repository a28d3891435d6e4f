"""Scores as pure functions of sufficient statistics, with numpy alone, so that they can be resampled anywhere.

Each family takes `(statistics, options)`.  A statistic is an array `(..., T, ...)`: leading axes, lead times, and axes
of the family.  The result is `{name: array of the leading axes}`, with `NAME_lead_L` for lead L = 1.. of each score
that exists per lead.
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
"""Families by `family` of the metrics."""

__all__ = ["FAMILIES", "Family", "Values"]
