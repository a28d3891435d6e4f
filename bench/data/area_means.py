"""Means over areas of a sphere: by shared area for grids of rows and columns, by binning for any other grid."""

from __future__ import annotations

from itertools import product

import numpy as np

from bench.errors import DataError

_NUDGE_DEGREES = 1e-6
"""Degrees."""


def cell_edges(centres: np.ndarray, *, what: str) -> np.ndarray:
    """Returns the lower and upper edges `(n,2)` of cells half-way between centres, in degrees.

    Raises:
        DataError: there are fewer than two centres, or they are not monotonic.
    """
    centres = np.asarray(centres, np.float64)
    steps = np.diff(centres)
    if not len(steps) or not ((steps > 0).all() or (steps < 0).all()):
        raise DataError(f"{what}: expected two or more degrees that ascend or descend, found {centres.tolist()[:5]}")
    if np.allclose(steps, steps[0], rtol=0, atol=1e-3):
        half = abs(float(steps.mean())) / 2
        return np.stack([centres - half, centres + half], -1)
    # a Gaussian grid, or one that is finer at the equator
    between = np.concatenate([[centres[0] - steps[0] / 2], centres[:-1] + steps / 2, [centres[-1] + steps[-1] / 2]])
    return np.sort(np.stack([between[:-1], between[1:]], -1), axis=-1)


def area_means(
    field: np.ndarray,
    latitudes: np.ndarray,
    longitudes: np.ndarray,
    latitude_edges: np.ndarray,
    longitude_edges: np.ndarray,
    *,
    least_share: float = 0.5,
) -> np.ndarray:
    """Returns the mean of a field over each target cell, `(T,n,m)` float64, NaN if too little of the cell is known.

    Every known cell of the field is weighted by the area that it shares with the target, with the cosine of latitude
    integrated exactly.

    Args:
        field: `(T,H,W)`, NaN where unknown.
        latitudes: Centres of its rows, degrees north, in either direction.
        longitudes: Centres of its columns, degrees east.
        latitude_edges: Lower and upper edge of the rows of targets, `(n,2)`.
        longitude_edges: Western and eastern edge of the columns of targets, `(m,2)`.
        least_share: Share of a target's area that must be known.

    Raises:
        DataError: the centres are not monotonic.
    """
    rows = _shared(_heights(cell_edges(latitudes, what="lat")), _heights(latitude_edges))
    columns = _shared_periodic(cell_edges(longitudes, what="lon"), longitude_edges)
    area = np.diff(_heights(latitude_edges))[:, 0, None] * np.diff(longitude_edges)[None, :, 0]
    known = np.isfinite(field)
    sums = rows @ np.where(known, field, 0).astype(np.float64) @ columns.T
    # The pattern of known cells seldom changes, and is then weighted only once.
    same = bool((known == known[:1]).all())
    found = rows @ (known[:1] if same else known).astype(np.float64) @ columns.T
    with np.errstate(divide="ignore", invalid="ignore"):
        # a share of exactly a half must not be lost to rounding
        means: np.ndarray = np.where(found >= (least_share - 1e-9) * area, sums / found, np.nan)
    return means


