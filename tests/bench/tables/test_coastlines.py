"""Coastlines match the land, on grids in degrees and on projections, for any direction of rows and columns."""

from __future__ import annotations

import numpy as np
import pytest
from pyproj import CRS, Transformer

from bench.tables.coastlines import coastlines, coastlines_in_degrees
from bench.tables.look import Look
from bench.tasks.task import FrameCoordinates

LAEA = CRS.from_user_input("+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere")
HONOLULU = (-157.86, 21.31)


def _where(y, x, units: str, mapping=None) -> FrameCoordinates:
    return FrameCoordinates(
        np.datetime64("2019-06-10"),
        ("y", "x"),
        y,
        x,
        ({"units": units}, {"units": units}),
        mapping or {},
        ("v",),
        ("1",),
    )


def _distance(coast: np.ndarray, column: float, row: float) -> float:
    return float(np.nanmin(np.hypot(coast[:, 0] - column, coast[:, 1] - row)))


@pytest.mark.parametrize("east", [0, 360])
@pytest.mark.parametrize("step", [1, -1])
def test_coastlines_of_a_grid_in_degrees_pass_a_port(east: int, step: int) -> None:
    latitudes, longitudes = np.arange(10, 31.0)[::step], np.arange(-170, -149.0) + east
    coast = coastlines(_where(latitudes, longitudes, "degrees_east"))
    assert coast is not None
    row = np.interp(HONOLULU[1], latitudes[::step], np.arange(21)[::step])
    assert _distance(coast, HONOLULU[0] + 170, row) < 0.1
    assert np.nanmin(coast) >= -0.5 and np.nanmax(coast) <= 20.5
    assert not np.isnan(coast[1:] + coast[:-1]).all() and not (np.isnan(coast[1:]) & np.isnan(coast[:-1])).any()


@pytest.mark.parametrize(("units", "metres"), [("m", 1), ("km", 1000)])
def test_coastlines_of_a_projection_pass_a_port(units: str, metres: int) -> None:
    miami = Transformer.from_crs(LAEA.geodetic_crs, LAEA, always_xy=True).transform(-80.19, 25.77)
    x, y = (np.arange(-100, 101) * 2000.0 + middle for middle in miami)
    coast = coastlines(_where(y / metres, x / metres, units, LAEA.to_cf()))
    assert coast is not None and _distance(coast, 100, 100) < 5  # 10 km


def test_no_coastline_wraps_around_the_globe() -> None:
    coast = coastlines_in_degrees(range(-85, 90, 5), range(0, 360, 5))
    assert np.nanmax(np.abs(np.diff(coast[:, 0]))) < 2


def test_frames_without_coordinates_have_no_coastline() -> None:
    axis = np.arange(5.0)
    assert coastlines(_where(None, None, "m")) is None
    assert coastlines(_where(axis, axis, "m")) is None
    assert coastlines(_where(axis, axis, "m", {"grid_mapping_name": "of_nobody"})) is None


def test_enso_tasks_have_coastlines_and_mnist_has_none() -> None:
    for task in ("icar_enso", "enso_ersst"):
        coast = Look.of_name(task).coast
        assert coast is not None and _distance(coast, (202.14 - 95) / 5, (21.31 + 55) / 5) < 0.1
    assert Look.of_name("nbody_mnist").coast is None
