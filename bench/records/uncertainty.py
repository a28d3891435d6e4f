"""Uncertainty of a score and of a difference, from sums per event, without a second evaluation.

Sources: `bench.metrics.resampling` (intervals); Efron and Tibshirani (1993), An Introduction to the Bootstrap, ch. 15
(permutation test); Hamill (1999), Wea. Forecasting 14, 155-167 (permuting the contingency tables of two forecasts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.errors import ConfigError, DataError, counted, did_you_mean
from bench.metrics.families import FAMILIES
from bench.metrics.names import with_ending
from bench.metrics.resampling import MIN_EVENTS, jackknife_interval, scale_of
from bench.records.schema import MetricStatistics, RunRecord
from bench.records.statistics import Arrays, read_arrays

REPLICATES = 1000


@dataclass(frozen=True)
class Comparison:
    """Two runs on the same events: the difference a - b of a score, its interval and its p-value."""

    score: str
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    why_no_interval: str
    """Why `low` and `high` are None, else empty."""
    p_value: float
    """Two-sided: the share of permutations, which swap the models in random events, with at least this difference."""
    smallest_p: float
    """The smallest p-value that this number of events and permutations can give."""
    event_count: int
    replicates: int
    """Number of permutations: all, or random ones."""


def interval(record: RunRecord, score: str, *, level: float = 0.95) -> tuple[float, float] | None:
    """Returns the jackknife interval of a score over events: `(low, high)`.  See `bench.metrics.resampling`.

    None if there is no interval; `why_no_interval` says why.

    Args:
        record: The run.
        score: Its name, also per lead time: `csi_74`, `csi_74_lead_3`.
        level: Coverage of the interval.

    Raises:
        DataError: the statistics were changed after they were written.
    """
    return _intervals(record, [score], level)[score][0]


def intervals(record: RunRecord, scores: Sequence[str]) -> dict[str, tuple[float, float] | None]:
    """Returns `interval` of several scores by name; reads the statistics once."""
    return {score: bounds for score, (bounds, _) in _intervals(record, scores).items()}


def why_no_interval(record: RunRecord, score: str) -> str:
    """Returns why a score has no interval; an empty text if it has one.

    Raises:
        DataError: the statistics were changed after they were written.
    """
    return _intervals(record, [score])[score][1]


def too_few(record: RunRecord) -> str:
    """Returns a message if a record has too few events for intervals; else, or without statistics, an empty text."""
    if record.statistics is None or record.statistics.unit_count >= MIN_EVENTS:
        return ""
    return f"{_units(record)}, and an interval needs {MIN_EVENTS} or more"


def _units(record: RunRecord) -> str:
    assert record.statistics is not None
    return counted(record.statistics.unit_count, record.statistics.kind)


def _intervals(
    record: RunRecord, scores: Sequence[str], level: float = 0.95
) -> dict[str, tuple[tuple[float, float] | None, str]]:
    """Returns the interval of each score, or None, and why there is none."""
    if reason := too_few(record):
        return dict.fromkeys(scores, (None, reason))
    arrays = read_arrays(record)
    kept = _metrics_by_score(record, arrays)
    values: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, metric in dict(kept[score] for score in scores if score in kept).items():
        values |= {
            score: both
            for score, both in _without_each(metric, _arrays_of(arrays, name)).items()
            if kept[score][0] == name
        }
    return {score: _bounds(score, values.get(score), level) for score in scores}


def _bounds(
    score: str, values: tuple[np.ndarray, np.ndarray] | None, level: float
) -> tuple[tuple[float, float] | None, str]:
    if values is None:
        return None, "the statistics per event are missing"
    if score.endswith("_count"):
        return None, "a count is not an estimate"
    low, high = jackknife_interval(*values, level=level, scale=scale_of(score))
    if np.isfinite(low) and np.isfinite(high):
        return (float(low), float(high)), ""
    return None, "the score is undefined, or at the end of its range, as it is or without one of the events"


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

    The interval of the difference is a paired jackknife: both are scored without the same event.  The p-value is from a
    permutation test, which swaps the statistics of the two in random events.  It is valid for any number of events, but
    at least 2^(1-n) for n events.

    Args:
        record_a: One run.
        record_b: Another, on the same data with the same metric options.
        score: The name of a score, also per lead time.
        level: Coverage of the interval.
        replicates: Number of random permutations; all of them if there are no more.
        seed: Seed of the permutations.

    Raises:
        ConfigError: the runs cannot be paired; says why.
        DataError: statistics were changed after they were written.
    """
    sides = [(record, read_arrays(record)) for record in (record_a, record_b)]
    for record, arrays in sides:
        if arrays is None or record.statistics is None:
            raise ConfigError(f"record {record.run_id} has no statistics per event; evaluate it again")
    a, b = record_a.statistics, record_b.statistics
    assert a is not None and b is not None
    if not _same_events(record_a, record_b):
        raise ConfigError(
            f"records {record_a.run_id} and {record_b.run_id} are not of the same events of the same data"
        )
    name_a, metric_a = _required(record_a, score, sides[0][1])
    name_b, metric_b = _required(record_b, score, sides[1][1])
    if (name_a, metric_a) != (name_b, metric_b):
        raise ConfigError(
            f"{score}: records {record_a.run_id} and {record_b.run_id} were scored with different options: "
            f"{metric_a.options} and {metric_b.options}"
        )
    of_a, of_b = _arrays_of(sides[0][1], name_a), _arrays_of(sides[1][1], name_b)
    (value_a, without_a), (value_b, without_b) = (_without_each(metric_a, side)[score] for side in (of_a, of_b))
    difference = float(value_a - value_b)
    if not np.isfinite(difference):
        raise ConfigError(f"{score} is undefined in one of the runs: it cannot be compared")
    low, high, reason = None, None, too_few(record_a)
    if not reason:
        bounds = jackknife_interval(value_a - value_b, without_a - without_b, level=level)
        if np.isfinite(bounds).all():
            low, high = float(bounds[0]), float(bounds[1])
        else:
            reason = f"{score} is undefined without one of the events in one of the runs"
    ways = swaps(a.unit_count, replicates, np.random.default_rng(seed))
    p_value = _p_values(metric_a, [of_a], [of_b], [score], ways)[score]
    least = smallest_p(a.unit_count, replicates)
    return Comparison(
        score, float(value_a), float(value_b), difference, low, high, reason, p_value, least, a.unit_count, len(ways)
    )


