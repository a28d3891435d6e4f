"""Nino3.4 skill against closed forms, the explicit formulas, properties and numpy's correlation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bench
from bench.errors import ConfigError, ContractError
from bench.metrics.enso.metric import index_scores, lead_weights, nino34_index

CONVENTIONS = ["upstream", "correct"]


def _pair(windows: int = 9, months: int = 14, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn((windows, months, 24, 48, 1), generator=generator)
    return target * 0.5 + torch.randn(target.shape, generator=generator), target


def _scores(forecast: torch.Tensor, target: torch.Tensor, labels: torch.Tensor | None = None, **options) -> dict:
    metric = bench.load_metric("enso", **options)
    metric.update(forecast, target, *([] if labels is None else [labels]))
    return metric.compute()


def _formulas(predicted: list[list[float]], observed: list[list[float]], eps: float) -> dict[str, float]:
    """Returns the scores from their definitions, number by number, for indices `[window][lead]`."""
    windows, leads = len(predicted), len(predicted[0])
    found, correlations, errors = {}, [], []
    for k in range(leads):
        p, o = [row[k] for row in predicted], [row[k] for row in observed]
        p_mean, o_mean = math.fsum(p) / windows, math.fsum(o) / windows
        shared = math.fsum((a - p_mean) * (b - o_mean) for a, b in zip(p, o, strict=True))
        of_p, of_o = (math.fsum((x - m) ** 2 for x in side) for side, m in ((p, p_mean), (o, o_mean)))
        correlations.append(shared / (math.sqrt(of_p * of_o) + eps))
        errors.append(math.sqrt(math.fsum((a - b) ** 2 for a, b in zip(p, o, strict=True)) / windows))
        found |= {f"c_nino34_lead_{k + 1}": correlations[-1], f"rmse_nino34_lead_{k + 1}": errors[-1]}
    weighted = 0.0
    for k, c in enumerate(correlations, start=1):
        b = 1.5 if k <= 4 else 2 if k <= 11 else 3 if k <= 18 else 4
        weighted += b * math.log(k) * c
    return found | {
        "c_nino34_m": sum(correlations) / leads, "c_nino34_wm": weighted / leads, "rmse_nino34": sum(errors) / leads,
    }  # fmt: skip


def _index(sst: torch.Tensor) -> list[list[float]]:
    found = []
    for window in sst[..., 0].double().tolist():
        box = [math.fsum(x for row in month[10:13] for x in row[19:30]) / 33 for month in window]
        found.append([sum(box[k : k + 3]) / 3 for k in range(len(box) - 2)])
    return found


@pytest.mark.parametrize("months", [3, 14, 26])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_agrees_with_the_formulas(months: int, convention: str) -> None:
    forecast, target = _pair(months=months)
    expected = _formulas(_index(forecast), _index(target), 1e-6 if convention == "upstream" else 0.0)
    found = _scores(forecast, target, convention=convention)
    assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-10)
    extra = {"c_nino34_undefined_count", "rmse_nino34_undefined_count", "nino34_label_difference"}
    assert set(found) - set(expected) == (extra if convention == "correct" else set())


@given(
    windows=st.integers(2, 6),
    leads=st.integers(1, 25),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-150, 1e-9, 1.0, 1e6]),
)
def test_correlations_are_those_of_numpy_at_any_scale(windows: int, leads: int, seed: int, scale: float) -> None:
    random = np.random.default_rng(seed)
    predicted, observed = random.normal(size=(2, windows, leads))
    found = index_scores(predicted * scale, observed, "correct")
    for k in range(leads):
        expected = np.corrcoef(predicted[:, k], observed[:, k])[0, 1]
        assert found[f"c_nino34_lead_{k + 1}"] == pytest.approx(expected, abs=1e-9)
        assert abs(found[f"c_nino34_lead_{k + 1}"]) <= 1


@pytest.mark.parametrize(("months", "perfect"), [(14, 3.405859), (26, 6.818839)])
def test_a_perfect_forecast(months: int, perfect: float) -> None:
    _, target = _pair(months=months)
    for convention in CONVENTIONS:
        found = _scores(target, target, convention=convention)
        # upstream: 1e-6 beside a sum of squares of about 0.1
        near = {"rel": 1e-12} if convention == "correct" else {"rel": 1e-4}
        assert found["c_nino34_m"] == pytest.approx(1, **near)
        assert found["c_nino34_wm"] == pytest.approx(perfect, abs=5e-7 if convention == "correct" else 1e-3)
        assert found["rmse_nino34"] == 0
    assert lead_weights(months - 2).mean() == pytest.approx(perfect, abs=5e-7)
    assert lead_weights(1).tolist() == [0]


@given(gain=st.floats(0.01, 50), shift=st.floats(-20, 20), seed=st.integers(0, 99))
def test_correlation_is_invariant_to_gain_and_shift_up_to_sign(gain: float, shift: float, seed: int) -> None:
    predicted, observed = np.random.default_rng(seed).normal(size=(2, 8, 5))
    plain = index_scores(predicted, observed, "correct")
    moved = index_scores(gain * predicted + shift, observed, "correct")
    turned = index_scores(-predicted, observed, "correct")
    swapped = index_scores(observed, predicted, "correct")
    for key in (k for k in plain if k.startswith("c_nino34_") and "count" not in k):
        assert moved[key] == pytest.approx(plain[key], abs=1e-9)
        assert turned[key] == pytest.approx(-plain[key], abs=1e-12)
        assert swapped[key] == pytest.approx(plain[key], abs=1e-12)


def test_the_rmse_of_a_constant_error_is_that_error() -> None:
    _, target = _pair()
    found = _scores(target.double() + 0.75, target.double(), convention="correct")
    assert found["rmse_nino34"] == pytest.approx(0.75, rel=1e-12) and found["c_nino34_m"] == pytest.approx(1, rel=1e-12)


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), convention=st.sampled_from(CONVENTIONS))
def test_batches_do_not_change_the_scores(sizes: list[int], convention: str) -> None:
    forecast, target = _pair(sum(sizes) + 1)
    labels = torch.randn((sum(sizes) + 1, 12), generator=torch.Generator().manual_seed(1))
    metric = bench.load_metric("enso", convention=convention, t_out=14)
    for part in zip(*(side.split([*sizes, 1]) for side in (forecast, target, labels)), strict=True):
        metric.update(*part)
    expected = _scores(forecast, target, labels, convention=convention)
    assert metric.compute() == pytest.approx(expected, rel=1e-12, nan_ok=True)
    metric.reset()
    metric.update(forecast, target, labels)
    assert metric.compute() == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_only_the_nino_box_counts() -> None:
    forecast, target = _pair()
    inside = torch.zeros(24, 48, dtype=torch.bool)
    inside[10:13, 19:30] = True
    assert int(inside.sum()) == 33
    outside = torch.where(inside[..., None], forecast, torch.full_like(forecast, math.nan))
    assert _scores(outside, target) == _scores(forecast, target)


def test_the_index_of_lead_k_is_the_mean_of_months_k_to_k_plus_2() -> None:
    months = torch.arange(6.0).square()[None, :, None, None, None].expand(1, 6, 24, 48, 1)
    assert nino34_index(months)[0].tolist() == pytest.approx([5 / 3, 14 / 3, 29 / 3, 50 / 3])


def test_labels_are_the_truth_if_given() -> None:
    forecast, target = _pair()
    labels = torch.randn((9, 12), generator=torch.Generator().manual_seed(1))
    expected = index_scores(nino34_index(forecast).numpy(), labels.double().numpy(), "correct")
    found = _scores(forecast, target, labels, convention="correct")
    assert {key: found[key] for key in expected} == expected
    assert found["nino34_label_difference"] == pytest.approx(float((labels - nino34_index(target)).abs().max()))
    assert math.isnan(_scores(forecast, target, convention="correct")["nino34_label_difference"])
    own = _scores(forecast, target, nino34_index(target), convention="correct")
    plain = _scores(forecast, target, convention="correct")
    assert own["nino34_label_difference"] == 0 and own["c_nino34_m"] == plain["c_nino34_m"]


class TestMissingValues:
    def test_upstream_a_missing_value_makes_every_mean_nan(self) -> None:
        forecast, target = _pair()
        forecast[4, 0, 11, 20] = math.nan  # the first month is in the first lead only, whose weight is 0
        found = _scores(forecast, target)
        assert all(math.isnan(found[key]) for key in ("c_nino34_m", "c_nino34_wm", "rmse_nino34", "c_nino34_lead_1"))
        assert found["c_nino34_lead_2"] == _scores(*_pair())["c_nino34_lead_2"]

    @pytest.mark.parametrize("hole", [math.nan, math.inf])
    @pytest.mark.parametrize("side", ["forecast", "labels"])
    def test_correct_excludes_and_counts_undefined_leads(self, hole: float, side: str) -> None:
        predicted, observed = np.random.default_rng(0).normal(size=(2, 9, 12))
        clean = index_scores(predicted, observed, "correct")
        (predicted if side == "forecast" else observed)[4, 2] = hole
        found = index_scores(predicted, observed, "correct")
        assert math.isnan(found["c_nino34_lead_3"]) and math.isnan(found["rmse_nino34_lead_3"])
        assert found["c_nino34_undefined_count"] == found["rmse_nino34_undefined_count"] == 1
        kept = [clean[f"c_nino34_lead_{k}"] for k in range(1, 13) if k != 3]
        assert found["c_nino34_m"] == pytest.approx(sum(kept) / 11, rel=1e-12)
        assert math.isnan(found["rmse_nino34"])

    def test_the_weighted_mean_divides_by_all_leads(self) -> None:
        observed = np.random.default_rng(0).normal(size=(9, 12))
        predicted = observed.copy()
        predicted[0, 2] = math.nan
        assert index_scores(predicted, observed, "correct")["c_nino34_wm"] == pytest.approx(3.268533, abs=5e-7)

    @pytest.mark.parametrize("constant", [0.0, 0.1, -1.7])
    def test_constant_forecasts_have_no_correlation(self, constant: float) -> None:
        observed = np.random.default_rng(0).normal(size=(37, 12))
        predicted = np.full((37, 12), constant)
        upstream = index_scores(predicted, observed, "upstream")
        assert upstream["c_nino34_m"] == pytest.approx(0, abs=1e-7)
        correct = index_scores(predicted, observed, "correct")
        assert math.isnan(correct["c_nino34_m"]) and math.isnan(correct["c_nino34_wm"])
        assert correct["c_nino34_undefined_count"] == 12 and correct["rmse_nino34_undefined_count"] == 0
        assert correct["rmse_nino34"] == pytest.approx(
            np.mean(np.sqrt(np.square(observed - constant).mean(0))), rel=1e-12
        )

    def test_one_window_has_no_correlation_and_two_are_perfectly_correlated(self) -> None:
        predicted, observed = np.random.default_rng(0).normal(size=(2, 2, 12))
        assert index_scores(predicted[:1], observed[:1], "upstream")["c_nino34_m"] == 0
        assert math.isnan(index_scores(predicted[:1], observed[:1], "correct")["c_nino34_m"])
        two = index_scores(predicted, observed, "correct")
        assert all(abs(two[f"c_nino34_lead_{k}"]) == pytest.approx(1, rel=1e-12) for k in range(1, 13))

    @pytest.mark.parametrize("convention", CONVENTIONS)
    def test_no_verified_pixels_give_nan(self, convention: str) -> None:
        for options in ({}, {"t_out": 14}):
            metric = bench.load_metric("enso", convention=convention, **options)
            with pytest.warns(UserWarning, match="before"):
                found = metric.compute()
            assert all(math.isnan(found[key]) for key in ("c_nino34_m", "c_nino34_wm", "rmse_nino34"))
            assert ("c_nino34_lead_12" in found) == bool(options)


def test_epsilon_damps_small_variances_as_in_the_paper() -> None:
    observed = np.random.default_rng(0).normal(size=(9, 12))
    assert index_scores(1e-6 * observed, observed, "correct")["c_nino34_m"] == pytest.approx(1, rel=1e-9)
    assert index_scores(1e-6 * observed, observed, "upstream")["c_nino34_m"] < 0.95


def test_states_are_float64_and_small() -> None:
    metric = bench.load_metric("enso").half()
    forecast, target = _pair(windows=5)
    metric.update(forecast, target)
    assert all(part.dtype == torch.float64 and part.shape == (5, 12) for part in metric.forecast_index)
    assert metric.label_difference.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_all_dtypes_are_averaged_in_float64(dtype: torch.dtype) -> None:
    forecast, target = (side.to(dtype) for side in _pair())
    assert _scores(forecast, target) == _scores(forecast.double(), target.double())


def test_wrong_input_is_refused() -> None:
    for options in ({"convention": "x"}, {"t_out": 2}, {"months": 14}):
        with pytest.raises(ConfigError):
            bench.load_metric("enso", **options)
    forecast, target = _pair()
    for wrong in (
        (forecast[:, :, :-1], target[:, :, :-1]),
        (forecast[:, :2], target[:, :2]),
        (forecast, target[:, :-1]),
        (forecast, target, torch.zeros(9, 14)),
    ):
        with pytest.raises(ContractError):
            _scores(*wrong)
    metric = bench.load_metric("enso")
    metric.update(forecast, target)
    with pytest.raises(ContractError, match="counts 14 months, this batch has 13"):
        metric.update(forecast[:, 1:], target[:, 1:])
