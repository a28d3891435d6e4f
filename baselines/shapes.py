"""The shape checks that every model family makes before it builds a layer."""

from collections.abc import Sequence
from typing import TypeAlias

Shape: TypeAlias = tuple[int, int, int, int]


def checked_shapes(
    family: str, input_shape: Sequence[int], target_shape: Sequence[int], *, feeds_back: bool
) -> tuple[Shape, Shape]:
    """Returns both shapes as tuples of four positive integers, after checking that they fit together.

    Args:
        family: Name of the model family, for the error message.
        input_shape: Shape (T, H, W, C) of the context.
        target_shape: Shape (T, H, W, C) of the forecast.
        feeds_back: Whether the model reads its own forecasts, so that both need the same channels.

    Raises:
        ValueError: A shape is not (T, H, W, C), or the grids (or, with `feeds_back`, the channels) differ.
    """
    shapes = []
    for name, shape in (("input_shape", input_shape), ("target_shape", target_shape)):
        sizes = tuple(int(size) for size in shape)
        if len(sizes) != 4 or min(sizes) < 1:
            raise ValueError(f"{family}: {name} must be four positive sizes (T, H, W, C), got {tuple(shape)}")
        shapes.append((sizes[0], sizes[1], sizes[2], sizes[3]))
    source, target = shapes
    if source[1:3] != target[1:3]:
        raise ValueError(f"{family}: context and forecast need one grid, got {source[1:3]} and {target[1:3]}")
    if feeds_back and source[3] != target[3]:
        raise ValueError(
            f"{family}: reads its own forecasts, so context and forecast need the same channels, "
            f"got {source[3]} and {target[3]}"
        )
    return source, target


def checked_sizes(family: str, what: str, sizes: Sequence[int], *, count: int | None = None) -> tuple[int, ...]:
    """Returns the sizes as a tuple of positive integers (of `count` entries, if that is given).

    Raises:
        ValueError: No sizes are given, one is not positive, or their number is not `count`.
    """
    checked = tuple(int(size) for size in sizes)
    if not checked or min(checked) < 1 or (count is not None and len(checked) != count):
        expected = "positive sizes" if count is None else f"{count} positive sizes"
        raise ValueError(f"{family}: {what} must be {expected}, got {tuple(sizes)}")
    return checked


def checked_stack(family: str, hidden: Sequence[int], kernel_size: int) -> tuple[int, ...]:
    """Returns the widths of layers that share a memory, whose convolutions keep the grid.

    Raises:
        ValueError: The widths are not positive and equal, or the kernel is not odd.
    """
    widths = checked_sizes(family, "hidden", hidden)
    if len(set(widths)) > 1:
        raise ValueError(f"{family}: hidden must be the same in all layers, which share a memory, got {widths}")
    if kernel_size % 2 == 0:
        raise ValueError(f"{family}: kernel_size must be odd, got {kernel_size}")
    return widths


def require_divisible(family: str, what: str, size: int, divisor: int) -> None:
    """Checks that `divisor` divides `size`.

    Raises:
        ValueError: It does not; the message names both.
    """
    if size % divisor:
        raise ValueError(f"{family}: {what} must be divisible by {divisor}, got {size}")
