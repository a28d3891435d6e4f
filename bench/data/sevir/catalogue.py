"""SEVIR's catalogue: the events of a split, in the authors' order, and whether their files have them.

Source: Veillette et al. 2020 (SEVIR); the selection rules are those of the Earthformer release's loader, kept with
their consequences: a duplicated id loses all its copies, and ids are sorted as text ('S10' before 'S9').
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TypedDict, Unpack

import numpy as np
import pandas as pd

from bench.data.sevir.files import FileHeader, FileInUseError, other_order, read_header
from bench.data.sevir.times import AmbiguousTimesError, parse_times
from bench.data.transfer.paths import as_os_errors
from bench.errors import DataError, one_message

COLUMNS = (
    "id", "file_name", "file_index", "img_type", "time_utc", "minute_offsets", "episode_id", "event_id",
    "event_type", "llcrnrlat", "llcrnrlon", "urcrnrlat", "urcrnrlon", "proj", "size_x", "size_y", "height_m",
    "width_m", "data_min", "data_max", "pct_missing",
)  # fmt: skip
_OPTIONAL = ("minute_offsets", "size_y", "size_x", "data_max")
_MOST_INDEX = 2**31
_SHOWN = 8
MISSING = 255
"""The code of a missing pixel."""
REQUIRED = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing")


@dataclass(frozen=True)
class Event:
    """One storm event of one sensor: the location of its frames, and its centre time."""

    id: str
    file_name: str
    file_index: int
    time: datetime
    minutes: tuple[float, float] = (0.0, 0.0)
    """Offsets of the first and last frame from `time`; zero if the catalogue lacks them."""
    frames: int | None = None
    """Number of `minute_offsets`; None if there are none."""
    size: tuple[int, int] | None = None
    """Height and width in pixels (`size_y`, `size_x`); None if the catalogue lacks them."""
    data_max: float = math.nan
    """The largest value; NaN if the catalogue lacks it."""
    pct_missing: float = math.nan

    @property
    def span(self) -> tuple[datetime, datetime]:
        """Returns the times of the first and the last frame."""
        first, last = self.minutes
        return self.time + timedelta(minutes=first), self.time + timedelta(minutes=last)


class Part(TypedDict, total=False):
    """The conditions that select the events of a split; missing keys do not restrict them."""

    start: datetime | None
    """Exclusive lower bound of the event's centre time."""
    end: datetime | None
    """Inclusive upper bound."""
    folder: str
    """First folder of the event's file, below `data/`."""
    days: Collection[date]
    """Days that the event's centre may be on."""


