"""Pictures of cuboid patterns: cells of the grid that attend to one another have one colour.

It needs no torch, and matplotlib only for drawing. It is part of this package and not of the harness because it needs
nothing but the patterns; the harness finds it through the entry point group ``earthbench.pictures``.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from earthformer import patterns

Labels = npt.NDArray[np.int64]
Point = tuple[float, float]

DEFAULT_SIZE: patterns.Size3 = (6, 4, 4)
_MOST_CELLS = 20_000

# Frames are drawn in perspective: the step of a column, right and up; a row goes straight down.
_COLUMN: Point = (0.6, 0.34)
_FRAME_GAP = 0.15  # share of a frame's width, and at least this many cells
_INCHES_PER_CELL = 0.34
_LARGEST_INCHES = (16.0, 20.0)
_LINE_INCHES = 0.26

# Steps of the golden ratio spread any number of hues evenly; neighbouring numbers also differ in tone.
_HUE_STEP = 0.6180339887
_TONES = ((0.62, 0.62), (0.46, 0.50), (0.78, 0.72))  # lightness, saturation


class CuboidPatterns:
    """Cuboid patterns, layer by layer: `earthbench show pattern axial --size 6,4,4 --out axial.png`."""

    @staticmethod
    def names() -> list[str]:
        """Returns the names of all patterns, self-attention first."""
        return [*patterns.self_pattern_names(), *patterns.cross_pattern_names()]

    @staticmethod
    def describe(name: str, size: Sequence[int] = DEFAULT_SIZE) -> dict[str, Any]:
        """Returns a description of `name` on a grid of `size` (T, H, W), as plain values.

        Raises:
            ValueError: the pattern is unknown or the size has no positive T, H, W.
        """
        layers = _layers(name, size)
        return {
            "attention": "self" if name in patterns.self_pattern_names() else "cross",
            "size": list(size),
            "layers": {str(number): text for number, (text, _) in enumerate(layers, start=1)},
        }

    @staticmethod
    def draw(name: str, form: str = "png", size: Sequence[int] = DEFAULT_SIZE) -> bytes:
        """Returns a picture file of the cuboids of pattern `name` on a grid of `size` (T, H, W).

        One row per attention layer, frames from left to right; cells of one colour attend to one another. For a
        cross-attention pattern, the cuboids of the queries are drawn. `form` is a format such as png, svg or pdf.

        Raises:
            ValueError: unknown pattern or format, a size without positive T, H, W, or with too many cells to be seen.
        """
        cells = math.prod(size)
        if cells > _MOST_CELLS:
            raise ValueError(f"size {_times(size)}: expected at most {_MOST_CELLS} cells to draw, found {cells}")
        return _draw(name, _layers(name, size), size, form)


def _times(values: Sequence[int]) -> str:
    return " × ".join(str(value) for value in values)  # noqa: RUF001 - what the papers print


def _in_words(size: str, strategy: Sequence[str], shift: Sequence[int], count: int) -> str:
    dilated = [axis for axis, letter in zip("THW", strategy, strict=True) if letter == "d"]
    spread = {0: "local", 3: "dilated"}.get(len(dilated), f"dilated along {', '.join(dilated)}")
    shifted = f", shifted by {_times(shift)}" if any(shift) else ""
    return f"{size}, {spread}{shifted}: {count} cuboid{'s' if count > 1 else ''}"


def _layers(name: str, size: Sequence[int]) -> list[tuple[str, Labels]]:
    """Returns, for each attention layer, its description and the (T, H, W) array of its groups of cells."""
    if name in patterns.self_pattern_names():
        cuts = list(zip(*patterns.self_pattern(name, size), strict=True))
        subjects = [f"cuboids of {_times(cuboid)}" for cuboid, _, _ in cuts]
    else:
        cross = list(zip(*patterns.cross_pattern(name, size), strict=True))
        cuts = [((-(-size[0] // parts), *hw), strategy, (0, *shift)) for hw, shift, strategy, parts in cross]
        subjects = [f"windows of {_times(hw)}, {parts} along time" for hw, _, _, parts in cross]
    layers = []
    for subject, (cuboid, strategy, shift) in zip(subjects, cuts, strict=True):
        cuboids = patterns.cuboid_labels(size, cuboid, strategy, shift)
        words = _in_words(subject, strategy, shift, np.unique(cuboids).size)
        layers.append((words, cuboids * 8 + _sides(size, cuboid, strategy, shift)))
    return layers


def _sides(size: Sequence[int], cuboid: Sequence[int], strategy: Sequence[str], shift: Sequence[int]) -> Labels:
    """Returns an array (T, H, W): the sum of 1 (T), 2 (H) and 4 (W) for the axes along which a cell wraps around.

    A shifted cuboid at the border holds cells of both ends of an axis, which do not attend to one another.
    """
    _, steps = patterns.clip_cuboid(size, cuboid, shift, strategy)
    rolled = [np.arange(length) < step for length, step in zip(size, steps, strict=True)]
    along = np.meshgrid(*rolled, indexing="ij")
    return sum((axis.astype(np.int64) << bit for bit, axis in enumerate(along)), np.zeros(tuple(size), dtype=np.int64))


def colours(count: int) -> list[tuple[float, float, float]]:
    """Returns `count` different colours (RGB, 0 to 1), neighbours in the list far apart."""
    return [colorsys.hls_to_rgb((0.58 + n * _HUE_STEP) % 1, *_TONES[n % len(_TONES)]) for n in range(count)]


def _cell(corner: Point, row: int, column: int) -> list[Point]:
    """Returns the four corners of a cell in a frame whose upper left corner is `corner`."""
    right, up = _COLUMN
    x, y = corner[0] + column * right, corner[1] + column * up - row
    return [(x, y), (x + right, y + up), (x + right, y + up - 1), (x, y - 1)]


def _draw(name: str, layers: Sequence[tuple[str, Labels]], size: Sequence[int], form: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    t, h, w = size
    frame = w * _COLUMN[0] * (1 + _FRAME_GAP) + _FRAME_GAP
    tall = h + w * _COLUMN[1]
    scale = min(_INCHES_PER_CELL, _LARGEST_INCHES[0] / (t * frame), _LARGEST_INCHES[1] / (len(layers) * tall))
    line = _LINE_INCHES / scale  # height of a text line, in cells
    width = max(t * frame, 17 * line)
    height = len(layers) * (tall + 1.8 * line) + 2.4 * line
    figure = Figure(figsize=((width + line) * scale, height * scale))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(0, -0.4 * line, f"{name} on a grid (T, H, W) of {_times(size)}", fontsize=10, va="top")
    top = -1.4 * line
    for number, (text, labels) in enumerate(layers, start=1):
        axes.text(0, top - 0.2 * line, f"layer {number}: {text}", fontsize=8, va="top", color="0.15")
        top -= 1.2 * line + w * _COLUMN[1]
        groups = np.unique(labels).tolist()
        shade_of = dict(zip(groups, colours(len(groups)), strict=True))
        axes.add_collection(
            PolyCollection(
                [_cell((place * frame, top), row, column) for place, row, column in np.ndindex(t, h, w)],
                facecolors=[shade_of[int(label)] for label in labels.flat],
                edgecolors="white",
                linewidths=min(0.9, 3 * scale),
            )
        )
        top -= h + 0.6 * line
    for place in range(t):
        axes.text(
            place * frame + w * _COLUMN[0] / 2, top, f"t = {place}", fontsize=7, ha="center", va="top", color="0.4"
        )
    axes.set_xlim(-0.5 * line, width + 0.5 * line)
    axes.set_ylim(-height, 0)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=form, dpi=200)
    return drawn.getvalue()
