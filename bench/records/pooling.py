"""Scores pooled over several records, e.g. the folds of a cross-validation: from sums, never as means of scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.config import fingerprint
from bench.errors import ConfigError
from bench.records.rescoring import scores_of
from bench.records.schema import MetricStatistics, RunRecord, split_scores
from bench.records.statistics import Arrays, content_sha256, read_arrays


@dataclass(frozen=True)
class Pooled:
    """The pooled scores of several records."""

    scores: dict[str, float]
    """By name, those per lead time as `NAME_lead_L`; of the metrics that keep statistics per event."""
    arrays: Arrays
    """The statistics of all events, `METRIC.NAME` by event, those of the first record first."""
    metrics: dict[str, MetricStatistics]
    unit_count: int
    """Events of all records."""


def pooled(records: Sequence[RunRecord]) -> Pooled:
    """Returns the scores that a single evaluation on the data of all records would have given.

    Args:
        records: Records of one task with the same metrics, each on different events, in order.

    Raises:
        ConfigError: a record keeps no statistics, or has other metrics.
        DataError: statistics were changed after they were written.
    """
    kept = [read_arrays(record) for record in records]
    parts = [record.statistics for record in records]
    for record, arrays, part in zip(records, kept, parts, strict=True):
        if arrays is None or part is None:
            raise ConfigError(f"record {record.run_id} has no statistics per event; evaluate it again")
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


def as_one_record(records: Sequence[RunRecord]) -> RunRecord:
    """Returns a record with the pooled scores of several, as a single evaluation on all of their data would have made.

    Its id is that of the first record plus the number of the others; fields that cannot be pooled, such as counts and
    curves, are empty. It is for tables only, and is never written.

    Args:
        records: Records of one model, task and seed, each on different events, in order.

    Raises:
        ConfigError: a record keeps no statistics, or has other metrics.
        DataError: statistics were changed after they were written.
    """
    together, first = pooled(records), records[0]
    overall, per_lead, undefined = split_scores(together.scores)
    assert first.statistics is not None and first.data is not None
    data = [record.data for record in records if record.data is not None]
    trainings = [record.training for record in records if record.training is not None]
    changes: dict[str, Any] = {
        "run_id": f"{first.run_id}-and-{len(records) - 1}-more",
        "task": first.task.model_copy(
            update={"fields": {key: value for key, value in first.task.fields.items() if key != "fold"}}
        ),
        "scores": overall, "scores_per_lead": per_lead, "undefined": undefined, "counts": None, "curves": {},
        "data": first.data.model_copy(
            update={
                "fingerprint": fingerprint([part.fingerprint for part in data]),
                "sequence_count": sum(part.sequence_count for part in data),
                "sequence_count_available": sum(part.sequence_count_available for part in data),
            }
        ),
        "statistics": first.statistics.model_copy(
            update={
                "unit_count": together.unit_count,
                "units_sha256": fingerprint([r.statistics.units_sha256 for r in records if r.statistics is not None]),
                "content_sha256": content_sha256(together.arrays),
            }
        ),
    }  # fmt: skip
    if trainings:
        changes["training"] = trainings[0].model_copy(
            update={key: _sum(getattr(one, key) for one in trainings) for key in ("cpu_s", "device_s", "wall_s")}
        )
        changes["time"] = first.time.model_copy(update={"training_s": changes["training"].wall_s})
    return first.model_copy(update=changes).with_arrays(together.arrays)


def _sum(seconds: Iterable[float | None]) -> float | None:
    """Returns the sum over the records; None if a value is unknown."""
    known = list(seconds)
    return None if None in known else sum(s for s in known if s is not None)
