"""Whether an array's axes lie as `(N, H, W, T)`, by what the catalogue says of its events."""

from __future__ import annotations

from functools import lru_cache

_USUAL_FRAMES = (25, 49)
"""SEVIR-LR's and SEVIR's; the last resort where the catalogue tells nothing."""
_ORDERS = {"(N, H, W, T)": (0, 1, 2), "(N, T, H, W)": (1, 2, 0), "(N, H, T, W)": (0, 2, 1)}


@lru_cache(maxsize=64)
def other_order(shape: tuple[int, int, int], size: tuple[int, int] | None, frames: int | None) -> str | None:
    """Returns in which other order an event's axes lie, or None where they lie as `(H, W, T)` as far as can be told.

    Args:
        shape: Of one event as stored.
        size: Height and width by the catalogue (`size_y`, `size_x`), or None.
        frames: Number of `minute_offsets` in the catalogue, or None.

    The authors' SEVIR-LR has the catalogue of SEVIR, unchanged: a size that is a whole multiple and offsets of which
    every so many were kept agree as well, if not as much as equal ones.
    """
    fits = {}
    for name, (first, second, last) in _ORDERS.items():
        height, width = shape[first], shape[second]
        fits[name] = _size_fits(height, width, size) + _frames_fit(shape[last], frames)
    expected, *others = fits
    best = max(others, key=fits.__getitem__)
    if fits[best] > fits[expected]:
        return best
    if fits[expected]:
        return None
    first, second, last = shape
    if first != second and (second == last or first == last):  # frames are square, nearly always
        return "(N, T, H, W)" if second == last else "(N, H, T, W)"
    return "(N, T, H, W)" if first in _USUAL_FRAMES and last not in _USUAL_FRAMES else None


def _size_fits(height: int, width: int, size: tuple[int, int] | None) -> int:
    if size is None:
        return 0
    if (height, width) in (size, size[::-1]):
        return 2
    factor = round(size[0] / height) if height else 0
    return int(factor > 1 and (-(-size[0] // factor), -(-size[1] // factor)) == (height, width))


def _frames_fit(count: int, frames: int | None) -> int:
    if frames is None or frames < 2:
        return 0
    return 2 if count == frames else int(count > 1 and (frames - 1) % (count - 1) == 0)
