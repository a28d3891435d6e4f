"""The least rain of a cube, which STEPS takes from its task."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import bench
from bench.data.grid.scales import least_rain
from bench.data.grid.synthetic import rain_cube, write_cube
from bench.errors import ConfigError


@pytest.fixture(scope="module")
def rain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rain") / "rain.nc"
    write_cube(rain_cube(30, (32, 32), seed=1), path)
    return path


def test_the_rain_threshold_is_a_tenth_of_a_millimetre_per_hour() -> None:
    assert least_rain("mm/h") == 0.1 and least_rain("mm") == 0.1
    assert least_rain("dBZ") == pytest.approx(10 * math.log10(200 * 0.1**1.6), abs=0.05)


@pytest.mark.parametrize(("given", "least"), [({}, 0.1), ({"thresholds": [2.0, 0.5]}, 0.5)])
@pytest.mark.parametrize("scale", ["log1p", "dbz", "linear"])
def test_steps_uses_the_rain_threshold_on_the_scale_of_its_task(
    scale: str, given: dict[str, list[float]], least: float, rain: Path
) -> None:
    pytest.importorskip("pysteps")
    task = bench.load_task("grid", rain, t_in=3, t_out=3, scale=scale, **given)
    (offset, span), *_ = task.normalisations
    of_scale = {"log1p": math.log1p(least), "dbz": 10 * math.log10(200 * least**1.6), "linear": least}[scale]
    assert bench.load_model("steps", task).threshold == pytest.approx((of_scale - offset) / span, rel=1e-5)
    assert bench.load_model("steps", task, threshold=0.25).threshold == 0.25


def test_a_scale_with_a_wet_zero_is_refused(rain: Path) -> None:
    pytest.importorskip("pysteps")
    task = bench.load_task("grid", rain, t_in=3, t_out=3, scale="zscore", thresholds=[1e-3])
    assert task.least_rain < 0
    with pytest.raises(ConfigError, match="on this scale 0 is not dry"):
        bench.load_model("steps", task)


@pytest.mark.parametrize("name", ["sevir", "sevir_lr", "radar"])
def test_the_rain_threshold_of_vil_is_the_lowest_score_threshold(name: str) -> None:
    task = bench.load_task(name)
    assert task.least_rain == 16 / 255
    assert bench.load_model("steps", task).threshold == 16 / 255
