"""Windows of consecutive months of the observed record, split by time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data.ersst.anomalies import YEAR, BasePeriod, Box, Months, anomalies_of, calendar_months, cropped
from bench.data.icar_enso.dataset import FRAME_SIZE
from bench.data.report import Advance, Report
from bench.data.sequences import SequenceDataset, Units
from bench.data.transfer.manifest import check_manifest, origin
from bench.errors import DataError

INDEX_MONTHS = 3
"""Months that a label averages the index over, as in ICAR-ENSO."""


class ErsstWindows(SequenceDataset):
    """Windows within stretches of time: context and target `(T,24,48,1)` float32 K, and the labels of the target.

    A window belongs to a split only if all of its months do, including its context: no month is in two splits.

    Args:
        root: Folder with the record's NetCDF files.
        stretches: Stretches of the split, in order, as far as the record covers them; windows do not cross them.
        t_in: Months of the context.
        t_out: Months of the target, right after the context.
        gap: Months between the starts of windows.
        base: Base period of the anomalies.
        box: Box of the labels: the exact box on the grid of the files, or the papers'.
        variable: Variable of the temperatures; None to detect it by its name or `standard_name`.
        calendar: Add the season to contexts: sine and cosine of 2 pi m / 12 for month m, 0 for January.

    Raises:
        DataError: lists what is wrong with the files.
    """

    def __init__(
        self,
        root: Path,
        *,
        stretches: Sequence[Months],
        t_in: int,
        t_out: int,
        gap: int,
        base: BasePeriod,
        box: Box,
        variable: str | None = None,
        calendar: bool = False,
    ) -> None:
        self.root, self.t_in, self.t_out, self.gap, self.base, self.box = root, t_in, t_out, gap, base, box
        self.calendar = calendar
        anomalies = anomalies_of(root, base, variable)
        parts = [np.flatnonzero((anomalies.months >= first) & (anomalies.months < end)) for first, end in stretches]
        inside = np.concatenate([part for part in parts if len(part)] or [np.zeros(0, np.int64)])
        self.months = anomalies.months[inside]
        self.sst = cropped(anomalies.sst[inside])
        self.sea = cropped(anomalies.sea)
        self.nino34 = anomalies.nino34[box][inside].astype(np.float32)
        lengths = [len(part) for part in parts if len(part)]
        begins = np.cumsum([0, *lengths])[:-1]
        self._stretches = list(zip(begins.tolist(), lengths, strict=True))
        self._starts = np.concatenate(
            [begin + gap * np.arange(self._windows(length)) for begin, length in self._stretches] or [inside]
        )

    def _windows(self, months: int) -> int:
        """Returns the number of windows in a stretch of `months` months."""
        return max(0, 1 + (months - self.t_in - self.t_out) // self.gap)

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns the months, because windows overlap and splits must not share a month."""
        return tuple(str(month) for month in self.months)

    @property
    def units(self) -> Units:
        """Returns the stretches that have windows: records of months."""
        found = [(begin, length, self._windows(length)) for begin, length in self._stretches]
        found = [part for part in found if part[2]] or found[:1]
        names = tuple(f"{self.months[begin]}..{self.months[begin + length - 1]}" for begin, length, _ in found)
        return Units("record", names, tuple(windows for _, _, windows in found))

    def __len__(self) -> int:
        """Returns the number of windows."""
        return len(self._starts)

    def stored(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns context `(T_in,24,48,1)`, target `(T_out,24,48,1)` and labels `(T_out-2,)`, float32 K.

        With `calendar`, the context has two more channels.  A label is the observed Nino3.4 index, averaged over a
        month of the target and the two months after it.

        Raises:
            IndexError: the index is out of range.
        """
        first = self.starts_at(self.checked_index(index))
        middle, end = first + self.t_in, first + self.t_in + self.t_out
        monthly = torch.from_numpy(self.nino34[middle:end].copy())
        labels = monthly.double().unfold(0, INDEX_MONTHS, 1).mean(-1).float()
        return self.context(first), self._frames(middle, end), labels

    def context(self, first: int) -> Tensor:
        """Returns the context that begins with a given month of the split; its target may be missing."""
        frames = self._frames(first, first + self.t_in)
        if not self.calendar:
            return frames
        months = calendar_months(self.months[first : first + self.t_in])
        angles = torch.from_numpy(months).double() * (2 * torch.pi / YEAR)
        season = torch.stack([angles.sin(), angles.cos()], -1).float()[:, None, None]
        return torch.cat([frames, season.expand(-1, *FRAME_SIZE, -1)], -1)

    def starts_at(self, index: int) -> int:
        """Returns the number of a window's first month among the months of the split."""
        return int(self._starts[index])

    def _frames(self, first: int, end: int) -> Tensor:
        # copies, so that callers cannot change the record
        return torch.from_numpy(self.sst[first:end].copy())[..., None]

    def identity(self) -> dict[str, Any]:
        """Returns the identity of these data: every month, and how windows are cut."""
        content = hashlib.sha256()
        for part in (self.sst, self.nino34):
            content.update(np.ascontiguousarray(part).data)
        found, units = origin(self.root), self.units.ids
        return {
            "origin": "observed SST" if found == "files" else found,
            "sequence_count": len(self),
            "event_shape": [*FRAME_SIZE, len(self.months)],
            "window": [self.t_in, self.t_out, self.gap],
            "months": [str(month) for month in self.months[[0, -1]]] if len(self.months) else [],
            **({"stretches": list(units)} if len(self._stretches) > 1 else {}),
            "base": self.base.plain(),
            "index_box": self.box,
            "content_sha256": content.hexdigest(),
        }


def describe(
    root: Path,
    base: BasePeriod,
    report: Report,
    *,
    variable: str | None,
    read_everything: bool,
    advance: Advance | None,
) -> Report:
    """Adds the facts of the record, whose events are months, to a report of the splits, and returns it.

    Args:
        root: Folder with the record's NetCDF files.
        base: Base period of the anomalies.
        report: Report of the splits, whose lines are replaced.
        variable: Variable of the temperatures, see `ErsstWindows`.
        read_everything: Also compare the bytes with the manifest of the download, if there is one.
        advance: Called with `(done, total)` after each file.

    Raises:
        DataError: the files are not a record; with `read_everything`, this is a problem of the report instead.
    """
    if read_everything:
        check_manifest(root, report, advance)
    try:
        found = anomalies_of(root, base, variable)
    except DataError as error:
        if not read_everything:
            raise
        # every split has reported it
        report.problems = [*(problem for problem in report.problems if str(error) not in problem), str(error)]
        return report
    if read_everything and not np.ptp(found.sst):
        report.problems.append(f"{root}: expected temperatures that vary, found the same ones in every year")
    first, last, sea = str(found.months[0]), str(found.months[-1]), int(found.sea.sum())
    report.facts |= {"months": [first, last], "files": list(found.files), "sea_cells": sea, "base": base.plain()}
    report.lines = [
        f"{root}  ({len(found.files)} files, {found.files[0]})",
        f"  {len(found.months)} months {first}..{last}, {sea} of {found.sea.size} 5-degree cells are sea, "
        f"anomalies from {base}",
    ]
    for split, count in report.facts["splits"].items():
        report.lines.append(f"  {split:<5} {count['events']:>7} months {count['sequences']:>7} sequences")
        if not count["sequences"]:
            report.remarks.append(f"split {split} has no window: set task.val_from and task.test_from (record {last})")
    return report
