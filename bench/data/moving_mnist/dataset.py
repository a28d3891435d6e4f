"""MovingMNIST from `.npy` files, time first: the authors' one file of 10,000 sequences, or one file per split."""

from __future__ import annotations

import hashlib
import math
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.api import Split
from bench.data.sequences import SequenceDataset, Units
from bench.data.transfer.manifest import origin
from bench.errors import DataError
from bench.files import sha256_of

ONE_FILE = "mnist_test_seq.npy"
"""Srivastava et al.'s file, which Earthformer's authors cut into three splits."""
SPLIT_FILES = {split: f"moving_mnist_{split}.npy" for split in ("train", "val", "test")}
# Digits move 3 to 5 pixels a frame: neighbouring frames differ by 0.5 to 0.6 of the difference between unrelated
# sequences. If values differ more along the first axis than along the second by this factor, it is not time.
_SAMPLE, _NOT_TIME = 10, 1.3
# scikit-learn's `train_test_split(test_size=0.1, random_state=123)` without the test, as in the Earthformer release.
_VAL_SHARE, _VAL_SEED = 0.1, 123


class MovingMnistSequences(SequenceDataset):
    """Sequences of two moving digits: context and target `(T,H,W,1)`, uint8.

    Args:
        root: Folder with `mnist_test_seq.npy`, or with `moving_mnist_train.npy`, `..._val.npy`, `..._test.npy`; each
            uint8 `(T,N,H,W)`.
        split: In the one file, the last `test_count` sequences are the test, and a tenth of the others, drawn with a
            fixed seed, the validation.
        t_in: Frames of the context, from the first.
        t_out: Frames of the target, right after the context.
        test_count: See `split`.

    Raises:
        DataError: lists the problems of the files.
    """

    def __init__(self, root: Path, *, split: Split, t_in: int, t_out: int, test_count: int) -> None:
        self.root, self.split, self.t_in, self.t_out = root, split, t_in, t_out
        self.places: list[tuple[Path, int]] = []
        """File and number within the file of each sequence."""
        for path in files_of(root, split):
            count = mapped(path).shape[1]
            numbers = range(count) if path.name != ONE_FILE else numbers_of_split(path, count, split, test_count)
            self.places += [(path, number) for number in numbers]
        frames, _, *self.frame_size = self._first.shape
        if frames < t_in + t_out:
            raise DataError(
                f"{files_of(root, split)[0]}: expected {t_in + t_out} frames or more, found {frames}. "
                "Set task.t_in and task.t_out."
            )

    @property
    def _first(self) -> np.ndarray:
        return mapped(files_of(self.root, self.split)[0])

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns file and number of each sequence."""
        return tuple(f"{path.stem}-{number:05d}" for path, number in self.places)

    @property
    def units(self) -> Units:
        """Returns the sequences: each is an event."""
        return Units.events(self.ids)

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.places)

    def stored(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns context `(T_in,H,W,1)` and target `(T_out,H,W,1)`, uint8.

        Raises:
            IndexError: the index is out of range.
            DataError: a frame has no digit.
        """
        path, number = self.places[self.checked_index(index)]
        frames = torch.from_numpy(np.array(mapped(path)[: self.t_in + self.t_out, number]))[..., None]
        if not frames.amax((1, 2, 3)).all():  # digits never leave the frame, so the writer was interrupted
            raise DataError(f"{path}: sequence {number} has a frame that is 0 throughout: the file is incomplete")
        return frames[: self.t_in], frames[self.t_in :]

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """Returns the SHA-256 of every sequence's frames, independent of file and number."""
        return tuple(
            hashlib.sha256(np.ascontiguousarray(mapped(path)[:, number]).data).hexdigest()
            for path, number in self.places
        )

    def identity(self) -> dict[str, Any]:
        """Returns the identity of these data: every byte of the files, and how they are cut."""
        numbers = hashlib.sha256(np.array([number for _, number in self.places]).tobytes()).hexdigest()
        return {
            "origin": origin(self.root),
            "sequence_count": len(self),
            "event_shape": [*self.frame_size, self._first.shape[0]],
            "window": [self.t_in, self.t_out],
            "numbers_sha256": numbers,
            "content_sha256": self._content_sha256,
        }

    @cached_property
    def _content_sha256(self) -> list[str]:
        return [_sha256(path, path.stat().st_mtime_ns) for path in files_of(self.root, self.split)]


def files_of(root: Path, split: Split) -> list[Path]:
    """Returns the files that a split is read from.

    Raises:
        DataError: they are not there.
    """
    if (root / ONE_FILE).is_file():
        return [root / ONE_FILE]
    paths = [root / name for key, name in SPLIT_FILES.items() if split in (key, "all")]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        found = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise DataError(f"{root}: expected {ONE_FILE}, or {', '.join(missing)}; found {found}")
    return paths


def present_file(root: Path) -> Path | None:
    """Returns any of the files, or None if there is none."""
    paths = [root / name for name in (ONE_FILE, *SPLIT_FILES.values())]
    return next((path for path in paths if path.is_file()), None)


@lru_cache(maxsize=8)
def mapped(path: Path) -> np.ndarray:
    """Returns a file's sequences `(T,N,H,W)`, uint8, memory-mapped, once per process.

    Raises:
        DataError: it is not such a file.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError, MemoryError) as error:
        raise DataError(f"{path}: not readable: {error}") from error
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.dtype != np.uint8 or not array.size:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"{path}: expected an array of uint8 (T, N, H, W), found {found}")
    sample = array[:_SAMPLE, :_SAMPLE].astype(np.int16)
    if min(sample.shape[:2]) > 1:
        along_first, along_second = (float(np.abs(np.diff(sample, axis=axis)).mean()) for axis in (0, 1))
        if along_first > _NOT_TIME * along_second:
            raise DataError(
                f"{path}: the second axis of {array.shape} looks like time; expected (T, N, H, W). Store "
                "array.swapaxes(0, 1)"
            )
    return array


def numbers_of_split(path: Path, count: int, split: Split, test_count: int) -> np.ndarray:
    """Returns the sequence numbers of a split in the one file, in the order of the Earthformer release.

    Raises:
        DataError: the file has too few sequences.
    """
    before = count - test_count
    if split == "all":
        return np.arange(count)
    if before < 2:
        raise DataError(
            f"{path}: of {count} sequences the last {test_count} are the test, and nothing is left to train on. "
            "Set task.test_count, or use split=all."
        )
    if split == "test":
        return np.arange(before, count)
    val_count = math.ceil(_VAL_SHARE * before)
    order = np.random.RandomState(_VAL_SEED).permutation(before)  # the generator that scikit-learn uses
    return order[:val_count] if split == "val" else order[val_count:]


@lru_cache(maxsize=8)
def _sha256(path: Path, changed: int) -> str:
    return sha256_of(path)
