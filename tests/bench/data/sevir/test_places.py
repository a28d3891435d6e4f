"""SEVIR's catalogue gives the place and time of every pixel; one that does not gives none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyproj import CRS, Transformer

import bench
from bench.data.sevir.catalogue import read_catalogue
from bench.data.sevir.places import pixel_axes


def test_corners_and_size_come_from_the_catalogue(storms: Path) -> None:
    catalogue = read_catalogue(storms)
    row = catalogue.iloc[0]
    axes = pixel_axes(catalogue, row["id"], (32, 32))
    assert axes is not None
    y, x, mapping = axes.y, axes.x, axes.mapping
    step = float(row["width_m"]) / 32
    assert np.diff(x) == pytest.approx(step) and np.diff(y) == pytest.approx(float(row["height_m"]) / 32)
    crs = CRS.from_cf(mapping)
    back = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    corner = back.transform(x[0] - step / 2, y[0] - step / 2)
    assert corner == pytest.approx((float(row["llcrnrlon"]), float(row["llcrnrlat"])))


def test_events_on_latitudes_and_longitudes_lie_between_their_corners() -> None:
    row = {"id": "a", "proj": "EPSG:4326", "llcrnrlat": 30, "llcrnrlon": -100, "urcrnrlat": 34, "urcrnrlon": -92}
    axes = pixel_axes(pd.DataFrame([row]), "a", (4, 4))
    assert axes is not None
    np.testing.assert_allclose(axes.y, [30.5, 31.5, 32.5, 33.5])
    np.testing.assert_allclose(axes.x, [-99, -97, -95, -93])
    assert [found["units"] for found in axes.attributes] == ["degrees_north", "degrees_east"]
    assert pixel_axes(pd.DataFrame([row]).drop(columns="urcrnrlat"), "a", (4, 4)) is None


def test_events_without_a_place_have_a_time(storms: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(storms / "data")
    pd.read_csv(storms / "CATALOG.csv").drop(columns="proj").to_csv(tmp_path / "CATALOG.csv", index=False)
    there, here = (bench.load_task("sevir", root).coordinates("test", 1) for root in (storms, tmp_path))
    assert here is not None and there is not None and here.start == there.start
    assert there.y is not None and here.y is None


def test_the_latest_frames_are_the_last_of_the_newest_event(storms: Path) -> None:
    task = bench.load_task("sevir", storms, t_in=5)
    windows = task.dataset("all").source
    newest = max(windows.events, key=lambda event: event.span[1])
    context, where = task.latest()
    assert where.start == np.datetime64(newest.span[1])
    last = bench.load_task("sevir", storms, t_in=windows.frames - 5, t_out=5).dataset("all")
    np.testing.assert_array_equal(context, last.stored(windows.events.index(newest))[1])


def test_a_forecast_starts_when_its_context_ends(storms: Path) -> None:
    task = bench.load_task("sevir", storms, stride=6)
    windows = task.dataset("test").source
    for index in (0, 1, len(windows) - 1):
        event, first = windows.where(index)
        where = task.coordinates("test", index)
        assert where is not None
        since = (where.start - np.datetime64(event.span[0])) / np.timedelta64(1, "m")
        assert since == (first + task.t_in - 1) * task.cadence_minutes


@pytest.mark.parametrize("changes", [{"llcrnrlat": None}, {"proj": "+proj=of_nobody"}, {"height_m": "0"}])
def test_an_unknown_place_is_none(storms: Path, changes: dict[str, str | None]) -> None:
    catalogue = read_catalogue(storms).assign(**changes)
    assert pixel_axes(catalogue, catalogue["id"].iloc[0], (32, 32)) is None
    assert pixel_axes(pd.DataFrame({"id": ["a"]}), "a", (32, 32)) is None
