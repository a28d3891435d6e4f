"""Radar archives of weather services as events in SEVIR's format: rain rates re-coded as vertically integrated liquid.

Source: Marshall and Palmer 1948 (Z = 200 R^1.6); `bench.data.sevir.codes` for what follows.
"""

from __future__ import annotations

import shlex
from typing import ClassVar

import numpy as np
from pydantic import Field

from bench.data.grid.radar_files import ConvertRadarFiles
from bench.data.grid.radar_frames import Frame, dated_files
from bench.data.grid.rain_store import Unfinished
from bench.data.grid.times import TimeAxis, time_axis
from bench.data.sevir.codes import vil_codes
from bench.data.sevir.writing import catalogue_row, write_tree
from bench.data.verbs import AdvanceLabel
from bench.errors import ConfigError, DataError

_METRES = {"m": 1.0, "km": 1000.0, "degree": 111_195.0}


class ConvertRadarEvents(ConvertRadarFiles):
    """Original radar files to events of VIL codes that tasks `radar` and `sevir` read."""

    summary: ClassVar[str] = "read a radar archive with pySTEPS and cut it into events in SEVIR's format"

    frames: int = Field(49, ge=2, description="frames of an event")
    size: int = Field(384, ge=2, description="height and width of an event, from the middle of the image")

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Converts event by event, resumes a stopped conversion of the same files, and returns what was made."""
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
        rows, columns = _middle((height, width), self.size)
        work = Unfinished(self.out, self._job(files), lambda folder: None)
        work.done = [start for start in work.done if (work.folder / f"{start}.npy").is_file()]

        def keep(block: range, rates: np.ndarray) -> None:
            # a frame's first row is the southernmost in SEVIR
            codes = vil_codes(200.0 * np.maximum(rates[:, rows, columns].astype(np.float64), 0.0) ** 1.6)[:, ::-1]
            np.save(work.folder / f"{block.start}.npy", np.moveaxis(codes, 0, -1))

        self._convert([path for _, path in files], blocks, first, work, keep, advance)
        missing = self._write(work, axis, blocks, first)
        work.finish()
        return [
            f"{len(blocks)} events of {self.frames} frames of {self.size}x{self.size} in {self.out}, {missing} of them "
            "with missing pixels",
            f"try: earthbench data info radar --root {shlex.quote(str(self.out))}"
            + " task.admit_missing=true task.mask_missing=true" * (missing > 0),
        ]

    def _write(self, work: Unfinished, axis: TimeAxis, blocks: list[range], first: Frame) -> int:
        """Writes the tree of the events that were kept; returns how many have missing pixels."""
        start, lattice = axis.times[0].item(), first.lattice.part(*_middle(first.lattice.shape, self.size))
        metres = _METRES.get(lattice.units, 1.0) * self.size
        corners = lattice.corners()
        table = []
        for index, block in enumerate(blocks):
            times = axis.times[block.start : block.stop]
            middle = times[self.frames // 2]
            offsets = (times - middle).astype(int) / 60
            table.append(
                catalogue_row(
                    np.load(work.folder / f"{block.start}.npy"), id=f"R{middle.item():%y%m%d%H%M}{index:04d}",
                    file_name=f"vil/{start:%Y}/RADAR_VIL_{start:%Y%m%d%H%M}.h5", file_index=index,
                    time_utc=middle.item().isoformat(sep=" "),
                    minute_offsets=":".join(f"{minutes:g}" for minutes in offsets), proj=lattice.projection,
                    height_m=abs(float(lattice.y[1] - lattice.y[0])) * metres,
                    width_m=abs(float(lattice.x[1] - lattice.x[0])) * metres, **corners,
                )
            )  # fmt: skip
        write_tree(work.folder, table, (np.load(work.folder / f"{block.start}.npy") for block in blocks))
        for block in blocks:
            (work.folder / f"{block.start}.npy").unlink()
        return sum(row["pct_missing"] > 0 for row in table)


def _middle(shape: tuple[int, int], size: int) -> tuple[slice, slice]:
    """Returns the rows and columns of a square in the middle of an image."""
    rows, columns = (slice((whole - size) // 2, (whole + size) // 2) for whole in shape)
    return rows, columns
