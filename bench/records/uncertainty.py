"""How sure a score is, and a difference of two: resampled from sums per event, with no second evaluation.

Sources: Efron and Tibshirani (1993), An Introduction to the Bootstrap, ch. 13 (percentile interval) and 15
(permutation test); Hamill (1999), Wea. Forecasting 14, 155-167 (paired resampling of forecasts' contingency tables).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.errors import ConfigError, did_you_mean
from bench.records.rescoring import scores_of
from bench.records.schema import MetricStatistics, RunRecord
from bench.records.statistics import Arrays, read_arrays
from bench.scores import FAMILIES
from bench.scores.names import with_ending

REPLICATES = 1000
# With fewer, the resamples are a handful of values and an interval would say more than is known.
FEWEST_EVENTS = 5
# Where more of the resamples leave a score undefined, the rest are no fair picture of it.
_MOST_UNDEFINED = 0.1


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same events: the difference a - b of a score, its interval, and how surprising it is."""

    score: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float
    """Two-sided: how often a difference so large comes up when the two models trade places in random events."""
    event_count: int
    replicates: int


def interval(
    record: RunRecord, score: str, *, level: float = 0.95, replicates: int = REPLICATES, seed: int = 0
) -> tuple[float, float] | None:
    """Returns the percentile bootstrap interval of a score, resampling events: `(low, high)`.

    None where there is none to give: a score that no statistics were kept for or that is undefined, statistics that
    are not at hand, fewer than five events, or a tenth of the resamples without a defined score.

    Args:
        record: The run.
        score: Its name, per lead time too: `csi_74`, `csi_74_lead_3`.
        level: Share of resamples between the bounds.
        replicates: How many resamples.
        seed: They are drawn from.

    Raises:
        DataError: the statistics were changed after they were written.
    """
    arrays = read_arrays(record)
    found = _metric_of(record, score, arrays)
    if arrays is None or found is None or record.statistics is None or record.statistics.unit_count < FEWEST_EVENTS:
        return None
    name, metric = found
    count = record.statistics.unit_count
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=replicates)
    return _bounds(_values(metric, _own(arrays, name), weights.astype(np.float64), score), level)


