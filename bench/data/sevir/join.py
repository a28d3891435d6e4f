"""Joins folders in SEVIR's format, to train on all of them; optionally on coarser pixels and fewer frames."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from bench.data.sevir.catalogue import MISSING, SENSOR, read_catalogue, select_events
from bench.data.sevir.convert import write_reduced
from bench.data.sevir.stored_events import read_headers
from bench.data.sevir.times import as_iso
from bench.data.sevir.writing import catalogue_row
from bench.data.transfer.manifest import origin, write_manifest
from bench.data.transfer.paths import open_hdf5
from bench.data.verbs import AdvanceLabel, DataVerb, Folder
from bench.errors import DataError, UsageError, counted, one_message
from bench.files import replacing, sha256_of


class JoinTrees(DataVerb):
    """The VIL events of several folders in one; events keep their dates, and file names contain the folder's name."""

    summary: ClassVar[str] = "put the events of folders in SEVIR's format into one, on coarser pixels if you like"

    roots: tuple[Folder, ...] = Field(min_length=1, description="folders of equal frames, whose events all differ")
    out: Folder = Field(description="folder to make; must hold no data set yet")
    pool: int = Field(1, ge=1, description="pixels are means over so many by so many, missing where one of them is")
    every: int = Field(1, ge=1, description="of so many frames the first is kept")

    @property
    def _is_coarser(self) -> bool:
        return self.pool > 1 or self.every > 1

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Links (across disks, copies) or coarsens the files of each folder, and writes one catalogue.

        Raises:
            UsageError: there is only one folder and nothing to coarsen.
            DataError: a folder is incomplete, frames differ in size or number, an event is in two, or `out` is taken.
        """
        if len(self.roots) < 2 and not self._is_coarser:
            raise UsageError(f"--roots {self.roots[0]}: expected at least 2 folders, or --pool or --every")
        if (self.out / "CATALOG.csv").exists():
            raise DataError(f"{self.out} already holds a data set (CATALOG.csv); choose another folder")
        self._check()
        tables, files = [], {}
        for number, (name, root) in enumerate(zip(_folder_names(self.roots), self.roots, strict=True), start=1):
            rows = pd.read_csv(root / "CATALOG.csv", dtype=str, encoding="utf-8-sig", skipinitialspace=True)
            rows["time_utc"] = as_iso(rows["time_utc"])
            rows = rows[rows["img_type"] == SENSOR]
            for file_name in sorted(set(rows["file_name"])):
                target = self.out / "data" / name / file_name
                if self._is_coarser:
                    write_reduced(root / "data" / file_name, target, self._coarser)
                else:
                    _place(root / "data" / file_name, target)
                files[f"data/{name}/{file_name}"] = target.stat().st_size, sha256_of(target)
            rows = rows.assign(file_name=f"{name}/" + rows["file_name"])
            tables.append(self._with_new_descriptions(rows) if self._is_coarser else rows)
            advance("folders", number, len(self.roots))
        joined = pd.concat(tables, ignore_index=True)
        self._describe([len(rows) for rows in tables])
        write_manifest(self.out, "joined from " + ", ".join(root.name for root in self.roots), files)
        with replacing(self.out / "CATALOG.csv") as part:  # last, because a catalogue marks a complete folder
            joined.to_csv(part, index=False)
        return [
            f"{counted(len(joined), 'event')} in {counted(len(files), 'file')} in {self.out}",
            f"next: earthbench data info radar --root {self.out}",
        ]

    def _check(self) -> None:
        problems: list[str] = []
        sizes: dict[tuple[int, int, int], Path] = {}
        seen: dict[str, Path] = {}
        for root in self.roots:
            events = select_events(read_catalogue(root), admit_missing=True)
            headers, found = read_headers(root, events)
            problems += [f"{root}: {problem}" for problem in found]
            sizes.update({(header.height, header.width, header.frames): root for header in headers.values()})
            problems += [f"event {e.id} is in {seen[e.id]} and in {root}" for e in events if e.id in seen]
            seen.update({event.id: root for event in events})
            problems += [
                f"{header.path}: frames of {header.height}x{header.width} are not a multiple of --pool {self.pool}"
                for header in headers.values()
                if header.height % self.pool or header.width % self.pool
            ]
        if len(sizes) > 1:
            listing = ", ".join(f"{'x'.join(map(str, size))} in {root}" for size, root in sizes.items())
            problems.append(f"events of H x W x T {listing}; expected one size")
        if problems:
            raise DataError(one_message("these folders cannot be joined:", problems))

    def _coarser(self, event: np.ndarray) -> np.ndarray:
        """Returns the kept frames of an event `(H,W,T)` as means of blocks of pixels."""
        return block_means(event[:, :, :: self.every], self.pool)

    def _with_new_descriptions(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Returns rows with the size, times and values of their coarser events, without duplicated ids."""
        rows = rows[~rows["id"].duplicated(keep=False)].copy()
        if "minute_offsets" in rows.columns:
            rows["minute_offsets"] = [
                ":".join(text.split(":")[:: self.every]) if isinstance(text, str) else text
                for text in rows["minute_offsets"]
            ]
        for name, of_file in rows.groupby("file_name"):
            with open_hdf5(self.out / "data" / str(name)) as file:
                for label, index in of_file["file_index"].items():
                    seen = catalogue_row(file[SENSOR][int(float(index))])
                    for column in ("size_x", "size_y", "data_min", "data_max", "pct_missing"):
                        rows.loc[label, column] = str(seen[column])
        return rows

    def _describe(self, event_counts: list[int]) -> None:
        """Writes a description of the data, unless all of them are original files."""
        counts: Counter[str] = Counter()
        for root, count in zip(self.roots, event_counts, strict=True):
            counts[origin(root)] += count
        if set(counts) == {"files"} and not self._is_coarser:
            return
        text = " + ".join(f"{what} ({counted(count, 'event')})" for what, count in counts.items())
        if self._is_coarser:
            frames = "every frame" if self.every == 1 else f"every {self.every} frames"
            text += f", means of {self.pool}x{self.pool} pixels, {frames}"
        with replacing(self.out / "DATASET.json") as part:
            part.write_text(json.dumps({"origin": text}) + "\n", encoding="utf-8")


def block_means(codes: np.ndarray, pool: int) -> np.ndarray:
    """Returns uint8 `(H/pool, W/pool, T)`: the mean code of each block, halves up; missing where a pixel is missing.

    Args:
        codes: uint8 `(H, W, T)`.
        pool: Pixels on a side of a block; H and W are multiples.
    """
    height, width, frames = codes.shape
    blocks = codes.reshape(height // pool, pool, width // pool, pool, frames)
    doubled = 2 * blocks.sum((1, 3), dtype=np.int64)  # in integers, so that results are the same on all machines
    means = (doubled + pool**2) // (2 * pool**2)
    return np.where((blocks == MISSING).any((1, 3)), MISSING, means).astype(np.uint8)


def _folder_names(roots: tuple[Path, ...]) -> list[str]:
    """Returns a unique name for each folder, its own if no other folder has it."""
    often = Counter(root.resolve().name for root in roots)
    return [
        root.resolve().name if often[root.resolve().name] == 1 else f"{root.resolve().name}_{number}"
        for number, root in enumerate(roots, start=1)
    ]


def _place(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part:
        try:
            os.link(source, part)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, part)
