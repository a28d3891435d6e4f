"""Named cuboid patterns: pure functions from the shape of a level to the layers that attend over it.

A self-attention pattern gives, for every attention layer, the size of its cuboids, the strategy per axis
(``"l"`` local: neighbours; ``"d"`` dilated: elements spread evenly over the axis) and the shift of the cuts.
A cross-attention pattern gives the spatial size of the cuboids, their shift, the strategy and the number of
cuboids along time. Nothing here needs torch.

Source: Earthformer, section 3.1 and the pattern table of section 4.1; values as in the authors' released code.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Size3 = tuple[int, int, int]
Size2 = tuple[int, int]
Strategy = tuple[str, str, str]

LOCAL: Strategy = ("l", "l", "l")
DILATED: Strategy = ("d", "d", "d")
NO_SHIFT: Size3 = (0, 0, 0)

SWIN_FRAMES = (1, 2, 4, 8, 10)
WINDOW_SIZES = (1, 2, 4, 8, 16, 32)
DILATIONS = (2, 4, 8)
CROSS_SIZES = (1, 2, 4, 8)


class SelfPattern(NamedTuple):
    """The layers of a self-attention pattern: three lists with one entry per attention layer."""

    cuboid_size: list[Size3]
    strategy: list[Strategy]
    shift_size: list[Size3]


class CrossPattern(NamedTuple):
    """The layers of a cross-attention pattern: four lists with one entry per attention layer."""

    cuboid_hw: list[Size2]
    shift_hw: list[Size2]
    strategy: list[Strategy]
    n_temporal: list[int]


SelfPatternFunction = Callable[[Size3], SelfPattern]
CrossPatternFunction = Callable[[Size3], CrossPattern]

F = TypeVar("F")

_SELF: dict[str, SelfPatternFunction] = {}
_CROSS: dict[str, CrossPatternFunction] = {}


def register_self_pattern(name: str, function: SelfPatternFunction) -> None:
    """Registers `function` of a shape (T, H, W) as self-attention pattern `name`.

    Raises:
        ValueError: the name is taken.
    """
    if name in _SELF:
        raise ValueError(f"self-attention pattern {name!r} is already registered")
    _SELF[name] = function


def register_cross_pattern(name: str, function: CrossPatternFunction) -> None:
    """Registers `function` of a shape (T, H, W) as cross-attention pattern `name`.

    Raises:
        ValueError: the name is taken.
    """
    if name in _CROSS:
        raise ValueError(f"cross-attention pattern {name!r} is already registered")
    _CROSS[name] = function


def self_pattern_names() -> list[str]:
    """Returns the names of all self-attention patterns, in the order of registration."""
    return list(_SELF)


def cross_pattern_names() -> list[str]:
    """Returns the names of all cross-attention patterns, in the order of registration."""
    return list(_CROSS)


def self_pattern(name: str, shape: Sequence[int]) -> SelfPattern:
    """Returns the layers of self-attention pattern `name` on a level of `shape` (T, H, W) or (T, H, W, C).

    Raises:
        ValueError: the pattern is unknown or the shape has no positive T, H, W.
    """
    return _known(name, _SELF, "self-attention")(_grid(shape))


def cross_pattern(name: str, shape: Sequence[int]) -> CrossPattern:
    """Returns the layers of cross-attention pattern `name` on a memory of `shape` (T, H, W) or (T, H, W, C).

    Raises:
        ValueError: the pattern is unknown or the shape has no positive T, H, W.
    """
    return _known(name, _CROSS, "cross-attention")(_grid(shape))


def _known(name: str, registry: dict[str, F], kind: str) -> F:
    if name not in registry:
        near = difflib.get_close_matches(name, registry, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"unknown {kind} pattern {name!r}{hint}")
    return registry[name]


def _grid(shape: Sequence[int]) -> Size3:
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise ValueError(f"shape: expected positive (T, H, W) or (T, H, W, C), found {tuple(shape)}")
    t, h, w = (int(size) for size in shape[:3])
    return t, h, w


def _unshifted(*layers: tuple[Size3, Strategy]) -> SelfPattern:
    return SelfPattern([size for size, _ in layers], [strategy for _, strategy in layers], [NO_SHIFT for _ in layers])


def full(shape: Size3) -> SelfPattern:
    """Returns one layer whose only cuboid is the whole grid: plain attention."""
    return _unshifted((shape, LOCAL))


def axial(shape: Size3) -> SelfPattern:
    """Returns three layers, each attending along one axis.

    Source: Ho et al. 2019, "Axial Attention in Multidimensional Transformers".
    """
    t, h, w = shape
    return _unshifted(((t, 1, 1), LOCAL), ((1, h, 1), LOCAL), ((1, 1, w), LOCAL))


def divided_space_time(shape: Size3) -> SelfPattern:
    """Returns a layer along time and a layer over each frame.

    Source: Bertasius et al. 2021, "Is Space-Time Attention All You Need for Video Understanding?".
    """
    t, h, w = shape
    return _unshifted(((t, 1, 1), LOCAL), ((1, h, w), LOCAL))


def video_swin(shape: Size3, frames: int = 2, window: int = 4) -> SelfPattern:
    """Returns two layers of windows of `frames` x `window` x `window`, the second shifted by half a window.

    Source: Liu et al. 2022, "Video Swin Transformer".
    """
    t, h, w = shape
    p, m = min(frames, t), min(window, h, w)
    return SelfPattern([(p, m, m), (p, m, m)], [LOCAL, LOCAL], [NO_SHIFT, (p // 2, m // 2, m // 2)])


def spatial_local_global(shape: Size3, window: int = 4) -> SelfPattern:
    """Returns a layer along time, one over local and one over dilated windows; `divided_space_time` on small frames."""
    t, h, w = shape
    if h <= window and w <= window:
        return divided_space_time(shape)
    frame = (1, window, window)
    return _unshifted(((t, 1, 1), LOCAL), (frame, LOCAL), (frame, DILATED))


def axial_space_dilate(shape: Size3, dilation: int = 2) -> SelfPattern:
    """Returns a layer along time and, for rows and for columns, a dilated layer followed by a local one."""
    t, h, w = shape
    k = min(dilation, h, w)
    column, row = (1, h // k, 1), (1, 1, w // k)
    return _unshifted(((t, 1, 1), LOCAL), (column, DILATED), (column, LOCAL), (row, DILATED), (row, LOCAL))


def cross_local(shape: Size3, size: int) -> CrossPattern:
    """Returns one layer in which each window attends to all memory frames of the same window."""
    k = min(size, *shape[1:])
    return CrossPattern([(k, k)], [(0, 0)], [LOCAL], [1])


def cross_local_global(shape: Size3, size: int) -> CrossPattern:
    """Returns a layer over local windows and a layer over dilated ones."""
    k = min(size, *shape[1:])
    return CrossPattern([(k, k)] * 2, [(0, 0)] * 2, [LOCAL, DILATED], [1, 1])


def cross_heterogeneous(shape: Size3, size: int) -> CrossPattern:
    """Returns layers over local, dilated and shifted local windows."""
    k = min(size, *shape[1:])
    return CrossPattern([(k, k)] * 3, [(0, 0), (0, 0), (k // 2, k // 2)], [LOCAL, DILATED, LOCAL], [1, 1, 1])


def _bind_self(function: Callable[..., SelfPattern], *sizes: int) -> SelfPatternFunction:
    return lambda shape: function(shape, *sizes)


def _bind_cross(function: Callable[..., CrossPattern], size: int) -> CrossPatternFunction:
    return lambda shape: function(shape, size)


def _register_published() -> None:
    register_self_pattern("full", full)
    register_self_pattern("axial", axial)
    register_self_pattern("video_swin", video_swin)
    register_self_pattern("divided_st", divided_space_time)
    for frames in SWIN_FRAMES:
        for window in WINDOW_SIZES:
            register_self_pattern(f"video_swin_{frames}x{window}", _bind_self(video_swin, frames, window))
    register_self_pattern("spatial_lg_v1", spatial_local_global)
    for window in WINDOW_SIZES:
        register_self_pattern(f"spatial_lg_{window}", _bind_self(spatial_local_global, window))
    for dilation in DILATIONS:
        register_self_pattern(f"axial_space_dilate_{dilation}", _bind_self(axial_space_dilate, dilation))
    for size in CROSS_SIZES:
        register_cross_pattern(f"cross_{size}x{size}", _bind_cross(cross_local, size))
        register_cross_pattern(f"cross_{size}x{size}_lg", _bind_cross(cross_local_global, size))
        register_cross_pattern(f"cross_{size}x{size}_heter", _bind_cross(cross_heterogeneous, size))


_register_published()


def clip_cuboid(
    shape: Sequence[int], cuboid_size: Sequence[int], shift_size: Sequence[int], strategy: Sequence[str]
) -> tuple[Size3, Size3]:
    """Returns the cuboid size and shift that are used on a grid of `shape`.

    A dilated axis is never shifted; an axis no longer than its cuboid is one cuboid and is not shifted.
    """
    size, shift = list(cuboid_size), list(shift_size)
    for axis, length in enumerate(shape):
        if strategy[axis] == "d":
            shift[axis] = 0
        if length <= size[axis]:
            size[axis], shift[axis] = length, 0
    return (size[0], size[1], size[2]), (shift[0], shift[1], shift[2])


def _axis_labels(
    length: int, padded: int, cuboid: int, shift: int, strategy: str, resize: bool
) -> npt.NDArray[np.int64]:
    position = np.arange(length, dtype=np.int64)
    if resize:
        position = position * padded // length
    position = (position - shift) % padded
    return position // cuboid if strategy == "l" else position % (padded // cuboid)


def cuboid_labels(
    shape: Sequence[int],
    cuboid_size: Sequence[int],
    strategy: Sequence[str] = LOCAL,
    shift_size: Sequence[int] = NO_SHIFT,
    padding_type: str = "zeros",
) -> npt.NDArray[np.int64]:
    """Returns an array (T, H, W) with the number of the cuboid that each cell of the grid belongs to.

    Cuboids are numbered in row-major order (T, H, W), including those with padding only. With padding
    ``nearest`` the number is that of the cuboid from which the cell's output is read.
    """
    grid = _grid(shape)
    size, shift = clip_cuboid(grid, cuboid_size, shift_size, strategy)
    labels = np.zeros((1, 1, 1), dtype=np.int64)
    for axis in range(3):
        count = -(-grid[axis] // size[axis])
        along = _axis_labels(
            grid[axis], count * size[axis], size[axis], shift[axis], strategy[axis], padding_type == "nearest"
        )
        labels = labels * count + along.reshape([-1 if other == axis else 1 for other in range(3)])
    return np.array(np.broadcast_to(labels, grid))


def self_pattern_labels(name: str, shape: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Returns, for each layer of self-attention pattern `name`, the (T, H, W) array of cuboid numbers.

    Raises:
        ValueError: the pattern is unknown or the shape has no positive T, H, W.
    """
    return [cuboid_labels(shape[:3], *layer) for layer in zip(*self_pattern(name, shape), strict=True)]


def cross_pattern_labels(name: str, shape: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Returns, for each layer of cross-attention pattern `name`, the (T, H, W) array of cuboid numbers of the queries.

    Raises:
        ValueError: the pattern is unknown or the shape has no positive T, H, W.
    """
    t = _grid(shape)[0]
    return [
        cuboid_labels(shape[:3], (-(-t // n_temporal), *size), strategy, (0, *shift))
        for size, shift, strategy, n_temporal in zip(*cross_pattern(name, shape), strict=True)
    ]
