"""Images of handwritten digits from several sources, and generators of N-body MNIST and MovingMNIST."""

from __future__ import annotations

import gzip
import hashlib
import json
import shlex
import struct
import zlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from bench.config.overrides import literal
from bench.data.moving_mnist.synthetic import Scene, render_moving
from bench.data.nbody_mnist.draws import DIGITS_FILE, Draws, Sequences, random_draws, write_arrays, write_sequences
from bench.data.nbody_mnist.simulation import System, cropped, render, simulate
from bench.data.verbs import AdvanceLabel, DataVerb, Folder
from bench.errors import ConfigError, DataError, counted
from bench.files import replacing

SIZE = 28
"""Height and width of a digit's image in pixels, as in MNIST."""
MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz"
"""LeCun, Cortes and Burges' training images, at PyTorch's mirror."""
_IDX_IMAGES = 0x00000803
"""Magic number of an IDX file of bytes with three axes."""
_GZIP = b"\x1f\x8b"
# The 8x8 images of scikit-learn become 20x20 within 28x28: the proportions of MNIST.
_SMALL_RANGE, _ZOOM, _MARGIN = 16, 2.5, 4
_SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def load_digits(source: str | Path) -> np.ndarray:
    """Returns images `(N,28,28)`, uint8, white on black.

    Args:
        source: `sklearn` for the 1,797 images that come with scikit-learn, enlarged; `mnist` for the 60,000 training
            images of MNIST, downloaded once into a cache folder; else an IDX file of images such as
            `t10k-images-idx3-ubyte.gz`, or a folder with one or more of them.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: no such file, not an IDX file of 28x28 images, or the download failed.
    """
    if str(source) == "sklearn":
        return _sklearn_digits()
    path = _downloaded() if str(source) == "mnist" else Path(source).expanduser()
    files = sorted(path.glob("*images-idx3-ubyte*")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(
            f"digits {str(source)!r}: expected 'sklearn', 'mnist', an IDX file of images such as "
            "train-images-idx3-ubyte.gz, or a folder with one; found no such file"
        )
    return np.concatenate([_read_idx(file) for file in files])


def digits_of_splits(count: int) -> dict[str, range]:
    """Returns the digits of `count` that train, val and test may each use; no digit is in two of them.

    Raises:
        DataError: too few digits for three splits.
    """
    train, val = round(_SHARES["train"] * count), round(_SHARES["val"] * count)
    ranges = {"train": range(train), "val": range(train, train + val), "test": range(train + val, count)}
    if not all(ranges.values()):
        raise DataError(f"{count} digits are too few for three splits of different digits; expected 10 or more")
    return ranges


def _sklearn_digits() -> np.ndarray:
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ConfigError(
            "digits 'sklearn' need scikit-learn: pip install 'earthbench[digits]'. Or give 'mnist', or an IDX file"
        ) from error
    from scipy.ndimage import zoom

    small = datasets.load_digits().images
    large = zoom(small, (1, _ZOOM, _ZOOM), order=3, mode="nearest", grid_mode=True)
    codes = np.clip(np.rint(large * (255 / _SMALL_RANGE)), 0, 255).astype(np.uint8)
    return np.pad(codes, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)))


def _downloaded() -> Path:
    import platformdirs

    from bench.data.transfer.weights import fetch_weights

    return fetch_weights(MNIST, Path(platformdirs.user_cache_dir("earthbench")) / "digits").path


def _read_idx(path: Path) -> np.ndarray:
    try:
        content = path.read_bytes()
        if content[:2] == _GZIP:
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not readable: {error}") from error
    header = struct.unpack(">4I", content[:16]) if len(content) >= 16 else (0, 0, 0, 0)
    magic, count, height, width = header
    if magic != _IDX_IMAGES or (height, width) != (SIZE, SIZE) or len(content) != 16 + count * SIZE * SIZE:
        raise DataError(
            f"{path}: expected an IDX file of 28x28 images (magic {_IDX_IMAGES:#x}), found magic {magic:#x}, "
            f"{count} images of {height}x{width} and {len(content)} bytes"
        )
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, SIZE, SIZE)


GENERATOR_VERSION = 1
_CHUNK = 500
"""Sequences generated at a time."""


@dataclass(frozen=True)
class _Part:
    """One split to generate: its sequences, digits and random generator."""

    split: str
    count: int
    digits: range
    generator: np.random.Generator


class MakeDigits(DataVerb):
    """Arguments and output common to both generators."""

    task: ClassVar[str]
    kind: ClassVar[str]

    out: Folder = Field(description="folder to make; must hold no data set yet")
    digits: str = Field("sklearn", description="'sklearn', 'mnist' (download), an IDX file, or a folder with one")
    train: int = Field(20_000, ge=1, description="training sequences")
    val: int = Field(1_000, ge=1, description="validation sequences")
    test: int = Field(1_000, ge=1, description="test sequences")
    seed: int = Field(0, ge=0, description="same seed and digits, same data")
    frames: int = Field(System.frame_count, ge=2, description="frames of a sequence")

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
            "origin": self._origin,
            "generator_version": GENERATOR_VERSION,
            "sequences": counts,
            "digits": Path(self.digits).name,
            "digits_sha256": hashlib.sha256(images.tobytes()).hexdigest(),
            "seed": self.seed,
        }
        with replacing(self.out / "DATASET.json") as path:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        root = shlex.quote(f"data.root={literal(str(self.out))}")
        return [
            f"made {counted(sum(counts.values()), 'sequence')} of {counted(len(images), 'digit')} in "
            f"{self.out}, no digit in two splits",
            f"try: earthbench run task={self.task} model=unet {root}{self._cut}",
        ]

    @property
    def _cut(self) -> str:
        """Returns the task options that sequences of another length than the published ones need."""
        half = self.frames // 2
        return "" if self.frames == System.frame_count else f" task.t_in={half} task.t_out={self.frames - half}"

    @property
    @abstractmethod
    def _origin(self) -> str:
        """Returns the name of the data, with any settings that differ from the published ones."""

    @abstractmethod
    def _write(self, part: _Part, images: np.ndarray, advance: AdvanceLabel) -> None:
        """Writes the sequences of one split."""

    def _finish(self, images: np.ndarray) -> None:
        """Writes files that belong to no split."""


