"""SEVIR's catalogue: which events a split has, in the authors' order, and whether their files hold them.

Source: Veillette et al. 2020 (SEVIR); the selection rules are those of the Earthformer release's loader, kept with
their consequences: a duplicated id loses all its copies, and ids are sorted as text ('S10' before 'S9').
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
import pandas as pd

from bench.data.places import open_hdf5, reading
from bench.errors import DataError, one_message

COLUMNS = (
    "id", "file_name", "file_index", "img_type", "time_utc", "minute_offsets", "episode_id", "event_id",
    "event_type", "llcrnrlat", "llcrnrlon", "urcrnrlat", "urcrnrlon", "proj", "size_x", "size_y", "height_m",
    "width_m", "data_min", "data_max", "pct_missing",
)  # fmt: skip
REQUIRED = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing")


@dataclass(frozen=True)
class Event:
    """One storm event of one sensor: where its frames lie and when it was centred."""

    id: str
    file_name: str
    file_index: int
    time: datetime
    minutes: tuple[float, float] = (0.0, 0.0)
    """First and last frame, from `time`; zero where the catalogue does not tell."""

    @property
    def span(self) -> tuple[datetime, datetime]:
        """Returns the times of the first and the last frame."""
        first, last = self.minutes
        return self.time + timedelta(minutes=first), self.time + timedelta(minutes=last)


@dataclass(frozen=True)
class FileHeader:
    """What an event file declares of itself."""

    path: Path
    event_count: int
    height: int
    width: int
    frames: int
    ids: tuple[str, ...] | None
    compression: str | None

    @property
    def event_bytes(self) -> int:
        """Returns the size of one event's uint8 array in bytes."""
        return self.height * self.width * self.frames


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
        with reading(path), path.open("rb") as file:
            table = pd.read_csv(file, dtype=str, encoding="utf-8-sig", skipinitialspace=True, keep_default_na=True)
    except FileNotFoundError as error:
        expected = "expected SEVIR's layout, CATALOG.csv beside data/<img_type>/<year>/*.h5"
        raise DataError(f"{path} is missing: {expected}") from error
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors, as is a wrong encoding
        raise DataError(f"{path} is not a readable CSV file: {error}") from error
    absent = [column for column in REQUIRED if column not in table.columns]
    if absent:
        raise DataError(f"{path}: missing columns {', '.join(absent)}; found {', '.join(map(str, table.columns))}")

    problems = []
    times = pd.to_datetime(table["time_utc"], errors="coerce", format="mixed", utc=True).dt.tz_localize(None)
    indices = pd.to_numeric(table["file_index"], errors="coerce")
    missing_percent = pd.to_numeric(table["pct_missing"], errors="coerce")
    checks = {
        "id is empty": table["id"].isna(),
        "file_name is empty": table["file_name"].isna(),
        "time_utc is not a time": times.isna(),
        "file_index is not a whole number >= 0": indices.isna() | (indices < 0) | (indices % 1 != 0),
        "file_name leaves the data folder": ~table["file_name"].fillna("").map(_stays_inside),
        "pct_missing is not a number": missing_percent.isna() & table["pct_missing"].notna(),
    }
    for what, wrong in checks.items():
        for row in np.flatnonzero(wrong.to_numpy()):
            problems.append(f"line {row + 2}: {what} ({table['id'].iloc[row]})")
    if problems:
        raise DataError(one_message(f"{path} has {len(problems)} unreadable rows:", problems))
    return table.assign(time_utc=times, file_index=indices.astype("int64"), pct_missing=missing_percent)


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def select_events(
    catalogue: pd.DataFrame,
    *,
    img_type: str = "vil",
    start: datetime | None = None,
    end: datetime | None = None,
    admit_missing: bool = False,
) -> list[Event]:
    """Returns the events of one sensor centred in `(start, end]`, sorted by id as text.

    Args:
        catalogue: Rows as `read_catalogue` returns them.
        img_type: The sensor.
        start: Exclusive lower bound of the event's centre time.
        end: Inclusive upper bound.
        admit_missing: Keep events with missing pixels; by default only those whose `pct_missing` is exactly 0.
    """
    rows = catalogue
    if start is not None:
        rows = rows[rows["time_utc"] > start]
    if end is not None:
        rows = rows[rows["time_utc"] <= end]
    if not admit_missing:
        rows = rows[rows["pct_missing"] == 0]
    rows = rows[rows["img_type"] == img_type]
    rows = rows[~rows["id"].duplicated(keep=False)]
    offsets = rows["minute_offsets"] if "minute_offsets" in rows.columns else [""] * len(rows)
    records = zip(rows["id"], rows["file_name"], rows["file_index"], rows["time_utc"], offsets, strict=True)
    events = [
        Event(str(i), str(name), int(index), time.to_pydatetime(), _ends(offset))
        for i, name, index, time, offset in records
    ]
    return sorted(events, key=lambda event: event.id)


