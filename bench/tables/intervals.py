"""Bootstrap intervals of a record's scores, where the record carries what they need."""

from __future__ import annotations

import bench.records
from bench.records.schema import RunRecord


def interval(record: RunRecord, score: str) -> tuple[float, float] | None:
    """Returns the bounds of a score in its own units, or None where there are no statistics per event.

    Args:
        record: The run.
        score: A key of its `scores`, or `SCORE_lead_L`.
    """
    given = getattr(bench.records, "interval", None)  # records gained statistics after the tables were made
    return given(record, score) if given is not None else None
