"""Images on another projection: identity, whole steps, known places, missing pixels."""

from __future__ import annotations

import numpy as np
import pytest
from pyproj import Proj

from bench.data.grid.rain_store import Lattice
from bench.data.grid.reprojection import Resampling, Target, reprojected
from bench.errors import ConfigError

LAEA = "+proj=laea +lat_0=55 +lon_0=10 +units=m +ellps=WGS84"
METRES = Lattice(np.arange(39, -1, -1) * 1000.0 + 500, np.arange(60) * 1000.0 + 500, LAEA, "m")
RATES = np.random.default_rng(0).gamma(0.5, 2.0, METRES.shape).astype(np.float32)


@pytest.mark.parametrize("resampling", ["nearest", "bilinear"])
def test_reprojection_onto_the_same_lattice_is_the_identity(resampling: Resampling) -> None:
    found, lattice = reprojected(RATES, METRES, Target(LAEA, 1000.0, resampling))
    assert lattice.key == METRES.key
    np.testing.assert_allclose(found, RATES, atol=1e-4)


@pytest.mark.parametrize(
    ("projection", "resolution", "units"), [("EPSG:4326", 0.01, "degree"), ("EPSG:3035", 500, "m")]
)
def test_a_reprojected_pixel_has_the_value_at_its_location(projection: str, resolution: float, units: str) -> None:
    found, lattice = reprojected(RATES, METRES, Target(projection, resolution))
    assert lattice.units == units and lattice.y[0] > lattice.y[-1]
    longitude, latitude = Proj(projection)(*np.meshgrid(lattice.x, lattice.y), inverse=True)
    x, y = Proj(LAEA)(longitude, latitude)
    columns, rows = np.floor(x / 1000).astype(int), np.floor((40_000 - y) / 1000).astype(int)
    inside = (rows >= 0) & (rows < 40) & (columns >= 0) & (columns < 60)
    assert 0.5 < inside.mean() < 1
    assert np.isnan(found[~inside]).all()
    np.testing.assert_array_equal(found[inside], RATES[rows[inside], columns[inside]])


def test_bilinear_preserves_a_plane_and_leaves_gaps() -> None:
    plane = np.add.outer(METRES.y, 2 * METRES.x).astype(np.float32)
    plane[20, 30] = np.nan
    found, lattice = reprojected(plane, METRES, Target(LAEA, 250.0, "bilinear", (5000, 55_000, 5000, 35_000)))
    assert lattice.shape == (120, 200)
    known = np.isfinite(found)
    np.testing.assert_allclose(found[known], np.add.outer(lattice.y, 2 * lattice.x)[known], rtol=1e-5)
    assert 0 < (~known).sum() <= 8 * 8


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (Target("EPSG:99999999", 1.0), "expected a PROJ string or EPSG:NUMBER"),
        (Target("+proj=nothing", 1.0), "expected a PROJ string"),
        (Target("EPSG:3035", 0.001), "expected 1 to 100,000,000"),
    ],
)
def test_impossible_targets_are_refused(target: Target, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        reprojected(RATES, METRES, target)
