"""Intervals of a record's scores, where the record carries what they need."""

from __future__ import annotations

from functools import cache

from bench.errors import DataError
from bench.logs import log
from bench.records import interval as over_events
from bench.records.schema import RunRecord
from bench.records.uncertainty import why_no_interval


def interval(record: RunRecord, score: str) -> tuple[float, float] | None:
    """Returns the bounds of a score in its own units; None where there are no statistics per event, or changed ones.

    Args:
        record: The run.
        score: A key of its `scores`, or `SCORE_lead_L`.
    """
    try:
        return over_events(record, score)
    except DataError as error:  # a table renders without
        _warn_once(f"{record.run_id}: {error}")
        return None


def why_none(record: RunRecord, score: str) -> str:
    """Returns why `interval` gives none; an empty text where it gives one."""
    try:
        return why_no_interval(record, score)
    except DataError as error:
        return str(error)


@cache
def _warn_once(reason: str) -> None:
    """Warns once, however many cells ask."""
    log.warning("left out: intervals: %s", reason)
