"""Pictures of forecasts beside what was observed, in the colours of their task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bench.api import Palette
from bench.tables.durations import duration

_COLUMNS = 6


def draw_forecasts(
    path: Path,
    *,
    context: np.ndarray,
    target: np.ndarray,
    forecasts: dict[str, np.ndarray],
    palette: Palette,
    units: str,
    cadence_minutes: float,
    title: str,
) -> Path:
    """Draws context, target and forecasts side by side and returns the path of the PNG.

    Args:
        path: Where to.
        context: Physical units `(T_in, H, W)`, first row in the south.
        target: The same, `(T_out, H, W)`.
        forecasts: Name to the same, `(T_out, H, W)`.
        palette: The task's colours.
        units: Beside the colour bar.
        cadence_minutes: Time between frames.
        title: Above the picture.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    levels = palette.levels or _levels([context, target, *forecasts.values()])
    colours, norm = _colouring(palette, levels)
    shown_in = _spread(len(context))
    shown_out = _spread(len(target))
    rows: list[tuple[str, np.ndarray, list[int], int]] = [("context", context, shown_in, 1 - len(context))]
    rows += [(name, frames, shown_out, 1) for name, frames in {"target": target, **forecasts}.items()]
    width = max(len(shown_in), len(shown_out))
    figure, axes = plt.subplots(
        len(rows),
        width,
        figsize=(1.7 * width + 1.1, (1.5 * target.shape[1] / target.shape[2] + 0.3) * len(rows) + 0.6),
        squeeze=False,
        layout="constrained",
    )
    image: Any = None
    for row, (name, frames, shown, first) in zip(axes, rows, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, index in zip(row, shown, strict=False):
            axis.set_axis_on()
            axis.set(xticks=[], yticks=[])
            image = axis.imshow(np.ma.masked_invalid(frames[index]), cmap=colours, norm=norm, origin="lower")
            minutes = (first + index) * cadence_minutes
            axis.set_title(duration(minutes, sign=True), fontsize=8)
        row[0].set_ylabel(name, fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=levels, pad=0.01)
    bar.set_label(units, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _levels(drawn: list[np.ndarray]) -> tuple[float, ...]:
    known = np.concatenate([frames[np.isfinite(frames)] for frames in drawn])
    least, greatest = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return tuple(np.linspace(least, greatest if greatest > least else least + 1, 11))


def _colouring(palette: Palette, levels: tuple[float, ...]) -> tuple[Any, Any]:
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm, ListedColormap

    if isinstance(palette.colours, str):
        named = colormaps[palette.colours]
        return named, BoundaryNorm(levels, named.N, extend="both")
    listed = ListedColormap(list(palette.colours[:-1]), over=palette.colours[-1])
    return listed, BoundaryNorm(levels, listed.N)


def _spread(count: int) -> list[int]:
    """Returns up to six indices of `count` frames, evenly spread, the last always among them."""
    return sorted({round(i) for i in np.linspace(count - 1, 0, min(count, _COLUMNS))})
