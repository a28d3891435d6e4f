"""Bootstrap intervals of a record's scores, where the record carries what they need."""

from __future__ import annotations

from bench.errors import DataError
from bench.records import interval as resampled
from bench.records.schema import RunRecord


def interval(record: RunRecord, score: str) -> tuple[float, float] | None:
    """Returns the bounds of a score in its own units; None where there are no statistics per event, or changed ones.

    Args:
        record: The run.
        score: A key of its `scores`, or `SCORE_lead_L`.
    """
    try:
        return resampled(record, score)
    except DataError:  # `earthbench verify` names it; a table renders without
        return None
