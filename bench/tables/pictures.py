"""Pictures of forecasts beside what was observed, in the colours of their task."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.api import Palette
from bench.tables.panels import Panel, draw


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
    rows = [Panel("context", context, first=1 - len(context)), Panel("target", target)]
    rows += [Panel(name, frames) for name, frames in forecasts.items()]
    return draw(path, rows, palette=palette, units=units, cadence_minutes=cadence_minutes, title=title)
