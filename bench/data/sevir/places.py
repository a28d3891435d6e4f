"""Location of an event's pixels: SEVIR's catalogue has the projection and the south-western corner of each event.

Source: Veillette et al. 2020 (SEVIR), columns `proj`, `llcrnrlat`, `llcrnrlon`, `height_m` and `width_m`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

_CORNER, _FAR_CORNER, _EXTENT = ("llcrnrlat", "llcrnrlon"), ("urcrnrlat", "urcrnrlon"), ("height_m", "width_m")
_METRES = (
    {"standard_name": "projection_y_coordinate", "units": "m"},
    {"standard_name": "projection_x_coordinate", "units": "m"},
)
_DEGREES = (
    {"standard_name": "latitude", "units": "degrees_north"},
    {"standard_name": "longitude", "units": "degrees_east"},
)


@dataclass(frozen=True)
class PixelAxes:
    """The coordinates of an event's pixels; row 0 is in the south."""

    y: np.ndarray
    """Centres of the rows `(H,)`, in metres, or in degrees on a grid of latitudes and longitudes."""
    x: np.ndarray
    attributes: tuple[dict[str, Any], dict[str, Any]]
    """CF attributes of y and x."""
    mapping: dict[str, Any]
    """CF grid mapping."""


def pixel_axes(catalogue: pd.DataFrame, event_id: str, size: tuple[int, int]) -> PixelAxes | None:
    """Returns the coordinates of an event's pixels.

    They are None if the catalogue has no projection, corner or extent, or PROJ does not know the projection.

    Args:
        catalogue: Rows from `read_catalogue`.
        event_id: The event.
        size: `(H, W)` of its frames.
    """
    from pyproj import CRS, Proj
    from pyproj.exceptions import ProjError

    row = catalogue[catalogue["id"] == event_id].iloc[0]
    corner = _numbers(row, _CORNER)
    if corner is None or "proj" not in row:
        return None
    try:
        crs = CRS.from_user_input(str(row["proj"]))
        if crs.is_geographic:
            start, end = corner, _numbers(row, _FAR_CORNER)
        else:
            # The projection alone: a change of datum (`+towgs84`) would move the corner.
            start = np.array(Proj(crs)(corner[1], corner[0])[::-1])
            extent = _numbers(row, _EXTENT)
            end = None if extent is None else start + extent
    except ProjError:
        return None
    if end is None or not (end > start).all():
        return None
    y, x = (
        first + (np.arange(count) + 0.5) * (last - first) / count
        for first, last, count in zip(start, end, size, strict=True)
    )
    return PixelAxes(y, x, _DEGREES if crs.is_geographic else _METRES, crs.to_cf())


def _numbers(row: pd.Series, names: tuple[str, ...]) -> np.ndarray | None:
    """Returns the numbers in cells of a row; None if one is not a number."""
    cells: pd.Series[Any] = pd.to_numeric(row.reindex(list(names)), errors="coerce")
    found = cells.to_numpy(float)
    return found if np.isfinite(found).all() else None
