"""ICAR-ENSO from disk: overlapping rows of 36 months, merged into one record per climate model, cut into windows.

Source: data set and layout by the Institute for Climate and Application Research (ICAR), Tianchi data set 98942;
crop, split and windows are those of the Earthformer release (Gao et al. 2022).

`CMIP_train.nc` holds `sst` (year, month, lat, lon) = (4645, 36, 24, 72) and `CMIP_label.nc` holds `nino` (year, month):
15 CMIP6 models of 151 rows, then 17 CMIP5 models of 140.  A row starts 12 months after the one above.  Observed
records come in the same layout under the names `SODA_train.nc` and `SODA_label.nc`, as one record.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.api import Split
from bench.data.netcdf import Variables, decoded, open_netcdf
from bench.data.plausibility import SST_ANOMALY, implausible
from bench.data.sequences import SequenceDataset, Units
from bench.data.transfer.manifest import origin
from bench.errors import ConfigError, DataError, counted, one_message

if TYPE_CHECKING:
    from xarray import Variable

CMIP6_MODELS, CMIP5_MODELS = 15, 17
LATITUDES = np.arange(-55, 61, 5)
LONGITUDES = np.arange(0, 356, 5)
# 95..330 degrees east, both included: the tropical Pacific, which the paper forecasts.
CROP = slice(19, 67)
FRAME_SIZE = (len(LATITUDES), len(LONGITUDES[CROP]))
_ROW_MONTHS, _YEAR = 36, 12
_ROWS_PER_STEP = _ROW_MONTHS // _YEAR
"""Every third row begins where the previous third row ends."""
Family = Literal["CMIP", "SODA"]


@dataclass(frozen=True)
class Member:
    """One record: the rows of one climate model, or of the observations."""

    id: str
    first_row: int
    last_row: int
    """Exclusive."""

    @property
    def months(self) -> int:
        """Returns the months of the merged record."""
        return _YEAR * (self.last_row - self.first_row - 1) + _ROW_MONTHS


def family_of(root: Path) -> Family:
    """Returns the family of a folder's files; CMIP if it has both.

    Raises:
        DataError: there is neither, or one file of a pair is missing.
    """
    families: tuple[Family, ...] = ("CMIP", "SODA")
    for family in families:
        if (root / f"{family}_train.nc").is_file():
            if not (root / f"{family}_label.nc").is_file():
                raise DataError(f"{root / f'{family}_label.nc'}: file is missing; it belongs to {family}_train.nc")
            return family
    found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise DataError(
        f"{root}: expected CMIP_train.nc and CMIP_label.nc, or SODA_train.nc and SODA_label.nc for an observed record; "
        f"found {found}"
    )


def cmip_members(cmip6_rows: int, cmip5_rows: int) -> list[Member]:
    """Returns the climate models in the order of their rows: 15 of CMIP6, then 17 of CMIP5."""
    members, row = [], 0
    for name, count, rows in (("CMIP6", CMIP6_MODELS, cmip6_rows), ("CMIP5", CMIP5_MODELS, cmip5_rows)):
        for number in range(count):
            members.append(Member(f"{name}-{number:02d}", row, row + rows))
            row += rows
    return members


def members_of_split(members: list[Member], split: Split) -> list[Member]:
    """Returns the models of a split: the last CMIP5 model is the test, the one before the validation."""
    return {"train": members[:-2], "val": members[-2:-1], "test": members[-1:], "all": members}[split]


class IcarEnsoWindows(SequenceDataset):
    """Windows of consecutive months: context and target `(T,24,48,1)` float32 K, and the labels of the target.

    Window k of a record starts at month `k*gap`; all windows of a model come before those of the next.

    Args:
        root: Folder with `CMIP_train.nc` and `CMIP_label.nc`, or an observed record under `SODA_*`.
        split: By climate model; observed records have `all` only.
        t_in: Months of the context.
        t_out: Months of the target, right after the context.
        gap: Months between the starts of a record's windows.
        cmip6_rows: Rows of each CMIP6 model.
        cmip5_rows: Rows of each CMIP5 model.

    Raises:
        DataError: lists the problems of the files.
        ConfigError: the records are shorter than one window.
    """

    def __init__(
        self,
        root: Path,
        *,
        split: Split,
        t_in: int,
        t_out: int,
        gap: int,
        cmip6_rows: int,
        cmip5_rows: int,
    ) -> None:
        self.root, self.t_in, self.t_out, self.gap = root, t_in, t_out, gap
        self.family = family_of(root)
        if self.family == "SODA" and split != "all":
            raise DataError(
                f"{root}: split {split!r} needs CMIP_train.nc and CMIP_label.nc, for splits are by climate model; "
                "found SODA_train.nc, one observed record. Use split=all."
            )
        expected = cmip_members(cmip6_rows, cmip5_rows) if self.family == "CMIP" else None
        self.sst, self.nino, self.members = _read(root, self.family, expected, split)
        window = t_in + t_out
        shortest = min(member.months for member in self.members)
        if shortest < window:
            raise ConfigError(
                f"records under {root} have {shortest} months; t_in={t_in} and t_out={t_out} need {window}. "
                "Set task.t_in and task.t_out."
            )
        counts = [1 + (member.months - window) // gap for member in self.members]
        self._ends = np.cumsum(counts)

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns the name of every record."""
        return tuple(member.id for member in self.members)

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """Returns the SHA-256 of every record's temperatures."""
        return tuple(hashlib.sha256(part.data).hexdigest() for part in self.sst)

    @property
    def units(self) -> Units:
        """Returns the records, whose windows overlap."""
        return Units("record", self.ids, tuple(np.diff(self._ends, prepend=0).tolist()))

    def __len__(self) -> int:
        """Returns the number of windows."""
        return int(self._ends[-1])

    def stored(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns context `(T_in,24,48,1)`, target `(T_out,24,48,1)` and labels `(T_out-2,)`, float32 K.

        A label is the file's Nino3.4 index, averaged over a month of the target and the two months after it.

        Raises:
            IndexError: the index is out of range.
        """
        index = self.checked_index(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        first = (index - (int(self._ends[number - 1]) if number else 0)) * self.gap
        middle, end = first + self.t_in, first + self.t_in + self.t_out
        sst, nino = self.sst[number], self.nino[number]
        # copies, so that callers cannot change the record
        frames = torch.from_numpy(sst[first:end].copy())[..., None]
        return frames[: self.t_in], frames[self.t_in :], torch.from_numpy(nino[middle : end - 2].copy())

    def identity(self) -> dict[str, Any]:
        """Returns the identity of these data: every month of every record, and how windows are cut."""
        return {
            "origin": origin(self.root) if self.family == "CMIP" else "observed record (SODA_train.nc)",
            "record_count": len(self.members),
            "sequence_count": len(self),
            "event_shape": [*FRAME_SIZE, max(member.months for member in self.members)],
            "window": [self.t_in, self.t_out, self.gap],
            "records": list(self.ids),
            "content_sha256": self._content_sha256,
        }

    @cached_property
    def _content_sha256(self) -> str:
        content = hashlib.sha256()
        for part in (*self.sst, *self.nino):
            content.update(part.data)
        return content.hexdigest()


def _read(
    root: Path, family: Family, expected: list[Member] | None, split: Split
) -> tuple[list[np.ndarray], list[np.ndarray], list[Member]]:
    """Returns merged sst `(months,24,48)` and labels `(months,)` of the records of a split, and the records."""
    train, label = root / f"{family}_train.nc", root / f"{family}_label.nc"
    with open_netcdf(train) as fields, open_netcdf(label) as labels:
        rows = expected[-1].last_row if expected else None
        problems = check_layout(train, fields, label, labels, rows)
        if problems:
            raise DataError(one_message(f"the data under {root} has {counted(len(problems), 'problem')}:", problems))
        members = members_of_split(expected or [Member("SODA", 0, fields["sst"].shape[0])], split)
        parts = ((train, "sst", fields, CROP), (label, "nino", labels, slice(None)))
        records = [
            [
                np.ascontiguousarray(merged(rows_of(path, name, variables[name], member), member)[..., crop])
                for member in members
            ]
            for path, name, variables, crop in parts
        ]
    wrong = [
        problem
        for (path, name, _, _), series in zip(parts, records, strict=True)
        for member, values in zip(members, series, strict=True)
        for problem in wrong_values(path, name, values, member, ("month",), CROP)
    ]
    if wrong:
        raise DataError(one_message(f"the data under {root} has {counted(len(wrong), 'problem')}:", wrong))
    sst, nino = records
    return sst, nino, members


def rows_of(path: Path, name: str, variable: Variable, member: Member) -> np.ndarray:
    """Returns the rows of a record, `(year, month, ...)`, float32 K, NaN where missing."""
    # All rows at once: HDF5 takes 60 times as long to read every third row of a chunked array.
    return decoded(variable[member.first_row : member.last_row], f"{path}: {name}")


def merged(rows: np.ndarray, member: Member) -> np.ndarray:
    """Returns the months of a record `(months, ...)` from its overlapping rows `(year, month, ...)`.

    It joins every third row and the remaining months of the last row: 151 rows are 1,836 months, 140 are 1,704.
    """
    months = rows[::_ROWS_PER_STEP].reshape(-1, *rows.shape[2:])
    added = member.months - len(months)
    return np.concatenate([months, rows[-1, -added:]]) if added else months


def wrong_values(
    path: Path, name: str, values: np.ndarray, member: Member, times: tuple[str, ...], columns: slice = slice(None)
) -> list[str]:
    """Returns the problems of a record's values: missing ones, and implausible anomalies.

    Args:
        path: The file.
        name: The variable: fields `(*times,H,W)` or labels `(*times)`, K.
        values: Values of the record.
        member: The record.
        times: Names of the time axes, which count from 0 in the record.
        columns: Longitudes of the fields.
    """

    def place(index: tuple[int, ...]) -> str:
        counted = ", ".join(f"{what} {number}" for what, number in zip(times, index, strict=False))
        cell = index[len(times) :]
        degrees = f", lat {LATITUDES[cell[0]]}, lon {LONGITUDES[columns][cell[1]]}" if cell else ""
        return f"{counted} of record {member.id}{degrees}"

    problems = []
    known = np.isfinite(values)
    if not known.all():
        holes = np.argwhere(~known)
        first = place(tuple(int(part) for part in holes[0]))
        problems.append(
            f"{path}: expected finite {name}, found {len(holes)} others in record {member.id}, the first at {first}"
        )
    problem = implausible(values, SST_ANOMALY, f"{path}: {name}", place)
    return [*problems, problem] if problem else problems


def check_layout(train: Path, fields: Variables, label: Path, labels: Variables, rows: int | None) -> list[str]:
    """Returns the problems of names, grid and shapes, without reading values.

    Args:
        train: The file of `sst`.
        fields: Its variables.
        label: The file of `nino`.
        labels: Its variables.
        rows: Expected number of rows; None for an observed record of any length.
    """
    problems = [f"{train}: expected a variable {name!r}" for name in ("sst", "lat", "lon") if name not in fields]
    problems += [f"{label}: expected a variable 'nino'"] if "nino" not in labels else []
    if problems:
        return [f"{text}, found {', '.join(sorted(fields if str(train) in text else labels))}" for text in problems]
    for name, degrees in (("lat", LATITUDES), ("lon", LONGITUDES)):
        found = decoded(fields[name], f"{train}: {name}", np.float64)
        if found.shape != degrees.shape or not np.allclose(found, degrees, atol=1e-3):
            ends = f"{found.min():g}..{found.max():g}" if found.size else "nothing"
            problems.append(
                f"{train}: {name}: expected {degrees[0]}..{degrees[-1]} in steps of 5, found {found.size} values {ends}"
            )
    found_rows = fields["sst"].shape[0] if fields["sst"].shape else 0
    wanted_rows = rows if rows is not None else max(1, found_rows)
    wanted = (wanted_rows, _ROW_MONTHS, len(LATITUDES), len(LONGITUDES))
    if tuple(fields["sst"].shape) != wanted:
        problems.append(f"{train}: sst (year, month, lat, lon): expected {wanted}, found {tuple(fields['sst'].shape)}")
    if tuple(labels["nino"].shape) != wanted[:2]:
        problems.append(f"{label}: nino (year, month): expected {wanted[:2]}, found {tuple(labels['nino'].shape)}")
    return problems
