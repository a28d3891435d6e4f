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


def test_corners_and_size_are_the_catalogues(storms: Path) -> None:
    catalogue = read_catalogue(storms)
    row = catalogue.iloc[0]
    axes = pixel_axes(catalogue, row["id"], (32, 32))
    assert axes is not None
    y, x, mapping = axes
    step = float(row["width_m"]) / 32
    assert np.diff(x) == pytest.approx(step) and np.diff(y) == pytest.approx(float(row["height_m"]) / 32)
    crs = CRS.from_cf(mapping)
    back = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    corner = back.transform(x[0] - step / 2, y[0] - step / 2)
    assert corner == pytest.approx((float(row["llcrnrlon"]), float(row["llcrnrlat"])))


def test_a_window_starts_when_its_context_ends(storms: Path) -> None:
    task = bench.load_task("sevir", storms, stride=6)
    windows = task.dataset("test").source
    for index in (0, 1, len(windows) - 1):
        event, first = windows.where(index)
        where = task.coordinates("test", index)
        assert where is not None
        since = (where.start - np.datetime64(event.span[0])) / np.timedelta64(1, "m")
        assert since == (first + task.t_in - 1) * task.cadence_minutes


@pytest.mark.parametrize("changes", [{"llcrnrlat": None}, {"proj": "+proj=of_nobody"}, {"height_m": "0"}])
def test_a_place_that_is_not_told_is_none(storms: Path, changes: dict[str, str | None]) -> None:
    catalogue = read_catalogue(storms).assign(**changes)
    assert pixel_axes(catalogue, catalogue["id"].iloc[0], (32, 32)) is None
    assert pixel_axes(pd.DataFrame({"id": ["a"]}), "a", (32, 32)) is None