def skill_interval(
    records: Sequence[RunRecord],
    reference: RunRecord,
    score: str,
    skill: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[float, float] | None:
    """Returns the interval of the skill of a model's mean score over seeds: a jackknife over the events of both.

    Both are scored without the same event, so events that are hard for both do not widen the interval. None if the runs
    cannot be paired, have too few events, or keep no statistics of the score.

    Args:
        records: The runs of the model, one per seed.
        reference: The run to beat.
        score: The name of a score, also per lead time.
        skill: Returns the skill from a score and that of the reference.

    Raises:
        DataError: statistics were changed after they were written.
    """
    sides = [*records, reference]
    if too_few(reference) or not all(_same_events(reference, record) for record in records):
        return None
    parts = []
    for record in sides:
        arrays = read_arrays(record)
        if (found := _metric_of(record, score, arrays)) is None:
            return None
        parts.append(_without_each(found[1], _arrays_of(arrays, found[0]))[score])
    *own, (its_value, its_values) = parts
    value, values = (np.mean([part[side] for part in own], axis=0) for side in (0, 1))
    low, high = jackknife_interval(skill(value, its_value), skill(values, its_values), scale=scale_of("bss"))
    return (float(low), float(high)) if np.isfinite(low) and np.isfinite(high) else None


def paired_p_values(
    records_a: Sequence[RunRecord],
    records_b: Sequence[RunRecord],
    scores: Sequence[str],
    *,
    replicates: int = REPLICATES,
    read: Callable[[RunRecord], Arrays | None] = read_arrays,
) -> dict[str, float]:
    """Returns the p-value of `compare` for each score of two models with a run per seed, for the difference of means.

    Scores for which the runs cannot be paired are left out.

    Args:
        records_a: The runs of one model.
        records_b: The runs of the other.
        scores: Names of scores.
        replicates: Number of random permutations; all of them if there are no more.
        read: Returns a record's statistics.

    Raises:
        DataError: statistics were changed after they were written.
    """
    records = [*records_a, *records_b]
    first = records[0]
    arrays = [read(record) for record in records]
    if first.statistics is None or any(own is None for own in arrays):
        return {}
    if not all(_same_events(first, record) for record in records):
        return {}
    kept = [_metrics_by_score(record, own) for record, own in zip(records, arrays, strict=True)]
    by_metric: dict[str, list[str]] = {}
    for score in scores:
        if score in kept[0] and all(one.get(score) == kept[0][score] for one in kept):
            by_metric.setdefault(kept[0][score][0], []).append(score)
    ways = swaps(first.statistics.unit_count, replicates, np.random.default_rng(0))
    p_values: dict[str, float] = {}
    for name, mine in by_metric.items():
        own = [_arrays_of(one, name) for one in arrays]
        sides = own[: len(records_a)], own[len(records_a) :]
        p_values |= _p_values(first.statistics.metrics[name], *sides, mine, ways)
    return {score: p_value for score, p_value in p_values.items() if np.isfinite(p_value)}


def has_statistics(record: RunRecord, score: str, arrays: Arrays | None) -> bool:
    """Returns whether a record was written with statistics of a score; true if their file is lost."""
    return record.statistics is not None and (arrays is None or _metric_of(record, score, arrays) is not None)


def smallest_p(count: int, replicates: int = REPLICATES) -> float:
    """Returns the smallest p-value that a permutation test of `count` events can give."""
    return min(1.0, 2 / 2**count) if 2**count <= replicates else 1 / (1 + replicates)


def _p_values(
    metric: MetricStatistics,
    a: Sequence[Mapping[str, np.ndarray]],
    b: Sequence[Mapping[str, np.ndarray]],
    scores: Sequence[str],
    ways: np.ndarray,
) -> dict[str, float]:
    """Returns p-values by score for the difference of the two sides' means over runs; NaN if it is undefined."""
    weights = np.concatenate([np.ones((1, ways.shape[1])), ways])  # the first assignment: no swaps
    kept = [[_sums(own, weights) for own in side] for side in (a, b)]
    given = [[{key: sums[0] - sums for key, sums in of_run.items()} for of_run in side] for side in kept]
    differences = dict.fromkeys(scores, np.zeros(len(weights)))
    size = dict.fromkeys(scores, 0.0)
    for i in range(len(a)):
        for j in range(len(b)):
            there = _scores(metric, {key: kept[0][i][key] + given[1][j][key] for key in a[i]})
            back = _scores(metric, {key: kept[1][j][key] + given[0][i][key] for key in a[i]})
            for score in scores:
                differences[score] = differences[score] + (there[score] - back[score]) / (len(a) * len(b))
                size[score] = max(size[score], abs(float(there[score][0])))
    found = {}
    all_ways = len(ways) == 2 ** ways.shape[1]
    for score, values in differences.items():
        observed, permuted = abs(values[0]), np.abs(values[1:])
        defined = ~np.isnan(permuted)
        # a difference equal up to round-off counts as equally large
        as_large = int((permuted[defined] >= observed * (1 - 1e-9) - 1e-13 * size[score]).sum())
        of_all = int(defined.sum())
        p_value = as_large / of_all if all_ways and of_all else (1 + as_large) / (1 + of_all)
        found[score] = p_value if np.isfinite(observed) else float("nan")
    return found


def swaps(count: int, replicates: int, draws: np.random.Generator) -> np.ndarray:
    """Returns permutations `(ways, events)`: 1 where two models keep their own statistics, 0 where they are swapped.

    These are all ways if there are no more than `replicates`; the p-value is then exact.
    """
    if 2**count <= replicates:
        return (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(np.float64)
    return draws.integers(0, 2, size=(replicates, count)).astype(np.float64)


def _same_events(one: RunRecord, other: RunRecord) -> bool:
    if one.data is None or other.data is None or one.statistics is None or other.statistics is None:
        return False
    same_data = one.data.fingerprint == other.data.fingerprint
    return same_data and one.statistics.units_sha256 == other.statistics.units_sha256


def _metric_of(record: RunRecord, score: str, arrays: Arrays | None) -> tuple[str, MetricStatistics] | None:
    return _metrics_by_score(record, arrays).get(score)


def _metrics_by_score(record: RunRecord, arrays: Arrays | None) -> dict[str, tuple[str, MetricStatistics]]:
    """Returns the metric of each score for which a record keeps statistics."""
    found: dict[str, tuple[str, MetricStatistics]] = {}
    if record.statistics is None or arrays is None:
        return found
    for name, metric in record.statistics.metrics.items():
        own = _arrays_of(arrays, name)
        of_each = own and all(len(values) == record.statistics.unit_count for values in own.values())
        if metric.family in FAMILIES and of_each:
            first = {key: values[:1] for key, values in own.items()}
            found = dict.fromkeys(_all_values(metric, first, np.ones((1, 1))), (name, metric)) | found
    return found


def _required(record: RunRecord, score: str, arrays: Arrays | None) -> tuple[str, MetricStatistics]:
    found = _metric_of(record, score, arrays)
    if found is None:
        raise ConfigError(
            f"record {record.run_id} keeps no statistics of score {score!r}. {did_you_mean(score, record.scores)}"
        )
    return found


def _arrays_of(arrays: Arrays | None, metric: str) -> dict[str, np.ndarray]:
    assert arrays is not None
    return {key.removeprefix(f"{metric}."): v for key, v in arrays.items() if key.startswith(f"{metric}.")}


def _sums(own: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Returns sums of statistics `(R, ...)` for weights `(R, events)`; sums of counts are exact in float64."""
    return {name: np.tensordot(weights, values.astype(np.float64), 1) for name, values in own.items()}


def _scores(metric: MetricStatistics, sums: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns scores `(R,)` by name for sums `(R, ...)`."""
    try:
        values = FAMILIES[metric.family](sums, metric.options)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # sums or options are not the family's
        raise DataError(f"statistics give no {metric.family} scores: {type(error).__name__}: {error}") from error
    return {with_ending(name, metric.ending): value for name, value in values.items()}


def _all_values(metric: MetricStatistics, own: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Returns scores `(R,)` by name for weights `(R, events)`."""
    return _scores(metric, _sums(own, weights))


def _without_each(metric: MetricStatistics, own: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns each score by name, over all events and without each of them, `(events,)`."""
    each = {name: values.astype(np.float64) for name, values in own.items()}
    whole = {name: values.sum(0, keepdims=True) for name, values in each.items()}
    left_out = _scores(metric, {name: whole[name] - values for name, values in each.items()})
    return {score: (value[0], left_out[score]) for score, value in _scores(metric, whole).items()}
