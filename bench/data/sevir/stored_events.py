"""Whether the files of a tree hold the events of its catalogue, as the catalogue describes them."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

import numpy as np

from bench.data.sevir.catalogue import MISSING, Event
from bench.data.sevir.files import FileHeader, FileInUseError, other_order, read_header
from bench.errors import DataError

_SHOWN = 8


def first_header(root: Path, events: list[Event]) -> FileHeader | None:
    """Returns the header of the first existing event file, or None if there are no events.

    A tree may have the files of one split only, so the first existing file determines the frame size.

    Raises:
        DataError: none of the files can be read; the message is that of the first.
    """
    first_error: DataError | None = None
    firsts: dict[str, Event] = {}
    for event in events:
        firsts.setdefault(event.file_name, event)
    for name, event in firsts.items():
        try:
            header = read_header(root / "data" / name)
            if wrong := _wrong_axes(header, event):
                raise DataError(wrong)
            return header
        except FileInUseError:
            raise
        except DataError as error:
            first_error = first_error or error
    if first_error:
        raise first_error
    return None


def read_headers(root: Path, events: list[Event]) -> tuple[dict[str, FileHeader], list[str]]:
    """Returns the headers of the events' files, and every disagreement between them and the events."""
    headers: dict[str, FileHeader] = {}
    problems: list[str] = []
    users: dict[str, list[Event]] = {}
    for event in events:
        users.setdefault(event.file_name, []).append(event)
    for name, wanted in sorted(users.items()):
        try:
            header = headers[name] = read_header(root / "data" / name)
        except FileInUseError:
            raise
        except DataError as error:
            problems.append(f"{error} (wanted by {len(wanted)} events, first {wanted[0].id})")
            continue
        problems += disagreements(header, wanted)
    sizes = {(h.height, h.width, h.frames) for h in headers.values()}
    if len(sizes) > 1:
        listing = ", ".join(f"{h.path.name}: {h.height}x{h.width}x{h.frames}" for h in headers.values())
        problems.append(f"files disagree about H x W x T: {listing}")
    return headers, problems


def readable_events(headers: dict[str, FileHeader], events: list[Event]) -> list[Event]:
    """Returns the events that their files have, with the most frequent frame size and number.

    Args:
        headers: Headers of the readable files by name, from `read_headers`.
        events: Events of the catalogue.
    """
    held = [event for event in events if event.file_name in headers]
    held = [event for event in held if not disagreements(headers[event.file_name], [event])]
    sizes = Counter((header.height, header.width, header.frames) for header in (headers[e.file_name] for e in held))
    usual = max(sizes, key=sizes.__getitem__, default=None)
    return [e for e in held if (h := headers[e.file_name]) and (h.height, h.width, h.frames) == usual]


def disagreements(header: FileHeader, wanted: list[Event]) -> list[str]:
    """Returns the events for which a file and the catalogue disagree."""
    problems = []
    unwritten = []
    for event in wanted:
        if event.file_index >= header.event_count:
            problems.append(
                f"{header.path}: event {event.id} has file_index {event.file_index}, "
                f"but the file has {header.event_count} events"
            )
        elif header.ids is not None and header.ids[event.file_index] != event.id:
            problems.append(
                f"{header.path}: index {event.file_index} holds {header.ids[event.file_index]!r}, "
                f"the catalogue says {event.id!r}"
            )
        elif not header.is_written(event.file_index):
            unwritten.append(event)
    if unwritten:
        listing = ", ".join(f"{event.id} at index {event.file_index}" for event in unwritten[:_SHOWN])
        more = f" and {len(unwritten) - _SHOWN} more" if len(unwritten) > _SHOWN else ""
        problems.append(
            f"{header.path}: dataset 'vil' declares events that were never, or not wholly, written: {listing}{more}"
        )
    problems += dict.fromkeys(wrong for event in wanted if (wrong := _wrong_axes(header, event)))
    return problems


def _wrong_axes(header: FileHeader, event: Event) -> str | None:
    shape = header.height, header.width, header.frames
    order = other_order(shape, event.size, event.frames)
    if order is None:
        return None
    size = "x".join(map(str, event.size)) if event.size else "no size"
    said = f"{size} and {event.frames or 'no'} minute_offsets"
    axes = {"(N, T, H, W)": "0, 2, 3, 1", "(N, H, T, W)": "0, 1, 3, 2"}[order]
    return (
        f"{header.path}: an event of 'vil' has shape {shape}; its axes seem to lie as {order} (the catalogue says "
        f"{said}), expected (N, H, W, T). Store array.transpose({axes}), or mend size_x, size_y and minute_offsets"
    )


def check_vil(codes: np.ndarray, event: Event) -> str | None:
    """Returns what is implausible about an event's codes, or None.

    Values outside 0..255 cannot occur, because arrays of other types than uint8 are refused with the file's header.

    Args:
        codes: All or some of an event's codes, uint8 of any shape.
        event: The event in the catalogue.
    """
    missing = int(np.count_nonzero(codes == MISSING))
    if missing and event.pct_missing == 0:
        return f"event {event.id} has {missing} missing pixels (255), but the catalogue says pct_missing = 0"
    value = int(codes.flat[0])
    differs = not math.isnan(event.data_max) and event.data_max != value != MISSING
    if differs and (codes == value).all():
        return (
            f"event {event.id} at index {event.file_index} is {value} throughout, but the catalogue says "
            f"data_max = {event.data_max:g}: it may never have been written"
        )
    return None


def storage_of(root: Path, events: list[Event]) -> tuple[tuple[str, int], ...]:
    """Returns file and index of every event; links to one file are that file."""
    places = {name: _real(root / "data" / name) for name in {event.file_name for event in events}}
    return tuple((places[event.file_name], event.file_index) for event in events)


def _real(path: Path) -> str:
    return os.path.realpath(path) if isinstance(path, Path) else str(path)
