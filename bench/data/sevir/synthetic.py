"""Synthetic storms in SEVIR's format: moving, growing and decaying cells, so that everything runs with no download."""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
from pydantic import Field

from bench.config.overrides import literal
from bench.data.sevir.catalogue import COLUMNS, SENSOR
from bench.data.verbs import AdvanceLabel, DataVerb, Folder
from bench.errors import ConfigError, DataError, counted
from bench.files import replacing

# One file per split, named and dated so that SEVIR's own split dates separate them.
_FILES = {
    "train": ("2018/SEVIR_VIL_RANDOMEVENTS_2018_0501_0831.h5", datetime(2018, 5, 1, 3)),
    "val": ("2019/SEVIR_VIL_RANDOMEVENTS_2019_0101_0430.h5", datetime(2019, 1, 2, 3)),
    "test": ("2019/SEVIR_VIL_RANDOMEVENTS_2019_0501_0831.h5", datetime(2019, 6, 2, 3)),
}
_HIGHEST_CODE = 254  # 255 means missing
GENERATOR_VERSION = 1


class MakeStorms(DataVerb):
    """Generated storms in the format of task `sevir`."""

    summary: ClassVar[str] = "make synthetic storms in the same format"
    task: ClassVar[str] = "sevir"
    minutes: ClassVar[float] = 5.0

    out: Folder = Field(description="folder to make; must hold no data set yet")
    train: int = Field(32, description="training events")
    val: int = Field(8, description="validation events")
    test: int = Field(8, description="test events")
    size: int = Field(384, description="height and width in pixels")
    frames: int = Field(49, description="frames per event")
    seed: int = Field(0, ge=0, description="same seed, same bytes")

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Writes the storms and returns what was made and what to try with it."""
        events = {"train": self.train, "val": self.val, "test": self.test}
        make_sevir(
            self.out, events=events, size=self.size, frames=self.frames, minutes=self.minutes, seed=self.seed,
            advance=lambda split, done, total: advance(f"{split} storms", done, total),
        )  # fmt: skip
        root = shlex.quote(f"data.root={literal(str(self.out))}")
        return [
            f"made {counted(sum(events.values()), 'storm')} of {counted(self.frames, 'frame')} of "
            f"{self.size}x{self.size} in {self.out}",
            f"try: earthbench run task={self.task} model=unet {root}",
        ]


class MakeLowResolutionStorms(MakeStorms):
    """Generated storms in the format of task `sevir_lr`."""

    task: ClassVar[str] = "sevir_lr"
    minutes: ClassVar[float] = 10.0

    size: int = Field(128, description="height and width in pixels")
    frames: int = Field(25, description="frames per event")


def storm_event(generator: np.random.Generator, *, size: int, frames: int, minutes: float) -> np.ndarray:
    """Returns one event as VIL codes, uint8 `(H,W,T)`: time is the fastest axis, as in SEVIR.

    Round cells drift with a common wind per event and small individual winds, grow and decay; each event has at least
    one core above code 219, SEVIR's highest threshold, at its peak.

    Args:
        generator: The source of every random draw.
        size: Height and width in pixels.
        frames: Number of frames.
        minutes: Time between frames; cells move and live by the clock, not by the frame.
    """
    cells = int(generator.integers(6, 15))
    clock = np.arange(frames) * minutes
    duration = max(clock[-1], minutes)
    wind = generator.uniform(0.0012, 0.003) * _direction(generator.uniform(0, 2 * np.pi))  # frame widths per minute
    velocity = wind[:, None] + generator.normal(0, 0.0003, (2, cells))
    middle = generator.uniform(0.0, 1.0, (2, cells))  # where a cell is at half time
    radius = generator.uniform(0.03, 0.09, cells)
    peak = generator.gamma(3.0, 35.0, cells)
    peak[0] = generator.uniform(240, 320)
    radius[0] = generator.uniform(0.07, 0.1)  # wide enough to reach its peak between pixel centres
    peak_time = generator.uniform(0, duration, cells)
    peak_time[0] = generator.uniform(0.3, 0.7) * duration
    middle[:, 0] = generator.uniform(0.3, 0.7, 2)
    lifetime = generator.uniform(40, 140, cells)

    grid = (np.arange(size) + 0.5) / size
    centre = middle[:, :, None] + velocity[:, :, None] * (clock - duration / 2)  # (2, cells, frames)
    spread = 2 * radius[:, None, None] ** 2
    rows = np.exp(-((grid[None, None, :] - centre[0][:, :, None]) ** 2) / spread)  # (cells, frames, size)
    columns = np.exp(-((grid[None, None, :] - centre[1][:, :, None]) ** 2) / spread)
    strength = peak[:, None] * np.exp(-((clock[None, :] - peak_time[:, None]) ** 2) / (2 * lifetime[:, None] ** 2))
    field = np.einsum("cth,ctw->hwt", rows * strength[:, :, None], columns, optimize=True)
    return np.clip(np.rint(field), 0, _HIGHEST_CODE).astype(np.uint8)


def _direction(angle: float) -> np.ndarray:
    return np.array([np.sin(angle), np.cos(angle)])


def make_sevir(
    out: Path,
    *,
    events: dict[str, int],
    size: int = 384,
    frames: int = 49,
    minutes: float = 5.0,
    seed: int = 0,
    advance: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Writes `out/CATALOG.csv` and `out/data/vil/...` with generated storms, and returns `out`.

    Args:
        out: A folder that has no catalogue yet.
        events: Number of events for each of train, val and test.
        size: Height and width in pixels.
        frames: Frames per event.
        minutes: Time between frames.
        seed: Same seed, same bytes.
        advance: Called with `(split, done, total)` after each event.

    Raises:
        DataError: `out` already holds a data set.
        ConfigError: a count or size is too small for an event.
    """
    if (out / "CATALOG.csv").exists():
        raise DataError(f"{out} already holds a data set (CATALOG.csv); choose another folder or delete it")
    wrong = {
        k: v for k, v in {"size": size, "frames": frames, **events}.items() if v < 0 or (v < 1 and k not in events)
    }
    if wrong or sum(events.values()) < 1 or set(events) - set(_FILES):
        raise ConfigError(f"nothing to make from events={events}, size={size}, frames={frames}: give numbers >= 1")
    rows: list[dict[str, object]] = []
    for number, (split, count) in enumerate(events.items()):
        if count:
            name, first = _FILES[split]
            streams = np.random.SeedSequence([seed, number]).spawn(count)
            rows += _write_file(out, f"vil/{name}", first, streams, split, size, frames, minutes, advance)
    _write_text(out / "DATASET.json", _description(events, size, frames, minutes, seed))
    with replacing(out / "CATALOG.csv") as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return out


