"""Intervals of a record's scores, if the record has the statistics."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from bench.errors import DataError
from bench.logs import log
from bench.records.schema import RunRecord
from bench.records.uncertainty import intervals as over_events
from bench.records.uncertainty import why_no_interval


def intervals(record: RunRecord, scores: Sequence[str]) -> dict[str, tuple[float, float] | None]:
    """Returns the bounds of scores in their own units; None if statistics per event are missing or were changed.

    Args:
        record: The run.
        scores: Keys of its `scores`, or `SCORE_lead_L`.
    """
    try:
        return over_events(record, scores)
    except DataError as error:  # a table renders without them
        _warn_once(f"{record.run_id}: {error}")
        return dict.fromkeys(scores)


def of_single_runs(records: Sequence[RunRecord], scores: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Returns the bounds of the scores that one of some runs alone has."""
    alone: dict[str, list[str]] = {}
    for score in scores:
        having = [record.run_id for record in records if record.scores.get(score) is not None]
        if len(having) == 1:
            alone.setdefault(having[0], []).append(score)
    found = [intervals(record, alone[record.run_id]) for record in records if record.run_id in alone]
    return {score: bounds for one in found for score, bounds in one.items() if bounds is not None}


def missing_interval_reason(record: RunRecord, score: str) -> str:
    """Returns why `intervals` gives none; an empty text if it gives one."""
    try:
        return why_no_interval(record, score)
    except DataError as error:
        return str(error)


@cache
def _warn_once(reason: str) -> None:
    """Warns once, however many cells ask."""
    log.warning("left out: intervals: %s", reason)
