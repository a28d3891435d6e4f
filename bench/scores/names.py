"""How the name of a score is put together."""

from __future__ import annotations

import re

PER_LEAD = re.compile(r"^(?P<score>.+)_lead_(?P<lead>\d+)$")
MEMBERS = "_members"
"""Ends the name of a deterministic score that was counted over all members, each as a forecast of its own."""


def with_ending(name: str, ending: str) -> str:
    """Returns a score's name with an ending, which stands before `_lead_L`."""
    match = PER_LEAD.match(name) if ending else None
    return f"{match['score']}{ending}_lead_{match['lead']}" if match else f"{name}{ending}"
