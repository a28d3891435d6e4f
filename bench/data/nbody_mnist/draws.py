"""The random draws behind N-body MNIST sequences, in the authors' files: `nbody_{split}.npz`, `mnist.npz`.

Source: Gao et al. 2022, Earthformer: the release stores draws, not frames, with neutral values for everything that its
paper's set does not use (rotation, change of scale and brightness, random acceleration, distractors).  Files of another
system than the paper's describe it in additional arrays; pooled frames are stored with them.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from bench.data.nbody_mnist.simulation import MAX_SPEED, System
from bench.errors import DataError, counted, one_message
from bench.files import replacing

DIGITS_FILE = "mnist.npz"
_WHITE = 255
_NEUTRAL = {
    "appearance_mult": 1.0,
    "scale_variation": 1.0,
    "base_rotation_angle": 0.0,
    "random_acceleration_magnitude": 0.0,
}
_MAX_BYTES = 4 << 30
"""Limit of an array. 20,000 sequences have 1.4 MB of draws; 70,000 digits have 55 MB as bytes and 440 as float64."""
_DISTRACTORS, _DISTRACTOR_SHAPE = "distractor_seeds", (100, 0, 5)


@dataclass(frozen=True)
class Draws:
    """The draws of n sequences of D digits."""

    digit_indices: np.ndarray
    """Numbers of digits in `mnist.npz`, `(n,D)`, int64."""
    places: np.ndarray
    """Initial positions as shares (x, y) of the free space on the canvas, `(n,D,2)`."""
    angles: np.ndarray
    """Direction of the initial velocity, radians, `(n,D)`."""
    speeds: np.ndarray
    """Initial speed, pixels of the canvas per sub-step, `(n,D)`."""

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.digit_indices)

    def __getitem__(self, some: slice) -> Draws:
        """Returns the draws of some sequences."""
        return Draws(self.digit_indices[some], self.places[some], self.angles[some], self.speeds[some])

    def corners(self, sizes: np.ndarray, canvas: int) -> np.ndarray:
        """Returns the initial top-left corners for digits of these widths and heights, both `(n,D,2)`."""
        return self.places * (canvas - sizes)

    @property
    def velocities(self) -> np.ndarray:
        """Returns the initial velocities, `(n,D,2)` in pixels of the canvas per sub-step."""
        return self.speeds[..., None] * np.stack([np.cos(self.angles), np.sin(self.angles)], -1)


@dataclass(frozen=True)
class Sequences:
    """The content of a file: draws, their system, and frames if these are stored."""

    draws: Draws
    system: System
    frames: np.ndarray | None = None
    """`(n,F,H,W)`, uint8, for a system with `pool`."""


_NPZ_ERRORS = (
    OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError, MemoryError, OverflowError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Errors of numpy and zipfile for damaged archives."""
_KEYS = {
    "digit_indices": "digit_indices",
    "places": "affine_transforms_multipliers",
    "angles": "init_velocity_angle",
    "speeds": "init_velocity_magnitude",
}
"""Name in `Draws` -> name in the authors' files."""
_SYSTEM = tuple(field.name for field in fields(System) if field.name != "digit_count")
"""Names of arrays with one number each; the number of digits follows from the draws."""
_STORED = "frames"


def random_draws(count: int, digits: range, generator: np.random.Generator, *, digit_count: int) -> Draws:
    """Returns draws like the paper's: digits of a range, positions, directions and speeds to `MAX_SPEED`, uniform."""
    return Draws(
        digit_indices=generator.integers(digits.start, digits.stop, (count, digit_count)),
        places=generator.random((count, digit_count, 2)),
        angles=generator.uniform(0, 2 * np.pi, (count, digit_count)),
        speeds=generator.uniform(0, MAX_SPEED, (count, digit_count)),
    )


