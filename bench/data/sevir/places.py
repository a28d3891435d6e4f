"""Where an event's pixels lie: SEVIR's catalogue has the projection and the south-western corner of each.

Source: Veillette et al. 2020 (SEVIR), columns `proj`, `llcrnrlat`, `llcrnrlon`, `height_m` and `width_m`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

_COLUMNS = ("llcrnrlat", "llcrnrlon", "height_m", "width_m")


def pixel_axes(
    catalogue: pd.DataFrame, event_id: str, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]] | None:
    """Returns y `(H,)` and x `(W,)` of an event's pixels in metres and their CF grid mapping, or None.

    None where the catalogue has no projection, corner or extent, or PROJ knows no such projection.

    Args:
        catalogue: Rows as `read_catalogue` returns them.
        event_id: The event.
        size: `(H, W)` of its frames; row 0 is in the south.
    """
    from pyproj import CRS, Transformer
    from pyproj.exceptions import ProjError

    if not {*_COLUMNS, "proj"} <= set(catalogue.columns):
        return None
    row = catalogue[catalogue["id"] == event_id].iloc[0]
    latitude, longitude, height, width = (pd.to_numeric(row[name], errors="coerce") for name in _COLUMNS)
    if not np.isfinite([latitude, longitude, height, width]).all() or min(height, width) <= 0:
        return None
    try:
        crs = CRS.from_user_input(str(row["proj"]))
        left, bottom = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform(longitude, latitude)
    except ProjError:
        return None
    y, x = (
        start + (np.arange(count) + 0.5) * extent / count
        for start, extent, count in ((bottom, height, size[0]), (left, width, size[1]))
    )
    return y, x, crs.to_cf()
