"""Coastlines on the cells of a frame, for pictures.

Source: Natural Earth 4.1, land at 1:50m (public domain), to 0.01 degrees; the file was made by
`tests/bench/tables/make_coastlines.py`.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.logs import log

if TYPE_CHECKING:
    from bench.tasks.task import FrameCoordinates

_FILE = Path(__file__).with_name("coastlines.npz")
_KILOMETRE = 1000.0
_FINEST = 0.1  # cells


def coastlines(where: FrameCoordinates) -> np.ndarray | None:
    """Returns columns and rows of the coast in a frame, `(N,2)` with NaN between lines.

    Integers are the centres of cells.  None if the location of the frame is unknown.

    Args:
        where: Regular or irregular axes in degrees, or in metres or kilometres with a CF grid mapping.
    """
    if where.y is None or where.x is None or min(len(where.y), len(where.x)) < 2:
        return None
    degrees = str(where.attributes[1].get("units", "")).lower().startswith("degrees_e")
    points = _on_degrees(where.x) if degrees else _projected(where.mapping, where.attributes[1])
    if points is None:
        return None
    return _in_frame(np.stack([_cells(points[:, 0], where.x), _cells(points[:, 1], where.y)], 1))


def coastlines_in_degrees(latitudes: range, longitudes: range) -> np.ndarray:
    """Returns the same for the rows and columns of a grid in degrees."""
    x = np.array(longitudes, float)
    points = _on_degrees(x)
    return _in_frame(np.stack([_cells(points[:, 0], x), _cells(points[:, 1], np.array(latitudes, float))], 1))


@cache
def _world() -> np.ndarray:
    """Returns longitude and latitude in degrees, `(N,2)`, with NaN between lines."""
    with np.load(_FILE) as file:
        lines = np.split(file["steps"].astype(np.int32), np.cumsum(file["lengths"])[:-1])
    return np.concatenate([part for line in lines for part in (np.cumsum(line, 0) / 100, np.full((1, 2), np.nan))])


def _on_degrees(longitudes: np.ndarray) -> np.ndarray:
    """Returns the world's coast with longitudes in the range of a grid's columns."""
    points = _world().copy()
    middle = float(longitudes[0] + longitudes[-1]) / 2
    points[:, 0] = (points[:, 0] - middle + 180) % 360 + middle - 180
    points[1:][np.abs(np.diff(points[:, 0])) > 180] = np.nan  # around the globe
    return points


def _projected(mapping: dict[str, Any], attributes: dict[str, Any]) -> np.ndarray | None:
    from pyproj import CRS, Transformer
    from pyproj.exceptions import ProjError

    try:
        crs = CRS.from_user_input(mapping["proj4"]) if "proj4" in mapping else CRS.from_cf(mapping)
        to_plane = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
    except (ProjError, KeyError, ValueError) as error:
        log.debug("no coastline: %s", error)
        return None
    points = np.stack(to_plane.transform(*_world().T), 1)
    points[~np.isfinite(points).all(1)] = np.nan
    kilometres = str(attributes.get("units", "")).lower() in ("km", "kilometre", "kilometer")
    return points / _KILOMETRE if kilometres else points


def _cells(values: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Returns the positions of values on an axis of cells, NaN outside; outer cells extend half a step further."""
    axis = np.asarray(axis, float)
    knots = np.concatenate([[1.5 * axis[0] - axis[1] / 2], axis, [1.5 * axis[-1] - axis[-2] / 2]])
    cells = np.concatenate([[-0.5], np.arange(len(axis)), [len(axis) - 0.5]])
    order = slice(None) if knots[0] < knots[-1] else slice(None, None, -1)
    return np.interp(values, knots[order], cells[order], left=math.nan, right=math.nan)


def _in_frame(points: np.ndarray) -> np.ndarray:
    """Returns points with each stretch outside the frame replaced by one NaN, without details finer than `_FINEST`."""
    spots = np.round(points / _FINEST)
    points = points[np.r_[True, (spots[1:] != spots[:-1]).any(1)]]  # NaN equals nothing
    outside = np.isnan(points).any(1)
    outside |= np.r_[True, outside[:-1]] & np.r_[outside[1:], True]  # what is left of an islet
    kept = points[~outside | ~np.r_[True, outside[:-1]]].copy()
    kept[np.isnan(kept).any(1)] = np.nan
    return kept
