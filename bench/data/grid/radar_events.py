"""Conversion of radar archives to events in SEVIR's format: rain rates recoded as vertically integrated liquid.

Source: Z = a R^b with the coefficients of the service's importer, else Marshall and Palmer 1948 (200 and 1.6);
`bench.data.sevir.codes` for the codes.
"""

from __future__ import annotations

import shlex
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from bench.data.grid.radar_files import ConvertRadarFiles
from bench.data.grid.radar_frames import Frame, dated_files
from bench.data.grid.rain_store import Unfinished
from bench.data.grid.times import TimeAxis, time_axis
from bench.data.sevir.catalogue import MISSING
from bench.data.sevir.codes import vil_codes
from bench.data.sevir.writing import catalogue_row, write_tree
from bench.data.verbs import AdvanceLabel
from bench.errors import ConfigError, DataError

_METRES = {"m": 1.0, "km": 1000.0, "degree": 111_195.0}


_ECHO = 16
"""SEVIR's lowest threshold."""


class ConvertRadarEvents(ConvertRadarFiles):
    """Original radar files to events of VIL codes that tasks `radar` and `sevir` read."""

    summary: ClassVar[str] = "read a radar archive with pySTEPS and cut it into events in SEVIR's format"

    frames: int = Field(49, ge=2, description="frames of an event")
    size: int = Field(384, ge=2, description="height and width of an event, from the middle of the image")
    places: bool = Field(
        False, description="instead of the middle: events side by side, wherever no pixel is missing in any frame"
    )
    echo: float = Field(
        0.0, ge=0, le=100, description="with --places: least per cent of an event's pixels that have code 16 or more"
    )

    @model_validator(mode="after")
    def _echo_of_places(self) -> ConvertRadarEvents:
        if self.echo and not self.places:
            raise ValueError("--echo needs --places")
        return self

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Converts stretch by stretch, resuming a stopped conversion of the same files, and returns what was made."""
        files = dated_files(self.inputs)
        axis = time_axis(np.array([time for time, _ in files], "datetime64[s]"), f"--in {self.inputs}: times")
        blocks = [
            range(start, start + self.frames)
            for first, last in axis.stretches(0, len(files))
            for start in range(first, last - self.frames + 1, self.frames)
        ]
        if not blocks:
            raise DataError(
                f"--in {self.inputs}: no {self.frames} of {len(files)} frames follow each other without a gap: "
                "--frames N"
            )
        first = self._read(files[0][1])
        height, width = first.lattice.shape
        if min(height, width) < self.size:
            raise ConfigError(f"--size {self.size}: the images have {height}x{width} pixels")
        work = Unfinished(self.out, self._job(files), lambda folder: None)
        work.done = [start for start in work.done if (work.folder / f"{start}.npy").is_file()]

        def keep(block: range, rates: np.ndarray) -> None:
            a, b = first.z_r
            codes = np.stack([vil_codes(a * np.maximum(frame.astype(np.float64), 0.0) ** b) for frame in rates])
            events, squares = self._events(codes)
            np.save(work.folder / f"{block.start}.squares.npy", squares)
            np.save(work.folder / f"{block.start}.npy", events)  # last, because it marks the stretch as done

        self._convert([path for _, path in files], blocks, first, work, keep, advance)
        count, missing = self._write(work, axis, blocks, first)
        work.finish()
        return [
            f"{count} events of {self.frames} frames of {self.size}x{self.size} in {self.out}, {missing} of them "
            "with missing pixels",
            f"try: earthbench data info radar --root {shlex.quote(str(self.out))}"
            + " task.admit_missing=true task.mask_missing=true" * (missing > 0),
        ]

    def _events(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the events of a stretch `(N,H,W,T)`, rows from the south, and first row and column of each `(N,2)`.

        Args:
            codes: Codes of whole images `(T,H,W)`, rows from the north, like those of the squares.
        """
        size = self.size
        height, width = codes.shape[1:]
        middle = [((height - size) // 2, (width - size) // 2)]
        squares = side_by_side(~(codes == MISSING).any(0), size) if self.places else middle
        found = [(codes[:, top : top + size, left : left + size], (top, left)) for top, left in squares]
        found = [(event, at) for event, at in found if 100 * np.mean(event >= _ECHO) >= self.echo]
        events = np.array([event for event, _ in found], np.uint8).reshape(-1, len(codes), size, size)
        return np.moveaxis(events[:, :, ::-1], 1, -1), np.array([at for _, at in found], int).reshape(-1, 2)

    def _write(self, work: Unfinished, axis: TimeAxis, blocks: list[range], first: Frame) -> tuple[int, int]:
        """Writes the tree of the kept events; returns their number, and the number of those with missing pixels."""
        start, lattice = axis.times[0].item(), first.lattice
        metres = _METRES.get(lattice.units, 1.0) * self.size
        kept = {block.start: np.load(work.folder / f"{block.start}.npy", mmap_mode="r") for block in blocks}
        table: list[dict[str, Any]] = []
        for block in blocks:
            times = axis.times[block.start : block.stop]
            middle = times[self.frames // 2]
            offsets = (times - middle).astype(int) / 60
            squares = np.load(work.folder / f"{block.start}.squares.npy")
            for codes, (top, left) in zip(kept[block.start], squares.tolist(), strict=True):
                index = len(table)
                place = lattice.part(slice(top, top + self.size), slice(left, left + self.size))
                table.append(
                    catalogue_row(
                        codes, id=f"R{middle.item():%y%m%d%H%M}{index:04d}",
                        file_name=f"vil/{start:%Y}/RADAR_VIL_{start:%Y%m%d%H%M}.h5", file_index=index,
                        time_utc=middle.item().isoformat(sep=" "),
                        minute_offsets=":".join(f"{minutes:g}" for minutes in offsets), proj=lattice.projection,
                        height_m=abs(float(lattice.y[1] - lattice.y[0])) * metres,
                        width_m=abs(float(lattice.x[1] - lattice.x[0])) * metres, **place.corners(),
                    )
                )  # fmt: skip
        if not table:
            raise DataError(
                f"--in {self.inputs}: no place of {self.size}x{self.size} pixels without missing ones has echo in "
                f"{self.echo:g} % of them; a smaller --size or --echo may"
            )
        write_tree(work.folder, table, (codes for block in blocks for codes in kept[block.start]))
        for block in blocks:
            (work.folder / f"{block.start}.npy").unlink()
            (work.folder / f"{block.start}.squares.npy").unlink()
        return len(table), sum(row["pct_missing"] > 0 for row in table)


def side_by_side(seen: np.ndarray, size: int) -> list[tuple[int, int]]:
    """Returns row and column of the first pixel of disjoint squares, in strips across the image.

    In a strip, squares follow each other as closely as its missing pixels allow; the first row of the first strip is
    the one that gives the most squares.

    Args:
        seen: bool `(H,W)`, pixels that a square may contain.
        size: Pixels on a side.
    """
    sums = np.pad(seen.cumsum(0, dtype=np.int64).cumsum(1), ((1, 0), (1, 0)))
    whole = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size] == size**2
    best: list[tuple[int, int]] = []
    for first in range(min(size, len(whole))):
        found = []
        for row in range(first, len(whole), size):
            free, after = np.flatnonzero(whole[row]), 0
            while (at := np.searchsorted(free, after)) < len(free):
                found.append((row, int(free[at])))
                after = free[at] + size
        best = max(best, found, key=len)
    return best