def read_catalogue(root: Path) -> pd.DataFrame:
    """Returns the rows of `ROOT/CATALOG.csv` with parsed times and indices.

    Raises:
        DataError: the folder or file is missing, lacks columns, or has rows that cannot be read (all are listed).
    """
    path = root / "CATALOG.csv"
    if isinstance(root, Path) and not root.is_dir():
        raise DataError(
            f"data root {str(root)!r} is not a folder. Set data.root to a folder with CATALOG.csv and data/, "
            "or make one: earthbench data make sevir --out DIR"
        )
    try:
        with as_os_errors(path), path.open("rb") as file:
            table = pd.read_csv(file, dtype=str, encoding="utf-8-sig", skipinitialspace=True, keep_default_na=True)
    except FileNotFoundError as error:
        expected = "expected SEVIR's layout, CATALOG.csv beside data/<img_type>/<year>/*.h5"
        beside = (*sorted(root.iterdir()), root.parent) if isinstance(root, Path) else ()
        near = next((one for one in beside if (one / path.name).is_file()), None)
        meant = f". Did you mean {near}?" if near else ""
        raise DataError(f"{path} is missing: {expected}{meant}") from error
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors, as is a wrong encoding
        raise DataError(f"{path} is not a readable CSV file: {error}") from error
    absent = [column for column in REQUIRED if column not in table.columns]
    if absent:
        raise DataError(f"{path}: missing columns {', '.join(absent)}; found {', '.join(map(str, table.columns))}")

    problems = []
    try:
        times = parse_times(table["time_utc"])
    except AmbiguousTimesError as error:
        raise DataError(f"{path}: {error}") from error
    indices = pd.to_numeric(table["file_index"], errors="coerce")
    missing_percent = pd.to_numeric(table["pct_missing"], errors="coerce")
    checks = {
        "id is empty": table["id"].isna(),
        "file_name is empty": table["file_name"].isna(),
        "time_utc is not a time; expected ISO 8601, as in 2019-06-02 03:00:00": times.isna(),
        "file_index is not a whole number >= 0": ~(indices.between(0, _MOST_INDEX) & (indices % 1 == 0)),
        "file_name leaves the data folder": ~table["file_name"].fillna("").map(_stays_inside),
        "pct_missing is not a number": missing_percent.isna() & table["pct_missing"].notna(),
    }
    for what, wrong in checks.items():
        column = what.split()[0]
        for row in np.flatnonzero(wrong.to_numpy()):
            value = table[column].iloc[row]
            found = "" if pd.isna(value) else f", found {value!r}"
            problems.append(f"line {row + 2}: {what}{found} ({table['id'].iloc[row]})")
    if problems:
        raise DataError(one_message(f"{path} has {len(problems)} unreadable rows:", problems))
    return table.assign(time_utc=times, file_index=indices.astype("int64"), pct_missing=missing_percent)


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def select_events(
    catalogue: pd.DataFrame, *, img_type: str = "vil", admit_missing: bool = False, **part: Unpack[Part]
) -> list[Event]:
    """Returns the events of one sensor in a split, sorted by id as text.

    Args:
        catalogue: Rows from `read_catalogue`.
        img_type: The sensor.
        admit_missing: Keep events with missing pixels; by default only those whose `pct_missing` is exactly 0.
        **part: The split; all events without it.
    """
    rows = catalogue
    for _, kept in _filters(rows, img_type, part, admit_missing):
        rows = kept
    columns = {name: rows[name] if name in rows.columns else [math.nan] * len(rows) for name in _OPTIONAL}
    numbers = [pd.to_numeric(pd.Series(columns[name]), errors="coerce") for name in _OPTIONAL[1:]]
    records = zip(
        rows["id"], rows["file_name"], rows["file_index"], rows["time_utc"], rows["pct_missing"],
        columns["minute_offsets"], *numbers, strict=True,
    )  # fmt: skip
    events = [
        Event(
            str(i), str(name), int(index), time.to_pydatetime(), *_frames(offsets), _size(height, width),
            float(largest), float(missing),
        )
        for i, name, index, time, missing, offsets, height, width, largest in records
    ]  # fmt: skip
    return sorted(events, key=lambda event: event.id)


def why_no_events(
    catalogue: pd.DataFrame, *, img_type: str = "vil", admit_missing: bool = False, **part: Unpack[Part]
) -> str | None:
    """Returns which filter of `select_events` removes the last rows of a catalogue; None if rows are left.

    Args:
        catalogue: Rows from `read_catalogue`.
        img_type: The sensor.
        admit_missing: Keep events with missing pixels.
        **part: The split.
    """
    before = len(catalogue)
    if not before:
        return "the catalogue has no rows"
    for condition, rows in _filters(catalogue, img_type, part, admit_missing):
        if not len(rows):
            return f"none of {before} rows has {condition}"
        before = len(rows)
    return None


