"""Seeds of the members of a probabilistic forecast: one for each sequence, independent of its batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_SEEDS = 2**63
# 8-bit values over 255 lie far from the borders of these steps, so devices that round differently get the same seed.
_STEPS_PER_UNIT = 1024
_LARGEST = 2.0**30


def content_seeds(frames: Tensor, seed: int) -> list[int]:
    """Returns a seed for each row of `frames` (B, ...), from 0 to 2^63 - 1, derived from its values and `seed`.

    Args:
        frames: Values on a scale near 1, on any device.
        seed: Base seed, from 0 to 2^63 - 1.
    """
    levels = frames.detach().float().nan_to_num().mul(_STEPS_PER_UNIT).clamp(-_LARGEST, _LARGEST).round().int().cpu()
    own = seed.to_bytes(8, "little")
    digests = (hashlib.blake2b(row.numpy().tobytes(), digest_size=8, key=own).digest() for row in levels)
    return [int.from_bytes(digest, "little") % _SEEDS for digest in digests]


def row_seeds(
    context: Tensor, *, seed: int, generator: torch.Generator | None = None, seeds: Tensor | None = None
) -> list[int]:
    """Returns the seed of each sequence's members, given the arguments of a model's `sample`.

    Args:
        context: (B, T, H, W, C), on a scale near 1.
        seed: The model's own seed, used if neither a generator nor seeds are given.
        generator: Gives one number, used instead of the model's seed.
        seeds: The seeds themselves, int64 (B,).

    Raises:
        ValueError: Both a generator and seeds, or seeds that are not int64 (B,).
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
    """Draws standard normal numbers for the rows of a batch on the CPU, each row from its own seed.

    Args:
        seeds: One seed per row.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Returns the next numbers (B, *shape) of all rows, with the dtype and device of `like`."""
        return torch.stack([torch.randn(*shape, generator=own) for own in self.generators]).to(like)
