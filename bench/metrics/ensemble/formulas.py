"""CRPS, Brier score and skill, spread and error of ensembles, from sums and counts per lead time.

Sources: Gneiting and Raftery (2007), JASA 102, 359-378 (CRPS, Brier); Ferro (2014), Q. J. R. Meteorol. Soc. 140,
1917-1923 (fair CRPS); Fortin et al. (2014), J. Hydrometeor. 15, 1708-1713 (spread-skill ratio).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.metrics.means import mean_of_defined, quotient, with_leads


def probabilistic_values(statistics: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns every score of `bench.metrics.ensemble.metric.Probabilistic`.

    Args:
        statistics: `distance` (sum over pixels and members of |x_i - y|), `pair_distance` (of |x_i - x_j| over all
            pairs i < j), `variance` (unbiased, over members), `mean_error` (squared, of the ensemble mean),
            `pixel_count`, each `(..., T)`; and per threshold `(..., T, K)`, as integers, with k of M members that have
            the event and O = 1 if it was observed: sums over pixels of (k - M O)^2 (`brier_sum`), of k (M - k)
            (`brier_spread`) and of O (`observed_count`), and the number of pixels (`brier_count`).
        options: `members`, `scale`, `thresholds`, `reference` (`sample`, or frequencies `[threshold]` or
            `[threshold][lead]`).
    """
    m, scale = options["members"], options["scale"]
    counts = statistics["pixel_count"]

    def per_pixel(name: str, power: int) -> tuple[np.ndarray, np.ndarray]:
        total = statistics[name] / scale**power
        return quotient(total.sum(-1), counts.sum(-1)), quotient(total, counts)

    found: dict[str, np.ndarray] = {}
    distance, pairs = per_pixel("distance", 1), per_pixel("pair_distance", 1)
    spread, error = per_pixel("variance", 2), per_pixel("mean_error", 2)
    undefined = np.nan if m < 2 else 1.0  # factor of scores that need two members
    found |= with_leads("crps", *(d / m - p / m**2 for d, p in zip(distance, pairs, strict=True)))
    found |= with_leads(
        "crps_fair",
        *(undefined * (d / m - p / max(1, m * (m - 1))) for d, p in zip(distance, pairs, strict=True)),
    )
    found |= with_leads("spread", *(undefined * np.sqrt(s) for s in spread))
    found |= with_leads("rmse_of_mean", *(np.sqrt(e) for e in error))
    # the ratio is 1 at any size if members and truth are interchangeable
    ratios = (undefined * np.sqrt((m + 1) / m * quotient(s, e)) for s, e in zip(spread, error, strict=True))
    found |= with_leads("spread_skill_ratio", *ratios)
    found["crps_pixel_count"] = counts.sum(-1).astype(np.float64)
    return found | _brier_values(statistics, options)


def _brier_values(statistics: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> dict[str, np.ndarray]:
    m, reference = options["members"], options["reference"]
    labels = [f"{threshold:g}" for threshold in options["thresholds"]]
    per_lead = [np.asarray(statistics[name], np.float64) for name in _BRIER]
    frequencies = None
    if reference != "sample":
        frequencies = np.asarray(reference, np.float64)
        frequencies = np.broadcast_to(
            frequencies[:, None] if frequencies.ndim == 1 else frequencies, (len(labels), per_lead[0].shape[-2])
        ).T
    # the reference's squared error adds up over leads, each with its own frequency; the sample's frequency is overall
    n, o = per_lead[3], per_lead[2]
    if frequencies is None:
        reference_sums = [
            _climatology_error(o.sum(-2, keepdims=True), n.sum(-2, keepdims=True)),
            _climatology_error(o, n),
        ]
    else:
        each = n * frequencies**2 - 2 * frequencies * o + o
        reference_sums = [each.sum(-2, keepdims=True), each]
    tables: dict[str, list[np.ndarray]] = {"brier": [], "brier_debiased": [], "bss": []}
    for sums, own in zip(([part.sum(-2, keepdims=True) for part in per_lead], per_lead), reference_sums, strict=True):
        squared, spread, _, count = sums
        brier = quotient(squared, count * m**2)
        tables["brier"].append(brier)
        tables["brier_debiased"].append(
            brier - quotient(spread, count * m**2 * (m - 1)) if m > 1 else np.full_like(brier, np.nan)
        )
        expected = quotient(own, count)
        tables["bss"].append(1 - quotient(brier, np.where(expected == 0, np.nan, expected)))
    found: dict[str, np.ndarray] = {}
    for score, (whole, each_lead) in tables.items():
        found |= with_leads(f"{score}_m", mean_of_defined(whole)[..., 0], mean_of_defined(each_lead))
        for k, label in enumerate(labels):
            found |= with_leads(f"{score}_{label}", whole[..., 0, k], each_lead[..., k])
    return found


_BRIER = ("brier_sum", "brier_spread", "observed_count", "brier_count")


def _climatology_error(events: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Returns the summed squared error of forecasting the sample's own frequency."""
    return events - quotient(events**2, np.where(count == 0, np.nan, count))
