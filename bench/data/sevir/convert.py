"""SEVIR-LR from SEVIR: every second frame and the maximum of 3x3 pixels, file by file, event by event.

Source: Gao et al. 2023, PreDiff: 49 frames of 384x384 become 25 of 128x128; other sizes are padded with zeros at the
far edges, as in `skimage.measure.block_reduce`.  File names and indices stay.  The authors' set has no `id` arrays and
an unchanged catalogue; ours keeps the ids, and its catalogue describes the new files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import as_completed
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pandas as pd
from pydantic import Field

from bench.data.sevir.catalogue import SENSOR, read_catalogue, select_events
from bench.data.sevir.files import HDF5_ERRORS, read_header
from bench.data.sevir.stored_events import read_headers
from bench.data.sevir.times import as_iso
from bench.data.transfer.manifest import write_manifest
from bench.data.transfer.paths import open_hdf5
from bench.data.verbs import AdvanceLabel, DataVerb, Folder
from bench.errors import DataError, counted, one_message
from bench.files import replacing, sha256_of
from bench.worker_pool import worker_pool

FRAME_STEP, BLOCK = 2, 3
_SOURCE = "converted_from"
"""Attribute of a converted file with the name, size and date of its source."""


class ConvertToLowResolution(DataVerb):
    """SEVIR-LR made from the VIL files of a tree in SEVIR's format."""

    summary: ClassVar[str] = "make SEVIR-LR from SEVIR: every second frame, the maximum of 3x3 pixels"

    root: Folder = Field(description="folder of the SEVIR data")
    out: Folder = Field(description="folder to make; the same command resumes an interrupted one")
    workers: int = Field(
        min(4, os.cpu_count() or 1), ge=1, le=256, description="processes; each has one file at a time"
    )

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Converts every existing VIL file of the catalogue.

        Raises:
            DataError: files that a task would read are missing or broken, or `out` is another data set.
        """
        catalogue = read_catalogue(self.root)
        if self.out.resolve() == self.root.resolve():
            raise DataError(f"--out {self.out} is the folder that is converted; choose another")
        _, problems = read_headers(self.root, select_events(catalogue))
        if problems:
            raise DataError(one_message(f"the data under {self.root} is incomplete:", problems))
        names = sorted(set(catalogue.loc[catalogue["img_type"] == SENSOR, "file_name"]))
        # A file of left-out rows only need not exist.
        names = [name for name in names if (self.root / "data" / name).is_file()]
        if (self.out / "CATALOG.csv").exists() and not all(_is_converted(self._pair(name)) for name in names):
            raise DataError(f"{self.out} already holds another data set (CATALOG.csv); choose another folder")
        files = self._convert(names, advance)
        write_manifest(self.out, f"SEVIR-LR made from {self.root.name}", {f"data/{n}": e for n, e in files.items()})
        _write_catalogue(self.root / "CATALOG.csv", self.out / "CATALOG.csv")
        size = sum(entry[0] for entry in files.values())
        return [
            f"{counted(len(files), 'file')}, {size / 1e6:.1f} MB, in {self.out}",
            f"next: earthbench data info sevir_lr --root {self.out}",
        ]

    def _pair(self, name: str) -> tuple[Path, Path]:
        return self.root / "data" / name, self.out / "data" / name

    def _convert(self, names: list[str], advance: AdvanceLabel) -> dict[str, tuple[int, str]]:
        """Returns bytes and SHA-256 of each converted file."""
        largest_first = sorted(names, key=lambda name: -self._pair(name)[0].stat().st_size)
        files: dict[str, tuple[int, str]] = {}
        if self.workers == 1 or len(names) <= 1:
            for name in largest_first:
                files[name] = convert_file(*self._pair(name), lambda done, total, n=name: advance(n, done, total))
            return files
        with worker_pool(min(self.workers, len(names))) as pool:
            pending = {pool.submit(convert_file, *self._pair(name)): name for name in largest_first}
            try:
                for future in as_completed(pending):
                    files[pending[future]] = future.result()
                    advance("files", len(files), len(names))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return files


def low_resolution(event: np.ndarray) -> np.ndarray:
    """Returns uint8 `(ceil(H/3), ceil(W/3), ceil(T/2))`: every second frame, the maximum of each 3x3 block.

    Args:
        event: uint8 `(H, W, T)`; 255, missing, is the largest code, so that a block with a missing pixel is missing.
    """
    frames = np.ascontiguousarray(event[:, :, ::FRAME_STEP])
    edges = [(0, -length % BLOCK) for length in frames.shape[:2]]
    if any(after for _, after in edges):
        frames = np.pad(frames, [*edges, (0, 0)])
    # maxima of whole planes, so that time stays the fastest axis and the operation is vectorised
    rows = np.maximum(np.maximum(frames[0::BLOCK], frames[1::BLOCK]), frames[2::BLOCK])
    return np.maximum(np.maximum(rows[:, 0::BLOCK], rows[:, 1::BLOCK]), rows[:, 2::BLOCK])


def convert_file(source: Path, target: Path, advance: object = None) -> tuple[int, str]:
    """Writes the low-resolution form of an event file unless it exists; returns its bytes and SHA-256.

    Args:
        source: An HDF5 file with `vil` (N,H,W,T) and optionally `id`.
        target: Gets its name when it is complete.
        advance: Called with `(done, total)` after each event.

    Raises:
        DataError: an event cannot be read, or the file not written.
    """
    if not _is_converted((source, target)):
        write_reduced(source, target, low_resolution, advance)
    return target.stat().st_size, sha256_of(target)


def write_reduced(
    source: Path, target: Path, reduced: Callable[[np.ndarray], np.ndarray], advance: object = None
) -> None:
    """Writes a reduced form of every event of a file, with the ids.

    Args:
        source: An HDF5 file with `vil` (N,H,W,T) and optionally `id`.
        target: Gets its name when it is complete.
        reduced: Reduces an event, uint8 `(H,W,T)`, to fewer pixels and frames.
        advance: Called with `(done, total)` after each event.

    Raises:
        DataError: an event cannot be read, or the file not written.
    """
    header = read_header(source)
    unwritten = [index for index in range(header.event_count) if not header.is_written(index)]
    if unwritten:
        raise DataError(
            f"{source}: {len(unwritten)} events were never, or not wholly, written (the first at index "
            f"{unwritten[0]}); as zeros they would become dry scenes"
        )
    shape = reduced(np.zeros((header.height, header.width, header.frames), np.uint8)).shape
    with replacing(target) as part:
        with open_hdf5(source) as file, h5py.File(part, "w") as low:
            events = low.create_dataset(SENSOR, (header.event_count, *shape), np.uint8)
            buffer = np.empty(file[SENSOR].shape[1:], np.uint8)
            for index in range(header.event_count):
                try:
                    file[SENSOR].read_direct(buffer, np.s_[index])
                except HDF5_ERRORS as error:
                    raise DataError(f"{source}: event at index {index} cannot be read: {error}") from error
                events[index] = reduced(buffer)
                if callable(advance):
                    advance(index + 1, header.event_count)
            if "id" in file:
                low["id"] = file["id"][:]
            low.attrs[_SOURCE] = _version(source)
        with part.open("rb+") as written:
            os.fsync(written.fileno())


def _version(source: Path) -> str:
    state = source.stat()
    return f"{source.name} {state.st_size} {state.st_mtime_ns}"


def _is_converted(pair: tuple[Path, Path]) -> bool:
    source, target = pair
    try:
        with open_hdf5(target) as file:
            return bool(file.attrs.get(_SOURCE) == _version(source))
    except OSError:  # missing or broken
        return False


def _write_catalogue(source: Path, target: Path) -> None:
    """Writes the VIL rows with their new sizes and times; `pct_missing`, which decides what is read, stays."""
    rows = pd.read_csv(source, dtype=str, encoding="utf-8-sig", skipinitialspace=True, keep_default_na=False)
    rows["time_utc"] = as_iso(rows["time_utc"])
    rows = rows[rows["img_type"] == SENSOR].copy()
    for column in {"size_x", "size_y"} & set(rows.columns):
        rows[column] = [str(-(-int(float(size)) // BLOCK)) if size else "" for size in rows[column]]
    if "minute_offsets" in rows.columns:
        rows["minute_offsets"] = [":".join(text.split(":")[::FRAME_STEP]) for text in rows["minute_offsets"]]
    with replacing(target) as part:
        rows.to_csv(part, index=False)
