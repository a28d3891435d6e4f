"""Bootstrap intervals of a record's scores, where the record carries what they need."""

from __future__ import annotations

from bench.records.schema import RunRecord


def interval(record: RunRecord, score: str) -> tuple[float, float] | None:
    """Returns the bounds of a score in its own units, or None: records carry no per-event statistics yet.

    Args:
        record: The run.
        score: A key of its `scores`.
    """
    return None