def binned_means(
    field: np.ndarray,
    latitudes: np.ndarray,
    longitudes: np.ndarray,
    latitude_edges: np.ndarray,
    longitude_edges: np.ndarray,
    *,
    areas: np.ndarray | None = None,
    least_share: float = 0.5,
) -> np.ndarray:
    """Returns the mean over each target cell of the cells whose centre lies in it, `(T,n,m)` float64.

    It is for curvilinear and unstructured grids, where shared areas are not simple.  A centre on an edge counts half on
    each side.  The mean is NaN if too few cells are known or no centre lies in the target, so cells should be no larger
    than half a target.

    Args:
        field: `(T,P)`, NaN where unknown.
        latitudes: Centres of the cells `(P,)`, degrees north; cells without one (NaN) are ignored.
        longitudes: Degrees east.  Cells at the same position, as in the halo of an ocean model's grid, count once.
        latitude_edges: Lower and upper edge of the rows of targets, `(n,2)`; rows do not overlap.
        longitude_edges: Western and eastern edge of the columns of targets, `(m,2)`.
        areas: Areas of the cells `(P,)`, in any unit; None weights cells by the cosine of their latitude.
        least_share: Share of the cells in a target that must be known, each by the cosine of its latitude.
    """
    from scipy.sparse import csr_array

    across, count = len(longitude_edges), len(latitude_edges) * len(longitude_edges)
    chosen, targets = [], []
    # binned at four points around its centre, so that a cell on an edge or a corner is shared
    for north, east in product((-_NUDGE_DEGREES, _NUDGE_DEGREES), repeat=2):
        row, column = (np.full(len(latitudes), -1) for _ in range(2))
        for number, (low, high) in enumerate(latitude_edges):
            row[(latitudes + north >= low) & (latitudes + north < high)] = number
        for number, (low, high) in enumerate(longitude_edges):
            column[(longitudes + east - low) % 360 < high - low] = number
        inside = np.flatnonzero((row >= 0) & (column >= 0))
        chosen.append(inside)
        targets.append(row[inside] * across + column[inside])
    used = np.unique(np.concatenate(chosen))
    places = np.stack([latitudes[used], longitudes[used] % 360], -1).round(4)
    used = used[np.sort(np.unique(places, axis=0, return_index=True)[1])]
    number_of = np.full(len(latitudes), -1)
    number_of[used] = np.arange(len(used))
    cells, target = number_of[np.concatenate(chosen)], np.concatenate(targets)
    cells, target = cells[cells >= 0], target[cells >= 0]
    cosines = np.cos(np.deg2rad(latitudes[used]))
    every, of_each = (
        csr_array((weights[cells] / 4, (target, cells)), shape=(count, len(used)))
        for weights in (cosines, cosines if areas is None else np.nan_to_num(areas[used].astype(np.float64)))
    )
    whole = every.sum(1)
    means = np.empty((len(field), count))
    for month, values in enumerate(field):
        known = np.isfinite(values[used])
        filled = np.where(known, values[used], 0).astype(np.float64)
        enough = (every @ known >= (least_share - 1e-9) * whole) & (whole > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            means[month] = np.where(enough, (of_each @ filled) / (of_each @ known), np.nan)
    return means.reshape(len(field), len(latitude_edges), across)


def _heights(edges: np.ndarray) -> np.ndarray:
    """Returns the sine of latitude: areas between two parallels are proportional to its difference."""
    return np.sin(np.deg2rad(np.clip(edges, -90, 90)))


def _shared(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns how much of each source interval lies in each target interval, `(targets, sources)`."""
    low = np.maximum(source[None, :, 0], target[:, None, 0])
    return np.maximum(0.0, np.minimum(source[None, :, 1], target[:, None, 1]) - low)


def _shared_periodic(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the same as `_shared` for longitudes, which are periodic."""
    return sum((_shared(source + turn, target) for turn in (-720, -360, 0, 360, 720)), np.zeros((1, 1)))


def box_weights(
    latitudes: np.ndarray, longitudes: np.ndarray, south_north: tuple[float, float], west_east: tuple[float, float]
) -> np.ndarray:
    """Returns the share `(H,W)` of a box's area in each cell of a grid; the sum is 1 for a box within the grid.

    Args:
        latitudes: Centres of the rows, degrees north.
        longitudes: Centres of the columns, degrees east.
        south_north: Edges of the box, degrees.
        west_east: Edges of the box, degrees.
    """
    south_north_edges, west_east_edges = np.array([south_north]), np.array([west_east])
    rows = _shared(_heights(cell_edges(latitudes, what="lat")), _heights(south_north_edges))
    columns = _shared_periodic(cell_edges(longitudes, what="lon"), west_east_edges)
    weights: np.ndarray = rows.T * columns / (np.diff(_heights(south_north_edges)) * np.diff(west_east_edges))
    return weights