def _filters(rows: pd.DataFrame, img_type: str, part: Part, admit_missing: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields each condition in words, and the rows left by it and the conditions before.

    The authors' order differs, with the same result: only duplicates, the last, depend on the other conditions.
    """
    found = ", ".join(map(str, rows["img_type"].value_counts().index[:5]))
    rows = rows[rows["img_type"] == img_type]
    yield f"img_type {img_type!r} (found: {found or 'no img_type at all'})", rows
    if (start := part.get("start")) is not None:
        rows = rows[rows["time_utc"] > start]
        yield f"a time_utc after {start}", rows
    if (end := part.get("end")) is not None:
        rows = rows[rows["time_utc"] <= end]
        yield f"a time_utc up to {end}", rows
    if (days := part.get("days")) is not None:
        rows = rows[rows["time_utc"].dt.date.isin(days)]
        yield f"a time_utc on one of {len(days)} days from {min(days)} to {max(days)}", rows
    if (folder := part.get("folder")) is not None:
        rows = rows[rows["file_name"].str.startswith(f"{folder}/")]
        yield f"a file_name below {folder}/", rows
    if not admit_missing:
        known = rows["pct_missing"].notna().sum()
        rows = rows[rows["pct_missing"] == 0]
        yield f"pct_missing 0 ({known} have a number there; task.admit_missing=true keeps all)", rows
    rows = rows[~rows["id"].duplicated(keep=False)]
    yield "an id that no other row has", rows


def _frames(offsets: object) -> tuple[tuple[float, float], int | None]:
    """Returns first and last minute, and the number of frames."""
    text = str(offsets)
    try:
        first, last = float(text.partition(":")[0]), float(text.rpartition(":")[2])
    except ValueError:
        return (0.0, 0.0), None
    # false for nan, an empty cell
    return ((first, last), text.count(":") + 1) if first <= last else ((0.0, 0.0), None)


def _size(height: float, width: float) -> tuple[int, int] | None:
    return (int(height), int(width)) if 0 < height < math.inf and 0 < width < math.inf else None


def duplicated_ids(catalogue: pd.DataFrame, img_type: str = "vil") -> list[str]:
    """Returns the ids of more than one row of a sensor: their events are left out of every split that has both."""
    ids = catalogue.loc[catalogue["img_type"] == img_type, "id"]
    return sorted(set(ids[ids.duplicated(keep=False)]))


def cadence_minutes(catalogue: pd.DataFrame, frames: int | None = None) -> float | None:
    """Returns the most frequent step of `minute_offsets`, in minutes, or None if the column is absent or empty.

    Args:
        catalogue: Rows from `read_catalogue`.
        frames: Frames per event in the files.  The authors' SEVIR-LR has the unchanged catalogue of SEVIR: its 49
            offsets then belong to 25 frames, since every second frame was kept.
    """
    if "minute_offsets" not in catalogue.columns:
        return None
    for offsets in catalogue["minute_offsets"].dropna().head(50):
        minutes = [float(part) for part in str(offsets).split(":") if part]
        if frames and frames > 1 and len(minutes) != frames and (len(minutes) - 1) % (frames - 1) == 0:
            minutes = minutes[:: (len(minutes) - 1) // (frames - 1)]
        steps = np.diff(minutes)
        if len(steps):
            values, counts = np.unique(steps, return_counts=True)
            return float(values[counts.argmax()])
    return None


def pixel_kilometres(catalogue: pd.DataFrame) -> float | None:
    """Returns the median width of a pixel in km (`width_m` / `size_x`), or None if the columns are absent or empty.

    Args:
        catalogue: Rows from `read_catalogue`.
    """
    if not {"width_m", "size_x"} <= set(catalogue.columns):
        return None
    metres, pixels = (pd.to_numeric(catalogue[name], errors="coerce") for name in ("width_m", "size_x"))
    widths = (metres / pixels / 1000)[(metres > 0) & (pixels > 0)]
    return float(widths.median()) if len(widths) else None


def first_header(root: Path, events: list[Event], img_type: str = "vil") -> FileHeader | None:
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
            header = read_header(root / "data" / name, img_type)
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


def read_headers(root: Path, events: list[Event], img_type: str = "vil") -> tuple[dict[str, FileHeader], list[str]]:
    """Returns the headers of the events' files, and every disagreement between them and the events."""
    headers: dict[str, FileHeader] = {}
    problems: list[str] = []
    users: dict[str, list[Event]] = {}
    for event in events:
        users.setdefault(event.file_name, []).append(event)
    for name, wanted in sorted(users.items()):
        try:
            header = headers[name] = read_header(root / "data" / name, img_type)
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
