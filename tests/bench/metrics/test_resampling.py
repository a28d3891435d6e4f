"""Jackknife intervals: closed forms, bounds of scores, and coverage."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.metrics.families import FAMILIES
from bench.metrics.resampling import jackknife_interval, scale_of

EVEN = np.linspace(1.0, 3.0, 12)  # flatter than normal: all degrees of freedom are left


def _mean_without_each(values: np.ndarray) -> np.ndarray:
    return (values.sum(0) - values) / (len(values) - 1)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_the_interval_of_a_mean_is_the_t_interval(level: float) -> None:
    low, high = jackknife_interval(EVEN.mean(), _mean_without_each(EVEN), level=level)
    expected = stats.t.interval(level, len(EVEN) - 1, EVEN.mean(), stats.sem(EVEN))
    assert (low, high) == pytest.approx(expected, rel=1e-12)


def test_heavy_tails_reduce_the_degrees_of_freedom() -> None:
    values = np.r_[EVEN, 30.0]
    n = len(values)
    kurtosis = 3 + stats.kurtosis(values, bias=False)
    freedom = 2 * n / (kurtosis - (n - 3) / (n - 1))
    assert 1 < freedom < n - 1
    low, high = jackknife_interval(values.mean(), _mean_without_each(values))
    assert (low, high) == pytest.approx(stats.t.interval(0.95, freedom, values.mean(), stats.sem(values)), rel=1e-12)


def test_intervals_of_errors_are_on_the_log_scale() -> None:
    low, high = jackknife_interval(EVEN.mean(), _mean_without_each(EVEN), scale=scale_of("mse_lead_3"))
    logs = np.log(_mean_without_each(EVEN))
    deviation = np.sqrt((len(EVEN) - 1) * logs.var())
    reach = stats.t.ppf(0.975, len(EVEN) - 1) * deviation
    assert (low, high) == pytest.approx((EVEN.mean() * np.exp(-reach), EVEN.mean() * np.exp(reach)), rel=1e-12)


def test_a_ratio_and_its_complement_have_mirrored_intervals() -> None:
    rng = np.random.default_rng(0)
    hits, rest = rng.uniform(0, 10, 20), rng.uniform(0, 100, 20)
    share = (hits.sum() - hits) / ((hits + rest).sum() - hits - rest)
    whole = hits.sum() / (hits + rest).sum()
    low, high = jackknife_interval(whole, share, scale=scale_of("csi_74"))
    mirrored = jackknife_interval(1 - whole, 1 - share, scale=scale_of("far_74"))
    assert 0 < low < whole < high < 1 and mirrored == pytest.approx((1 - high, 1 - low), rel=1e-9)


@pytest.mark.parametrize("values", [np.zeros(12), np.r_[np.zeros(11), 1.0], np.full(12, np.nan)])
def test_a_score_at_its_bound_has_no_interval(values: np.ndarray) -> None:
    bounds = jackknife_interval(values.mean(), _mean_without_each(values), scale=scale_of("csi_219"))
    assert np.isnan(bounds).all()


def test_identical_events_have_an_interval_of_zero_width() -> None:
    values = np.full(12, 0.25)
    assert jackknife_interval(0.25, _mean_without_each(values)) == (0.25, 0.25)


def test_every_score_has_a_scale_for_its_range() -> None:
    """Scores of all families can be transformed to their scale and back."""
    inside = {
        "csi_m": 0.3, "far_16_pool4_members": 0.3, "fss_74_window4_lead_2": 0.9, "hss_m": -0.2, "ssim": -0.1,
        "c_nino34_lead_12": -0.4, "mse_frame_sum_lead_1": 90.0, "rmse_nino34": 0.8, "rmse_of_mean": 0.1,
        "bias_74": 3.0, "bias_upstream_m": 2.1, "crps": 0.2, "spread_skill_ratio_lead_3": 1.4, "e_mae": 3.0,
        "bss_m": -4.0, "brier_74": 0.1,
    }  # fmt: skip
    for score, value in inside.items():
        there, back = scale_of(score)
        assert there(value) != value and back(there(value)) == pytest.approx(value, rel=1e-12), score
    outside = {"crps_fair_lead_2": -0.1, "c_nino34_wm": 2.5, "psnr": 31.0, "brier_debiased_m": -0.01, "unheard_of": 7.0}
    for score, value in outside.items():
        there, back = scale_of(score)
        assert there(value) == back(value) == value, score
    assert len(FAMILIES) == 6, "another family: give its scores their scales, and this test their names"


@pytest.mark.parametrize(("events", "least", "most"), [(10, 0.91, 0.975), (30, 0.925, 0.975)])
def test_the_interval_has_its_nominal_coverage(events: int, least: float, most: float) -> None:
    """Pooled CSI of events of unequal size; the percentile bootstrap covers it in 0.86 of test sets of ten events."""
    rng = np.random.default_rng(3)
    shape = (events, 2000)
    area = np.exp(0.7 * rng.normal(size=shape))
    pod = 1 / (1 + np.exp(-0.4 * rng.normal(size=shape)))  # 0.5 in the mean: symmetric, and no matter of the area
    hits, either = area * pod, area * 1.5
    whole, without = hits.sum(0) / either.sum(0), (hits.sum(0) - hits) / (either.sum(0) - either)
    low, high = jackknife_interval(whole, without, scale=scale_of("csi_74"))
    assert least < ((low < 1 / 3) & (high > 1 / 3)).mean() < most


def test_equal_models_are_rarely_significantly_different() -> None:
    rng = np.random.default_rng(4)
    weather = rng.normal(size=(10, 2000))
    a, b = (np.exp(0.5 * weather + 0.3 * rng.normal(size=weather.shape)) for _ in range(2))
    without = _mean_without_each(a) - _mean_without_each(b)
    low, high = jackknife_interval(a.mean(0) - b.mean(0), without)
    assert ((low > 0) | (high < 0)).mean() < 0.065
