"""The first forecasts of a run, small enough to keep beside the records: for pictures, never for scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from bench.errors import DataError
from bench.paths import AnyPath
from bench.records.reading import read_npz
from bench.records.schema import RunRecord
from bench.records.statistics import packed
from bench.records.store import publish_beside

PARTS = ("context", "target", "forecast")
_PROBABILITY = "probability"
_COAST = "coast"
_MAX_SIDE = 192  # pixels; means of blocks above it
_MAX_BYTES = 256 << 20  # bytes: 3,600 frames of that side


@dataclass(frozen=True)
class Sample:
    """The first sequence of a run in physical units, each part `(T,H,W)` with NaN where missing, and `others`."""

    context: np.ndarray
    target: np.ndarray
    forecast: np.ndarray
    probability: np.ndarray | None = None
    """Share of an ensemble's members at or above the task's `event_threshold`, in each pixel."""
    coast: np.ndarray | None = None
    """Columns and rows of coastlines, `(K,2)` with NaN between lines, if the data have coordinates."""
    others: tuple[Sample, ...] = ()

    @property
    def count(self) -> int:
        """Returns the number of sequences."""
        return 1 + len(self.others)

    def sequence(self, index: int) -> Sample:
        """Returns one of the sequences; the first has index 0."""
        return (self, *self.others)[index]


def sample_path(record: RunRecord, root: AnyPath) -> AnyPath:
    """Returns the path of a record's sample, which may not exist."""
    return root / "samples" / record.task.name / record.model.name / f"{record.run_id}.npz"


def write_sample(parts: Mapping[str, np.ndarray], record: RunRecord, root: AnyPath) -> AnyPath:
    """Writes context, target and forecast of a run's first sequences, reduced to at most 192 pixels, half precision.

    Args:
        parts: `context`, `target` and `forecast`, physical units `(T,H,W)` of one sequence or `(N,T,H,W)` of several;
            for an ensemble also `probability`; if the data have coordinates also `coast`, `(N,K,2)`.
        record: The run.
        root: Results root.

    Raises:
        DataError: it cannot be written; names the path.
    """
    names = (*PARTS, *(name for name in parts if name == _PROBABILITY))
    factor = -(-max(parts[PARTS[0]].shape[-2:]) // _MAX_SIDE)
    reduced = {name: _reduced(np.asarray(parts[name], np.float32), factor).astype(np.float16) for name in names}
    if _COAST in parts:
        reduced[_COAST] = ((parts[_COAST] - (factor - 1) / 2) / factor).astype(np.float16)
    return publish_beside(packed(reduced), sample_path(record, root))


def read_sample(record: RunRecord, root: AnyPath) -> Sample | None:
    """Returns the sample of a record, or None if there is none.

    Raises:
        DataError: the file is not what `write_sample` writes.
    """
    return sample_at(sample_path(record, root))


def sample_at(path: AnyPath) -> Sample | None:
    """Returns the sample in a file, or None if there is no file.

    Raises:
        DataError: the file is not what `write_sample` writes.
    """
    try:
        found = read_npz(path, "a sample of a forecast", _MAX_BYTES)
    except FileNotFoundError:
        return None
    if missing := [name for name in PARTS if name not in found]:
        raise DataError(f"{path}: not a sample of a forecast: {', '.join(missing)} missing")
    parts = {name: found[name].astype(np.float32) for name in (*PARTS, _PROBABILITY) if name in found}
    several = {name: part if part.ndim == 4 else part[None] for name, part in parts.items()}
    if any(part.ndim != 4 or not part.size for part in several.values()) or len({*map(len, several.values())}) > 1:
        raise DataError(f"{path}: expected arrays (T,H,W) or (N,T,H,W), found {[p.shape for p in parts.values()]}")
    coast = found.get(_COAST)
    if coast is not None and (coast.ndim != 3 or coast.shape[::2] != (len(several[PARTS[0]]), 2)):
        raise DataError(f"{path}: expected coastlines (N,K,2), found {coast.shape}")
    made = [Sample(*frames) for frames in zip(*several.values(), strict=True)]
    if coast is not None:
        made = [replace(one, coast=line.astype(np.float32)) for one, line in zip(made, coast, strict=True)]
    first, *others = made
    return replace(first, others=tuple(others))


def _reduced(frames: np.ndarray, factor: int) -> np.ndarray:
    """Returns means of `factor` x `factor` blocks; rows and columns that do not fill a block are cut."""
    *leading, height, width = frames.shape
    if factor == 1:
        return frames
    cut = frames[..., : height // factor * factor, : width // factor * factor]
    return cut.reshape(*leading, height // factor, factor, width // factor, factor).mean((-3, -1))
