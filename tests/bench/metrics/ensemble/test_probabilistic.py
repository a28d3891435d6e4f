"""Scores of ensembles against properscoring, the definitions, closed forms and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import bench
from bench.errors import ConfigError, ContractError
from bench.metrics.ensemble.sums import _comparators

codes = st.sampled_from([0.0, 15.0, 16.0, 74.0, 133.0, 254.0]) | st.floats(0, 255, width=32)


def _metric(members: np.ndarray | torch.Tensor, target: np.ndarray | torch.Tensor, **options):
    metric = bench.load_metric("probabilistic", **options)
    metric.update(torch.as_tensor(members), torch.as_tensor(target))
    return metric


def _ensemble(m: int, seed: int = 0, shape: tuple[int, ...] = (2, 3, 6, 7, 1)) -> tuple[np.ndarray, np.ndarray]:
    """Forecasts and targets with many ties and zeros, like rain."""
    generator = np.random.default_rng(seed)
    return tuple(
        np.maximum(0, generator.integers(-20, 40, size) * 6.5).astype(np.float32) for size in ((m, *shape), shape)
    )  # type: ignore[return-value]


@pytest.mark.parametrize("m", [1, 2, 3, 5, 8, 11])
def test_every_score_equals_its_definition(m: int) -> None:
    x, y = _ensemble(m, seed=m)
    found = _metric(x, y).compute()
    wide, truth = x.astype(np.float64), y.astype(np.float64)
    for name, at in (("", slice(None)), ("_lead_2", 1)):
        e, o = wide[:, :, at], truth[:, at]
        pairs = np.abs(e[:, None] - e[None]).sum((0, 1))
        distance = np.abs(e - o).mean(0)
        assert found[f"crps{name}"] == pytest.approx((distance - pairs / (2 * m**2)).mean() / 255, rel=1e-10)
        assert found[f"rmse_of_mean{name}"] == pytest.approx(math.sqrt(((e.mean(0) - o) ** 2).mean()) / 255, rel=1e-12)
        for threshold in (16, 74, 219):
            p, event = (e >= threshold).mean(0), (o >= threshold).astype(float)
            brier, f = ((p - event) ** 2).mean(), event.mean()
            assert found[f"brier_{threshold}{name}"] == pytest.approx(brier, rel=1e-12)
            expected = 1 - brier / (f * (1 - f)) if 0 < f < 1 else math.nan
            assert found[f"bss_{threshold}{name}"] == pytest.approx(expected, rel=1e-9, nan_ok=True)
            if m > 1:
                less = (p * (1 - p) / (m - 1)).mean()
                assert found[f"brier_debiased_{threshold}{name}"] == pytest.approx(brier - less, rel=1e-9, abs=1e-15)
        if m > 1:
            fair = (distance - pairs / (2 * m * (m - 1))).mean() / 255
            assert found[f"crps_fair{name}"] == pytest.approx(fair, rel=1e-10)
            spread = math.sqrt(e.var(0, ddof=1).mean()) / 255
            assert found[f"spread{name}"] == pytest.approx(spread, rel=1e-10)
            ratio = math.sqrt((m + 1) / m) * spread / found[f"rmse_of_mean{name}"]
            assert found[f"spread_skill_ratio{name}"] == pytest.approx(ratio, rel=1e-10)
    if m == 1:
        undefined = [found[n] for n in ("crps_fair", "spread", "spread_skill_ratio", "brier_debiased_74")]
        assert all(map(math.isnan, undefined))


def test_crps_agrees_with_properscoring() -> None:
    properscoring = pytest.importorskip("properscoring", reason="the `test` extra brings it")
    x, y = _ensemble(8)
    theirs = properscoring.crps_ensemble(y.astype(float), np.moveaxis(x, 0, -1).astype(float)).mean() / 255
    assert _metric(x, y).compute()["crps"] == pytest.approx(theirs, rel=1e-12)


@settings(max_examples=8)
@given(
    x=hnp.arrays(np.float32, (1, 2, 4, 3, 1), elements=codes), y=hnp.arrays(np.float32, (1, 2, 4, 3, 1), elements=codes)
)
def test_one_member_or_equal_members_have_the_mean_absolute_error(x: np.ndarray, y: np.ndarray) -> None:
    mae = bench.load_metric("mae")
    mae.update(torch.from_numpy(x), torch.from_numpy(y))
    for m in (1, 4):
        found = _metric(np.stack([x] * m), y).compute()
        for name, value in mae.compute().items():
            assert found[name.replace("mae", "crps")] == pytest.approx(value, rel=1e-12, abs=1e-18)
    assert found["crps_fair"] == pytest.approx(found["crps"], rel=1e-12) and found["spread"] == 0


@settings(max_examples=6)
@given(seed=st.integers(0, 99), order=st.permutations(range(5)))
def test_the_order_of_members_and_batches_does_not_matter(seed: int, order: list[int]) -> None:
    x, y = _ensemble(5, seed)
    whole = _metric(x, y).compute()
    parts = bench.load_metric("probabilistic")
    for at in (1, 0):
        parts.update(torch.from_numpy(x[order][:, at : at + 1]), torch.from_numpy(y[at : at + 1]))
    for name, value in parts.compute().items():
        assert value == pytest.approx(whole[name], rel=1e-12, abs=1e-18, nan_ok=True), name


@pytest.mark.parametrize("count", range(1, 20))
def test_the_sorting_network_sorts(count: int) -> None:
    """By the zero-one principle: a network that sorts every sequence of zeros and ones sorts everything."""
    cases = np.unpackbits(np.random.default_rng(0).integers(0, 256, (count, 400), dtype=np.uint8), axis=1)
    if count <= 10:
        cases = (np.arange(2**count) >> np.arange(count)[:, None]) & 1
    expected = np.sort(cases, 0)
    for low, high in _comparators(count):
        cases[[low, high]] = np.minimum(cases[low], cases[high]), np.maximum(cases[low], cases[high])
    assert np.array_equal(cases, expected)


def test_the_members_are_not_modified() -> None:
    x, y = _ensemble(8)
    before = x.copy()
    _metric(x, y)
    assert np.array_equal(x, before)


def test_reliability_and_ranks_of_a_small_case() -> None:
    x = np.array([[0.0, 80, 80, 80], [0, 90, 10, 80]], np.float32).reshape(2, 1, 1, 2, 2, 1)
    y = np.array([0.0, 85, 5, 90], np.float32).reshape(1, 1, 2, 2, 1)
    curves = _metric(x, y, thresholds=[74]).curves()
    assert curves["reliability_74"] == {
        "probability": [0.0, 0.5, 1.0], "count": [1.0, 1.0, 2.0], "frequency": [0.0, 0.0, 1.0],
    }  # fmt: skip
    # ranks: anything of 0..2 (a third each), between, below both, above both
    assert curves["rank_histogram"]["frequency"] == pytest.approx([(1 / 3 + 1) / 4, (1 / 3 + 1) / 4, (1 / 3 + 1) / 4])


def test_interchangeable_members_are_reliable() -> None:
    draws = np.random.default_rng(0).normal(100, 20, (10, 4, 2, 50, 50, 1)).astype(np.float32)
    metric = _metric(draws[:9], draws[9], thresholds=[100])
    found = metric.compute()
    assert found["spread_skill_ratio"] == pytest.approx(1, abs=0.02)
    ranks = metric.curves()["rank_histogram"]["frequency"]
    assert np.allclose(ranks, 0.1, atol=0.01)
    # the fair CRPS of any number of members is that of the distribution: sigma / sqrt(pi)
    for m in (2, 9):
        fair = _metric(draws[:m], draws[9]).compute()["crps_fair"]
        assert fair * 255 == pytest.approx(20 / math.sqrt(math.pi), rel=0.02)


def test_a_reference_may_be_given_by_threshold_and_lead() -> None:
    x, y = _ensemble(4)
    brier = _metric(x, y, thresholds=[16, 74]).compute()
    event = np.stack([y >= 16, y >= 74]).astype(float)
    for reference in ([0.4, 0.1], [[0.4, 0.3, 0.2], [0.1, 0.05, 0.0]]):
        p = np.broadcast_to(np.array(reference).reshape(2, -1), (2, 3))
        expected = (p[:, None, :, None, None, None] - event) ** 2
        found = _metric(x, y, thresholds=[16, 74], reference=reference, t_out=3).compute()
        assert found["bss_74"] == pytest.approx(1 - brier["brier_74"] / expected[1].mean(), rel=1e-12)
        lead = 1 - brier["brier_16_lead_2"] / expected[0][:, 1].mean()
        assert found["bss_16_lead_2"] == pytest.approx(lead, rel=1e-12)


@pytest.mark.parametrize("convention", ["upstream", "correct"])
def test_missing_pixels_are_excluded_and_infinity_has_no_crps(convention: str) -> None:
    x, y = _ensemble(3)
    y[0, 0, 0, 0, 0], y[1, 1, 1, 1, 0] = math.nan, 255
    x[1, 0, 2, 3, 3, 0], x[2, 1, 0, 5, 5, 0] = math.nan, math.inf
    missing = np.isnan(y) | np.isnan(x).any(0) | ((y == 255) & (convention == "correct"))
    metric = _metric(x, y, convention=convention, thresholds=[74])
    found = metric.compute()
    known = ~missing & np.isfinite(x).all(0)
    assert found["crps_pixel_count"] == known.sum() == y.size - (4 if convention == "correct" else 3)
    p, event = (x >= 74).mean(0)[~missing], (y >= 74)[~missing]
    assert found["brier_74"] == pytest.approx(((p - event) ** 2).mean(), rel=1e-12)
    assert sum(metric.curves()["reliability_74"]["count"]) == (~missing).sum()


def test_thresholds_compare_as_in_the_skill_metric() -> None:
    x, y = torch.full((2, 1, 1, 1, 1, 1), 218.99998), torch.full((1, 1, 1, 1, 1), 219.0)
    assert _metric(x, y, convention="upstream").compute()["brier_219"] == 1
    assert _metric(x, y, convention="correct").compute()["brier_219"] == 0
    assert _metric(x, y.to(torch.uint8), convention="correct").compute()["brier_219"] == 0
    assert _metric(x.half(), y.half(), convention="correct").compute()["brier_219"] == 0


def test_wrong_input_is_refused() -> None:
    for options in ({"members": 0}, {"reference": "persistence"}, {"reference": [0.1]}, {"reference": [2.0] * 6}):
        with pytest.raises(ConfigError):
            bench.load_metric("probabilistic", **options)
    x, y = (torch.from_numpy(part) for part in _ensemble(3))
    with pytest.raises(ContractError, match=r"\(M, B, T, H, W, C\)"):
        bench.load_metric("probabilistic").update(y, y)
    metric = _metric(x, y)
    with pytest.raises(ContractError, match="3 members"):
        metric.update(x[:2], y)
