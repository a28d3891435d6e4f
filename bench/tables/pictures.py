"""Pictures of forecasts in the colours that VIL is usually shown in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

# Levels and colours of the SEVIR project's own plots (Veillette et al. 2020); the levels include the verification
# thresholds 16, 74, 133, 160, 181 and 219.
VIL_LEVELS = (0, 16, 31, 59, 74, 100, 133, 160, 181, 219, 255)
VIL_COLOURS = (
    "#000000", "#4d4d4d", "#28be28", "#199619", "#0a690a", "#0a4b0a", "#f5f500", "#edac00", "#f06e00", "#a00000",
    "#e700ff",
)  # fmt: skip
_COLUMNS = 6


def draw_vil(
    path: Path,
    *,
    context: np.ndarray,
    target: np.ndarray,
    forecasts: dict[str, np.ndarray],
    cadence_minutes: float,
    title: str,
) -> Path:
    """Draws context, target and forecasts side by side and returns the path of the PNG.

    Args:
        path: Where to.
        context: VIL codes `(T_in, H, W)`, first row in the south.
        target: VIL codes `(T_out, H, W)`.
        forecasts: Name to VIL codes `(T_out, H, W)`.
        cadence_minutes: Time between frames.
        title: Above the picture.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import BoundaryNorm, ListedColormap

    colours = ListedColormap(list(VIL_COLOURS[:-1]), over=VIL_COLOURS[-1])
    norm = BoundaryNorm([*VIL_LEVELS[:-1], 255], colours.N)
    shown_in = _spread(len(context))
    shown_out = _spread(len(target))
    rows: list[tuple[str, np.ndarray, list[int], int]] = [("context", context, shown_in, 1 - len(context))]
    rows += [(name, frames, shown_out, 1) for name, frames in {"target": target, **forecasts}.items()]
    width = max(len(shown_in), len(shown_out))
    figure, axes = plt.subplots(
        len(rows),
        width,
        figsize=(1.7 * width + 1.1, 1.8 * len(rows) + 0.6),
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
            image = axis.imshow(np.nan_to_num(frames[index]), cmap=colours, norm=norm, origin="lower")
            minutes = (first + index) * cadence_minutes
            axis.set_title(f"{minutes:+g} min" if minutes else "0 min", fontsize=8)
        row[0].set_ylabel(name, fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=VIL_LEVELS, pad=0.01)
    bar.set_label("VIL code (0-255)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _spread(count: int) -> list[int]:
    """Returns up to six indices of `count` frames, evenly spread, the last always among them."""
    return sorted({round(i) for i in np.linspace(count - 1, 0, min(count, _COLUMNS))})