def _ends(offsets: object) -> tuple[float, float]:
    text = str(offsets)
    try:
        first, last = float(text.partition(":")[0]), float(text.rpartition(":")[2])
    except ValueError:
        return 0.0, 0.0
    return (first, last) if first <= last else (0.0, 0.0)  # false for nan, an empty cell


def duplicated_ids(catalogue: pd.DataFrame, img_type: str = "vil") -> list[str]:
    """Returns the ids that more than one row of a sensor has: their events are lost to every split that sees both."""
    ids = catalogue.loc[catalogue["img_type"] == img_type, "id"]
    return sorted(set(ids[ids.duplicated(keep=False)]))


def cadence_minutes(catalogue: pd.DataFrame, frames: int | None = None) -> float | None:
    """Returns the most frequent step of `minute_offsets`, in minutes, or None where the column is absent or empty.

    Args:
        catalogue: Rows as `read_catalogue` returns them.
        frames: Frames per event of the files.  The authors' SEVIR-LR has the catalogue of SEVIR, unchanged: its 49
            offsets are those of 25 frames, every second of which was kept.
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


def read_header(path: Path, img_type: str = "vil") -> FileHeader:
    """Returns what an event file declares: sizes, ids and storage.

    Raises:
        DataError: missing, truncated, not HDF5, or not an `(N, H, W, T)` uint8 array under the sensor's name.
    """
    size = None
    try:
        with reading(path):
            if not path.is_file():
                raise DataError(f"{path}: file is missing")
            size = path.stat().st_size
            with open_hdf5(path) as file:
                return header_of(path, file, img_type)
    except OSError as error:  # what h5py raises for a truncated file and for one that is no HDF5 at all
        raise DataError(f"{path}: not readable as HDF5 ({size} bytes): {_first_sentence(error)}") from error


def header_of(path: Path, file: h5py.File, img_type: str = "vil") -> FileHeader:
    """Returns what an open event file declares, as `read_header` does.

    Raises:
        DataError: no `(N, H, W, T)` uint8 array under the sensor's name.
    """
    if img_type not in file:
        raise DataError(f"{path}: no dataset {img_type!r}; found {', '.join(file) or 'nothing'}")
    array = file[img_type]
    if array.ndim != 4 or array.dtype != np.uint8:
        raise DataError(f"{path}: {img_type!r} is {array.dtype} with shape {array.shape}; expected uint8 (N, H, W, T)")
    count, height, width, frames = array.shape
    ids = tuple(_text(value) for value in file["id"][:]) if "id" in file else None
    return FileHeader(path, count, height, width, frames, ids, array.compression)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace").rstrip("\x00") if isinstance(value, bytes) else str(value)


def _first_sentence(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def first_header(root: Path, events: list[Event], img_type: str = "vil") -> FileHeader | None:
    """Returns the header of the first event file that is there, or None when there are no events.

    A tree may hold the files of one split only, so the first that is there speaks for the frame size.

    Raises:
        DataError: none of the files can be read; the message is the first one's.
    """
    first_error: DataError | None = None
    for name in dict.fromkeys(event.file_name for event in events):
        try:
            return read_header(root / "data" / name, img_type)
        except DataError as error:
            first_error = first_error or error
    if first_error:
        raise first_error
    return None


def read_headers(root: Path, events: list[Event], img_type: str = "vil") -> tuple[dict[str, FileHeader], list[str]]:
    """Returns the headers of the files that the events lie in, and every disagreement between them and the events."""
    headers: dict[str, FileHeader] = {}
    problems: list[str] = []
    users: dict[str, list[Event]] = {}
    for event in events:
        users.setdefault(event.file_name, []).append(event)
    for name, wanted in sorted(users.items()):
        try:
            header = headers[name] = read_header(root / "data" / name, img_type)
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
    """Returns the events that their files hold, of the frame size and number that most of them have.

    Args:
        headers: Of the files that could be read, by name, as `read_headers` returns them.
        events: What the catalogue has.
    """
    held = [event for event in events if event.file_name in headers]
    held = [event for event in held if not disagreements(headers[event.file_name], [event])]
    sizes = Counter((header.height, header.width, header.frames) for header in (headers[e.file_name] for e in held))
    usual = max(sizes, key=sizes.__getitem__, default=None)
    return [e for e in held if (h := headers[e.file_name]) and (h.height, h.width, h.frames) == usual]


def disagreements(header: FileHeader, wanted: list[Event]) -> list[str]:
    """Returns where a file does not hold at an event's index what the catalogue says."""
    problems = []
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
    return problems
