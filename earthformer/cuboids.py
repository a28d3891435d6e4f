"""Cutting a tensor (B, T, H, W, C) into cuboids and back; padding, shift, masks and relative positions.

A `CuboidPartition` is one decomposition of one grid. `decompose` turns a tensor into cuboids (B, N, V, C), N cuboids
of V tokens, and `merge` is its inverse; both are differentiable.

Source: Earthformer, section 3.1 ("decompose", "attend", "merge"); padding, masks and the order of cuboids and tokens
as in the authors' released code.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from earthformer.patterns import Size3

STRATEGIES = ("l", "d")

# Each of T, H, W is split into two axes, the index of the cuboid and the position inside it. A local axis is
# (cuboid, position), a dilated one (position, cuboid).
_CUBOID_AXIS = {"l": 1, "d": 2}
_PLACE_AXIS = {"l": 2, "d": 1}


def check_strategy(strategy: Sequence[str]) -> tuple[str, str, str]:
    """Returns `strategy` as a tuple of three letters, one each for T, H and W.

    Raises:
        ValueError: there are not three letters, or one is neither "l" nor "d".
    """
    if len(strategy) != 3 or any(letter not in STRATEGIES for letter in strategy):
        raise ValueError(f"strategy: expected 'l' or 'd' for each of T, H, W, found {tuple(strategy)}")
    return strategy[0], strategy[1], strategy[2]


def missing_to_multiple(shape: Sequence[int], factor: Sequence[int]) -> Size3:
    """Returns how many cells must be added to each axis of `shape` (T, H, W) for a multiple of `factor`."""
    return _three((-length) % step for length, step in zip(shape, factor, strict=True))


def _three(values: Iterable[int]) -> Size3:
    t, h, w = values
    return t, h, w


def resize_nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Returns `x` (B, T, H, W, C) resized to `size` (T, H, W), each cell a copy of the nearest one."""
    return F.interpolate(x.permute(0, 4, 1, 2, 3), size=tuple(size)).permute(0, 2, 3, 4, 1)


def pad(x: Tensor, amount: Size3, padding_type: str, *, t_pad_left: bool = False) -> Tensor:
    """Returns `x` (B, T, H, W, C) enlarged by `amount` cells (T, H, W).

    Padding ``zeros`` and ``ignore`` put zeros at the end of each axis (before the first frame with
    `t_pad_left`); ``nearest`` stretches the whole tensor instead.
    """
    if not any(amount):
        return x
    if padding_type == "nearest":
        return resize_nearest(x, [length + more for length, more in zip(x.shape[1:4], amount, strict=True)])
    frames = (amount[0], 0) if t_pad_left else (0, amount[0])
    return F.pad(x, (0, 0, 0, amount[2], 0, amount[1], *frames))


def unpad(x: Tensor, amount: Size3, padding_type: str) -> Tensor:
    """Returns `x` (B, T, H, W, C) without the `amount` (T, H, W) that `pad` put at the end of its axes."""
    if not any(amount):
        return x
    t, h, w = (length - more for length, more in zip(x.shape[1:4], amount, strict=True))
    if padding_type == "nearest":
        return resize_nearest(x, (t, h, w))
    return x[:, :t, :h, :w]


