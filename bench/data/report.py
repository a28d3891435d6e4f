"""Findings about data, independent of their format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Advance = Callable[[int, int], None]
"""Called with `(done, total)` as events or records are read."""


@dataclass
class Report:
    """Facts, the same facts in words, remarks (allowed, but worth knowing) and problems."""

    facts: dict[str, Any] = field(default_factory=dict)
    """JSON types; `events` is the number of independent events, `splits` has `events` and `sequences` of each split."""
    lines: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unit: str = "event"
    """What `events` counts, in a word."""

    def add_split_lines(self) -> None:
        """Adds a line for each split of the facts."""
        for split, count in self.facts["splits"].items():
            self.lines.append(f"  {split:<5} {count['events']:>7} events {count['sequences']:>7} sequences")
