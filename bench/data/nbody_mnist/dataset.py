"""N-body MNIST from the authors' files: draws on disk, simulated when opened, drawn when asked for."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.api import Split
from bench.data.nbody_mnist.draws import Draws, read_digits, read_draws
from bench.data.nbody_mnist.simulation import FRAME, FRAMES, Motion, cropped, render, simulate
from bench.data.sequences import SequenceDataset, Units
from bench.data.transfer.manifest import origin
from bench.errors import DataError

_FILES: dict[Split, tuple[str, ...]] = {
    "train": ("train",), "val": ("val",), "test": ("test",), "all": ("train", "val", "test"),
}  # fmt: skip


class NBodySequences(SequenceDataset):
    """Sequences of digits that attract one another: context and target `(T,64,64,1)` float32, 0..255, and labels.

    Frames are drawn from the simulated state each time that they are asked for: they are never rounded to bytes, and
    20,000 sequences take no room on disk.

    Args:
        root: Folder with `mnist.npz` and `nbody_train.npz`, `nbody_val.npz`, `nbody_test.npz`.
        split: Which file; `all` is one after the other.
        t_in: Frames of the context, from the first.
        t_out: Frames of the target, right after the context.

    Raises:
        DataError: lists what is wrong with the files.
    """

    def __init__(self, root: Path, *, split: Split, t_in: int, t_out: int) -> None:
        self.root, self.split, self.t_in, self.t_out = root, split, t_in, t_out
        parts = [read_draws(root / f"nbody_{name}.npz") for name in _FILES[split]]
        draws = Draws(*(np.concatenate([getattr(part, key) for part in parts]) for key in Draws.__annotations__))
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
        self.motion: Motion = simulate(draws.corners(sizes), draws.velocities, sizes)
        """Corners and velocities of every frame: the true system."""

    @property
    def digits_used(self) -> frozenset[int]:
        """Returns the numbers of the digits that appear."""
        return frozenset(np.unique(self.draws.digit_indices).tolist())

    @cached_property
    def energy(self) -> np.ndarray:
        """Returns the energy of the true system at each frame, `(n,20)`; see `simulation.energy`."""
        return self.motion.energy()

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Returns a name for each sequence that is its draws': the same sequence in two splits has one name."""
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
        """Returns context and target, `(T,64,64,1)` float32, 0..255, and what is known of them beyond the pixels.

        That is, for the metric `energy`, the digits, `(3,28,28)` float32 at the top left of their images, and their
        corners and velocities at the last frame of the context, `(2,3,2)` float64, pixels of the canvas and per
        sub-step; and, for models that learn it, the true energy of each target frame, `(T,)` float64.

        Raises:
            IndexError: the index is out of range.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        crops, sizes = self._crops[self._which[index]], self._sizes[self._which[index]]
        corners, velocities = self.motion.corners[index], self.motion.velocities[index]
        drawn = render(corners[None, : self.t_in + self.t_out], crops[None], sizes[None])[0]
        frames = torch.from_numpy(drawn)[..., None]
        now = self.t_in - 1
        state = torch.from_numpy(np.stack([corners[now], velocities[now]]))
        energy = torch.from_numpy(self.energy[index, self.t_in : self.t_in + self.t_out])
        return frames[: self.t_in], frames[self.t_in :], torch.from_numpy(crops), state, energy

    def identity(self) -> dict[str, Any]:
        """Returns what identifies these data: every draw and every pixel of the digits used, and how they are cut."""
        return {
            "origin": origin(self.root),
            "sequence_count": len(self),
            "event_shape": [FRAME, FRAME, FRAMES],
            "window": [self.t_in, self.t_out],
            "content_sha256": self._content_sha256,
        }

    @cached_property
    def _content_sha256(self) -> str:
        content = hashlib.sha256()
        for part in (*(getattr(self.draws, key) for key in Draws.__annotations__), self._crops):
            content.update(np.ascontiguousarray(part).data)
        return content.hexdigest()
