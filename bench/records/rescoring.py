"""Scores recomputed from the statistics beside a record, and their tolerances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from bench.metrics.enso.formulas import MOMENTS, lead_weights
from bench.metrics.families import FAMILIES
from bench.metrics.names import with_ending
from bench.metrics.skill.formulas import COUNTS
from bench.records.schema import MetricStatistics, StatisticsPart
from bench.records.statistics import Arrays

_EPS = float(np.finfo(np.float64).eps)
# Ratio of variance to second moment below which the sums cannot tell a variance from zero.
_NO_VARIANCE = 1e-12


def scores_of(part: StatisticsPart, name: str, arrays: Arrays) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns one metric's scores from its sums over all events, by name as in the record; and these sums.

    The scores are empty for a family that is not installed, i.e. a plugin's.

    Raises:
        ArithmeticError, LookupError, TypeError, ValueError: sums or options are not those of the family.
    """
    metric = part.metrics[name]
    own = {key.removeprefix(f"{name}."): values for key, values in arrays.items() if key.startswith(f"{name}.")}
    # counts are stored in the smallest type for each, which may be too small for their sum
    sums = {key: v.sum(0, dtype=np.float64 if v.dtype.kind == "f" else np.int64) for key, v in own.items()}
    if metric.family not in FAMILIES:
        return {}, sums
    with np.errstate(all="ignore"):
        values = FAMILIES[metric.family](sums, metric.options)
    return {with_ending(key, metric.ending): float(value) for key, value in values.items()}, sums


def allowed(metric: MetricStatistics, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the absolute differences that round-off explains, by score; NaN if the sums do not determine a score.

    Only the correlation needs a tolerance: a record computes it from anomalies, the statistics from moments, as a
    difference of large sums if the index varies little.  With N windows, the sums are exact to N eps.
    """
    if metric.family != "correlation":
        return {}
    n, p, o, pp, oo, po = (sums[name] for name in MOMENTS)
    with np.errstate(all="ignore"):
        round_off = _EPS * np.maximum(n, 64)
        of_p, of_o = pp - p * p / n, oo - o * o / n
        lead = round_off * np.maximum(pp / of_p, oo / of_o)
        open_ = ((pp > 0) & (of_p <= _NO_VARIANCE * pp)) | ((oo > 0) & (of_o <= _NO_VARIANCE * oo))
        lead = np.where(open_, np.nan, np.where((pp > 0) & (oo > 0), lead, 0.0))
        error, squared = round_off * (pp + oo) / n, np.maximum(pp + oo - 2 * po, 0) / n
        rmse = np.where(squared > error, error / np.sqrt(squared), np.sqrt(error))
    found = {
        "c_nino34_m": lead.mean(),
        "c_nino34_wm": (lead_weights(len(lead)) * lead).sum() / len(lead),
        "rmse_nino34": rmse.mean(),
    }
    for index in range(len(lead)):
        found[f"c_nino34_lead_{index + 1}"] = lead[index]
        found[f"rmse_nino34_lead_{index + 1}"] = rmse[index]
    return {with_ending(name, metric.ending): float(value) for name, value in found.items()}


def sequence_counts(metric: MetricStatistics, sums: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Yields the number of sequences in the sums of each lead time, if the family has it."""
    if metric.ending:  # each member counts
        return
    name, pixels = {"correlation": ("count", 1), "energy": ("sequence_count", 1)}.get(metric.family, ("", 0))
    if metric.family == "frames" and metric.options["convention"] == "upstream":  # which leaves no pixel out
        name, pixels = "pixel_count", metric.options["frame_pixels"]
    if name:
        yield from ((name, float(number)) for number in set((sums[name] / pixels).tolist()))


def pixel_counts(metric: MetricStatistics, sums: Mapping[str, np.ndarray]) -> dict[str, list[list[int]]] | None:
    """Returns a record's counts `[lead][threshold]` of single pixels, from a metric's sums."""
    pools = metric.options.get("pools", [])
    if metric.family != "skill" or metric.ending or 1 not in pools:
        return None
    width = len(metric.options["thresholds"])
    at = pools.index(1) * width
    return {name: sums[name][:, at : at + width].tolist() for name in COUNTS}


def undetermined(part: StatisticsPart) -> set[str]:
    """Returns the names of scores that sums per event do not determine, such as a maximum over pixels."""
    return {
        with_ending("nino34_label_difference", metric.ending)
        for metric in part.metrics.values()
        if metric.family == "correlation"
    }
