"""Means over areas of a sphere: from one regular grid to other cells, by the area that they share."""

from __future__ import annotations

import numpy as np

from bench.errors import DataError


def cell_edges(centres: np.ndarray, *, what: str) -> np.ndarray:
    """Returns the lower and upper edges `(n,2)` of cells half-way between evenly spaced centres, in degrees.

    Raises:
        DataError: fewer than two centres, or not evenly spaced.
    """
    steps = np.diff(np.asarray(centres, np.float64))
    if not len(steps) or not steps[0] or not np.allclose(steps, steps[0], rtol=0, atol=1e-3):
        raise DataError(f"{what}: expected two or more evenly spaced degrees, found {np.asarray(centres).tolist()[:5]}")
    half = abs(float(steps.mean())) / 2
    return np.stack([centres - half, centres + half], -1).astype(np.float64)


def area_means(
    field: np.ndarray,
    latitudes: np.ndarray,
    longitudes: np.ndarray,
    latitude_edges: np.ndarray,
    longitude_edges: np.ndarray,
    *,
    least_share: float = 0.5,
) -> np.ndarray:
    """Returns the mean of a field over each target cell, `(T,n,m)` float64, NaN where too little of it is known.

    Every known cell of the field counts with the area that it shares with the target: the cosine of latitude,
    integrated exactly.

    Args:
        field: `(T,H,W)`, NaN where unknown.
        latitudes: Centres of its rows, evenly spaced, degrees north, in either direction.
        longitudes: Centres of its columns, evenly spaced, degrees east.
        latitude_edges: Lower and upper edge of the rows of targets, `(n,2)`.
        longitude_edges: Western and eastern edge of the columns of targets, `(m,2)`.
        least_share: Share of a target's area that must be known.

    Raises:
        DataError: the field's grid is not regular.
    """
    rows = _shared(_heights(cell_edges(latitudes, what="lat")), _heights(latitude_edges))
    columns = _shared_around(cell_edges(longitudes, what="lon"), longitude_edges)
    area = np.diff(_heights(latitude_edges))[:, 0, None] * np.diff(longitude_edges)[None, :, 0]
    known = np.isfinite(field)
    sums = rows @ np.where(known, field, 0).astype(np.float64) @ columns.T
    # Land and sea seldom change: one pattern of known cells is weighed once.
    same = bool((known == known[:1]).all())
    found = rows @ (known[:1] if same else known).astype(np.float64) @ columns.T
    with np.errstate(divide="ignore", invalid="ignore"):
        # a share of exactly a half must not be lost to rounding
        means: np.ndarray = np.where(found >= (least_share - 1e-9) * area, sums / found, np.nan)
    return means


def _heights(edges: np.ndarray) -> np.ndarray:
    """Returns the sine of latitude: areas between two parallels are proportional to its difference."""
    return np.sin(np.deg2rad(np.clip(edges, -90, 90)))


def _shared(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns how much of each source interval lies in each target interval, `(targets, sources)`."""
    low = np.maximum(source[None, :, 0], target[:, None, 0])
    return np.maximum(0.0, np.minimum(source[None, :, 1], target[:, None, 1]) - low)


def _shared_around(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the same for longitudes, which come back after 360 degrees."""
    return sum((_shared(source + turn, target) for turn in (-720, -360, 0, 360, 720)), np.zeros((1, 1)))


def box_weights(
    latitudes: np.ndarray, longitudes: np.ndarray, south_north: tuple[float, float], west_east: tuple[float, float]
) -> np.ndarray:
    """Returns the share `(H,W)` of a box's area that lies in each cell of a grid; for a box within the grid, of sum 1.

    Args:
        latitudes: Centres of the rows, evenly spaced, degrees north.
        longitudes: Centres of the columns, evenly spaced, degrees east.
        south_north: Edges of the box, degrees.
        west_east: Edges of the box, degrees.
    """
    south_north_edges, west_east_edges = np.array([south_north]), np.array([west_east])
    rows = _shared(_heights(cell_edges(latitudes, what="lat")), _heights(south_north_edges))
    columns = _shared_around(cell_edges(longitudes, what="lon"), west_east_edges)
    weights: np.ndarray = rows.T * columns / (np.diff(_heights(south_north_edges)) * np.diff(west_east_edges))
    return weights