class CuboidPartition:
    """One way to cut a grid into cuboids of equal size.

    Attributes:
        shape: T, H, W of the grid that holds data.
        cuboid: T, H, W of one cuboid.
        strategy: "l" or "d" for each axis.
        shift: cells by which the cuts are shifted along each axis.
        padding_type: how the grid is enlarged to multiples of the cuboid.
        t_pad_left: whether frames are added before the first one rather than after the last.
        padding: cells added to T, H, W.
        padded_shape: T, H, W after padding.
        counts: number of cuboids along T, H, W.
        count: number of cuboids, N.
        volume: number of tokens in a cuboid, V.
    """

    def __init__(
        self,
        shape: Size3,
        cuboid: Size3,
        strategy: tuple[str, str, str],
        shift: Size3 = (0, 0, 0),
        padding_type: str = "zeros",
        *,
        padding: Size3 | None = None,
        t_pad_left: bool = False,
    ) -> None:
        """Defines the decomposition of a grid of `shape`; see the class for the arguments.

        Without `padding`, each axis is enlarged to the next multiple of the cuboid.
        """
        self.shape = shape
        self.cuboid = cuboid
        self.strategy = strategy
        self.shift = shift
        self.padding_type = padding_type
        self.t_pad_left = t_pad_left
        self.padding = missing_to_multiple(shape, cuboid) if padding is None else padding
        self.padded_shape = _three(length + more for length, more in zip(shape, self.padding, strict=True))
        self.counts = _three(length // size for length, size in zip(self.padded_shape, cuboid, strict=True))
        self.count = self.counts[0] * self.counts[1] * self.counts[2]
        self.volume = cuboid[0] * cuboid[1] * cuboid[2]
        self._split_shape: list[int] = []
        self._merge_axes: list[int] = []
        for axis, letter in enumerate(strategy):
            count_first = letter == "l"
            self._split_shape += [self.counts[axis], cuboid[axis]] if count_first else [cuboid[axis], self.counts[axis]]
            # Position of each axis of the split in (batch, counts, cuboid).
            self._merge_axes += [1 + axis, 4 + axis] if count_first else [4 + axis, 1 + axis]
        self._cuboid_axes = [2 * axis + _CUBOID_AXIS[letter] for axis, letter in enumerate(strategy)]
        self._place_axes = [2 * axis + _PLACE_AXIS[letter] for axis, letter in enumerate(strategy)]

    @property
    def is_padded(self) -> bool:
        """Whether any cell is added."""
        return any(self.padding)

    @property
    def is_shifted(self) -> bool:
        """Whether the cuts are shifted along any axis."""
        return any(self.shift)

    def pad(self, x: Tensor) -> Tensor:
        """Returns `x` (B, T, H, W, C) enlarged to `padded_shape`."""
        return pad(x, self.padding, self.padding_type, t_pad_left=self.t_pad_left)

    def unpad(self, x: Tensor) -> Tensor:
        """Returns `x` (B, T', H', W', C) on the grid that holds data."""
        return unpad(x, self.padding, self.padding_type)

    def roll(self, x: Tensor) -> Tensor:
        """Returns `x` (B, T', H', W', C) rolled so that shifted cuts become unshifted ones."""
        if not self.is_shifted:
            return x
        return torch.roll(x, shifts=tuple(-step for step in self.shift), dims=(1, 2, 3))

    def unroll(self, x: Tensor) -> Tensor:
        """Returns `x` (B, T', H', W', C) rolled back: the inverse of `roll`."""
        return torch.roll(x, shifts=self.shift, dims=(1, 2, 3)) if self.is_shifted else x

    def split(self, x: Tensor) -> Tensor:
        """Returns the cuboids (B, N, V, C) of `x` (B, T', H', W', C), already padded and rolled."""
        batch, channels = x.shape[0], x.shape[-1]
        x = x.reshape(batch, *self._split_shape, channels)
        x = x.permute(0, *self._cuboid_axes, *self._place_axes, 7)
        return x.reshape(batch, self.count, self.volume, channels)

    def join(self, cuboids: Tensor) -> Tensor:
        """Returns the tensor (B, T', H', W', C), padded and rolled, of `cuboids` (B, N, V, C)."""
        batch, channels = cuboids.shape[0], cuboids.shape[-1]
        x = cuboids.reshape(batch, *self.counts, *self.cuboid, channels)
        x = x.permute(0, *self._merge_axes, 7)
        return x.reshape(batch, *self.padded_shape, channels)

    def split_heads(self, x: Tensor, heads: int, head_size: int) -> Tensor:
        """Returns `x` (B, T', H', W', G*heads*head_size), padded and rolled, as (G, B, heads, N, V, head_size)."""
        batch = x.shape[0]
        x = x.reshape(batch, *self._split_shape, -1, heads, head_size)
        x = x.permute(7, 0, 8, *self._cuboid_axes, *self._place_axes, 9)
        return x.reshape(x.shape[0], batch, heads, self.count, self.volume, head_size)

    def join_heads(self, cuboids: Tensor) -> Tensor:
        """Returns the tensor (B, T', H', W', heads*d), padded and rolled, of `cuboids` (B, heads, N, V, d)."""
        batch, heads = cuboids.shape[:2]
        x = cuboids.reshape(batch, heads, *self.counts, *self.cuboid, -1)
        x = x.permute(0, *(axis + 1 for axis in self._merge_axes), 1, 8)
        return x.reshape(batch, *self.padded_shape, -1)

    def decompose(self, x: Tensor) -> Tensor:
        """Returns the cuboids (B, N, V, C) of `x` (B, T, H, W, C).

        Raises:
            ValueError: the grid of `x` is not that of this partition.
        """
        if tuple(x.shape[1:4]) != self.shape:
            raise ValueError(f"partition: expected a grid (T, H, W) of {self.shape}, found {tuple(x.shape[1:4])}")
        return self.split(self.roll(self.pad(x)))

    def merge(self, cuboids: Tensor) -> Tensor:
        """Returns the tensor (B, T, H, W, C) of `cuboids` (B, N, V, C)."""
        return self.unpad(self.unroll(self.join(cuboids)))

    def regions(self, device: torch.device | None = None) -> Tensor:
        """Returns integers (N, V): tokens of a cuboid that are neighbours on the unshifted grid share one.

        A shifted cuboid at the border holds cells from both ends of an axis; they must not attend to one
        another.
        """
        region = torch.zeros(1, 1, 1, dtype=torch.int64, device=device)
        for axis, (length, size, step) in enumerate(zip(self.padded_shape, self.cuboid, self.shift, strict=True)):
            place = torch.arange(length, device=device)
            along = (place >= length - size).long()
            along = torch.where(place >= length - step, 2, along) if step else torch.zeros_like(place)
            region = region * 3 + along.reshape([-1 if other == axis else 1 for other in range(3)])
        return self.split(region.expand(self.padded_shape)[None, ..., None]).reshape(self.count, self.volume)

    def validity(self, device: torch.device | None = None) -> Tensor:
        """Returns booleans (1, T', H', W', 1) on the rolled grid: True where a cell holds data."""
        real = torch.ones(1, *self.shape, 1, dtype=torch.bool, device=device)
        return self.roll(pad(real, self.padding, "zeros", t_pad_left=self.t_pad_left))

    def valid_tokens(self, device: torch.device | None = None) -> Tensor:
        """Returns booleans (N, V): True where a token holds data."""
        return self.split(self.validity(device)).reshape(self.count, self.volume)


def self_attention_mask(partition: CuboidPartition, device: torch.device | None = None) -> Tensor:
    """Returns booleans (N, V, V), True where the token of the row may attend to the token of the column.

    Tokens must come from the same region and, with padding ``ignore``, both hold data.
    """
    regions = partition.regions(device)
    mask = regions[:, :, None] == regions[:, None, :]
    if partition.padding_type == "ignore":
        real = partition.valid_tokens(device)
        mask = mask & real[:, :, None] & real[:, None, :]
    return mask


def cross_attention_mask(
    queries: CuboidPartition, memory: CuboidPartition, device: torch.device | None = None
) -> Tensor:
    """Returns booleans (N, V_x, V_mem), True where a query may attend to a token of the memory.

    Both must come from the same region of H and W and hold data (whatever the padding type: if anything is padded, the
    layer refuses types other than ``ignore``).
    """
    # The cuboids differ in length only along T, along which cross-attention does not shift, so rows and columns can be
    # compared by the regions of their positions in the frame.
    rows, columns = queries.regions(device), memory.regions(device)
    mask = rows[:, :, None] == columns[:, None, :]
    return mask & queries.valid_tokens(device)[:, :, None] & memory.valid_tokens(device)[:, None, :]


def relative_position_index(size: Size3) -> Tensor:
    """Returns int64 (V, V): the row of the bias table for each pair of tokens of a cuboid of `size` (T, H, W).

    Source: Earthformer, section 3.1, after Liu et al. 2021 ("Swin Transformer").
    """
    axes = [torch.arange(length) for length in size]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    offset = places[:, :, None] - places[:, None, :]
    index = torch.zeros_like(offset[0])
    for along, length in zip(offset, size, strict=True):
        index = index * (2 * length - 1) + along + length - 1
    return index


def __getattr__(name: str) -> Any:
    """Returns deprecated names, with a warning."""
    if name == "Cut":
        warnings.warn("earthformer.cuboids.Cut is now CuboidPartition", DeprecationWarning, stacklevel=2)
        return CuboidPartition
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
