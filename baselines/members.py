"""Seeds of the members of a probabilistic forecast: one for each sequence, independent of its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_SEEDS = 2**63
# 8-bit values over 255 lie far from the border of two such steps, so that devices that round differently find the same.
_STEPS_PER_UNIT = 1024
_LARGEST = 2.0**30


def content_seeds(frames: Tensor, seed: int) -> list[int]:
    """Returns a seed for each row of `frames` (B, ...), from 0 to 2^63 - 1, that follows from its values and `seed`.

    Args:
        frames: On a scale near 1, on any device.
        seed: From 0 to 2^63 - 1.
    """
    levels = frames.detach().float().nan_to_num().mul(_STEPS_PER_UNIT).clamp(-_LARGEST, _LARGEST).round().int().cpu()
    own = seed.to_bytes(8, "little")
    digests = (hashlib.blake2b(row.numpy().tobytes(), digest_size=8, key=own).digest() for row in levels)
    return [int.from_bytes(digest, "little") % _SEEDS for digest in digests]


def row_seeds(
    context: Tensor, *, seed: int, generator: torch.Generator | None = None, seeds: Tensor | None = None
) -> list[int]:
    """Returns the seed of each sequence's members as the arguments of a model's `sample` say.

    Args:
        context: (B, T, H, W, C), on a scale near 1.
        seed: The model's own, which counts where neither a generator nor seeds are given.
        generator: Gives one number, which counts instead.
        seeds: The seeds themselves, int64 (B,).

    Raises:
        ValueError: A generator and seeds, or seeds that are not int64 (B,).
    """
    if seeds is None:
        if generator is not None:
            seed = int(torch.randint(_SEEDS - 1, (1,), generator=generator, device=generator.device))
        return content_seeds(context, seed)
    if generator is not None:
        raise ValueError("sample: expected a generator or seeds, found both")
    if seeds.shape != context.shape[:1] or seeds.dtype != torch.long:
        raise ValueError(
            f"seeds: expected int64 ({len(context)},), one for each sequence, found {seeds.dtype} {tuple(seeds.shape)}"
        )
    return [int(own) for own in seeds.tolist()]


class RowNoise:
    """Standard normal numbers for the rows of a batch, each row's from its own seed, drawn on the CPU.

    Args:
        seeds: One for each row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Returns the next numbers (B, *shape) of all rows, of the type of a tensor and where it is."""
        return torch.stack([torch.randn(*shape, generator=own) for own in self.generators]).to(like)