class MakeNBody(MakeDigits):
    """Generated draws in the format of task `nbody_mnist`; frames are drawn from them when they are read, or stored."""

    summary: ClassVar[str] = "draw N-body MNIST sequences: digits that attract one another"
    task: ClassVar[str] = "nbody_mnist"
    kind: ClassVar[str] = "generated N-body MNIST"

    digit_count: int = Field(System.digit_count, description="digits of a sequence")
    canvas: int = Field(System.canvas, description="height and width that are simulated, pixels")
    sub_steps: int = Field(System.sub_steps, description="steps of the simulation between two frames")
    pool: int = Field(
        System.pool,
        description="make frames of means over so many by so many pixels and store them, as bytes; 0: frames are drawn "
        "when they are read, bicubic halves of the canvas, as the authors' are",
    )

    @model_validator(mode="after")
    def _is_a_system(self) -> MakeNBody:
        _ = self.system
        return self

    @property
    def system(self) -> System:
        """Returns the system to simulate.

        Raises:
            ValueError: a number is out of range.
        """
        return System(self.digit_count, self.canvas, self.sub_steps, self.frames, self.pool)

    @property
    def _origin(self) -> str:
        return self.kind if self.system == System() else f"{self.kind}: {self.system}"

    def _write(self, part: _Part, images: np.ndarray, advance: AdvanceLabel) -> None:
        draws = random_draws(part.count, part.digits, part.generator, digit_count=self.digit_count)
        frames = None
        if self.pool:
            crops, sizes = cropped(images)
            chunks = []
            for first in range(0, part.count, _CHUNK):
                chunks.append(self._rendered(draws[first : first + _CHUNK], crops, sizes))
                advance(f"{part.split} sequences", min(first + _CHUNK, part.count), part.count)
            frames = np.concatenate(chunks)
        write_sequences(Sequences(draws, self.system, frames), self.out / f"nbody_{part.split}.npz")
        advance(f"{part.split} sequences", part.count, part.count)

    def _rendered(self, draws: Draws, crops: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        which = draws.digit_indices
        corners = draws.corners(sizes[which], self.canvas)
        counts = {"frames": self.frames, "sub_steps": self.sub_steps, "canvas": self.canvas}
        motion = simulate(corners, draws.velocities, sizes[which], **counts)
        drawn = render(motion.corners, crops[which], sizes[which], canvas=self.canvas, pool=self.pool)
        return np.rint(drawn).astype(np.uint8)

    def _finish(self, images: np.ndarray) -> None:
        none, labels = np.empty((0, SIZE, SIZE), np.uint8), np.empty(0, np.int64)
        # Labels are part of the format but unused; -1 marks them as unknown.
        write_arrays(self.out / DIGITS_FILE, X=images, Y=np.full(len(images), -1, np.int64), X_test=none, Y_test=labels)


class MakeMoving(MakeDigits):
    """Generated frames in the format of task `moving_mnist`, one file per split."""

    summary: ClassVar[str] = "make MovingMNIST sequences: digits that move straight on between walls"
    task: ClassVar[str] = "moving_mnist"
    kind: ClassVar[str] = "generated MovingMNIST"

    train: int = Field(8_100, ge=1, description="training sequences")
    val: int = Field(900, ge=1, description="validation sequences")
    test: int = Field(1_000, ge=1, description="test sequences")
    digit_count: int = Field(Scene.digit_count, ge=1, description="digits of a sequence")
    canvas: int = Field(Scene.canvas, ge=SIZE, description="height and width that digits move on, pixels")
    pool: int = Field(Scene.pool, ge=1, description="make frames of means over so many by so many pixels")

    @model_validator(mode="after")
    def _pools_the_whole_canvas(self) -> MakeMoving:
        if self.canvas % self.pool:
            raise ValueError(f"canvas: expected a multiple of {self.pool}, found {self.canvas}")
        return self

    @property
    def scene(self) -> Scene:
        """Returns the scene to render."""
        return Scene(self.digit_count, self.canvas, self.frames, self.pool)

    @property
    def _origin(self) -> str:
        return self.kind if self.scene == Scene() else f"{self.kind}: {self.scene}"

    def _write(self, part: _Part, images: np.ndarray, advance: AdvanceLabel) -> None:
        chunks = []
        for first in range(0, part.count, _CHUNK):
            count = min(_CHUNK, part.count - first)
            chunks.append(render_moving(images, part.digits, count, part.generator, self.scene))
            advance(f"{part.split} sequences", first + count, part.count)
        with replacing(self.out / f"moving_mnist_{part.split}.npy") as path, path.open("wb") as file:
            np.save(file, np.concatenate(chunks, axis=1))
