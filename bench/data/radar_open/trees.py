"""The trees of observed radar, event by event: the window, its original files, and the digest of its codes.

Sources: github.com/pySTEPS/pysteps-data (files of KNMI, FMI and NOAA's MRMS); Z = 200 R^1.6 for KNMI (its own
relation), 300 R^1.4 for MRMS, which takes one of several at each pixel.  Windows of MRMS lie on SEVIR's projection.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bench.data.grid.radar_frames import Reader, read_original
from bench.data.sevir.codes import vil_codes
from bench.data.sevir.writing import catalogue_row

SIZE = 384
_SEVIR = "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere "
"""SEVIR's projection, from its catalogue."""
_PIXEL_METRES = 1000.0


@dataclass(frozen=True)
class Original:
    """A file of the public archive."""

    archive: str
    path: str
    bytes: int | None
    sha256: str | None
    """None for 32 files of MRMS, which are verified through the digests of their events."""


@dataclass(frozen=True)
class Source:
    """Original files of one scene, one per frame."""

    archive: str
    reader: Reader
    start: datetime
    minutes: int
    file_name: str
    """Path of the event file below `data/`."""
    projection: str


@dataclass(frozen=True)
class Tree:
    """A data set in SEVIR's format."""

    path: str
    source: Source
    frames: int


@dataclass(frozen=True)
class Event:
    """One event of a tree."""

    tree: str
    id: str
    first: int
    """Number of its first file."""
    x: float
    """Left edge: columns, or metres on SEVIR's projection."""
    y: float
    """Rows from the top, or metres of the lower edge."""
    size: int
    """Pixels of the window in the original; they are repeated if fewer than 384."""
    place: dict[str, str]
    """Corners and size, for the catalogue."""
    sha256: str
    """SHA-256 of the codes, uint8 `(H,W,T)`."""


_KNMI = Source(
    "knmi_20100826", "knmi_hdf5", datetime(2010, 8, 26), 5, "vil/2010/SEVIR_VIL_RANDOMEVENTS_2010_0826_0826_KNMI.h5",
    "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378137 +b=6356752 +x_0=0 +y_0=0 +units=m",
)  # fmt: skip
_FMI = Source(
    "fmi_20160928", "fmi_pgm", datetime(2016, 9, 28, 14, 45), 5,
    "vil/2016/SEVIR_VIL_RANDOMEVENTS_2016_0928_0928_FMI.h5",
    "+proj=stere +lon_0=25E +lat_0=90N +lat_ts=60 +a=6371288 +x_0=380886.310 +y_0=3395677.920 +no_defs",
)  # fmt: skip
_MRMS = Source(
    "mrms_20190610", "mrms_grib", datetime(2019, 6, 10), 2, "vil/2019/SEVIR_VIL_RANDOMEVENTS_2019_0610_0610_MRMS.h5",
    _SEVIR,
)  # fmt: skip
PARTS: dict[str, tuple[Tree, ...]] = {
    "sevir49": (Tree("radar/sevir49", _KNMI, 49),),
    "sevir25": (Tree("radar/sevir25", _FMI, 25),),
    "sevir25_mrms": (Tree("radar/sevir25_mrms", _MRMS, 25),),
    "radar_conus": tuple(Tree(f"radar_conus/{split}", _MRMS, 36) for split in ("train", "val", "test")),
}
"""Names on the command line."""


@lru_cache(maxsize=1)
def originals() -> tuple[Original, ...]:
    """Returns the files of the public archive, in the order of their times within each archive."""
    return tuple(
        Original(row["archive"], row["path"], int(row["bytes"]) if row["bytes"] else None, row["sha256"] or None)
        for row in _table("files.csv")
    )


def events_of(tree: str) -> list[Event]:
    """Returns the events of a tree, in the order of its file."""
    place = ("llcrnrlat", "llcrnrlon", "urcrnrlat", "urcrnrlon", "height_m", "width_m")
    return [
        Event(
            tree, row["id"], int(row["first"]), float(row["x"]), float(row["y"]), int(row["size"]),
            {name: row[name] for name in place}, row["sha256"],
        )
        for row in _table("events.csv")
        if row["tree"] == tree
    ]  # fmt: skip


def _table(name: str) -> list[dict[str, str]]:
    text = (files("bench.data.radar_open") / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def frame_codes(path: Path, source: Source, events: Sequence[Event]) -> np.ndarray:
    """Returns the codes of a file in the windows of events, uint8 `(E,384,384)`, the first row in the south.

    Raises:
        UsageError: pySTEPS, or a library that its importer needs, is not installed.
        DataError: the file is not of its format.
    """
    values, metadata = read_original(path, source.reader)
    cut = np.empty((len(events), SIZE, SIZE), np.float64)
    for number, event in enumerate(events):
        if source.archive == _MRMS.archive:
            rows, columns = _mrms_pixels(event, metadata)
            cut[number] = values[rows, columns]
        else:
            top, left = int(event.y), int(event.x)
            nearest = np.arange(SIZE) * event.size // SIZE
            cut[number] = values[np.ix_(top + nearest, left + nearest)][::-1]
    if metadata["unit"] == "dBZ":
        return vil_codes(10.0 ** (cut / 10))
    if metadata["unit"] == "mm":
        return vil_codes(200.0 * (cut * 12) ** 1.6)
    # the trees were made from rates in half precision
    return vil_codes(300.0 * cut.astype(np.float16).astype(np.float64) ** 1.4)


def _mrms_pixels(event: Event, metadata: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Returns row and column of the nearest pixel of the original, each `(384,384)`."""
    from pyproj import Proj

    middles = (np.arange(SIZE) + 0.5) * _PIXEL_METRES
    longitude, latitude = Proj(_SEVIR)(*np.meshgrid(event.x + middles, event.y + middles), inverse=True)
    rows = np.rint((metadata["y2"] - latitude) / metadata["ypixelsize"] - 0.5).astype(int)
    columns = np.rint(((longitude - metadata["x1"]) % 360) / metadata["xpixelsize"] - 0.5).astype(int)
    return rows, columns


def row_of(tree: Tree, event: Event, index: int, codes: np.ndarray) -> dict[str, Any]:
    """Returns an event's row of the catalogue."""
    source = tree.source
    middle = source.start + timedelta(minutes=source.minutes * (event.first + tree.frames // 2))
    offsets = (np.arange(tree.frames) - tree.frames // 2) * source.minutes
    row = catalogue_row(
        codes, id=event.id, file_name=source.file_name, file_index=index, time_utc=middle.isoformat(sep=" "),
        minute_offsets=":".join(map(str, offsets.tolist())), proj=source.projection, **event.place,
    )  # fmt: skip
    return row | {"pct_missing": round(row["pct_missing"], 4)}