def compare(
    record_a: RunRecord,
    record_b: RunRecord,
    score: str,
    *,
    level: float = 0.95,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Comparison:
    """Returns whether two models differ in a score on the same events.

    The interval of the difference is a paired bootstrap: both are resampled with the same events.  The p-value is of
    a permutation test: in each event at random, the statistics of the two trade places.

    Args:
        record_a: One run.
        record_b: Another, on the same data with the same metric options.
        score: The name of a score, per lead time too.
        level: Of the interval.
        replicates: Resamples, and permutations.
        seed: They are drawn from.

    Raises:
        ConfigError: the runs cannot be paired; says why.
        DataError: statistics were changed after they were written.
    """
    sides = [(record, read_arrays(record)) for record in (record_a, record_b)]
    for record, arrays in sides:
        if arrays is None or record.statistics is None:
            raise ConfigError(f"record {record.run_id} has no statistics per event at hand; evaluate it again")
    a, b = record_a.statistics, record_b.statistics
    assert a is not None and b is not None
    same_data = record_a.data is not None and record_b.data is not None
    same_data = same_data and record_a.data.fingerprint == record_b.data.fingerprint  # type: ignore[union-attr]
    if not same_data or a.units_sha256 != b.units_sha256:
        raise ConfigError(
            f"records {record_a.run_id} and {record_b.run_id} are not of the same events of the same data"
        )
    if a.unit_count < FEWEST_EVENTS:
        raise ConfigError(f"{a.unit_count} events are too few to compare on; expected {FEWEST_EVENTS} or more")
    name_a, metric_a = _required(record_a, score, sides[0][1])
    name_b, metric_b = _required(record_b, score, sides[1][1])
    if (name_a, metric_a) != (name_b, metric_b):
        raise ConfigError(
            f"{score}: records {record_a.run_id} and {record_b.run_id} were scored with different options: "
            f"{metric_a.options} and {metric_b.options}"
        )
    of_a, of_b = _own(sides[0][1], name_a), _own(sides[1][1], name_b)
    everything = np.ones((1, a.unit_count))
    values = [float(_values(metric_a, of_side, everything, score)[0]) for of_side in (of_a, of_b)]
    difference = values[0] - values[1]
    draws = np.random.default_rng(seed)
    weights = draws.multinomial(a.unit_count, np.full(a.unit_count, 1 / a.unit_count), size=replicates)
    resampled = [_values(metric_a, side, weights.astype(np.float64), score) for side in (of_a, of_b)]
    bounds = _bounds(resampled[0] - resampled[1], level)
    if bounds is None or not np.isfinite(difference):
        raise ConfigError(f"{score} is undefined in one of the runs, or in many resamples: it cannot be compared")
    stay = draws.integers(0, 2, size=(replicates, a.unit_count)).astype(np.float64)
    permuted = [
        _values(metric_a, _joined(of_a, of_b), np.concatenate(pair, 1), score)
        for pair in ((stay, 1 - stay), (1 - stay, stay))
    ]
    differences = permuted[0] - permuted[1]
    # a difference equal but for round-off counts as one so large
    as_large = np.abs(differences) >= abs(difference) * (1 - 1e-9)
    defined = ~np.isnan(differences)
    p_value = (1 + int((as_large & defined).sum())) / (1 + int(defined.sum()))
    return Comparison(score, values[0], values[1], difference, bounds[0], bounds[1], p_value, a.unit_count, replicates)


def scores_again(record: RunRecord) -> dict[str, float]:
    """Returns every score that a record's statistics give, from all events once: equal to the record's own.

    Raises:
        DataError: the statistics were changed after they were written.
    """
    arrays = read_arrays(record)
    found: dict[str, float] = {}
    if arrays is None or record.statistics is None:
        return found
    for name in record.statistics.metrics:
        found |= scores_of(record.statistics, name, arrays)[0]
    return found


def _metric_of(record: RunRecord, score: str, arrays: Arrays | None) -> tuple[str, MetricStatistics] | None:
    if record.statistics is None or arrays is None:
        return None
    for name, metric in record.statistics.metrics.items():
        own = {key: values[:1].astype(np.float64) for key, values in _own(arrays, name).items()}
        if metric.family in FAMILIES and score in _all_values(metric, own, np.ones((1, 1))):
            return name, metric
    return None


def _required(record: RunRecord, score: str, arrays: Arrays | None) -> tuple[str, MetricStatistics]:
    found = _metric_of(record, score, arrays)
    if found is None:
        raise ConfigError(
            f"record {record.run_id} keeps no statistics of score {score!r}. {did_you_mean(score, record.scores)}"
        )
    return found


def _own(arrays: Arrays | None, metric: str) -> dict[str, np.ndarray]:
    assert arrays is not None
    return {key.removeprefix(f"{metric}."): v for key, v in arrays.items() if key.startswith(f"{metric}.")}


def _joined(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([a[name], b[name]]) for name in a}


def _values(metric: MetricStatistics, own: Mapping[str, np.ndarray], weights: np.ndarray, score: str) -> np.ndarray:
    return _all_values(metric, own, weights)[score]


def _all_values(metric: MetricStatistics, own: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Returns scores `(R,)` by name for weights `(R, events)`: sums of counts stay exact in float64."""
    sums = {name: np.tensordot(weights, values.astype(np.float64), 1) for name, values in own.items()}
    values = FAMILIES[metric.family](sums, metric.options)
    return {with_ending(name, metric.ending): value for name, value in values.items()}


def _bounds(values: np.ndarray, level: float) -> tuple[float, float] | None:
    defined = values[np.isfinite(values)]
    if defined.size < (1 - _MOST_UNDEFINED) * values.size:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