def _write_file(
    out: Path,
    name: str,
    first: datetime,
    streams: list[np.random.SeedSequence],
    split: str,
    size: int,
    frames: int,
    minutes: float,
    advance: Callable[[str, int, int], None] | None,
) -> list[dict[str, object]]:
    offsets = (np.arange(frames) - frames // 2) * minutes
    rows: list[dict[str, object]] = []
    with replacing(out / "data" / name) as part, h5py.File(part, "w") as file:
        # Contiguous and unfiltered, like SEVIR's own files.
        array = file.create_dataset(SENSOR, (len(streams), size, size, frames), np.uint8)
        ids = file.create_dataset("id", (len(streams),), "S16")
        for index, stream in enumerate(streams):
            event = storm_event(np.random.default_rng(stream), size=size, frames=frames, minutes=minutes)
            time = first + timedelta(hours=5 * index) % timedelta(days=85)
            event_id = f"R{time:%y%m%d%H%M}{index:04d}"
            array[index], ids[index] = event, event_id.encode()
            rows.append(
                dict.fromkeys(COLUMNS, "")
                | {
                    "id": event_id, "file_name": name, "file_index": index, "img_type": SENSOR,
                    "time_utc": time.isoformat(sep=" "), "minute_offsets": ":".join(f"{m:g}" for m in offsets),
                    "llcrnrlat": 36.0, "llcrnrlon": -100.0, "urcrnrlat": 39.4, "urcrnrlon": -95.6,
                    "proj": "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere ",
                    "size_x": size, "size_y": size, "height_m": 384000.0, "width_m": 384000.0,
                    "data_min": float(event.min()), "data_max": float(event.max()), "pct_missing": 0.0,
                }
            )  # fmt: skip
            if advance:
                advance(split, index + 1, len(streams))
    return rows


def _description(events: dict[str, int], size: int, frames: int, minutes: float, seed: int) -> str:
    made = {"events": events, "size": size, "frames": frames, "minutes": minutes, "seed": seed}
    content = {"origin": "synthetic storms", "generator_version": GENERATOR_VERSION, **made}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}, indent=2) + "\n"


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
