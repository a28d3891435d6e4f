"""Scores over several records together, such as the folds of a cross-validation: from sums, never means of scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.errors import ConfigError
from bench.records.rescoring import scores_of
from bench.records.schema import MetricStatistics, RunRecord
from bench.records.statistics import Arrays, read_arrays


@dataclass(frozen=True)
class Pooled:
    """What several records say together."""

    scores: dict[str, float]
    """By name, those per lead time as `NAME_lead_L`; of the metrics that keep statistics per event."""
    arrays: Arrays
    """The statistics of all events, `METRIC.NAME` by event, those of the first record first."""
    metrics: dict[str, MetricStatistics]
    unit_count: int
    """Events of all records."""


def pooled(records: Sequence[RunRecord]) -> Pooled:
    """Returns the scores that one evaluation on the data of all records would have given.

    Args:
        records: Of one task and the same metrics, each on other events, in order.

    Raises:
        ConfigError: a record keeps no statistics, or has other metrics.
        DataError: statistics were changed after they were written.
    """
    kept = [read_arrays(record) for record in records]
    parts = [record.statistics for record in records]
    for record, arrays, part in zip(records, kept, parts, strict=True):
        if arrays is None or part is None:
            raise ConfigError(f"record {record.run_id} has no statistics per event at hand; evaluate it again")
        if parts[0] is None or part.metrics != parts[0].metrics:
            raise ConfigError(
                f"records {records[0].run_id} and {record.run_id} were scored by other metrics: expected the same"
            )
    if not records or parts[0] is None:
        raise ConfigError("expected records to pool, found none")
    together = {key: np.concatenate([of_one[key] for of_one in kept if of_one is not None]) for key in kept[0] or {}}
    scores: dict[str, float] = {}
    for name in parts[0].metrics:
        scores |= scores_of(parts[0], name, together)[0]
    return Pooled(scores, together, parts[0].metrics, sum(part.unit_count for part in parts if part is not None))
