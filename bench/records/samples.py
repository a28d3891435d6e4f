"""The first forecast of a run, small enough to keep beside the records: for pictures, never for scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bench.errors import DataError
from bench.paths import AnyPath
from bench.records.reading import read_npz
from bench.records.schema import RunRecord
from bench.records.statistics import packed
from bench.records.store import publish_beside

PARTS = ("context", "target", "forecast")
_LARGEST_SIDE = 192  # pixels; means of blocks above it
_LARGEST = 256 << 20  # bytes: 3,600 frames of that side


@dataclass(frozen=True)
class Sample:
    """First sequence of a run in physical units, `(T,H,W)` each; NaN where missing."""

    context: np.ndarray
    target: np.ndarray
    forecast: np.ndarray


def sample_path(record: RunRecord, root: AnyPath) -> AnyPath:
    """Returns where the sample of a record lies, whether or not it does."""
    return root / "samples" / record.task.name / record.model.name / f"{record.run_id}.npz"


def write_sample(parts: Mapping[str, np.ndarray], record: RunRecord, root: AnyPath) -> AnyPath:
    """Writes context, target and forecast of a run's first sequence, reduced to at most 192 pixels and half precision.

    Args:
        parts: `context`, `target` and `forecast`, physical units `(T,H,W)`.
        record: The run.
        root: Results root.

    Raises:
        DataError: the disk refused; names the path.
    """
    reduced = {name: _reduced(np.asarray(parts[name], np.float32)).astype(np.float16) for name in PARTS}
    return publish_beside(packed(reduced), sample_path(record, root))


def read_sample(record: RunRecord, root: AnyPath) -> Sample | None:
    """Returns the sample of a record, None where there is none.

    Raises:
        DataError: the file is not what `write_sample` writes.
    """
    return sample_at(sample_path(record, root))


def sample_at(path: AnyPath) -> Sample | None:
    """Returns the sample that a file holds, None where there is no file.

    Raises:
        DataError: the file is not what `write_sample` writes.
    """
    try:
        found = read_npz(path, "a sample of a forecast", _LARGEST)
    except FileNotFoundError:
        return None
    if missing := [name for name in PARTS if name not in found]:
        raise DataError(f"{path}: not a sample of a forecast: {', '.join(missing)} missing")
    parts = {name: found[name].astype(np.float32) for name in PARTS}
    if any(part.ndim != 3 or not part.size for part in parts.values()):
        raise DataError(f"{path}: expected arrays (T,H,W), found {[part.shape for part in parts.values()]}")
    return Sample(**parts)


def _reduced(frames: np.ndarray) -> np.ndarray:
    """Returns means of blocks that bring the larger side to at most 192; rows and columns that fill none are cut."""
    factor = -(-max(frames.shape[1:]) // _LARGEST_SIDE)
    if factor == 1:
        return frames
    t, height, width = frames.shape
    cut = frames[:, : height // factor * factor, : width // factor * factor]
    return cut.reshape(t, height // factor, factor, width // factor, factor).mean((2, 4))
