"""N-body MNIST from the authors' files: draws on disk, simulated when opened; frames rendered when read, or stored."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.api import Split
from bench.data.nbody_mnist.draws import Draws, read_digits, read_sequences, read_system
from bench.data.nbody_mnist.simulation import Motion, System, cropped, render, simulate
from bench.data.sequences import SequenceDataset, Units
from bench.data.transfer.manifest import origin
from bench.errors import DataError

_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("train",), "val": ("val",), "test": ("test",), "all": ("train", "val", "test"),
}  # fmt: skip


class NBodySequences(SequenceDataset):
    """Sequences of digits that attract one another: context and target `(T,H,W,1)` 0..255, and labels.

    Frames are rendered from the simulated state on each access, float32: they are never rounded to bytes, and 20,000
    sequences take no disk space.  For a system with `pool`, frames are read from the file, uint8.

    Args:
        root: Folder with `mnist.npz` and `nbody_train.npz`, `nbody_val.npz`, `nbody_test.npz`.
        split: The file; `all` concatenates them.
        t_in: Frames of the context, from the first.
        t_out: Frames of the target, right after the context.

    Raises:
        DataError: lists the problems of the files, or they have fewer frames than context and target.
    """

    def __init__(self, root: Path, *, split: Split, t_in: int, t_out: int) -> None:
        self.root, self.split, self.t_in, self.t_out = root, split, t_in, t_out
        self.system = read_system(root) or System()
        parts = []
        for name in _FILES[split]:
            path = root / f"nbody_{name}.npz"
            parts.append(read_sequences(path))
            if parts[-1].system != self.system:
                raise DataError(f"{path}: has {parts[-1].system}; another split there has {self.system}")
        if self.system.frame_count < t_in + t_out:
            raise DataError(
                f"{root}: expected {t_in + t_out} frames or more, found {self.system.frame_count}. "
                "Set task.t_in and task.t_out."
            )
        draws = Draws(*(np.concatenate([getattr(part.draws, key) for part in parts]) for key in Draws.__annotations__))
        stored = [part.frames for part in parts if part.frames is not None]
        self._frames = np.concatenate(stored) if stored else None
        images = read_digits(root)
        used, self._which = np.unique(draws.digit_indices, return_inverse=True)
        self._which = self._which.reshape(draws.digit_indices.shape)
        if len(used) and not 0 <= used[0] <= used[-1] < len(images):
            raise DataError(
                f"{root}: split {split!r} uses digits {used[0]}..{used[-1]}, and mnist.npz has {len(images)}"
            )
        self._crops, self._sizes = cropped(images[used])
        self.draws = draws
        sizes = self._sizes[self._which]
        self.motion: Motion = simulate(
            draws.corners(sizes, self.system.canvas),
            draws.velocities,
            sizes,
            frames=self.system.frame_count,
            sub_steps=self.system.sub_steps,
            canvas=self.system.canvas,
        )
        """Corners and velocities of every frame: the true system."""

    @property
    def digits_used(self) -> frozenset[int]:
        """Returns the numbers of the digits that appear."""
        return frozenset(np.unique(self.draws.digit_indices).tolist())

    @cached_property
    def energy(self) -> np.ndarray:
        """Returns the energy of the true system at each frame, `(n,F)`; see `simulation.energy`."""
        return self.motion.energy()

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Returns a name for each sequence, a digest of its draws: equal sequences have equal names."""
        rows = [np.ascontiguousarray(getattr(self.draws, key)).reshape(len(self), -1) for key in Draws.__annotations__]
        return tuple(
            hashlib.sha256(b"".join(row[number].tobytes() for row in rows)).hexdigest()[:16]
            for number in range(len(self))
        )

    @property
    def units(self) -> Units:
        """Returns the sequences: each is an event."""
        return Units.events(self.ids)

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.draws)

    def stored(self, index: int) -> tuple[Tensor, ...]:
        """Returns context and target, `(T,H,W,1)` 0..255, and labels.

        The labels are, for the metric `energy`, the digits, `(D,28,28)` float32 at the top left of their images, and
        their corners and velocities at the last frame of the context, `(2,D,2)` float64 in pixels of the canvas and per
        sub-step; and, for models that learn it, the true energy of each target frame, `(T,)` float64.

        Raises:
            IndexError: the index is out of range.
        """
        index = self.checked_index(index)
        crops = self._crops[self._which[index]]
        corners, velocities = self.motion.corners[index], self.motion.velocities[index]
        frames = torch.from_numpy(self._drawn(index) if self._frames is None else self._frames[index])[..., None]
        now = self.t_in - 1
        state = torch.from_numpy(np.stack([corners[now], velocities[now]]))
        energy = torch.from_numpy(self.energy[index, self.t_in : self.t_in + self.t_out])
        target = frames[self.t_in : self.t_in + self.t_out]
        return frames[: self.t_in], target, torch.from_numpy(crops), state, energy

    def _drawn(self, index: int) -> np.ndarray:
        which = self._which[index]
        corners = self.motion.corners[index, : self.t_in + self.t_out]
        drawn = render(corners[None], self._crops[which][None], self._sizes[which][None], canvas=self.system.canvas)
        frames: np.ndarray = drawn[0]
        return frames

    def identity(self) -> dict[str, Any]:
        """Returns the identity of these data: draws, pixels, how they are cut, and any system but the paper's."""
        return {
            "origin": origin(self.root),
            "sequence_count": len(self),
            "event_shape": [self.system.frame_size, self.system.frame_size, self.system.frame_count],
            "window": [self.t_in, self.t_out],
            "content_sha256": self._content_sha256,
            # left out for the paper's system, as before other systems were supported
            **({} if self.system == System() else {"system": asdict(self.system)}),
        }

    @cached_property
    def _content_sha256(self) -> str:
        content = hashlib.sha256()
        for part in (*(getattr(self.draws, key) for key in Draws.__annotations__), self._crops):
            content.update(np.ascontiguousarray(part).data)
        if self._frames is not None:
            content.update(self._frames.data)
        return content.hexdigest()
