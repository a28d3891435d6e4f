"""The dates that cut SEVIR into train, validation and test; a module of its own, for listings import it.

Source: Gao et al. 2022, Earthformer: `(-inf, 2019-01-01]`, `(2019-01-01, 2019-06-01]`, `(2019-06-01, inf)`, by the time
of an event's centre.
"""

from __future__ import annotations

from datetime import datetime

from bench.api import Split

VAL_FROM = datetime(2019, 1, 1)
TEST_FROM = datetime(2019, 6, 1)


def split_dates(val_from: datetime, test_from: datetime) -> dict[Split, tuple[datetime | None, datetime | None]]:
    """Returns per split the dates that an event's centre is after, and up to and including."""
    return {"train": (None, val_from), "val": (val_from, test_from), "test": (test_from, None), "all": (None, None)}
