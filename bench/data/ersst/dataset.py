"""Windows of consecutive months of the observed record, split by time."""

from __future__ import annotations

import hashlib
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data.ersst.files import Anomalies, Box, cropped, read_anomalies, record_files
from bench.data.icar_enso.dataset import FRAME_SIZE
from bench.data.report import Advance, Report
from bench.data.sequences import SequenceDataset, Units
from bench.data.transfer.manifest import check_manifest, origin
from bench.errors import DataError

INDEX_MONTHS = 3
"""A label is the mean of the index over so many months, as in ICAR-ENSO."""


class ErsstWindows(SequenceDataset):
    """Windows within a stretch of time: context and target `(T,24,48,1)` float32 K, and the labels of the target.

    A window belongs to a split only if all of its months do, those of its context too: no month is in two splits.

    Args:
        root: Folder with the record's NetCDF files.
        start: First month, None for that of the record.
        end: First month after the last one, None for the end of the record.
        t_in: Months of the context.
        t_out: Months of the target, right after the context.
        gap: Months between the starts of windows.
        base: First and last year of the period that anomalies are taken from.
        box: Of the labels: the exact box on the grid of the files, or the papers'.

    Raises:
        DataError: lists what is wrong with the files.
    """

    def __init__(
        self,
        root: Path,
        *,
        start: date | None,
        end: date | None,
        t_in: int,
        t_out: int,
        gap: int,
        base: tuple[int, int],
        box: Box,
    ) -> None:
        self.root, self.t_in, self.t_out, self.gap, self.base, self.box = root, t_in, t_out, gap, base, box
        anomalies = anomalies_of(root, *base)
        inside = np.ones(len(anomalies.months), bool)
        if start is not None:
            inside &= anomalies.months >= np.datetime64(start, "M")
        if end is not None:
            inside &= anomalies.months < np.datetime64(end, "M")
        self.months = anomalies.months[inside]
        self.sst = cropped(anomalies.sst[inside])
        self.sea = cropped(anomalies.sea)
        self.nino34 = anomalies.nino34[box][inside].astype(np.float32)

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns the months: windows overlap, and what splits must not share is any month."""
        return tuple(str(month) for month in self.months)

    @property
    def units(self) -> Units:
        """Returns the one record of all months."""
        return Units("record", (f"{self.ids[0]}..{self.ids[-1]}",), (len(self),))

    def __len__(self) -> int:
        """Returns the number of windows."""
        return max(0, 1 + (len(self.months) - self.t_in - self.t_out) // self.gap)

    def stored(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns context `(T_in,24,48,1)`, target `(T_out,24,48,1)` and labels `(T_out-2,)`, float32 K.

        A label is the observed Nino3.4 index, the mean of a month of the target and the two months after it.

        Raises:
            IndexError: the index is out of range.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        first = (index % len(self)) * self.gap
        middle, end = first + self.t_in, first + self.t_in + self.t_out
        # copies: whoever changes what it is given must not change the record
        frames = torch.from_numpy(self.sst[first:end].copy())[..., None]
        monthly = torch.from_numpy(self.nino34[middle:end].copy())
        return frames[: self.t_in], frames[self.t_in :], monthly.double().unfold(0, INDEX_MONTHS, 1).mean(-1).float()

    def identity(self) -> dict[str, Any]:
        """Returns what identifies these data: every month, and how they are cut."""
        content = hashlib.sha256()
        for part in (self.sst, self.nino34):
            content.update(np.ascontiguousarray(part).data)
        found = origin(self.root)
        return {
            "origin": "observed SST" if found == "files" else found,
            "sequence_count": len(self),
            "event_shape": [*FRAME_SIZE, len(self.months)],
            "window": [self.t_in, self.t_out, self.gap],
            "months": [str(month) for month in self.months[[0, -1]]] if len(self.months) else [],
            "base": list(self.base),
            "index_box": self.box,
            "content_sha256": content.hexdigest(),
        }


def anomalies_of(root: Path, base_from: int, base_to: int) -> Anomalies:
    """Returns the anomalies of a folder; the splits of a run share them.

    Raises:
        DataError: lists what is wrong with the files.
    """
    files = tuple((path.name, path.stat().st_mtime_ns if path.exists() else 0) for path in record_files(root))
    return _anomalies(root, base_from, base_to, files)


@lru_cache(maxsize=4)
def _anomalies(root: Path, base_from: int, base_to: int, files: tuple[tuple[str, int], ...]) -> Anomalies:
    return read_anomalies(root, base_from, base_to)


def describe(
    root: Path, base: tuple[int, int], report: Report, *, read_everything: bool, advance: Advance | None
) -> Report:
    """Returns a report of the splits with what is known of the record, whose events are months.

    Args:
        root: Folder with the record's NetCDF files.
        base: First and last year of the base period.
        report: Of the splits, whose lines are written anew.
        read_everything: Also hold the bytes against the manifest of the download, where there is one.
        advance: Called with `(done, total)` after each file.

    Raises:
        DataError: the files are no record; while everything is read, that is one of the problems.
    """
    if read_everything:
        check_manifest(root, report, advance)
    try:
        found = anomalies_of(root, *base)
    except DataError as error:
        if not read_everything:
            raise
        # every split ran into it
        report.problems = [*(problem for problem in report.problems if str(error) not in problem), str(error)]
        return report
    if read_everything and not np.ptp(found.sst):
        report.problems.append(f"{root}: expected temperatures that vary, found the same ones in every year")
    first, last, sea = str(found.months[0]), str(found.months[-1]), int(found.sea.sum())
    report.facts |= {"months": [first, last], "files": list(found.files), "sea_cells": sea, "base": list(base)}
    report.lines = [
        f"{root}  ({len(found.files)} files, {found.files[0]})",
        f"  {len(found.months)} months {first}..{last}, {sea} of {found.sea.size} 5-degree cells are sea, "
        f"anomalies from {base[0]}-{base[1]}",
    ]
    for split, count in report.facts["splits"].items():
        report.lines.append(f"  {split:<5} {count['events']:>7} months {count['sequences']:>7} sequences")
        if not count["sequences"]:
            report.remarks.append(f"split {split} has no window: set task.val_from and task.test_from (record {last})")
    return report
