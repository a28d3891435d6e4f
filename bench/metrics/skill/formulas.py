"""Categorical skill from counts of hits, misses, false alarms and correct negatives; FSS from its two sums.

Sources: Wilks (2011), Statistical Methods in the Atmospheric Sciences, ch. 8; Roberts and Lean (2008), Mon. Wea. Rev.
136, 78-97 (FSS).  The `upstream` formulas are those of the Earthformer release's `SEVIRSkillScore`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from bench.metrics.means import geometric_mean_of_positive, mean_of_defined, quotient

VIL_THRESHOLDS = (16, 74, 133, 160, 181, 219)
"""Thresholds of the Earthformer release's `SEVIRSkillScore`: codes of vertically integrated liquid, 0 to 255."""
SCORES = ("csi", "pod", "sucr", "far", "bias", "hss")
COUNTS = ("hits", "misses", "false_alarms", "correct_negatives")
FSS_SUMS = ("fss_error", "fss_reference")
Convention = Literal["upstream", "correct"]
_UPSTREAM_EPS = 1e-4


def skill_scores(
    counts: Mapping[str, Any], thresholds: Sequence[float], convention: Convention, pools: Sequence[int] = (1,)
) -> dict[str, float]:
    """Returns the scores of `Skill.compute` for counts `[lead][threshold]`, e.g. those of a record.

    Args:
        counts: Hits, misses, false alarms, correct negatives; with several pools, the thresholds of each in turn.
        thresholds: Thresholds of the columns.
        convention: `upstream` or `correct`.
        pools: Widths of the max-pooling before counting.
    """
    columns = len(thresholds) * len(pools)
    statistics = {name: np.asarray(counts[name], np.float64).reshape(-1, columns) for name in COUNTS}
    options = {"thresholds": thresholds, "convention": convention, "pools": pools}
    return {name: float(value) for name, value in skill_values(statistics, options).items()}


def skill_values(statistics: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns every score by name, see `bench.metrics.skill.metric.Skill`.

    Args:
        statistics: `COUNTS`, each `(..., T, pools x thresholds)`; with windows also `FSS_SUMS`
            `(..., T, windows x thresholds)`.
        options: `thresholds`, `convention`, `pools`, and optionally `fss_windows`.
    """
    thresholds, convention = options["thresholds"], options["convention"]
    labels = [f"{threshold:g}" for threshold in thresholds]
    found: dict[str, np.ndarray] = {}
    for index, pool in enumerate(options["pools"]):
        columns = slice(index * len(labels), (index + 1) * len(labels))
        tables = [np.asarray(statistics[name], np.float64)[..., columns] for name in COUNTS]
        suffix = "" if pool == 1 else f"_pool{pool}"
        whole = _scores([table.sum(-2, keepdims=True) for table in tables], convention)
        each = _scores(tables, convention)
        for score in each:
            geometric = score == "bias" and convention == "correct"
            mean = geometric_mean_of_positive if geometric else mean_of_defined
            _add_named(found, score, suffix, labels, whole[score], each[score], mean)
            if convention == "correct" and score in SCORES:
                known = np.isfinite(whole[score]) & (whole[score] > 0) if geometric else ~np.isnan(whole[score])
                found[f"{score}{suffix}_undefined_count"] = (~known).sum((-2, -1)).astype(np.float64)
    for index, window in enumerate(options.get("fss_windows", ())):
        columns = slice(index * len(labels), (index + 1) * len(labels))
        error, reference = (np.asarray(statistics[name], np.float64)[..., columns] for name in FSS_SUMS)
        whole_fss = 1 - quotient(error.sum(-2, keepdims=True), reference.sum(-2, keepdims=True))
        each_fss = 1 - quotient(error, reference)
        _add_named(found, "fss", f"_window{window}", labels, whole_fss, each_fss, mean_of_defined)
    return found


def _add_named(
    found: dict[str, np.ndarray],
    score: str,
    suffix: str,
    labels: list[str],
    whole: np.ndarray,
    each: np.ndarray,
    mean: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Adds a score by name: pooled `(..., 1, K)`, per lead `(..., T, K)`, and its means over thresholds and leads."""
    table = np.concatenate([whole, each], -2)
    over_leads = mean(np.swapaxes(each, -1, -2))
    for row in range(table.shape[-2]):
        lead = f"_lead_{row}" if row else ""
        found[f"{score}_m{suffix}{lead}"] = mean(table[..., row, :])
        for k, label in enumerate(labels):
            found[f"{score}_{label}{suffix}{lead}"] = table[..., row, k]
    found[f"{score}_m{suffix}_per_lead_mean"] = mean(over_leads)
    for k, label in enumerate(labels):
        found[f"{score}_{label}{suffix}_per_lead_mean"] = over_leads[..., k]


def _scores(tables: list[np.ndarray], convention: Convention) -> dict[str, np.ndarray]:
    h, m, f, c = tables
    # Products of counts of the whole SEVIR test set exceed int64, so HSS is computed in float64.
    hss_over = (h + m) * (m + c) + (h + f) * (f + c)
    # Its perfect value is 2.08, so it has its own name to distinguish it from the bias.
    bias_upstream = ((h + f) / (h + m + _UPSTREAM_EPS) / math.log(2)) ** 2
    if convention == "upstream":
        eps = _UPSTREAM_EPS
        return {
            "csi": h / (h + m + f + eps),
            "pod": h / (h + m + eps),
            "sucr": h / (h + f + eps),
            "far": f / (h + f + eps),
            "bias": bias_upstream,
            "hss": 2 * (h * c - m * f) / (hss_over + eps),
            "bias_upstream": bias_upstream,
        }
    return {
        "csi": quotient(h, h + m + f),
        "pod": quotient(h, h + m),
        "sucr": quotient(h, h + f),
        "far": quotient(f, h + f),
        "bias": quotient(h + f, h + m),
        "hss": quotient(2 * (h * c - m * f), hss_over),
        "bias_upstream": bias_upstream,
    }
