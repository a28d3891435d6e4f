"""Facts about a tree in ICAR-ENSO's layout, and all of its problems."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.api import SPLITS
from bench.data.icar_enso.dataset import (
    Member,
    check_layout,
    cmip_members,
    family_of,
    members_of_split,
    rows_of,
    wrong_values,
)
from bench.data.netcdf import open_netcdf
from bench.data.report import Advance, Report
from bench.data.transfer.manifest import origin
from bench.errors import counted

if TYPE_CHECKING:
    from xarray import Variable


def describe(
    root: Path,
    *,
    window: int,
    train_gap: int,
    eval_gap: int,
    cmip6_rows: int,
    cmip5_rows: int,
    read_everything: bool = False,
    advance: Advance | None = None,
) -> Report:
    """Returns the facts of a tree and its problems.

    Args:
        root: Folder with `CMIP_train.nc` and `CMIP_label.nc`, or an observed record under `SODA_*`.
        window: Months of one sequence.
        train_gap: Months between the starts of a record's windows, in training.
        eval_gap: The same in the other splits.
        cmip6_rows: Rows of each CMIP6 model.
        cmip5_rows: Rows of each CMIP5 model.
        read_everything: Also check for missing values, and that rows agree in the months that they share.
        advance: Called after each record that was read.

    Raises:
        DataError: the files are missing or not readable.
    """
    family = family_of(root)
    train, label = root / f"{family}_train.nc", root / f"{family}_label.nc"
    report = Report(facts={"root": str(root), "origin": origin(root), "layout": family, "splits": {}})
    with open_netcdf(train) as fields, open_netcdf(label) as labels:
        expected = cmip_members(cmip6_rows, cmip5_rows) if family == "CMIP" else None
        report.problems = check_layout(train, fields, label, labels, expected[-1].last_row if expected else None)
        if report.problems:
            return report
        members = expected or [Member("SODA", 0, fields["sst"].shape[0])]
        report.facts |= {"events": len(members), "months": {member.id: member.months for member in members}}
        for split in SPLITS if expected else SPLITS[-1:]:
            gap = train_gap if split == "train" else eval_gap
            chosen = members_of_split(members, split)
            count = sum(max(0, 1 + (member.months - window) // gap) for member in chosen)
            report.facts["splits"][split] = {"events": len(chosen), "sequences": count}
        lengths = " and ".join(map(str, sorted({member.months for member in members})))
        report.lines = [
            f"{root}  ({report.facts['origin']}, {train.name})",
            f"  {counted(len(members), 'record')} of {lengths} months, 24x48 of 24x72 cells",
        ]
        report.add_split_lines()
        if not expected:
            report.remarks.append("one observed record: the splits train, val and test need CMIP_train.nc")
        if read_everything:
            for done, member in enumerate(members, start=1):
                _read_record(report, train, "sst", fields["sst"], member)
                _read_record(report, label, "nino", labels["nino"], member)
                if advance:
                    advance(done, len(members))
    return report


def _read_record(report: Report, path: Path, name: str, variable: Variable, member: Member) -> None:
    rows = rows_of(path, name, variable, member)
    report.problems += wrong_values(path, name, rows, member, ("row", "month"))
    if rows.min() == rows.max():
        report.problems.append(
            f"{path}: {name} of record {member.id}: expected values that vary, found {rows.min():g} only"
        )
    # Merging takes each month from one of up to three rows, so these must agree.
    neighbours = zip(rows[:-1, 12:], rows[1:, :-12], strict=True)
    differ = np.flatnonzero([not np.array_equal(above, below, equal_nan=True) for above, below in neighbours])
    if len(differ):
        first = member.first_row + int(differ[0])
        report.problems.append(
            f"{path}: {name} of record {member.id}: {len(differ)} rows disagree with the next in the 24 months that "
            f"both have, first rows {first} and {first + 1} (check the numbers of rows per model)"
        )
