"""Times of a catalogue: ISO 8601, or day and month in an order that the whole column determines.

A spreadsheet that saves `2019-06-02` as `02/06/2019` moves events into another split if that is read as 6 February.
"""

from __future__ import annotations

import pandas as pd

from bench.errors import one_message

_EARLIEST, _LATEST = 1900, 2099
_ISO = r"\d{4}([-/.])\d{1,2}\1\d{1,2}(?!\d)|\d{8}(?!\d)"
_YEAR_LAST = r"^(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(?!\d)(.*)$"
_CURE = "write ISO 8601, as in 2019-06-02 03:00:00"


class AmbiguousTimesError(ValueError):
    """Day and month are ambiguous; the message has the rows and both readings."""


def parse_times(texts: pd.Series) -> pd.Series:
    """Returns the times of a column, UTC without a zone; NaT for a text that is not a time.

    Args:
        texts: ISO 8601, with UTC for times without an offset; or all rows with the year last, if only one of day-first
            and month-first gives a date in every row.

    Raises:
        AmbiguousTimesError: both orders of day and month, or neither, give a date in every row.
    """
    times = _iso(texts)
    if times.notna().all():  # as in every published catalogue
        return times
    tidy = texts.str.strip().str.replace(r"\s+", " ", regex=True).str.replace(r" ?(?:UTC|GMT)$", "Z", regex=True)
    year_last = tidy.str.extract(_YEAR_LAST)
    is_year_last = year_last[0].notna()
    if is_year_last.any() and not tidy.str.match(_ISO, na=False).any():
        return _year_last(texts, year_last, is_year_last)
    return _iso(tidy)


def as_iso(texts: pd.Series) -> pd.Series:
    """Returns a column in ISO 8601, unchanged if it is so already, because a subset of its rows may be ambiguous.

    Args:
        texts: As for `parse_times`, all of them times.
    """
    if _iso(texts).notna().all():
        return texts
    return parse_times(texts).dt.strftime("%Y-%m-%d %H:%M:%S")


def _iso(texts: pd.Series) -> pd.Series:
    dated = texts.where(texts.str.match(_ISO, na=False))  # pandas takes "now" and a year alone, too
    times = pd.to_datetime(dated, errors="coerce", format="ISO8601", utc=True).dt.tz_localize(None)
    return times.where(times.dt.year.between(_EARLIEST, _LATEST))


def _year_last(texts: pd.Series, parts: pd.DataFrame, found: pd.Series) -> pd.Series:
    first, second, year, rest = parts[0], parts[2], parts[3], parts[4]
    month_first = _iso(year + "-" + first + "-" + second + rest)
    day_first = _iso(year + "-" + second + "-" + first + rest)
    readable = month_first.notna() | day_first.notna()
    orders = [times for times in (day_first, month_first) if times[readable].notna().all()]
    if len(orders) == 1 or (orders and orders[0].equals(orders[1])):
        return orders[0]
    shown = _examples(texts, day_first, month_first, both=bool(orders))
    why = "nothing in the column tells which" if orders else "the column has both orders of day and month"
    raise AmbiguousTimesError(one_message(f"time_utc: {why}; {_CURE}:", shown))


def _examples(texts: pd.Series, day_first: pd.Series, month_first: pd.Series, *, both: bool) -> list[str]:
    def said(row: int) -> str:
        readings = [times.iloc[row] for times in (day_first, month_first)]
        return " or ".join(f"{time.day} {time:%B %Y}" for time in readings if not pd.isna(time))

    if both:
        masks = [day_first.notna() & month_first.notna() & (day_first != month_first)]
    else:
        masks = [day_first.notna() & month_first.isna(), month_first.notna() & day_first.isna()]
    rows = [row for mask in masks for row in [at for at, wrong in enumerate(mask) if wrong][:3]]
    return [f"line {row + 2}: {texts.iloc[row]!r} is {said(row)}" for row in rows]
