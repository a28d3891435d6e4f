"""What two splits share: events by id, and events whose times overlap.

A shared event makes scores optimistic.  A shared time does so only where the places are near, too: it is said, not
refused.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from bench.data.report import Report

_SHOWN, _KEPT = 5, 20


class SplitEvents(NamedTuple):
    """The independent events of a split."""

    ids: tuple[str, ...]
    times: tuple[tuple[Any, Any], ...] | None = None
    """First and last time of each event, of any type that can be compared; None where the data have no times."""


@dataclass(frozen=True)
class Leak:
    """What two splits share."""

    splits: tuple[str, str]
    ids: tuple[str, ...]
    overlapping: tuple[str, ...]
    """Other events of the first split during which one of the second goes on."""

    def lines(self) -> list[str]:
        """Returns what is shared, in words."""
        one, other = self.splits
        found = []
        if self.ids:
            found.append(f"splits {one} and {other} share {len(self.ids)} ids: {', '.join(self.ids[:_SHOWN])}")
        if self.overlapping:
            shown = ", ".join(self.overlapping[:_SHOWN])
            found.append(f"{len(self.overlapping)} events of {one} overlap in time with events of {other}: {shown}")
        return found

    def facts(self) -> dict[str, Any]:
        """Returns the same as plain JSON types: how many, and the first of them."""
        return {
            "splits": list(self.splits),
            "id_count": len(self.ids),
            "ids": list(self.ids[:_KEPT]),
            "overlap_count": len(self.overlapping),
            "overlapping_in_time": list(self.overlapping[:_KEPT]),
        }


def find_leaks(splits: Mapping[str, SplitEvents]) -> list[Leak]:
    """Returns the pairs of splits that share events or times, without those that share nothing."""
    found = []
    for one, other in combinations(splits, 2):
        a, b = splits[one], splits[other]
        shared = set(a.ids) & set(b.ids)
        overlapping: list[str] = []
        if a.times is not None and b.times is not None:
            busy = _merged([time for name, time in zip(b.ids, b.times, strict=True) if name not in shared])
            overlapping = [
                name for name, time in zip(a.ids, a.times, strict=True) if name not in shared and _overlaps(time, busy)
            ]
        if shared or overlapping:
            found.append(Leak((one, other), tuple(sorted(shared)), tuple(sorted(overlapping))))
    return found


def add_leaks(report: Report, leaks: Sequence[Leak], *, by_design: frozenset[frozenset[str]]) -> None:
    """Adds to a report what splits share: shared ids are a problem, unless the user asked for such a split."""
    report.facts["leaks"] = [leak.facts() for leak in leaks]
    for leak in leaks:
        wrong = bool(leak.ids) and frozenset(leak.splits) not in by_design
        for number, line in enumerate(leak.lines()):
            (report.problems if wrong and number == 0 else report.remarks).append(line)
    if not leaks:
        report.lines.append("  no ids or times are shared between splits")


def _merged(times: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Returns the stretches in which something goes on, in order, none touching another."""
    merged: list[tuple[Any, Any]] = []
    for first, last in sorted(times):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def _overlaps(time: tuple[Any, Any], busy: Sequence[tuple[Any, Any]]) -> bool:
    at = bisect_left(busy, time[0], key=lambda stretch: stretch[1])  # the first that does not end before
    return at < len(busy) and busy[at][0] <= time[1]
