"""Conversion of radar archives, one file per time, to a cube of rain rates; and the part shared with other targets."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from bench.data.grid.radar_frames import Frame, Reader, dated_files, read_frame
from bench.data.grid.rain_store import FRAMES_PER_CHUNK, Unfinished, empty_store, rain_rates
from bench.data.grid.reprojection import Resampling, Target, reprojected
from bench.data.verbs import AdvanceLabel, DataVerb, Folder
from bench.errors import ConfigError, DataError, one_message
from bench.worker_pool import worker_pool


class ConvertRadarFiles(DataVerb):
    """Original radar files to a Zarr cube of rain rates that task `grid` reads."""

    summary: ClassVar[str] = "read a radar archive with pySTEPS and write one Zarr cube of rain rates in mm/h"

    reader: Reader = Field(description="format: knmi_hdf5, odim_hdf5, fmi_pgm, mch_gif, bom_netcdf or mrms_grib")
    inputs: str = Field(alias="in", description="glob of the files, one per time: 'dir/*'")
    out: Folder = Field(description="store to make: NAME.zarr")
    extent: tuple[float, float, float, float] | None = Field(
        None, description="X1,X2,Y1,Y2 to keep, in the units of the (new) projection, as in --extent=-5,5,50,60"
    )
    to_projection: str | None = Field(None, description="PROJ string or EPSG:NUMBER to put the images on")
    resolution: float | None = Field(None, gt=0, description="size of the new pixels, in the units of --to-projection")
    resampling: Resampling = Field("nearest", description="how: nearest or bilinear")
    workers: int = Field(1, ge=1, le=256, description="processes that read")
    accutime: float = Field(5.0, gt=0, description="minutes that mch_gif files accumulate over; others say it")

    @model_validator(mode="after")
    def _both_or_none(self) -> ConvertRadarFiles:
        if (self.to_projection is None) != (self.resolution is None):
            raise ValueError("--to-projection and --resolution need each other")
        return self

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Converts the files, resuming a stopped conversion of the same files, and returns what was made."""
        if self.out.suffix != ".zarr":
            raise ConfigError(f"--out {self.out}: expected a name that ends in .zarr")
        files = dated_files(self.inputs)
        times = np.array([time for time, _ in files], "datetime64[s]")
        first = self._read(files[0][1])
        work = Unfinished(
            self.out, self._job(files), lambda folder: empty_store(folder, first.lattice, times, "read by pySTEPS")
        )
        array = rain_rates(work.folder)

        def keep(block: range, rates: np.ndarray) -> None:
            array[block.start : block.stop] = rates

        at = range(0, len(files), FRAMES_PER_CHUNK)
        blocks = [range(start, min(start + FRAMES_PER_CHUNK, len(files))) for start in at]
        self._convert([path for _, path in files], blocks, first, work, keep, advance)
        work.finish()
        root = shlex.quote(str(self.out))
        height, width = first.lattice.shape
        return [
            f"{len(files)} frames of {height}x{width}, {times[0]} to {times[-1]}, in {self.out}",
            f"try: earthbench data info grid --root {root} 'task.thresholds=[0.5,2,5,10]'",
        ]

    def _job(self, files: Sequence[tuple[np.datetime64, Path]]) -> dict[str, Any]:
        """Returns files and settings, which must be the same for a stopped conversion to resume."""
        settings = self.model_dump(mode="json", exclude={"inputs", "out", "workers"})
        return {**settings, "files": [[str(time), path.name, path.stat().st_size] for time, path in files]}

    def _convert(
        self,
        paths: Sequence[Path],
        blocks: Sequence[range],
        first: Frame,
        work: Unfinished,
        keep: Callable[[range, np.ndarray], None],
        advance: AdvanceLabel,
    ) -> None:
        """Reads the blocks of files that are not done yet, and keeps each that could be read completely.

        Args:
            paths: All files.
            blocks: Ranges of files that make one piece of the result.
            first: An image with the lattice that all must have.
            work: Stores which blocks are done.
            keep: Called with a block and its rates `(T,H,W)`.
            advance: Called after each file.

        Raises:
            DataError: lists the files that cannot be used; the blocks without them are kept.
        """
        missing = [block for block in blocks if block.start not in work.done]
        total = sum(map(len, blocks))
        done = total - sum(map(len, missing))
        problems: list[str] = []
        with _pool(self.workers) as pool:
            for block in missing:
                read = (pool.map if pool else map)(self._read_or_reason, [paths[at] for at in block])
                frames = np.empty((len(block), *first.lattice.shape), np.float32)
                wrong = len(problems)
                for number, (at, found) in enumerate(zip(block, read, strict=True)):
                    if isinstance(found, str):
                        problems.append(found)
                    elif found.lattice.key != first.lattice.key:
                        problems.append(f"{paths[at]}: another grid than {paths[0]}")
                    else:
                        frames[number] = found.rates
                    done += 1
                    advance("radar files", done, total)
                if len(problems) == wrong:
                    keep(block, frames)
                    work.mark(block.start)
        if problems:
            raise DataError(
                one_message(f"{len(problems)} of {total} files cannot be used; what was read is kept:", problems)
            )

    def _read_or_reason(self, path: Path) -> Frame | str:
        try:
            return self._read(path)
        except DataError as error:
            return str(error)

    def _read(self, path: Path) -> Frame:
        frame = read_frame(path, self.reader, accutime=self.accutime)
        if self.to_projection is not None and self.resolution is not None:
            target = Target(self.to_projection, self.resolution, self.resampling, self.extent)
            return Frame(*reprojected(frame.rates, frame.lattice, target), frame.z_r)
        rows, columns = frame.lattice.cropped(self.extent)
        return Frame(frame.rates[rows, columns], frame.lattice.part(rows, columns), frame.z_r)


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    if workers == 1:
        yield None
        return
    with worker_pool(workers) as pool:
        yield pool
