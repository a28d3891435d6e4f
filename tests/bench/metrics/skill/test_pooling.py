"""Skill after max-pooling and the fractions skill score, against brute force from the definitions."""

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
from bench.metrics.skill.metric import VIL_THRESHOLDS, skill_scores

AWKWARD = st.sampled_from([0.0, 15.99, 16.0, 74.0, 218.99998474121094, 219.0, 255.0, math.nan, math.inf, -math.inf])
fields = hnp.arrays(np.float32, (2, 2, 5, 6, 2), elements=st.floats(0, 300, width=32) | AWKWARD)


def _found(forecast: np.ndarray | torch.Tensor, target: np.ndarray | torch.Tensor, **options) -> dict[str, float]:
    metric = bench.load_metric("skill", **options)
    metric.update(torch.as_tensor(forecast), torch.as_tensor(target))
    return metric.compute()


def _same(found: dict[str, float], expected: dict[str, float]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-12, abs=1e-15, nan_ok=True), name


def _pooled_counts(forecast: np.ndarray, target: np.ndarray, pool: int, *, correct: bool) -> dict[str, np.ndarray]:
    """Counts cell by cell: a NaN (and, if the rule says so, a missing value) invalidates its cell."""

    def value(x: float) -> float:
        near = correct and math.isfinite(x) and abs(x - round(x)) <= 5e-5
        return float(round(x)) if near else float(x)

    names = ("hits", "misses", "false_alarms", "correct_negatives")
    counts = {name: np.zeros((forecast.shape[1], 6), np.int64) for name in names}
    batch, leads, height, width, channels = forecast.shape
    for b, t, i, j, c in np.ndindex(batch, leads, height // pool, width // pool, channels):
        cell = (b, t, slice(i * pool, (i + 1) * pool), slice(j * pool, (j + 1) * pool), c)
        f, o = ([value(float(x)) for x in side[cell].ravel()] for side in (forecast, target))
        if any(map(math.isnan, f + o)) or (correct and 255.0 in o):
            continue
        for k, threshold in enumerate(VIL_THRESHOLDS):
            hit, event = max(f) >= threshold, max(o) >= threshold
            name = ("correct_negatives", "misses", "false_alarms", "hits")[2 * hit + event]
            counts[name][t, k] += 1
    return counts


@pytest.mark.parametrize("convention", ["upstream", "correct"])
@settings(max_examples=8)
@given(forecast=fields, target=fields)
def test_pooled_scores_equal_brute_force(convention: str, forecast: np.ndarray, target: np.ndarray) -> None:
    for pool in (2, 4):
        counts = _pooled_counts(forecast, target, pool, correct=convention == "correct")
        expected = skill_scores(counts, VIL_THRESHOLDS, convention)
        found = _found(forecast, target, convention=convention, pool=pool)
        assert f"csi_74_pool{pool}_lead_2" in found and f"csi_m_pool{pool}_per_lead_mean" in found
        plain = {name.replace(f"_pool{pool}", ""): value for name, value in found.items()}
        _same(plain, expected)


@settings(max_examples=5)
@given(forecast=fields, target=fields, order=st.permutations([1, 2, 4, 3]))
def test_several_pools_equal_each_pool_alone(forecast: np.ndarray, target: np.ndarray, order: list[int]) -> None:
    together = _found(forecast, target, pool=order, convention="correct")
    alone = [_found(forecast, target, pool=pool, convention="correct") for pool in order]
    _same(together, {name: value for part in alone for name, value in part.items()})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64])
def test_a_missing_code_makes_its_pooled_cell_missing(dtype: torch.dtype) -> None:
    target = torch.full((1, 1, 4, 4, 1), 100.0)
    target[0, 0, 0, 0] = 255.0
    metric = bench.load_metric("skill", pool=2, convention="correct")
    metric.update(torch.full((1, 1, 4, 4, 1), 100.0), target.to(dtype))
    total = sum(int(getattr(metric, n)[0, 0]) for n in ("hits", "misses", "false_alarms", "correct_negatives"))
    assert total == 3 and int(metric.hits[0, 0]) == 3
    assert metric.counts() is None  # of single pixels, which were not counted


