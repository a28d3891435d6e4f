"""Random numbers that are the same on every device and in every batch: a counter-based generator in tensor operations.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011 (Philox 4x32-10); Box and Muller 1958.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
# Values of the counter's fourth word: independent streams of one seed.
_NORMAL, _UNIFORM, _INTEGER, _SEED = range(4)
# Contexts are quantised in steps of this size: 8-bit values over 255 are never near the border of two steps, so devices
# that round differently get the same seed.
_STEPS_PER_UNIT = 1024
_LARGEST = 2.0**30


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> Tensor:
    """Returns the four random words of Philox 4x32-10 for counters and keys, int64 (4, ...) from 0 to 2^32 - 1.

    Args:
        counter: four words, int64 tensors that broadcast, each from 0 to 2^32 - 1.
        key: two words, likewise; they have as many axes as the counter and broadcast to it.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    even, odd, keys = torch.stack((c0, c2)), torch.stack((c1, c3)), torch.stack(torch.broadcast_tensors(*key))
    # Filled on the device: a tensor made from Python numbers would have to be copied there.
    factor, step = (keys.new_empty((2, *[1] * c0.dim())) for _ in range(2))
    for place in range(2):
        factor[place], step[place] = _MULTIPLIERS[place], _KEY_STEPS[place]
    for _ in range(_ROUNDS):
        # The product of two words has 64 bits, which wrap into int64; the shift's sign bits are masked off below.
        product = (even * factor).flip(0)
        even = (product >> 32).bitwise_xor_(odd).bitwise_xor_(keys).bitwise_and_(_WORD)
        odd = product.bitwise_and_(_WORD)
        keys = (keys + step).bitwise_and_(_WORD)
    return torch.stack((even[0], odd[0], even[1], odd[1]))


@dataclass(frozen=True, eq=False)
class RowNoise:
    """Random numbers for the rows of a batch, which depend only on the row's seed and member.

    Attributes:
        seeds: seeds of the sequences, int64 (N,), from 0 to 2^63 - 1, on the device that draws.
        members: number of each row's member within its sequence, int64 (N,).
    """

    seeds: Tensor
    members: Tensor

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.seeds)

    def __getitem__(self, rows: slice) -> RowNoise:
        """Returns the random numbers of some rows."""
        return RowNoise(self.seeds[rows], self.members[rows])

    def normal(self, shape: tuple[int, ...], draw: int) -> Tensor:
        """Returns standard normal numbers, float32 (N, *shape).

        Args:
            shape: shape of a row.
            draw: number of the draw; draws of different numbers are independent.
        """
        size = math.prod(shape)
        words = self._words(_NORMAL, draw, -(-size // 4))
        # In double precision, devices differ by less than single precision resolves; Apple's GPUs do not support it.
        precision = torch.float32 if words.device.type == "mps" else torch.float64
        share = words.to(precision).add_(0.5).mul_(2.0**-32)
        radius = share[0::2].log().mul_(-2).sqrt_()
        angle = share[1::2].mul(2 * math.pi)
        drawn = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)  # (2, N, count, 2)
        return drawn.movedim(0, 2).flatten(1)[:, :size].float().unflatten(1, shape)

    def uniform(self, draw: int = 0) -> Tensor:
        """Returns a number from 0 to 1 for each row, float32 (N,)."""
        return self._words(_UNIFORM, draw, 1)[0, :, 0].float() * 2.0**-32

    def integers(self, high: int, draw: int = 0) -> Tensor:
        """Returns an integer from 0 to `high` - 1 for each row, int64 (N,); `high` is at most 2^31."""
        return self._words(_INTEGER, draw, 1)[0, :, 0] * high >> 32

    def _words(self, stream: int, draw: int, count: int) -> Tensor:
        """Returns random words (4, N, count)."""
        seeds, members = self.seeds[:, None], self.members[:, None]
        block = torch.arange(count, device=seeds.device)[None]
        same = torch.zeros_like(members)
        return philox((block, same + draw, members, same + stream), (seeds & _WORD, seeds >> 32 & _WORD))


def members_of(seeds: Tensor, members: int) -> RowNoise:
    """Returns the noise of B * members rows, sequence by sequence, given the sequences' seeds (B,)."""
    numbers = torch.arange(members, device=seeds.device)
    return RowNoise(seeds.repeat_interleave(members), numbers.repeat(len(seeds)))


def content_seeds(frames: Tensor, seed: int | Tensor = 0) -> Tensor:
    """Returns a seed for each row of `frames` (B, ...), int64 (B,), derived from its values and another seed.

    It does not depend on the row's position in the batch, and is the same on all devices unless they round a value to
    different steps of 1/1024.

    Args:
        frames: values on a scale near 1.
        seed: base seed from 0 to 2^63 - 1, a number or a tensor with one number.
    """
    level = frames.detach().float().flatten(1).nan_to_num().mul(_STEPS_PER_UNIT).clamp(-_LARGEST, _LARGEST)
    values = level.round().long()
    place = torch.arange(values.shape[1], device=values.device)
    none = torch.zeros_like(place)
    first, second, *_ = philox((place, none, none, none + _SEED), (none, none))
    total = (values * (first << 32 | second)).sum(dim=1)  # modulo 2^64: the order does not matter
    base = torch.zeros_like(total) + seed
    same = torch.zeros_like(total)
    low, high, *_ = philox((total & _WORD, total >> 32 & _WORD, same, same + _SEED), (base & _WORD, base >> 32 & _WORD))
    return (high >> 1) << 32 | low
