"""Learning curves of runs, kept beside the records: for pictures, never for scores."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from bench.errors import DataError
from bench.paths import AnyPath
from bench.records.reading import MAX_TEXT_BYTES, read_bytes
from bench.records.schema import RunRecord
from bench.records.store import publish_beside

Points = tuple[tuple[int, float], ...]
"""Optimiser steps so far, and the loss."""

_HEADER = ["steps", "split", "loss"]


@dataclass(frozen=True)
class LearningCurve:
    """Losses by optimiser step: the training's own, in normalised units, and the validation's."""

    train: Points
    val: Points


def learning_curve_path(record: RunRecord, root: AnyPath) -> AnyPath:
    """Returns the path of a record's learning curve, which may not exist."""
    return root / "learning_curves" / record.task.name / record.model.name / f"{record.run_id}.csv"


def write_learning_curve(curve: LearningCurve, record: RunRecord, root: AnyPath) -> AnyPath:
    """Writes the learning curve of a run as `steps,split,loss` and returns its path.

    Raises:
        DataError: it cannot be written; names the path.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(_HEADER)
    lines.writerows((steps, "train", f"{loss:.6g}") for steps, loss in curve.train)
    lines.writerows((steps, "val", f"{loss:.6g}") for steps, loss in curve.val)
    return publish_beside(text.getvalue().encode(), learning_curve_path(record, root))


def read_learning_curve(record: RunRecord, root: AnyPath) -> LearningCurve | None:
    """Returns the learning curve of a record, or None if there is none.

    Raises:
        DataError: the file is not what `write_learning_curve` writes.
    """
    return learning_curve_at(learning_curve_path(record, root))


def learning_curve_at(path: AnyPath) -> LearningCurve | None:
    """Returns the learning curve in a file, or None if there is no file.

    Raises:
        DataError: the file is not what `write_learning_curve` writes.
    """
    try:
        content = read_bytes(path, MAX_TEXT_BYTES, "a learning curve")
    except FileNotFoundError:
        return None
    found: dict[str, list[tuple[int, float]]] = {"train": [], "val": []}
    try:
        header, *rows = csv.reader(content.decode().splitlines())
        if header != _HEADER:
            raise ValueError(f"expected the columns {','.join(_HEADER)}, found {','.join(header)}")
        for steps, split, loss in rows:
            found[split].append((int(steps), float(loss)))
        if not found["train"]:
            raise ValueError("no training loss")
    except (ValueError, KeyError, csv.Error) as error:
        raise DataError(f"{path}: not a learning curve: {error}") from error
    return LearningCurve(train=tuple(found["train"]), val=tuple(found["val"]))