def test_the_upstream_bias_has_its_own_name() -> None:
    counts = {"hits": [[30]], "misses": [[10]], "false_alarms": [[20]], "correct_negatives": [[40]]}
    theirs = (50 / (40 + 1e-4) / math.log(2)) ** 2
    for convention, bias in (("upstream", theirs), ("correct", 1.25)):
        scores = skill_scores(counts, [74], convention)
        assert scores["bias_74"] == pytest.approx(bias, rel=1e-14)
        assert scores["bias_upstream_74"] == scores["bias_upstream_m"] == pytest.approx(theirs, rel=1e-14)


def _fss(forecast: np.ndarray, target: np.ndarray, threshold: float, window: int) -> float:
    """Returns fractions window by window; pixels outside the frame do not count."""
    half, error, reference = window // 2, 0.0, 0.0
    for b, t, c in np.ndindex(*forecast.shape[:2], forecast.shape[4]):
        sides = [np.pad(side[b, t, :, :, c] >= threshold, half) for side in (forecast, target)]
        for i, j in np.ndindex(*forecast.shape[2:4]):
            p, o = (side[i : i + window, j : j + window].mean() for side in sides)
            error, reference = error + (p - o) ** 2, reference + p**2 + o**2
    return 1 - error / reference if reference else math.nan


def test_fss_equals_brute_force() -> None:
    forecast, target = np.random.default_rng(0).integers(0, 255, (2, 2, 2, 7, 6, 1)).astype(np.float32)
    found = _found(forecast, target, fss_windows=(1, 3, 5), thresholds=[74, 300])
    for window in (1, 3, 5):
        assert found[f"fss_74_window{window}"] == pytest.approx(_fss(forecast, target, 74, window), rel=1e-12)
        second = _fss(forecast[:, 1:], target[:, 1:], 74, window)
        assert found[f"fss_74_window{window}_lead_2"] == pytest.approx(second, rel=1e-12)
        assert math.isnan(found[f"fss_300_window{window}"])
        assert found[f"fss_m_window{window}"] == found[f"fss_74_window{window}"]


@settings(max_examples=10)
@given(data=st.data())
def test_fss_at_the_full_window_is_that_of_the_frequencies(data: st.DataObject) -> None:
    flags = hnp.arrays(np.bool_, (1, 1, 5, 6, 1))
    forecast, target = data.draw(flags), data.draw(flags)
    f, o = forecast.mean(), target.mean()
    found = _found(forecast * 100.0, target * 100.0, thresholds=[74], fss_windows=(11,))["fss_74_window11"]
    expected = 2 * f * o / (f**2 + o**2) if f or o else math.nan
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_fss_agrees_with_the_scores_package() -> None:
    spatial = pytest.importorskip("scores.spatial", reason="the `test` extra brings it")
    forecast, target = np.random.default_rng(1).random((2, 20, 22)).astype(np.float32) * 255
    found = _found(forecast[None, None, ..., None], target[None, None, ..., None], fss_windows=(5,))
    for threshold in VIL_THRESHOLDS:
        theirs = spatial.fss_2d_single_field(
            forecast, target, event_threshold=threshold, window_size=(5, 5), zero_padding=True
        )
        # its padded windows also hang over the frame, where ours are centred inside: near, not equal
        assert found[f"fss_{threshold}_window5"] == pytest.approx(float(theirs), abs=0.02)


def test_a_missing_pixel_is_excluded_from_both_sides_of_fss() -> None:
    forecast, target = torch.zeros(1, 1, 3, 3, 1), torch.zeros(1, 1, 3, 3, 1)
    forecast[0, 0, 0, 0], target[0, 0, 2, 2] = 100, math.nan
    forecast[0, 0, 2, 2] = 100
    target[0, 0, 0, 0] = 100
    assert _found(forecast, target, thresholds=[74], fss_windows=(1,))["fss_74_window1"] == 1.0


@pytest.mark.parametrize(
    "options", [{"pool": 0}, {"pool": []}, {"pool": [4, 4]}, {"pool": 1.5}, {"fss_windows": [4]}, {"fss_windows": [0]}]
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        bench.load_metric("skill", **options)


def test_frames_smaller_than_a_cell_are_refused() -> None:
    with pytest.raises(ContractError, match="no cell of 16x16"):
        _found(torch.zeros(1, 1, 15, 20, 1), torch.zeros(1, 1, 15, 20, 1), pool=16)
