"""Bootstrap intervals of a record's scores, where the record carries what they need."""

from __future__ import annotations

import logging
from functools import cache

from bench.errors import DataError
from bench.records import interval as resampled
from bench.records.schema import RunRecord

# What a family's formulas end in where a record names other sums or options than the family has.
_NOT_OF_ITS_FAMILY = (ArithmeticError, LookupError, TypeError, ValueError)


def interval(record: RunRecord, score: str) -> tuple[float, float] | None:
    """Returns the bounds of a score in its own units; None where there are no statistics per event, or changed ones.

    Args:
        record: The run.
        score: A key of its `scores`, or `SCORE_lead_L`.
    """
    try:
        return resampled(record, score)
    except (DataError, *_NOT_OF_ITS_FAMILY) as error:  # a table renders without
        _warn_once(str(error) if isinstance(error, DataError) else f"{record.run_id}: {type(error).__name__}: {error}")
        return None


@cache
def _warn_once(reason: str) -> None:
    """Warns once, however many cells ask."""
    logging.getLogger(__name__).warning("left out: intervals: %s", reason)
