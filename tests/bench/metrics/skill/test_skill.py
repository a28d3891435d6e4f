"""Skill scores against closed forms, brute force, properties and the `scores` package."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import bench
from bench.errors import ConfigError, ContractError
from bench.metrics.skill.metric import SCORES, VIL_THRESHOLDS, Skill, skill_scores

fields = hnp.arrays(
    np.float32,
    (2, 3, 4, 5, 1),
    elements=st.floats(-20, 300, width=32) | st.sampled_from([0.0, 16.0, 74.0, 219.0, 218.99998474121094, 255.0]),
)


def _counts(forecast: np.ndarray, target: np.ndarray, *, correct: bool) -> np.ndarray:
    """Counts pixel by pixel: hits, misses, false alarms, correct negatives `[lead, threshold]`."""

    def value(x: float) -> float:
        x = float(x)
        return round(x) if correct and math.isfinite(x) and abs(x - round(x)) <= 5e-5 else x

    counts = np.zeros((forecast.shape[1], 6, 4), np.int64)
    for (_, lead, *_), f, t in zip(np.ndindex(forecast.shape), forecast.ravel(), target.ravel(), strict=True):
        f, t = value(f), value(t)
        if math.isnan(f) or math.isnan(t) or (correct and t == 255):
            continue
        for k, threshold in enumerate(VIL_THRESHOLDS):
            cell = {(True, True): 0, (False, True): 1, (True, False): 2, (False, False): 3}[
                f >= threshold, t >= threshold
            ]
            counts[lead, k, cell] += 1
    return counts


def _state(metric: Skill) -> np.ndarray:
    return np.stack([getattr(metric, n).numpy() for n in ("hits", "misses", "false_alarms", "correct_negatives")], -1)


def _updated(forecast: np.ndarray | torch.Tensor, target: np.ndarray | torch.Tensor, **options) -> Skill:
    metric = bench.load_metric("skill", **options)
    metric.update(torch.as_tensor(forecast), torch.as_tensor(target))
    return metric


@given(forecast=fields, target=fields, convention=st.sampled_from(["upstream", "correct"]))
def test_counts_equal_brute_force(forecast: np.ndarray, target: np.ndarray, convention: str) -> None:
    correct = convention == "correct"
    assert np.array_equal(
        _state(_updated(forecast, target, convention=convention)), _counts(forecast, target, correct=correct)
    )


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64]
)
@pytest.mark.parametrize("size", [4, 160])
def test_counts_agree_for_every_dtype_and_frame_size(dtype: torch.dtype, size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randint(0, 256, (2, 2, size, size, 1), generator=generator).to(dtype) for _ in range(2)]
    for convention in ("upstream", "correct"):
        expected = Skill(convention=convention)
        f, t = (side.double() for side in pair)
        keep = (t != 255) if convention == "correct" else torch.ones_like(t, dtype=torch.bool)
        metric = _updated(*pair, convention=convention)
        for k, threshold in enumerate(expected.thresholds):
            hits = ((f >= threshold) & (t >= threshold) & keep).sum((0, 2, 3, 4))
            assert torch.equal(metric.hits[:, k], hits)
        total = sum(getattr(metric, n) for n in ("hits", "misses", "false_alarms", "correct_negatives"))
        assert torch.equal(total, keep.sum((0, 2, 3, 4))[:, None].expand_as(total))


@pytest.mark.parametrize("threshold", [*VIL_THRESHOLDS, 1, 2, 64, 128, 255, 0, -3, 73.99997, 74.00003, 74.5, 0.1])
@pytest.mark.parametrize("correct", [True, False])
def test_floats_next_to_a_threshold_are_classified_correctly(threshold: float, correct: bool) -> None:
    """Tests the 2000 float32 numbers on either side and, with the rule, also those around its edges."""
    wide = np.float32(threshold) + np.concatenate([np.linspace(-2e-4, 2e-4, 4001), [0]])
    bits = np.array([threshold], np.float32).view(np.int32)[0] + np.arange(-2000, 2001, dtype=np.int32)
    values = np.concatenate([wide.astype(np.float32), bits.view(np.float32)])
    for array in (values, values.astype(np.float64)):
        exact = array.astype(np.float64)
        if correct:
            exact = np.where(np.abs(exact - np.rint(exact)) <= 5e-5, np.rint(exact), exact)
        shaped = torch.from_numpy(array).view(1, 1, -1, 1, 1)
        options = {"convention": "correct" if correct else "upstream", "missing_value": None, "thresholds": [threshold]}
        metric = _updated(shaped, torch.full_like(shaped, 1e6), **options)
        assert int(metric.hits[0, 0]) == np.count_nonzero(exact >= threshold)


def test_paper_thresholds_are_compared_unchanged() -> None:
    just_below = torch.full((1, 1, 1, 1, 1), 218.99998)
    target = torch.full_like(just_below, 219)
    assert int(_updated(just_below, target, convention="upstream").hits[0, -1]) == 0
    assert int(_updated(just_below, target, convention="correct").hits[0, -1]) == 1


def test_non_integer_thresholds_are_compared_as_floats() -> None:
    forecast, target = (
        torch.tensor([0.4, 0.6, 0.6, -3.0]).view(1, 1, 4, 1, 1),
        torch.tensor([0.7, 0.7, 0.2, -2.0]).view(1, 1, 4, 1, 1),
    )
    metric = _updated(forecast, target, thresholds=[0.5, -2.5])
    assert _state(metric)[0].tolist() == [[1, 1, 1, 1], [3, 1, 0, 0]]


@given(forecast=fields, target=fields, cut=st.integers(0, 2))
def test_counts_do_not_depend_on_batches_or_order(forecast: np.ndarray, target: np.ndarray, cut: int) -> None:
    f, t = torch.from_numpy(forecast), torch.from_numpy(target)
    metric = bench.load_metric("skill", convention="correct")
    for part in (slice(cut, None), slice(0, cut)):
        metric.update(f[part], t[part])
    assert np.array_equal(_state(metric), _state(_updated(f, t, convention="correct"))) or len(f[:cut]) == 0


def test_nan_is_excluded_and_infinity_counts() -> None:
    forecast = torch.tensor([math.nan, 20.0, math.inf, -math.inf, 20.0]).view(1, 1, 5, 1, 1)
    target = torch.tensor([20.0, math.nan, 20.0, 20.0, 0.0]).view(1, 1, 5, 1, 1)
    for convention in ("upstream", "correct"):
        assert _state(_updated(forecast, target, convention=convention))[0, 0].tolist() == [1, 1, 1, 0]


def test_a_missing_target_is_excluded_by_metric_or_task() -> None:
    forecast, target = torch.full((1, 1, 2, 2, 1), 100.0), torch.tensor([255.0, 100, 100, 0]).view(1, 1, 2, 2, 1)
    masked = target.masked_fill(target == 255, math.nan)
    states = [_state(_updated(forecast, t, convention="correct")) for t in (target, masked, target.to(torch.uint8))]
    assert all(np.array_equal(states[0], state) for state in states) and states[0][0, 0].sum() == 3
    assert _state(_updated(forecast, target, convention="upstream"))[0, 5].tolist() == [0, 1, 0, 3]


def test_closed_forms_upstream() -> None:
    counts = {"hits": [[30]], "misses": [[10]], "false_alarms": [[20]], "correct_negatives": [[40]]}
    scores = skill_scores(counts, [16], "upstream")
    assert (
        scores["csi_16"] == 30 / (60 + 1e-4)
        and scores["pod_16"] == 30 / (40 + 1e-4)
        and scores["sucr_16"] == 30 / (50 + 1e-4)
    )
    assert scores["far_16"] == 20 / (50 + 1e-4)
    assert scores["bias_16"] == pytest.approx((50 / (40 + 1e-4) / math.log(2)) ** 2, rel=1e-15)
    assert scores["hss_16"] == pytest.approx(2 * (1200 - 200) / (40 * 50 + 50 * 60 + 1e-4), rel=1e-15)


def test_closed_forms_correct_with_undefined_scores_left_out() -> None:
    counts = {"hits": [[30, 0]], "misses": [[10, 0]], "false_alarms": [[20, 0]], "correct_negatives": [[40, 100]]}
    scores = skill_scores(counts, [16, 219], "correct")
    assert (
        scores["csi_16"] == scores["csi_m"] == 0.5
        and math.isnan(scores["csi_219"])
        and scores["csi_undefined_count"] == 1
    )
    upstream = skill_scores(counts, [16, 219], "upstream")
    assert upstream["csi_219"] == 0 and upstream["csi_m"] == pytest.approx(0.25, abs=1e-6)


def test_the_mean_bias_is_geometric_and_skips_zero_and_infinity() -> None:
    counts = {
        "hits": [[4, 1, 0, 0]],
        "misses": [[0, 3, 0, 5]],
        "false_alarms": [[4, 1, 7, 0]],
        "correct_negatives": [[0, 0, 0, 0]],
    }
    scores = skill_scores(counts, [1, 2, 3, 4], "correct")
    assert scores["bias_1"] == 2 and scores["bias_2"] == 0.5 and scores["bias_3"] == math.inf and scores["bias_4"] == 0
    assert scores["bias_m"] == 1.0 and scores["bias_undefined_count"] == 2


def test_per_lead_mean_differs_from_pooled() -> None:
    counts = {"hits": [[90], [1]], "misses": [[10], [9]], "false_alarms": [[0], [0]], "correct_negatives": [[0], [90]]}
    scores = skill_scores(counts, [16], "correct")
    assert scores["csi_16"] == 91 / 110 and scores["csi_16_per_lead_mean"] == pytest.approx(0.5)
    assert scores["csi_16_lead_1"] == 0.9 and scores["csi_16_lead_2"] == 0.1


@given(forecast=fields, target=fields)
def test_scores_stay_within_their_bounds(forecast: np.ndarray, target: np.ndarray) -> None:
    for convention in ("upstream", "correct"):
        scores = _updated(forecast, target, convention=convention).compute()
        for threshold in VIL_THRESHOLDS:
            csi, pod, sucr = (scores[f"{s}_{threshold}"] for s in ("csi", "pod", "sucr"))
            assert all(math.isnan(v) or 0 <= v <= 1 for v in (csi, pod, sucr))
            if not any(map(math.isnan, (csi, pod, sucr))):
                assert csi <= min(pod, sucr) + 1e-12


@given(target=fields)
def test_a_perfect_forecast(target: np.ndarray) -> None:
    scores = _updated(target, target, convention="correct").compute()
    assert all(
        scores[f"{s}_{t}"] in (1.0, 0.0) or math.isnan(scores[f"{s}_{t}"]) for s in SCORES for t in VIL_THRESHOLDS
    )


def test_counts_are_exact_beyond_float32() -> None:
    metric = bench.load_metric("skill", thresholds=[16], t_out=1)
    metric.hits = metric.hits + 2**24
    metric.update(torch.full((1, 1, 1, 1, 1), 20.0), torch.full((1, 1, 1, 1, 1), 20.0))
    assert int(metric.hits) == 2**24 + 1


def test_agrees_with_the_scores_package() -> None:
    scores = pytest.importorskip("scores", reason="the `test` extra brings it")
    import xarray as xr

    generator = np.random.default_rng(0)
    forecast, target = generator.integers(0, 255, (2, 2, 2, 40, 40, 1)).astype(np.float32)
    found = _updated(forecast, target, convention="correct").compute()
    for threshold in VIL_THRESHOLDS:
        table = scores.categorical.ThresholdEventOperator(default_event_threshold=threshold).make_contingency_manager(
            xr.DataArray(forecast.ravel(), dims="x"), xr.DataArray(target.ravel(), dims="x")
        )
        theirs = {
            "csi": table.critical_success_index(), "pod": table.probability_of_detection(),
            "sucr": table.success_ratio(), "far": table.false_alarm_ratio(),
            "bias": table.frequency_bias(), "hss": table.heidke_skill_score(),
        }  # fmt: skip
        for name, value in theirs.items():
            assert found[f"{name}_{threshold}"] == pytest.approx(float(value), rel=1e-12)


@pytest.mark.parametrize(
    "options", [{"convention": "mit"}, {"thresholds": []}, {"thresholds": [math.nan]}, {"threshold": [1]}]
)
def test_wrong_options_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError):
        bench.load_metric("skill", **options)


def test_mismatched_shapes_are_refused() -> None:
    for forecast, target in (((1, 2, 3, 3, 1), (1, 3, 3, 3, 1)), ((2, 3, 3, 1), (2, 3, 3, 1))):
        with pytest.raises(ContractError, match=r"\(B, T, H, W, C\)"):
            _updated(torch.zeros(forecast), torch.zeros(target))
    metric = _updated(torch.zeros(1, 2, 3, 3, 1), torch.zeros(1, 2, 3, 3, 1))
    with pytest.raises(ContractError, match="2 lead times"):
        metric.update(torch.zeros(1, 3, 3, 3, 1), torch.zeros(1, 3, 3, 3, 1))


def test_persistence_on_observed_radar_reproduces_its_scores(radar: Path) -> None:
    record = bench.evaluate("persistence", bench.load_task("sevir", radar / "sevir25_mrms"), split="all", device="cpu")
    assert record.data is not None and record.data.sequence_count == 6
    assert record.scores["csi_m"] == pytest.approx(0.2755, abs=5e-5) and record.scores["csi_16"] == pytest.approx(
        0.6692, abs=5e-5
    )
    assert record.scores["csi_181"] == pytest.approx(0.0521, abs=5e-5) and record.scores["mse"] == pytest.approx(
        8.4787e-3, abs=5e-8
    )


@pytest.mark.parametrize(
    ("tree", "task"), [("sevir49", "sevir"), ("sevir25", "sevir"), ("sevir25_mrms", "sevir"), ("sevir_lr", "sevir_lr")]
)
def test_counts_on_observed_radar_equal_an_independent_count(radar: Path, tree: str, task: str) -> None:
    """Counted directly from the files with numpy, without code of the reader or the metric."""
    import h5py
    import pandas as pd

    t_in, t_out, stride = {"sevir": (13, 12, 12), "sevir_lr": (7, 6, 6)}[task]
    catalogue = pd.read_csv(radar / tree / "CATALOG.csv")
    expected = np.zeros((4, t_out, 6), np.int64)
    for row in catalogue[catalogue.pct_missing == 0].itertuples():
        with h5py.File(radar / tree / "data" / row.file_name) as file:
            event = file["vil"][row.file_index]
        for start in range(0, event.shape[-1] - t_in - t_out + 1, stride):
            last = event[..., start + t_in - 1] >= np.array(VIL_THRESHOLDS)[:, None, None]
            for lead in range(t_out):
                truth = event[..., start + t_in + lead] >= np.array(VIL_THRESHOLDS)[:, None, None]
                for cell, events in enumerate((last & truth, ~last & truth, last & ~truth, ~last & ~truth)):
                    expected[cell, lead] += events.sum((1, 2))
    record = bench.evaluate("persistence", bench.load_task(task, radar / tree), split="all", device="cpu", batch_size=4)
    assert record.counts is not None
    names = ("hits", "misses", "false_alarms", "correct_negatives")
    assert [record.counts[name] for name in names] == expected.tolist()
