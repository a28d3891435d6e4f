"""Times between frames as people say them."""

from __future__ import annotations

from bench.api import MONTH_MINUTES


def duration(minutes: float, *, sign: bool = False) -> str:
    """Returns e.g. `5 min` or `1 month`, with `sign` `+30 min` or `-11 months`; months where they are whole."""
    months = minutes / MONTH_MINUTES
    whole = round(months)
    if whole and abs(months - whole) < 1e-6:
        number, unit = whole, "month" if abs(whole) == 1 else "months"
        return f"{number:+d} {unit}" if sign else f"{number} {unit}"
    return f"{minutes:+g} min" if sign and minutes else f"{minutes:g} min"
