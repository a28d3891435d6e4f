"""Windows of consecutive frames of a cube: random access, split by date or by place, whole frames or crops."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.api import Split
from bench.data.digests import event_digests
from bench.data.folds import Stretch, blocks, leave_out
from bench.data.grid.cube import Cube
from bench.data.sequences import SequenceDataset, Units
from bench.errors import ConfigError, DataError

_SHARES = (0.7, 0.15)
"""Shares of training and validation, of the frames or of the columns of crops, unless dates are given."""


@dataclass(frozen=True)
class Place:
    """A rectangle of pixels: its first row and column."""

    row: int
    column: int


@dataclass(frozen=True)
class Cut:
    """The way a cube is cut into sequences."""

    t_in: int
    t_out: int
    stride: int
    box: tuple[int, int, int, int] | None = None
    """First row, last row + 1, first column, last column + 1 of the pixels used; None for whole frames."""
    crop: tuple[int, int] | None = None
    """Height and width of a sequence; None for the whole box."""
    random_crop: bool = False

    @property
    def window(self) -> int:
        """Returns the number of frames of a sequence."""
        return self.t_in + self.t_out

    def extent(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Returns the box used of frames of `size` (H, W).

        Raises:
            ConfigError: the box is not inside, or smaller than a crop.
        """
        box = self.box or (0, size[0], 0, size[1])
        if not (0 <= box[0] < box[1] <= size[0] and 0 <= box[2] < box[3] <= size[1]):
            raise ConfigError(
                f"task.box={list(box)}: expected [ROW, END_ROW, COLUMN, END_COLUMN] within frames of "
                f"{size[0]}x{size[1]}"
            )
        if self.crop and (self.crop[0] > box[1] - box[0] or self.crop[1] > box[3] - box[2]):
            raise ConfigError(
                f"task.crop={list(self.crop)}: expected at most the {box[1] - box[0]}x{box[3] - box[2]} pixels "
                "that are used"
            )
        return box

    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns height and width of a sequence."""
        box = self.extent(size)
        return self.crop or (box[1] - box[0], box[3] - box[2])

    def places(self, size: tuple[int, int]) -> list[Place]:
        """Returns the positions of adjacent crops in the middle of the box, column by column from the left."""
        box, (height, width) = self.extent(size), self.shape(size)
        down, across = (box[1] - box[0]) // height, (box[3] - box[2]) // width
        top, left = box[0] + (box[1] - box[0]) % height // 2, box[2] + (box[3] - box[2]) % width // 2
        return [Place(top + r * height, left + c * width) for c in range(across) for r in range(down)]


def split_ranges(
    times: np.ndarray, val_from: np.datetime64 | None, test_from: np.datetime64 | None
) -> dict[Split, tuple[int, int]]:
    """Returns the frames `(first, last + 1)` of each split: before, between and from two dates.

    Without a date, training gets 70 % of the frames and validation 15 %.

    Raises:
        ConfigError: validation would begin after the test.
    """
    count = len(times)
    val = int(np.searchsorted(times, val_from)) if val_from is not None else None
    test = int(np.searchsorted(times, test_from)) if test_from is not None else None
    if val is None:
        end = test if test is not None else count
        val = round(end * _SHARES[0] / (sum(_SHARES) if test is not None else 1))
    if test is None:
        test = val + round((count - val) * _SHARES[1] / (1 - _SHARES[0]))
    if val > test:
        raise ConfigError(f"task.val_from={val_from} is after task.test_from={test_from}")
    return {"train": (0, val), "val": (val, test), "test": (test, count), "all": (0, count)}


class GridWindows(SequenceDataset):
    """Windows of consecutive frames of a cube, float32 `(T,H,W,C)` in physical units, NaN where missing.

    A window lies within one split and one stretch without a gap.  Static fields are the last channels of contexts.

    Args:
        cube: The data.
        split: The split.
        cut: Lengths and sizes.
        by: Split by date, or by place: each split then has its own crops, over the whole time.
        dates: First dates of validation and test, if given.
        fold: Number of blocks of time and the one to test on, instead of dates.
    """

    def __init__(
        self,
        cube: Cube,
        split: Split,
        cut: Cut,
        *,
        by: Literal["date", "place"] = "date",
        dates: tuple[np.datetime64 | None, np.datetime64 | None] = (None, None),
        fold: tuple[int, int] | None = None,
    ) -> None:
        self.cube, self.split, self.cut, self.by = cube, split, cut, by
        self.size = cut.shape(cube.grid.size)
        self.places = cut.places(cube.grid.size)
        ranges: tuple[Stretch, ...] = ((0, len(cube)),)
        if by == "place":
            self.places = self._own_places(split)
        elif fold is not None:
            ranges = leave_out(blocks(len(cube), fold[0]), fold[1])[split]
        else:
            ranges = (split_ranges(cube.axis.times, *dates)[split],)
        self._whole = [stretch for part in ranges for stretch in cube.axis.stretches(*part)]
        """Frames without a gap, in the split."""
        self.stretches = [
            (first, 1 + (last - first - cut.window) // cut.stride)
            for first, last in self._whole
            if last - first >= cut.window
        ]
        starts = [first + cut.stride * np.arange(count) for first, count in self.stretches]
        self.starts = np.concatenate(starts) if starts else np.zeros(0, np.int64)

    def _own_places(self, split: Split) -> list[Place]:
        columns = sorted({place.column for place in self.places})
        if len(columns) < 3:
            raise ConfigError(
                f"task.split_by=place needs at least 3 crops side by side, found {len(columns)}: set task.crop=[H,W] "
                f"to at most a third of the {self.cube.grid.size[1]} columns"
            )
        test = max(1, round(len(columns) * (1 - sum(_SHARES))))
        val = max(1, round(len(columns) * _SHARES[1]))
        train = len(columns) - test - val
        ranges: dict[Split, tuple[int, int]] = {
            "train": (0, train), "val": (train, train + val), "test": (train + val, len(columns)),
            "all": (0, len(columns)),
        }  # fmt: skip
        own = set(columns[slice(*ranges[split])])
        return [place for place in self.places if place.column in own]

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns the units that splits must not share: every frame of a window, at its place."""
        tag, times = self.cube.grid.tag, self.cube.axis.times
        if self.by == "place":
            return tuple(f"{tag} row {p.row} column {p.column} {times[0]}..{times[-1]}" for p in self.places)
        return tuple(f"{tag} {times[at]}" for at in self.frames)

    @cached_property
    def frames(self) -> np.ndarray:
        """Returns the numbers of the frames that windows have, ascending."""
        used = np.zeros(len(self.cube), bool)
        for start in self.starts:
            used[start : start + self.cut.window] = True
        return np.flatnonzero(used)

    @property
    def units(self) -> Units:
        """Returns the stretches without a gap at each place, as records whose windows overlap."""
        many = len(self.places) > 1
        names = tuple(
            f"{self.cube.axis.times[first]}" + (f" row {place.row} column {place.column}" if many else "")
            for place in self.places
            for first, _ in self.stretches
        )
        return Units("record", names, tuple(count for _ in self.places for _, count in self.stretches))

    @property
    def why_empty(self) -> str | None:
        """Returns why there are no windows."""
        if len(self.starts):
            return None
        lengths = [last - first for first, last in self._whole]
        longest, times = max(lengths, default=0), self.cube.axis.times
        return (
            f"of its {sum(lengths)} frames (the data have {len(times)}, {times[0]} to {times[-1]}) at most {longest} "
            f"follow each other without a gap, and a window needs {self.cut.window}: set task.val_from and "
            "task.test_from, or task.t_in and task.t_out"
        )

    def __len__(self) -> int:
        """Returns the number of windows."""
        return len(self.starts) * len(self.places)

    def stored(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns context `(T_in,H,W,C)`, with static fields after the variables, and target `(T_out,H,W,C)`.

        Raises:
            IndexError: the index is out of range.
            DataError: the frames cannot be read.
        """
        place, start = self.where(index)
        rows = slice(place.row, place.row + self.size[0])
        columns = slice(place.column, place.column + self.size[1])
        frames = torch.from_numpy(np.ascontiguousarray(self.cube.read(start, start + self.cut.window, rows, columns)))
        context, target = frames[: self.cut.t_in], frames[self.cut.t_in :]
        if self.cube.static is not None:
            fields = torch.from_numpy(self.cube.static[:, rows, columns]).movedim(0, -1)
            context = torch.cat([context, fields.expand(len(context), -1, -1, -1)], -1)
        return context, target

    def where(self, index: int) -> tuple[Place, int]:
        """Returns the place of a sequence, and its first frame.

        Random crops depend only on the number of the sequence, so they are the same in every process and epoch.

        Raises:
            IndexError: the index is out of range.
        """
        index = self.checked_index(index)
        number, window = divmod(index, len(self.starts))
        place = self.places[number]
        if self.cut.random_crop and self.split == "train" and self.by == "date":
            box = self.cut.extent(self.cube.grid.size)
            draw = np.random.default_rng([index, 0x6C72])
            place = Place(
                int(draw.integers(box[0], box[1] - self.size[0] + 1)),
                int(draw.integers(box[2], box[3] - self.size[1] + 1)),
            )
        return place, int(self.starts[window])

    def identity(self) -> dict[str, Any]:
        """Returns the identity of these data: every pixel of the frames used, their times, and how they are cut."""
        content = hashlib.sha256()
        for at, digests in zip(self.frames, zip(*self._digests, strict=True), strict=True):
            content.update(f"{self.cube.axis.times[at]}|{'|'.join(digests)}\n".encode())
        if self.cube.static is not None:
            content.update(self.cube.static.tobytes())
        used = self.frames
        return {
            "origin": f"{', '.join(self.cube.names)} [{', '.join(self.cube.units)}]",
            "sequence_count": len(self),
            "event_shape": [*self.size, len(used)],
            "window": [self.cut.t_in, self.cut.t_out, self.cut.stride],
            "times": [str(time) for time in self.cube.axis.times[used[[0, -1]]]] if len(used) else [],
            "places": [[place.row, place.column] for place in self.places],
            "random_crop": self.cut.random_crop and self.split == "train",
            "variables": list(self.cube.names),
            "units": list(self.cube.units),
            "static": list(self.cube.static_names),
            "grid": self.cube.grid.tag,
            "content_sha256": content.hexdigest(),
        }

    @cached_property
    def _digests(self) -> tuple[list[str], ...]:
        return tuple(frame_digests(self.cube, number, self.frames.tolist()) for number in range(len(self.cube.names)))


def frame_digests(cube: Cube, variable: int, frames: Sequence[int]) -> list[str]:
    """Returns the SHA-256 of decoded whole frames of a variable, cached until their file changes."""
    found: dict[int, str] = {}
    for part in cube.parts:
        own = [at - part.first for at in frames if part.first <= at < part.first + part.count]
        if not own:
            continue
        kept: dict[int, np.ndarray] = {}

        def read(number: int, part: Any = part, kept: dict[int, np.ndarray] = kept) -> Iterator[bytes]:
            block = number // cube.chunk
            if block not in kept:  # a chunk is unpacked once, not for each frame
                kept.clear()
                first = part.first + block * cube.chunk
                kept[block] = cube.read(first, min(first + cube.chunk, part.first + part.count))
            yield kept[block][number - block * cube.chunk, ..., variable].tobytes()

        digests = event_digests(part.path, own, read, kind=cube.names[variable])
        found |= {part.first + at: digest for at, digest in digests.items()}
    return [found[at] for at in frames]


def refuse_short(cube: Cube, window: int) -> None:
    """Refuses a cube that is too short for a window.

    Raises:
        DataError: names the length of its longest stretch.
    """
    longest = max(last - first for first, last in cube.axis.stretches(0, len(cube)))
    if longest < window:
        gaps = f", the longest stretch without a gap {longest}" if longest < len(cube) else ""
        raise DataError(
            f"{cube.root}: {len(cube)} frames{gaps}; a window needs {window}. Set task.t_in and task.t_out to fewer, "
            "or bring more frames"
        )
