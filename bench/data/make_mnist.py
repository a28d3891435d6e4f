"""`earthbench data make nbody_mnist|moving_mnist`: seeded data in the authors' formats, with no digit in two splits."""

from __future__ import annotations

import hashlib
import json
import shlex
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from bench.data.digits import SIZE, digits_of_splits, load_digits
from bench.data.moving_mnist_motion import render_moving
from bench.data.nbody_draws import DIGITS_FILE, random_draws, write_arrays, write_draws
from bench.data.verbs import AdvanceLabel, DataVerb, Folder
from bench.errors import DataError
from bench.files import replacing

GENERATOR_VERSION = 1
_CHUNK = 500
"""Sequences made at a time."""


@dataclass(frozen=True)
class _Part:
    """One split to make: how many sequences, of which digits, drawn from what."""

    split: str
    count: int
    digits: range
    generator: np.random.Generator


class MakeDigits(DataVerb):
    """What both generators ask for and leave behind."""

    task: ClassVar[str]
    kind: ClassVar[str]

    out: Folder = Field(description="folder to make; must hold no data set yet")
    digits: str = Field("sklearn", description="'sklearn', 'mnist' (download), an IDX file, or a folder with one")
    train: int = Field(20_000, ge=1, description="training sequences")
    val: int = Field(1_000, ge=1, description="validation sequences")
    test: int = Field(1_000, ge=1, description="test sequences")
    seed: int = Field(0, ge=0, description="same seed and digits, same data")

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Writes the data and returns what was made and what to try with it."""
        if self.out.exists() and any(self.out.iterdir()):
            raise DataError(f"{self.out} is not empty; choose another folder or delete it")
        images = load_digits(self.digits)
        counts = {"train": self.train, "val": self.val, "test": self.test}
        ranges = digits_of_splits(len(images))
        for number, (split, count) in enumerate(counts.items()):
            part = _Part(split, count, ranges[split], np.random.default_rng([self.seed, number]))
            self._write(part, images, advance)
        self._finish(images)
        content: dict[str, Any] = {
            "origin": self.kind,
            "generator_version": GENERATOR_VERSION,
            "sequences": counts,
            "digits": Path(self.digits).name,
            "digits_sha256": hashlib.sha256(images.tobytes()).hexdigest(),
            "seed": self.seed,
        }
        with replacing(self.out / "DATASET.json") as path:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        root = shlex.quote(f"data.root='{self.out}'" if " " in str(self.out) else f"data.root={self.out}")
        return [
            f"made {sum(counts.values())} sequences of {len(images)} digits in {self.out}, no digit in two splits",
            f"try: earthbench run task={self.task} model=unet {root}",
        ]

    @abstractmethod
    def _write(self, part: _Part, images: np.ndarray, advance: AdvanceLabel) -> None:
        """Writes the sequences of one split."""

    def _finish(self, images: np.ndarray) -> None:
        """Writes what belongs to no split."""


class MakeNBody(MakeDigits):
    """Generated draws in the format of task `nbody_mnist`; frames are drawn from them when they are read."""

    summary: ClassVar[str] = "draw N-body MNIST sequences: three digits that attract one another"
    task: ClassVar[str] = "nbody_mnist"
    kind: ClassVar[str] = "generated N-body MNIST"

    def _write(self, part: _Part, images: np.ndarray, advance: AdvanceLabel) -> None:
        write_draws(random_draws(part.count, part.digits, part.generator), self.out / f"nbody_{part.split}.npz")
        advance(f"{part.split} sequences", part.count, part.count)

    def _finish(self, images: np.ndarray) -> None:
        none, labels = np.empty((0, SIZE, SIZE), np.uint8), np.empty(0, np.int64)
        # Labels are part of the format and of no use here; -1 says that they are not known.
        write_arrays(self.out / DIGITS_FILE, X=images, Y=np.full(len(images), -1, np.int64), X_test=none, Y_test=labels)


class MakeMoving(MakeDigits):
    """Generated frames in the format of task `moving_mnist`, one file per split."""

    summary: ClassVar[str] = "make MovingMNIST sequences: two digits that move straight on between walls"
    task: ClassVar[str] = "moving_mnist"
    kind: ClassVar[str] = "generated MovingMNIST"

    train: int = Field(8_100, ge=1, description="training sequences")
    val: int = Field(900, ge=1, description="validation sequences")
    test: int = Field(1_000, ge=1, description="test sequences")

    def _write(self, part: _Part, images: np.ndarray, advance: AdvanceLabel) -> None:
        chunks = []
        for first in range(0, part.count, _CHUNK):
            count = min(_CHUNK, part.count - first)
            chunks.append(render_moving(images, part.digits, count, part.generator))
            advance(f"{part.split} sequences", first + count, part.count)
        with replacing(self.out / f"moving_mnist_{part.split}.npy") as path, path.open("wb") as file:
            np.save(file, np.concatenate(chunks, axis=1))
