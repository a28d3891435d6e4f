from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given
from hypothesis import strategies as st

import bench
from bench.errors import ConfigError, ContractError


def _score(name: str, forecast: torch.Tensor, target: torch.Tensor, **options) -> dict[str, float]:
    metric = bench.load_metric(name, **options)
    metric.update(forecast, target)
    return metric.compute()


def _pair(batch: int = 3, size: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand((batch, 4, size, size, 1), generator=generator) * 255 for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("size", [8, 130])
def test_agrees_with_torchmetrics_on_the_unit_scale(size: int) -> None:
    forecast, target = _pair(size=size)
    for name, theirs in (("mse", torchmetrics.MeanSquaredError()), ("mae", torchmetrics.MeanAbsoluteError())):
        expected = float(theirs(forecast.double() / 255, target.double() / 255))
        scores = _score(name, forecast, target)
        assert scores[name] == pytest.approx(expected, rel=1e-6)
        assert np.mean([scores[f"{name}_lead_{lead}"] for lead in range(1, 5)]) == pytest.approx(
            scores[name], rel=1e-12
        )


@pytest.mark.parametrize("target_dtype", [torch.uint8, torch.float32])
def test_large_frames_are_exact_to_round_off(target_dtype: torch.dtype) -> None:
    target = (_pair(2, size=256, seed=1)[0]).to(torch.uint8).to(target_dtype)
    forecast = _pair(2, size=256, seed=2)[0]
    error = (forecast.double() - target.double()) / 255
    for convention, tolerance in (("upstream", 3e-7), ("correct", 1e-12)):
        for name, expected in (("mse", error.square()), ("mae", error.abs())):
            found = _score(name, forecast, target, convention=convention)
            assert found[name] == pytest.approx(float(expected.mean()), rel=tolerance)
            assert found[f"{name}_lead_3"] == pytest.approx(float(expected[:, 2].mean()), rel=tolerance)


def test_large_frames_beyond_float32_have_a_finite_error() -> None:
    forecast, target = torch.zeros(1, 1, 256, 256, 1), torch.zeros(1, 1, 256, 256, 1)
    forecast[0, 0, 7, 7, 0], target[0, 0, 7, 7, 0] = 3e38, -3e38
    for convention in ("upstream", "correct"):
        expected = float(2 * torch.tensor(3e38).double()) ** 2 / 256**2
        assert _score("mse", forecast, target, convention=convention, scale=1.0)["mse"] == pytest.approx(expected)
    forecast[0, 0, 200, 7, 0] = math.nan
    assert math.isnan(_score("mse", forecast, target)["mse"]) and math.isnan(_score("mae", forecast, target)["mae"])
    assert _score("mae", forecast, target, convention="correct")["mae_pixel_count"] == 256**2 - 1


def test_large_frames_do_not_depend_on_batches() -> None:
    forecast, target = _pair(3, size=256)
    metric = bench.load_metric("mae")
    for part in zip(forecast.split(1), target.split(1), strict=True):
        metric.update(*part)
    assert metric.compute() == pytest.approx(_score("mae", forecast, target), rel=1e-14)


@pytest.mark.parametrize("convention", ["upstream", "correct"])
def test_large_frames_do_not_depend_on_memory_alignment(convention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forecast, target = _pair(4, size=256)
    if convention == "correct":
        forecast[:, :, 0, 0] = math.nan
    expected = _score("mae", forecast, target, convention=convention)
    anywhere, begins = np.empty, itertools.cycle(range(0, 64, 8))

    def empty(shape: tuple[int, ...] | int, dtype: type = float) -> np.ndarray:
        """Returns an array that begins a given number of bytes after a cache line."""
        raw = anywhere(int(np.prod(shape)) * np.dtype(dtype).itemsize + 128, np.uint8)
        start = -raw.ctypes.data % 64 + next(begins)
        return raw[start : len(raw) - 128 + start].view(dtype).reshape(shape)

    monkeypatch.setattr(np, "empty", empty)
    assert [_score("mae", forecast, target, convention=convention) for _ in range(8)] == 8 * [expected]


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_uneven_batches_give_the_overall_mean(sizes: list[int], seed: int) -> None:
    forecast, target = _pair(sum(sizes), seed=seed)
    metric = bench.load_metric("mse", t_out=4)
    for part in zip(forecast.split(sizes), target.split(sizes), strict=True):
        metric.update(*part)
    assert metric.compute()["mse"] == pytest.approx(_score("mse", forecast, target)["mse"], rel=1e-12)


def test_uint8_and_float_targets_score_the_same() -> None:
    forecast, target = _pair()
    assert _score("mse", forecast, target.to(torch.uint8)) == _score("mse", forecast, target.to(torch.uint8).float())


@pytest.mark.parametrize("hole", [math.nan, math.inf, -math.inf])
def test_missing_values_by_convention(hole: float) -> None:
    forecast, target = torch.full((1, 1, 2, 2, 1), 255.0), torch.zeros(1, 1, 2, 2, 1)
    forecast[0, 0, 0, 0, 0] = hole
    assert not math.isfinite(_score("mse", forecast, target)["mse"])
    correct = _score("mse", forecast, target, convention="correct")
    assert correct["mse"] == 1.0 and correct["mse_pixel_count"] == 3


def test_no_verified_pixels_give_nan() -> None:
    forecast, target = torch.full((1, 1, 2, 2, 1), math.nan), torch.zeros(1, 1, 2, 2, 1)
    assert math.isnan(_score("mae", forecast, target, convention="correct")["mae"])


def test_sums_are_float64() -> None:
    metric = bench.load_metric("mse", scale=1.0, t_out=1).half()
    metric.error_sum += 2.0**40
    metric.update(torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1))
    assert float(metric.error_sum) == 2.0**40 + 1


def test_wrong_input_is_refused() -> None:
    for options in ({"scale": 0}, {"scale": math.nan}, {"convention": "x"}, {"scales": 1}):
        with pytest.raises(ConfigError):
            bench.load_metric("mse", **options)
    with pytest.raises(ContractError):
        _score("mse", torch.zeros(1, 2, 3, 3, 1), torch.zeros(1, 2, 3, 4, 1))
