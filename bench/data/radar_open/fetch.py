"""`earthbench data fetch radar_open`: public radar files, and the trees that the committed records are measured on."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator

from bench.data.radar_open.trees import PARTS, SIZE, Event, Original, Tree, events_of, frame_codes, originals, row_of
from bench.data.sevir.writing import write_tree
from bench.data.transfer.download import download, run_parallel
from bench.data.transfer.fetch import FetchVerb
from bench.data.transfer.manifest import write_manifest
from bench.data.verbs import AdvanceLabel, Folder, Plan
from bench.errors import DataError, counted, did_you_mean, one_message
from bench.files import sha256_of
from bench.worker_pool import worker_pool

MIRROR = "https://raw.githubusercontent.com/pySTEPS/pysteps-data/eaa59fb8f39205a3b1a0b44724ad8cd4a86d107e"
_ARCHIVES = tuple(dict.fromkeys(original.archive for original in originals()))


class FetchRadarOpen(FetchVerb):
    """Observed radar of three weather services, converted to the trees that records are measured on."""

    summary: ClassVar[str] = "download public radar files (pysteps-data) and make the trees of observed radar of them"

    out: Folder = Field(
        description="folder for radar/, radar_conus/ and the originals in radar_raw/; the same command resumes"
    )
    parts: tuple[str, ...] = Field(
        tuple(PARTS), description=f"trees {', '.join(PARTS)}, or originals alone: {', '.join(_ARCHIVES)}"
    )
    mirror: str = Field(MIRROR, description="address with the files of pysteps-data under their own paths")
    workers: int = Field(4, ge=1, le=64, description="downloads at a time, and processes that convert")

    @field_validator("parts")
    @classmethod
    def _known(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        for part in parts:
            if part not in PARTS and part not in _ARCHIVES:
                raise ValueError(f"unknown part {part!r}. {did_you_mean(part, [*PARTS, *_ARCHIVES])}")
        return parts

    def plan(self, advance: AdvanceLabel) -> Plan:
        """Returns how many files there are to download."""
        wanted = self._wanted()
        there = sum((self._path(original)).is_file() for original in wanted)
        return Plan((f"{counted(len(wanted), 'file')}, {there} of them there, from {self.mirror} to {self.out}",))

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Downloads, verifies and converts, and returns a summary.

        Raises:
            DataError: a file cannot be downloaded or is not the published one, or the events differ from the trees'.
            UsageError: pySTEPS is not installed.
        """
        wanted = self._wanted()
        self._download(wanted, advance)
        lines = [f"{len(wanted)} original files, verified, in {self.out / 'radar_raw'}"] if wanted else []
        for archive in _ARCHIVES:
            trees = [tree for tree in self._missing() if tree.source.archive == archive]
            if trees:
                lines += self._convert(trees, advance)
        for name in self.parts:
            for tree in PARTS.get(name, ()):
                lines.append(f"next: earthbench data info radar --root {self.out / tree.path}")
        return lines

    def _missing(self) -> list[Tree]:
        trees = [tree for part in self.parts for tree in PARTS.get(part, ())]
        return [tree for tree in trees if not (self.out / tree.path / "CATALOG.csv").exists()]

    def _wanted(self) -> list[Original]:
        """Returns the originals of the requested parts that do not exist yet."""
        found = [original for original in originals() if original.archive in self.parts]
        for tree in self._missing():
            found += _files_of(tree)
        return list(dict.fromkeys(found))

    def _path(self, original: Original) -> Path:
        return self.out / "radar_raw" / original.path

    def _download(self, wanted: Sequence[Original], advance: AdvanceLabel) -> None:
        def one(original: Original, stop: threading.Event) -> None:
            url = f"{self.mirror.rstrip('/')}/{original.path}"
            download(url, self._path(original), sha256=original.sha256, policy=self.policy, stop=stop)

        jobs = [partial(one, original) for original in wanted]
        run_parallel(jobs, self.workers, ended=partial(advance, "original files"))

    def _convert(self, trees: Sequence[Tree], advance: AdvanceLabel) -> list[str]:
        """Makes the trees of each archive, reading each file once for all of them."""
        source = trees[0].source
        events = {tree: events_of(tree.path) for tree in trees}
        codes = {tree: np.empty((len(events[tree]), SIZE, SIZE, tree.frames), np.uint8) for tree in trees}
        paths = [self._path(original) for original in originals() if original.archive == source.archive]
        paths = paths[: max(event.first + tree.frames for tree in trees for event in events[tree])]
        every = [event for tree in trees for event in events[tree]]
        with worker_pool(self.workers) as pool:
            frames = pool.map(partial(frame_codes, source=source, events=every), paths)
            for number, images in enumerate(frames):
                advance(f"frames of {source.archive}", number + 1, len(paths))
                at = 0
                for tree in trees:
                    for index, event in enumerate(events[tree]):
                        if 0 <= number - event.first < tree.frames:
                            codes[tree][index, :, :, number - event.first] = images[at + index]
                    at += len(events[tree])
        lines = []
        for tree in trees:
            _verify(events[tree], codes[tree], paths)
            root = self.out / tree.path
            rows = [row_of(tree, e, at, codes[tree][at]) for at, e in enumerate(events[tree])]
            path = write_tree(root, rows, codes[tree])
            name = path.relative_to(root).as_posix()
            write_manifest(root, self.mirror, {name: (path.stat().st_size, sha256_of(path))})
            lines.append(f"{counted(len(rows), 'event')}, equal to those of the committed records, in {root}")
        return lines


def _files_of(tree: Tree) -> list[Original]:
    last = max(event.first + tree.frames for event in events_of(tree.path))
    return [original for original in originals() if original.archive == tree.source.archive][:last]


def _verify(events: Sequence[Event], codes: np.ndarray, paths: Sequence[Path]) -> None:
    """Refuses events whose digests differ from the tree's.

    Raises:
        DataError: lists them.
    """
    wrong = [e.id for e, made in zip(events, codes, strict=True) if hashlib.sha256(made).hexdigest() != e.sha256]
    if wrong:
        raise DataError(
            one_message(
                f"{len(wrong)} of {len(events)} events made of {paths[0].parent} are not those of the tree "
                f"{events[0].tree} (SHA-256 of their codes). Delete the files without a checksum, download again, and "
                "see that the versions of pySTEPS and pyproj are those of constraints.txt:",
                wrong,
            )
        )
