"""The energy metric: velocities from positions, tracking in frames, sums over batches."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import bench
from bench.data.nbody_mnist.simulation import cropped, energy, render, simulate
from bench.errors import ContractError
from bench.metrics.energy.metric import velocities_of
from bench.metrics.energy.tracking import track
from bench.metrics.families import FAMILIES


@pytest.fixture(scope="module")
def system() -> dict[str, np.ndarray]:
    """Six sequences of rings and bars, with the states of their last ten frames."""
    random = np.random.default_rng(3)
    images = np.zeros((6, 3, 28, 28), np.float32)
    y, x = np.mgrid[:28, :28]
    images[:, 0] = 255 * (np.abs(np.hypot(y - 14, x - 14) - 7) < 1.5)
    images[:, 1, 4:24, 12:16] = 255
    images[:, 2, 4:24, 6:10] = images[:, 2, 20:24, 6:20] = 255
    crops, sizes = cropped(images)
    corners = random.random((6, 3, 2)) * (128 - sizes)
    angles, speeds = random.uniform(0, 2 * math.pi, (6, 3)), random.uniform(0, 2, (6, 3))
    velocities = speeds[..., None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    motion = simulate(corners, velocities, sizes)
    frames = render(motion.corners, crops, sizes)
    return {
        "crops": crops, "frames": frames[:, 10:], "before": frames[:, 9:10], "corners": motion.corners[:, 9:],
        "velocities": motion.velocities[:, 9:], "energy": motion.energy()[:, 9:],
    }  # fmt: skip


def _arguments(system: dict[str, np.ndarray], forecast: np.ndarray) -> list[torch.Tensor]:
    state = np.stack([system["corners"][:, 0], system["velocities"][:, 0]], 1)
    target = torch.from_numpy(system["frames"])[..., None]
    return [torch.from_numpy(forecast)[..., None].float(), target, torch.from_numpy(system["crops"]),
            torch.from_numpy(state)]  # fmt: skip


def _scores(system: dict[str, np.ndarray], forecast: np.ndarray) -> dict[str, float]:
    metric = bench.load_metric("energy")
    metric.update(*_arguments(system, forecast))
    return metric.compute()


def test_velocities_are_exact_even_at_walls(system) -> None:
    found = velocities_of(system["corners"])
    error = np.abs(found - system["velocities"][:, 1:])
    assert np.quantile(error, 0.9) < 0.05
    straight = np.linspace([20.0, 30.0], [27.5, 15.0], 4)[None, :, None]  # alone: no pull, no wall
    np.testing.assert_allclose(velocities_of(straight), np.broadcast_to([0.5, -1.0], (1, 3, 1, 2)), atol=1e-12)


def test_a_bounce_between_frames_does_not_slow_a_digit() -> None:
    x = [100.0, 110.0, 116.0, 106.0, 96.0]  # 2 a sub-step; turned on the way to the third place
    found = velocities_of(np.stack([x, [50.0] * 5], -1)[None, :, None])
    assert np.abs(found[0, :, 0, 0]).tolist() == pytest.approx([2, 2, 2, 2])


def test_digits_are_located_to_sub_pixel_accuracy(system) -> None:
    frames, crops = torch.from_numpy(system["frames"]), torch.from_numpy(system["crops"])
    found = track(frames, crops, torch.from_numpy(system["corners"][:, 0]), farthest=10).numpy()
    error = np.abs(found - system["corners"][:, 1:]).max((-1, -2))
    assert np.median(error) < 0.6 and np.quantile(error, 0.9) < 2


def test_a_perfect_forecast_scores_as_the_observed_frames(system) -> None:
    found = _scores(system, system["frames"])
    assert found["e_mse"] == found["e_mse_target"] and found["e_mae"] == found["e_mae_target"]
    true = system["energy"][:, 1:] - system["energy"][:, :1]
    assert found["e_mae"] == pytest.approx(np.abs(true).mean(), abs=0.3)
    assert found["e_mse"] == pytest.approx(np.mean([found[f"e_mse_lead_{lead}"] for lead in range(1, 11)]))


def test_a_static_forecast_has_no_kinetic_energy(system) -> None:
    still = _scores(system, np.repeat(system["before"], 10, axis=1))
    kinetic = (system["velocities"][:, 0] ** 2).sum((-1, -2)) / 2
    assert still["e_mse_lead_5"] == pytest.approx(np.mean(kinetic**2), rel=0.35)
    assert still["e_mse"] > 3 * still["e_mse_target"]


def test_blank_frames_keep_the_last_positions(system) -> None:
    empty = torch.zeros(6, 2, 64, 64)
    start = torch.from_numpy(system["corners"][:, 0])
    found = track(empty, torch.from_numpy(system["crops"]), start, farthest=10)
    assert float((found - start[:, None]).abs().max()) <= 1.0  # half a pixel of the frame


def test_batches_accumulate_and_reset_clears(system) -> None:
    forecast = system["frames"] * 0.9
    whole = _scores(system, forecast)
    metric = bench.load_metric("energy", t_out=10)
    for _ in range(2):
        for part in zip(*(side.split([1, 3, 2]) for side in _arguments(system, forecast)), strict=True):
            metric.update(*part)
        assert metric.compute() == pytest.approx(whole, rel=1e-6)
        metric.reset()
    with pytest.warns(UserWarning, match="before"):
        assert all(math.isnan(value) for value in bench.load_metric("energy").compute().values())


def test_closed_form_of_two_still_digits() -> None:
    corners = np.array([[[20.0, 50.0], [50.0, 90.0]]])  # 50 pixels apart
    expected = 0.05 * math.sqrt(50**2 + 10**2)
    assert energy(corners, np.zeros_like(corners))[0] == pytest.approx(expected)
    assert energy(corners, np.full_like(corners, 1.5))[0] == pytest.approx(expected + 2 * 1.5**2)


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_a_non_finite_value_is_not_hidden(system, hole: float) -> None:
    forecast = system["frames"].copy()
    forecast[2, 3, 5, 5] = hole
    found = _scores(system, forecast)
    assert math.isnan(found["e_mse"]) and math.isnan(found["e_mae_lead_4"])
    assert not math.isnan(found["e_mae_lead_1"]) and not math.isnan(found["e_mse_target"])


def test_wrong_input_is_refused(system) -> None:
    forecast, target, crops, state = _arguments(system, system["frames"])
    metric = bench.load_metric("energy")
    for wrong in (
        (forecast[:, :5], target, crops, state), (forecast, target, crops[:, :2], state),
        (forecast, target, crops, state[:3]), (forecast, target, crops, state[..., :1]),
    ):  # fmt: skip
        with pytest.raises(ContractError):
            metric.update(*wrong)
    metric.update(forecast, target, crops, state)
    with pytest.raises(ContractError, match="counts 10 lead times, this batch has 5"):
        metric.update(forecast[:, :5], target[:, :5], crops, state)


def test_sums_per_event_reproduce_the_scores(system) -> None:
    metric = bench.load_metric("energy")
    metric.track_events(2)
    forecast, *rest = _arguments(system, system["frames"][:, ::-1].copy())
    for first, last in ((0, 1), (1, 6)):
        parts = [part[first:last] for part in (forecast, *rest)]
        metric.update(*parts, events=torch.tensor([0, 0, 0, 1, 1, 1])[first:last])
    arrays = metric.event_statistics()
    assert all(values.shape == (2, 10) for values in arrays.values())
    again = FAMILIES[metric.family]({name: values.sum(0) for name, values in arrays.items()}, metric.score_options())
    assert {name: float(value) for name, value in again.items()} == pytest.approx(metric.compute(), rel=1e-12)
    alone = bench.load_metric("energy")
    alone.update(*(part[3:] for part in (forecast, *rest)))
    of_second = FAMILIES["energy"]({name: values[1] for name, values in arrays.items()}, {})
    assert float(of_second["e_mse"]) == pytest.approx(alone.compute()["e_mse"], rel=1e-6)


def test_every_metric_with_sums_per_event_has_a_score_family() -> None:
    from bench import registry

    classes = {name: registry.find("metric", name).load() for name in registry.names("metric")}
    families = {name: cls.family for name, cls in classes.items() if getattr(cls, "takes_events", False)}
    assert {"skill", "mse", "mae", "frames", "enso", "probabilistic", "energy"} <= families.keys()
    assert set(families.values()) <= FAMILIES.keys()
