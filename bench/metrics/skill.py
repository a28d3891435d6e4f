"""Categorical skill of precipitation forecasts at intensity thresholds: CSI, POD, SUCR, FAR, BIAS and HSS.

Sources: definitions in Wilks (2011), Statistical Methods in the Atmospheric Sciences, ch. 8; the thresholds and the
'upstream' convention are those of the Earthformer release's `SEVIRSkillScore` (Gao et al. 2022, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from bench.errors import ContractError
from bench.metrics.contingency import count_events
from bench.metrics.frames import check_pair

VIL_THRESHOLDS = (16, 74, 133, 160, 181, 219)
SCORES = ("csi", "pod", "sucr", "far", "bias", "hss")
_STATES = ("hits", "misses", "false_alarms", "correct_negatives")
_UPSTREAM_EPS = 1e-4
Convention = Literal["upstream", "correct"]


class Skill(Metric):
    """CSI, POD, SUCR, FAR, BIAS and HSS at thresholds, pooled and per lead time, from exact int64 counts.

    `compute()` gives, for each score S and threshold K: `S_K` from counts pooled over sequences, leads and pixels
    (the papers' tables), `S_m`, its mean over thresholds, `S_K_lead_L` and `S_m_lead_L` for lead L = 1.., and
    `S_K_per_lead_mean`, `S_m_per_lead_mean`, the mean over leads of the scores per lead, which is another number.

    Two conventions:

    * `upstream`, what the papers print: scores have 1e-4 added to their denominators, so 0/0 is 0 and enters the
      means; 'bias' is ((H+F)/(H+M)/ln 2)^2, whose perfect value is 2.08; a target code of 255 is an event.
    * `correct`: no epsilon; an undefined score is NaN, is left out of means and counted in `S_undefined_count`;
      BIAS is (H+F)/(H+M) and its mean geometric; a value within 5e-5 of an integer is that integer; a target of
      255 (missing) counts nowhere.

    In both, an event is a value >= the threshold and a pair with NaN on either side counts nowhere.

    Args:
        thresholds: In the units of the data.
        convention: `upstream` or `correct`.
        t_out: Number of lead times, where known; else taken from the first update.
        missing_value: A target of this value counts nowhere; `default` is 255 for `correct`, None for `upstream`.
        **kwargs: Passed on to `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = True
    hits: Tensor
    misses: Tensor
    false_alarms: Tensor
    correct_negatives: Tensor

    def __init__(
        self,
        thresholds: Sequence[float] = VIL_THRESHOLDS,
        convention: Convention = "upstream",
        t_out: int | None = None,
        missing_value: float | Literal["default"] | None = "default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if convention not in ("upstream", "correct"):
            raise ValueError(f"convention {convention!r}; expected 'upstream' or 'correct'")
        if not thresholds or not all(math.isfinite(t) for t in thresholds):
            raise ValueError(f"thresholds {thresholds!r}; expected one or more finite numbers")
        self.thresholds = tuple(thresholds)
        self.convention = convention
        self.missing_value = (255 if convention == "correct" else None) if missing_value == "default" else missing_value
        for name in _STATES:
            empty = torch.zeros((t_out or 0, len(self.thresholds)), dtype=torch.int64)
            self.add_state(name, default=empty, dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor) -> None:
        """Adds the counts of a batch.

        Args:
            forecast: Physical units, `(B,T,H,W,C)`.
            target: The same shape; bytes or floats.

        Raises:
            ContractError: shapes differ, or the number of lead times changed.
        """
        check_pair(forecast, target)
        counts = count_events(
            forecast,
            target,
            self.thresholds,
            integer_rule=self.convention == "correct",
            missing_value=self.missing_value,
        )
        for index, name in enumerate(_STATES):
            state, added = getattr(self, name), counts[..., index]
            if state.shape[0] == 0:
                state = state.new_zeros(added.shape)
            elif state.shape != added.shape:
                raise ContractError(f"skill counts {state.shape[0]} lead times, this batch has {added.shape[0]}")
            setattr(self, name, state + added.to(state.device))

    def counts(self) -> dict[str, list[list[int]]]:
        """Returns hits, misses, false alarms and correct negatives as lists `[lead][threshold]`."""
        return {name: getattr(self, name).tolist() for name in _STATES}

    def compute(self) -> dict[str, float]:
        """Returns every score by name; see the class."""
        return skill_scores(self.counts(), self.thresholds, self.convention)


def skill_scores(
    counts: dict[str, list[list[int]]], thresholds: Sequence[float], convention: Convention
) -> dict[str, float]:
    """Returns the scores of `Skill.compute` for counts `[lead][threshold]`, e.g. those of a record."""
    per_lead = [np.asarray(counts[name], dtype=np.float64).reshape(-1, len(thresholds)) for name in _STATES]
    pooled = [table.sum(0, keepdims=True) for table in per_lead]
    each, whole = _scores(per_lead, convention), _scores(pooled, convention)
    found: dict[str, float] = {}
    for score in SCORES:
        mean = _geometric_mean if score == "bias" and convention == "correct" else _mean
        table = np.concatenate([whole[score], each[score]])  # (1 + T, K): pooled, then by lead
        by_lead_mean = np.array([mean(column) for column in each[score].T])
        for row, suffix in enumerate(["", *(f"_lead_{lead}" for lead in range(1, len(table)))]):
            found[f"{score}_m{suffix}"] = mean(table[row])
            for k, threshold in enumerate(thresholds):
                found[f"{score}_{threshold:g}{suffix}"] = float(table[row, k])
        found[f"{score}_m_per_lead_mean"] = mean(by_lead_mean)
        for k, threshold in enumerate(thresholds):
            found[f"{score}_{threshold:g}_per_lead_mean"] = float(by_lead_mean[k])
        if convention == "correct":
            found[f"{score}_undefined_count"] = float(_undefined(whole[score], geometric=score == "bias"))
    return found


def _scores(tables: list[np.ndarray], convention: Convention) -> dict[str, np.ndarray]:
    h, m, f, c = tables
    # Products of counts of the whole SEVIR test set exceed int64: HSS is formed in float64.
    hss_over = (h + m) * (m + c) + (h + f) * (f + c)
    if convention == "upstream":
        eps = _UPSTREAM_EPS
        return {
            "csi": h / (h + m + f + eps),
            "pod": h / (h + m + eps),
            "sucr": h / (h + f + eps),
            "far": f / (h + f + eps),
            "bias": ((h + f) / (h + m + eps) / math.log(2)) ** 2,
            "hss": 2 * (h * c - m * f) / (hss_over + eps),
        }
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "csi": h / (h + m + f),
            "pod": h / (h + m),
            "sucr": h / (h + f),
            "far": f / (h + f),
            "bias": (h + f) / (h + m),
            "hss": 2 * (h * c - m * f) / hss_over,
        }


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _geometric_mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values) & (values > 0)]
    return float(2 ** np.log2(known).mean()) if known.size else math.nan


def _undefined(values: np.ndarray, *, geometric: bool) -> int:
    known = np.isfinite(values) & (values > 0) if geometric else ~np.isnan(values)
    return int((~known).sum())
