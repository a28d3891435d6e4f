"""Errors with weights of cells: values computed by hand, exact sums, and wrong weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import default_rng

import bench
from bench.engine.ensembles import check_added, scorings_of
from bench.errors import ConfigError, ContractError
from bench.metrics.families import FAMILIES
from bench.tasks import Task

SIZE = (6, 7)
AREA = np.repeat(np.cos(np.deg2rad(np.linspace(-50, 60, SIZE[0])))[:, None], SIZE[1], 1)
OCEAN = (default_rng(3).random(SIZE) > 0.3).astype(float)
CELLS = {"area": AREA, "ocean": OCEAN}


def _pair(batch: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = default_rng(seed)
    return tuple(torch.from_numpy(random.normal(size=(batch, 3, *SIZE, 1))).float() for _ in range(2))  # type: ignore[return-value]


def _metric(name: str = "mse", **options: object):
    return bench.load_metric(name, **{"convention": "correct", "scale": 1.0, "weights": ["area", "ocean"], **options})


@pytest.mark.parametrize(("name", "error"), [("mse", np.square), ("mae", np.abs)])
def test_weighted_errors_match_a_hand_computation(name: str, error) -> None:
    forecast, target = _pair(4)
    forecast[1, 2, 3, 4, 0] = math.nan
    metric = _metric(name)
    metric.update(forecast, target, cells=CELLS)
    found = metric.compute()
    errors = error(forecast.double().numpy() - target.double().numpy())[..., 0]
    known = np.isfinite(errors)
    weight = AREA * OCEAN * known
    assert found[name] == pytest.approx((np.nan_to_num(errors) * weight).sum() / weight.sum(), rel=1e-6)
    of_lead = (np.nan_to_num(errors) * weight)[:, 2].sum() / weight[:, 2].sum()
    assert found[f"{name}_lead_3"] == pytest.approx(of_lead, rel=1e-6)
    assert found[f"{name}_pixel_count"] == (known & (OCEAN > 0)).sum()


def test_land_is_excluded_and_equal_weights_change_nothing() -> None:
    forecast, target = _pair(3)
    changed = torch.where(torch.from_numpy(OCEAN)[:, :, None] > 0, forecast, torch.tensor(math.inf))
    scores = []
    for convention in ("upstream", "correct"):
        for frames in (forecast, changed):
            metric = _metric(convention=convention)
            metric.update(frames, target, cells=CELLS)
            scores.append(metric.compute()["mse"])
    assert len(set(scores)) == 1
    plain, weighted = _metric(weights=[]), _metric(weights=["one"])
    plain.update(forecast, target), weighted.update(forecast, target, cells={"one": np.ones(SIZE)})
    assert weighted.compute() == pytest.approx(plain.compute(), rel=1e-14)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_weighted_sums_do_not_depend_on_batches(sizes: list[int]) -> None:
    forecast, target = _pair(sum(sizes))
    whole, parts = _metric(), _metric()
    events = torch.arange(sum(sizes)) % 3
    for metric in (whole, parts):
        metric.track_events(3)
    whole.update(forecast, target, events, CELLS)
    for of_batch in zip(*(part.split(sizes) for part in (forecast, target, events)), strict=True):
        parts.update(*of_batch, cells=CELLS)
    assert torch.equal(whole.weight_sum, parts.weight_sum) and torch.equal(whole.pixel_count, parts.pixel_count)
    assert float(whole.weight_sum[0]) == sum(sizes) * math.fsum((np.rint(AREA * OCEAN * 2**24) / 2**24).ravel())
    torch.testing.assert_close(whole.error_sum, parts.error_sum, rtol=1e-14, atol=0)
    by_event = {key: values.sum(0) for key, values in parts.event_statistics().items()}
    again = FAMILIES["errors"](by_event, parts.score_options())
    assert {key: float(value) for key, value in again.items()} == pytest.approx(whole.compute(), rel=1e-13)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (None, "no weights 'area' of cells. Known: none"),
        ({"ocean": OCEAN}, "no weights 'area' of cells. Known: ocean"),
        ({**CELLS, "area": AREA[:-1]}, r"expected 0 to 1 for \(6, 7\) cells, found .* for \(5, 7\)"),
        ({**CELLS, "area": AREA * 2}, "expected 0 to 1"),
        ({**CELLS, "area": AREA * math.nan}, "expected 0 to 1"),
    ],
)
def test_invalid_weights_are_refused(cells: dict[str, np.ndarray] | None, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        _metric().update(*_pair(2), cells=cells)
    with pytest.raises(ConfigError, match="expected a list of names"):
        _metric(weights="area")


class TestOfATask:
    def test_the_suffix_of_a_weighted_metric_names_its_scores(self) -> None:
        scorings = scorings_of(bench.load_task("enso_ersst"), None)
        assert scorings["mse@ocean"].metric == "mse" and scorings["mse@ocean"].ending == "_ocean"
        assert scorings["mse"].ending == "" and "weights" not in scorings["mse"].options

    @pytest.mark.parametrize("name", ["enso_ersst", "icar_enso"])
    def test_area_is_proportional_to_the_cosine_of_latitude(self, name: str) -> None:
        area = bench.load_task(name).cell_weights()["area"]
        assert area.shape == (24, 48) and area.max() == area[11, 0] == 1
        assert area[0, 5] == pytest.approx(math.cos(math.radians(55)))

    def test_added_metrics_are_validated_before_a_run(self) -> None:
        task: Task = bench.load_task("icar_enso")
        check_added(task, {"by_area": {"metric": "mse", "weights": ["area"]}})
        with pytest.raises(ConfigError, match=r"evaluate\.metrics\.land: .*no weights 'land' of cells. Known: area"):
            check_added(task, {"land": {"metric": "mse", "weights": ["land"]}})
        with pytest.raises(ConfigError, match="the task has a mse_ocean already"):
            scorings_of(bench.load_task("enso_ersst"), None, {"ocean": {"metric": "mse"}})
