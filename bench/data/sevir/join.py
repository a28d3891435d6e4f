"""Several folders in SEVIR's format as one, so that a model can be trained on all of them."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pandas as pd
from pydantic import Field

from bench.data.sevir.catalogue import read_catalogue, read_headers, select_events
from bench.data.sevir.times import as_iso
from bench.data.transfer.manifest import digest, origin, write_manifest
from bench.data.verbs import AdvanceLabel, DataVerb, Folder
from bench.errors import DataError, one_message
from bench.files import replacing

_SENSOR = "vil"


class JoinTrees(DataVerb):
    """The VIL events of several folders in one; splits stay what their dates say."""

    summary: ClassVar[str] = "put the events of several folders in SEVIR's format into one"

    roots: tuple[Folder, ...] = Field(min_length=2, description="folders of equal frames, whose events all differ")
    out: Folder = Field(description="folder to make; must hold no data set yet")

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Links (or, onto another disk, copies) the files of each folder and writes one catalogue.

        Raises:
            DataError: a folder is not whole, frames differ in size or number, an event is in two, or `out` is taken.
        """
        if (self.out / "CATALOG.csv").exists():
            raise DataError(f"{self.out} already holds a data set (CATALOG.csv); choose another folder")
        self._check()
        tables, files = [], {}
        for number, (name, root) in enumerate(zip(_folder_names(self.roots), self.roots, strict=True), start=1):
            rows = pd.read_csv(root / "CATALOG.csv", dtype=str, encoding="utf-8-sig", skipinitialspace=True)
            rows["time_utc"] = as_iso(rows["time_utc"])
            rows = rows[rows["img_type"] == _SENSOR]
            for file_name in sorted(set(rows["file_name"])):
                target = self.out / "data" / name / file_name
                _place(root / "data" / file_name, target)
                files[f"data/{name}/{file_name}"] = target.stat().st_size, digest(target)
            tables.append(rows.assign(file_name=f"{name}/" + rows["file_name"]))
            advance("folders", number, len(self.roots))
        joined = pd.concat(tables, ignore_index=True)
        self._describe([len(rows) for rows in tables])
        write_manifest(self.out, "joined from " + ", ".join(root.name for root in self.roots), files)
        with replacing(self.out / "CATALOG.csv") as part:  # last: what has a catalogue is whole
            joined.to_csv(part, index=False)
        return [
            f"{len(joined)} events in {len(files)} files in {self.out}",
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
        if len(sizes) > 1:
            listing = ", ".join(f"{'x'.join(map(str, size))} in {root}" for size, root in sizes.items())
            problems.append(f"events of H x W x T {listing}; expected one size")
        if problems:
            raise DataError(one_message("these folders cannot be joined:", problems))

    def _describe(self, event_counts: list[int]) -> None:
        """Writes what the data is, unless all of it is files of others."""
        counts: Counter[str] = Counter()
        for root, count in zip(self.roots, event_counts, strict=True):
            counts[origin(root)] += count
        if set(counts) == {"files"}:
            return
        text = " + ".join(f"{what} ({count} events)" for what, count in counts.items())
        with replacing(self.out / "DATASET.json") as part:
            part.write_text(json.dumps({"origin": text}) + "\n", encoding="utf-8")


def _folder_names(roots: tuple[Path, ...]) -> list[str]:
    """Returns a name for each folder, its own where no other has the same."""
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
