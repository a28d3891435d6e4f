"""SEVIR's catalogue: the events of a split, in the authors' order.

Source: Veillette et al. 2020 (SEVIR); the selection rules are those of the Earthformer release's loader, kept with
their consequences: a duplicated id loses all its copies, and ids are sorted as text ('S10' before 'S9').
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TypedDict, Unpack

import numpy as np
import pandas as pd

from bench.data.sevir.times import AmbiguousTimesError, parse_times
from bench.data.transfer.paths import as_os_errors
from bench.errors import DataError, one_message

SENSOR = "vil"
"""The `img_type` of vertically integrated liquid, and the name of its array in the files."""
COLUMNS = (
    "id", "file_name", "file_index", "img_type", "time_utc", "minute_offsets", "episode_id", "event_id",
    "event_type", "llcrnrlat", "llcrnrlon", "urcrnrlat", "urcrnrlon", "proj", "size_x", "size_y", "height_m",
    "width_m", "data_min", "data_max", "pct_missing",
)  # fmt: skip
_OPTIONAL = ("minute_offsets", "size_y", "size_x", "data_max")
_MAX_INDEX = 2**31
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
        "file_index is not a whole number >= 0": ~(indices.between(0, _MAX_INDEX) & (indices % 1 == 0)),
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


def select_events(catalogue: pd.DataFrame, *, admit_missing: bool = False, **part: Unpack[Part]) -> list[Event]:
    """Returns the events of a split, sorted by id as text.

    Args:
        catalogue: Rows from `read_catalogue`.
        admit_missing: Keep events with missing pixels; by default only those whose `pct_missing` is exactly 0.
        **part: The split; all events without it.
    """
    rows = catalogue
    for _, kept in _filters(rows, part, admit_missing):
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


def why_no_events(catalogue: pd.DataFrame, *, admit_missing: bool = False, **part: Unpack[Part]) -> str | None:
    """Returns which filter of `select_events` removes the last rows of a catalogue; None if rows are left.

    Args:
        catalogue: Rows from `read_catalogue`.
        admit_missing: Keep events with missing pixels.
        **part: The split.
    """
    before = len(catalogue)
    if not before:
        return "the catalogue has no rows"
    for condition, rows in _filters(catalogue, part, admit_missing):
        if not len(rows):
            return f"none of {before} rows has {condition}"
        before = len(rows)
    return None


def _filters(rows: pd.DataFrame, part: Part, admit_missing: bool) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields each condition in words, and the rows left by it and the conditions before.

    The authors' order differs, with the same result: only duplicates, the last, depend on the other conditions.
    """
    found = ", ".join(map(str, rows["img_type"].value_counts().index[:5]))
    rows = rows[rows["img_type"] == SENSOR]
    yield f"img_type {SENSOR!r} (found: {found or 'no img_type at all'})", rows
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


def duplicated_ids(catalogue: pd.DataFrame) -> list[str]:
    """Returns the ids of more than one row of a sensor: their events are left out of every split that has both."""
    ids = catalogue.loc[catalogue["img_type"] == SENSOR, "id"]
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