def write_sequences(sequences: Sequences, path: Path) -> None:
    """Writes draws under the authors' names, with neutral values for unused properties.

    For another system than the paper's, its numbers and any frames are written, too.
    """
    draws, system = sequences.draws, sequences.system
    per_digit = {key: np.full(draws.speeds.shape, value) for key, value in _NEUTRAL.items()}
    ours = {} if system == System() else {key: np.array(getattr(system, key), np.int64) for key in _SYSTEM}
    write_arrays(
        path,
        **ours,
        **({} if sequences.frames is None else {_STORED: sequences.frames}),
        **{theirs: getattr(draws, ours) for ours, theirs in _KEYS.items()},
        **{**per_digit, "appearance_mult": np.ones(len(draws))},
        random_acceleration_angle=np.zeros(len(draws)),
        distractor_seeds=np.zeros((len(draws), *_DISTRACTOR_SHAPE)),
    )


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an npz file, whole or not at all."""
    with replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_system(root: Path) -> System | None:
    """Returns the system of a folder's files; None if it has no files.

    Raises:
        DataError: the file is not readable, or the system is invalid.
    """
    paths = (root / f"nbody_{split}.npz" for split in ("train", "val", "test"))
    path = next((path for path in paths if path.is_file()), None)
    return None if path is None else _system(path, read_arrays(path, ("digit_indices", *_SYSTEM), required=()))


def _system(path: Path, found: dict[str, np.ndarray]) -> System:
    indices = found.get("digit_indices", np.empty((0, 0)))
    if "canvas" not in found:  # the authors', or ours of their system
        return System()
    missing = [name for name in _SYSTEM if name not in found]
    wrong = [name for name in _SYSTEM if name in found and (found[name].shape or found[name].dtype.kind not in "iu")]
    if missing or wrong or indices.ndim != 2:
        raise DataError(
            f"{path}: expected draws (n, digits) and one integer each in {', '.join(_SYSTEM)}; found draws "
            f"{indices.shape}, missing: {', '.join(missing) or 'none'}, others: {', '.join(wrong) or 'none'}"
        )
    try:
        return System(digit_count=indices.shape[1], **{name: int(found[name]) for name in _SYSTEM})
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def read_sequences(path: Path) -> Sequences:
    """Returns the sequences of a file.

    Raises:
        DataError: lists arrays that are missing, of the wrong shape, out of range, or not neutral.
    """
    wanted = (*_KEYS.values(), *_NEUTRAL, _DISTRACTORS, *_SYSTEM, _STORED)
    found = read_arrays(path, wanted, required=tuple(_KEYS.values()))
    draws, system = Draws(**{ours: found[theirs] for ours, theirs in _KEYS.items()}), _system(path, found)
    count = len(draws.digit_indices) if draws.digit_indices.ndim else 0
    of_digits = (count, system.digit_count)
    problems = []
    for ours, theirs in _KEYS.items():
        array, shape = getattr(draws, ours), (*of_digits, 2) if ours == "places" else of_digits
        if array.shape != shape:
            problems.append(f"{theirs}: expected shape {shape}, found {array.shape}")
        elif not np.isfinite(array).all():
            problems.append(f"{theirs}: expected finite numbers, found others")
    if not np.issubdtype(draws.digit_indices.dtype, np.integer):
        problems.append(f"digit_indices: expected integers, found {draws.digit_indices.dtype}")
    for key, neutral in _NEUTRAL.items():
        if key in found and not np.allclose(found[key], neutral):
            problems.append(f"{key}: expected {neutral:g} throughout, as in the paper's set, found other values")
    if _DISTRACTORS in found and found[_DISTRACTORS].size:
        problems.append(f"{_DISTRACTORS}: expected none, as in the paper's set, found {found[_DISTRACTORS].shape}")
    frames = found.get(_STORED) if system.pool else None
    if system.pool:
        drawn = (count, system.frame_count, system.frame_size, system.frame_size)
        if frames is None or frames.shape != drawn or frames.dtype != np.uint8:
            described = "none" if frames is None else f"{frames.dtype} {frames.shape}"
            problems.append(f"{_STORED}: expected uint8 {drawn}, found {described}")
    if problems:
        raise DataError(one_message(f"{path} has {counted(len(problems), 'problem')}:", problems))
    return Sequences(draws, system, frames)


def read_digits(root: Path) -> np.ndarray:
    """Returns the images that draws refer to, `(N,28,28)`, 0..255.

    Raises:
        DataError: the file is missing, or has no valid images.
    """
    path = root / DIGITS_FILE
    images = read_arrays(path, ("X",), required=("X",))["X"]
    side = round(float(np.sqrt(images[0].size))) if images.ndim > 1 and len(images) else 0
    if images.ndim not in (2, 3) or not side or images[0].size != side * side:
        raise DataError(f"{path}: X: expected images (N, 28, 28) or (N, 784), found shape {images.shape}")
    low, high = (images.min(), images.max()) if images.dtype.kind in "uif" else (0, 0)
    if not (low >= 0 and 1 < high <= _WHITE):
        raise DataError(f"{path}: X: expected numbers from 0 to {_WHITE}, found {images.dtype} from {low} to {high}")
    return images.reshape(len(images), side, side)


def read_arrays(path: Path, names: tuple[str, ...], *, required: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns the named arrays that an npz file has.

    Raises:
        DataError: the file is missing or unreadable, or a required array is not in it.
    """
    if not path.is_file():
        found = ", ".join(sorted(p.name for p in path.parent.iterdir())[:8]) if path.parent.is_dir() else ""
        raise DataError(f"{path}: file is missing; its folder has {found or 'nothing'}")
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in required if name not in file]
            if missing:
                raise DataError(f"{path}: expected arrays {', '.join(missing)}; found {', '.join(file.files)}")
            present = [name for name in names if name in file]
            _check_sizes(path, present)
            return {name: file[name] for name in present}
    except _NPZ_ERRORS as error:
        raise DataError(f"{path}: not readable: {error}") from error


def _check_sizes(path: Path, names: list[str]) -> None:
    """Refuses arrays that declare more bytes than the archive has, because numpy allocates them before reading.

    Raises:
        DataError: an array declares too much.
    """
    with zipfile.ZipFile(path) as archive:
        for name in names:
            member = archive.getinfo(f"{name}.npy")
            with archive.open(member) as content:
                version = np.lib.format.read_magic(content)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(content)
            declared = math.prod(shape) * dtype.itemsize
            if declared > min(member.file_size, _MAX_BYTES):
                raise DataError(
                    f"{path}: {name} declares {dtype} {shape}, {declared} bytes, of which the archive has "
                    f"{member.file_size}; expected no more than these and {_MAX_BYTES}"
                )
