"""Reprojection of images: nearest or bilinear resampling at the new pixel centres, by pyproj and SciPy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from bench.data.grid.rain_store import Lattice
from bench.errors import ConfigError, UsageError

Resampling = Literal["nearest", "bilinear"]
_MAX_PIXELS = 10**8
_EDGE_POINTS = 101
_ROUNDING = 1e-6
"""Tolerance as a share of a pixel: an edge this near to a multiple of the resolution lies on it."""
_METRES = {"metre": "m", "kilometre": "km"}


@dataclass(frozen=True)
class Target:
    """The requested projection, pixel size and extent."""

    projection: str
    """PROJ string, or EPSG:NUMBER."""
    resolution: float
    """Pixel size in its units."""
    resampling: Resampling = "nearest"
    extent: tuple[float, float, float, float] | None = None
    """X1, X2, Y1, Y2 in its units; None for the whole source."""


def reprojected(rates: np.ndarray, source: Lattice, target: Target) -> tuple[np.ndarray, Lattice]:
    """Returns an image on the target's lattice, float32 `(H,W)`, NaN outside the source, and that lattice.

    Latitudes and longitudes of both projections are treated as the same, whatever their ellipsoids, as is usual for
    radar composites on spheres.  A bilinear value is missing if one of its four neighbours is.

    Raises:
        ConfigError: the projection is unknown, or the lattice would have no pixel or too many.
        UsageError: pyproj is not installed.
    """
    from scipy.ndimage import map_coordinates

    lattice, rows, columns = _places(_Key(source), target)
    order = 1 if target.resampling == "bilinear" else 0
    found = map_coordinates(rates.astype(np.float32), [rows, columns], order=order, mode="nearest", prefilter=False)
    inside = (rows > -0.5) & (rows < source.shape[0] - 0.5) & (columns > -0.5) & (columns < source.shape[1] - 0.5)
    return np.where(inside, found, np.float32("nan")), lattice


@dataclass(frozen=True, eq=False)
class _Key:
    """A lattice as a key of a cache."""

    lattice: Lattice

    def __hash__(self) -> int:
        return hash(self.lattice.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.lattice.key == other.lattice.key


@lru_cache(maxsize=2)
def _places(source: _Key, target: Target) -> tuple[Lattice, np.ndarray, np.ndarray]:
    """Returns the target's lattice, and the fractional rows and columns of its pixels in the source."""
    old, here, there = source.lattice, _projection(source.lattice.projection), _projection(target.projection)
    extent = target.extent or _covered(old, here, there, target)
    size = target.resolution
    left, bottom = (math.floor(edge / size + _ROUNDING) for edge in extent[::2])
    right, top = (math.ceil(edge / size - _ROUNDING) for edge in extent[1::2])
    if right <= left or top <= bottom or (right - left) * (top - bottom) > _MAX_PIXELS:
        raise ConfigError(
            f"--resolution {size:g}: {top - bottom}x{right - left} pixels, expected 1 to {_MAX_PIXELS:,}; it is in "
            f"the units of {target.projection!r} ({_unit(there)})"
        )
    new = Lattice(
        (np.arange(top - 1, bottom - 1, -1) + 0.5) * size, (np.arange(left, right) + 0.5) * size,
        target.projection, _unit(there),
    )  # fmt: skip
    x, y = here(*there(*np.meshgrid(new.x, new.y), inverse=True))
    rows = (np.asarray(y) - old.y[0]) / (old.y[1] - old.y[0])
    columns = (np.asarray(x) - old.x[0]) / (old.x[1] - old.x[0])
    nowhere = ~(np.isfinite(rows) & np.isfinite(columns))
    rows[nowhere] = columns[nowhere] = -9.0
    return new, rows, columns


def _covered(old: Lattice, here: Any, there: Any, target: Target) -> tuple[float, float, float, float]:
    """Returns the extent of the source's boundary in the target's projection."""
    half = [abs(float(axis[1] - axis[0])) / 2 for axis in (old.x, old.y)]
    x = np.linspace(old.x[0] - half[0], old.x[-1] + half[0], _EDGE_POINTS)
    y = np.linspace(old.y[0] + half[1], old.y[-1] - half[1], _EDGE_POINTS)
    sides = [(x, np.full_like(x, y[at])) for at in (0, -1)] + [(np.full_like(y, x[at]), y) for at in (0, -1)]
    edge = np.concatenate([np.array(there(*here(*side, inverse=True))) for side in sides], 1)
    edge = edge[:, np.isfinite(edge).all(0)]
    if not edge.size:
        raise ConfigError(f"--to-projection {target.projection!r}: none of the data lie in it")
    (left, bottom), (right, top) = edge.min(1), edge.max(1)
    return float(left), float(right), float(bottom), float(top)


def _projection(text: str) -> Any:
    try:
        import pyproj
    except ImportError as error:
        raise UsageError(f"--to-projection needs pyproj: pip install 'earthbench[pysteps]' ({error})") from error
    try:
        return pyproj.Proj(text)
    except pyproj.exceptions.ProjError as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"projection {text!r}: expected a PROJ string or EPSG:NUMBER: {said}") from error


def _unit(projection: Any) -> str:
    if projection.crs.is_geographic:
        return "degree"
    name = str(projection.crs.axis_info[0].unit_name)
    return _METRES.get(name, name)
