"""Leaks between splits: events with the same id or storage location, and events whose times overlap.

A shared event makes scores optimistic.  A shared time does so only if the places are near, too, so it is reported but
not refused.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

from bench.data.report import Report
from bench.errors import counted

_SHOWN, _KEPT = 5, 20


class SplitEvents(NamedTuple):
    """The independent events of a split."""

    ids: tuple[str, ...]
    times: tuple[tuple[Any, Any], ...] | None = None
    """First and last time of each event, of any comparable type; None if the data have no times."""
    storage: tuple[Hashable, ...] | None = None
    """Storage location of each event, such as file and index; None if ids suffice."""


@dataclass(frozen=True)
class Leak:
    """The events and times that two splits share."""

    splits: tuple[str, str]
    ids: tuple[str, ...]
    overlapping: tuple[str, ...]
    """Other events of the first split that overlap in time with an event of the second."""
    stored_alike: tuple[str, ...] = ()
    """Stored events that both splits have, under different ids: `ID in the first = ID in the second`."""

    def lines(self) -> list[str]:
        """Returns what is shared, in words."""
        one, other = self.splits
        found = []
        if self.ids:
            found.append(
                f"splits {one} and {other} share {counted(len(self.ids), 'id')}: {', '.join(self.ids[:_SHOWN])}"
            )
        if self.stored_alike:
            shown = ", ".join(self.stored_alike[:_SHOWN])
            found.append(
                f"splits {one} and {other} share {len(self.stored_alike)} stored events under two ids: {shown}"
            )
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
            **({"stored_alike": list(self.stored_alike[:_KEPT])} if self.stored_alike else {}),
            "overlap_count": len(self.overlapping),
            "overlapping_in_time": list(self.overlapping[:_KEPT]),
        }


def find_leaks(splits: Mapping[str, SplitEvents]) -> list[Leak]:
    """Returns the leaks of all pairs of splits that share events or times."""
    found = []
    for one, other in combinations(splits, 2):
        a, b = splits[one], splits[other]
        shared = set(a.ids) & set(b.ids)
        alike = stored_alike(a, b)
        overlapping: list[str] = []
        if a.times is not None and b.times is not None:
            busy = _merged([time for name, time in zip(b.ids, b.times, strict=True) if name not in shared])
            overlapping = [
                name for name, time in zip(a.ids, a.times, strict=True) if name not in shared and _overlaps(time, busy)
            ]
        if shared or overlapping or alike:
            found.append(Leak((one, other), tuple(sorted(shared)), tuple(sorted(overlapping)), alike))
    return found


def stored_alike(one: SplitEvents, other: SplitEvents) -> tuple[str, ...]:
    """Returns the stored events that two splits have under different ids, as `ID = OTHER ID`."""
    if one.storage is None or other.storage is None:
        return ()
    names = dict(zip(other.storage, other.ids, strict=True))
    pairs = zip(one.ids, one.storage, strict=True)
    return tuple(sorted(f"{name} = {names[at]}" for name, at in pairs if at in names and names[at] != name))


def add_leaks(report: Report, leaks: Sequence[Leak], *, by_design: frozenset[frozenset[str]]) -> None:
    """Adds leaks to a report: shared events are a problem, unless the user asked for such a split."""
    report.facts["leaks"] = [leak.facts() for leak in leaks]
    for leak in leaks:
        wrong = frozenset(leak.splits) not in by_design
        for line in leak.lines():
            (report.problems if wrong and line.startswith("splits ") else report.remarks).append(line)
    if not leaks:
        report.lines.append("  no ids or times are shared between splits")


def _merged(times: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Returns the union of intervals as disjoint intervals in order."""
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
