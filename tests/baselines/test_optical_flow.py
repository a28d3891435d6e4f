"""Optical flow against fields whose motion is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.optical_flow import OpticalFlow
from bench.cost import count_model
from bench.errors import NotCountableError


def _moving(velocity: tuple[float, float], frames: int) -> Tensor:
    """Four smooth cells that move by `(rows, columns)` a frame: `(1, frames, 64, 64, 1)`."""
    rows, columns = np.mgrid[:64, :64]
    fields = [
        sum(
            np.exp(-((rows - y - velocity[0] * t) ** 2 + (columns - x - velocity[1] * t) ** 2) / 30)
            for y, x in ((24, 22), (38, 27), (29, 42), (40, 44))
        )
        for t in range(frames)
    ]
    return torch.from_numpy(np.stack(fields)[None, ..., None].astype(np.float32))


@pytest.mark.parametrize("velocity", [(0.0, 2.0), (1.0, -1.5), (-1.0, 0.5)])
def test_a_steadily_moving_field_is_extrapolated(velocity: tuple[float, float]) -> None:
    frames = _moving(velocity, 8)
    forecast = OpticalFlow((5, 64, 64, 1), (3, 64, 64, 1))(frames[:, :5])
    error, of_persistence = (((x - frames[:, 5:]) ** 2).mean() for x in (forecast, frames[:, 4:5]))
    assert error < 1e-3 * of_persistence
    assert forecast.dtype == torch.float32


def test_each_channel_and_each_sequence_has_its_own_motion() -> None:
    east, north = _moving((0, 2), 7), _moving((1, 0), 7)
    both = torch.cat([torch.cat([east, north], -1), torch.cat([north, east], -1)])
    forecast = OpticalFlow((4, 64, 64, 2), (3, 64, 64, 2))(both[:, :4])
    single = OpticalFlow((4, 64, 64, 1), (3, 64, 64, 1))
    torch.testing.assert_close(forecast[1, ..., :1], single(north[:, :4])[0])
    torch.testing.assert_close(forecast[1, ..., 1:], single(east[:, :4])[0])


def test_inflow_and_missing_pixels_take_the_minimum() -> None:
    frames = _moving((0, 3), 5) + 0.25
    frames[:, :, :8] = torch.nan
    forecast = OpticalFlow((5, 64, 64, 1), (4, 64, 64, 1))(frames)
    assert torch.isfinite(forecast).all()
    torch.testing.assert_close(forecast.min(), torch.nan_to_num(frames[:, -1], nan=1).min())
    assert torch.equal(forecast[:, :, :, 0], forecast.min().expand(1, 4, 64, 1)), "nothing came over the western border"


@pytest.mark.parametrize("value", [0.0, 0.7, float("nan")])
def test_a_featureless_field_does_not_move(value: float) -> None:
    forecast = OpticalFlow((3, 16, 16, 1), (2, 16, 16, 1))(torch.full((2, 3, 16, 16, 1), value))
    assert torch.equal(forecast, torch.full((2, 2, 16, 16, 1), 0.0 if value != value else value))


def test_one_frame_has_no_motion() -> None:
    with pytest.raises(ValueError, match="two frames or more, got frames=3, t_in=1"):
        OpticalFlow((1, 8, 8, 1), (2, 8, 8, 1))


def test_the_cost_is_unknown_rather_than_zero() -> None:
    with pytest.raises(NotCountableError, match="OpenCV"):
        count_model(OpticalFlow((3, 8, 8, 1), (2, 8, 8, 1)), (3, 8, 8, 1))
