"""Seasonal regression against known laws, and cross-validation of the linear inverse model's modes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from baselines.linear_inverse import LinearInverse
from baselines.seasonal_regression import SeasonalRegression

T_IN, T_OUT, CELLS = 3, 2, (4, 5)
SHAPES = (T_IN, *CELLS, 3), (T_OUT, *CELLS, 1)
MONTHS = 12


def _season(last: np.ndarray) -> np.ndarray:
    """Sine and cosine `(N,T_in,2)` of contexts whose last frames are in these months."""
    months = last[:, None] + np.arange(1 - T_IN, 1)
    return np.stack([np.sin(2 * np.pi * months / 12), np.cos(2 * np.pi * months / 12)], -1)


def _with_season(frames: np.ndarray, last: np.ndarray) -> Tensor:
    season = np.broadcast_to(_season(last)[:, :, None, None], (*frames.shape, 2))
    return torch.from_numpy(np.concatenate([frames[..., None], season], -1)).float()


def _windows(count: int, factor: np.ndarray, noise: float = 0.0) -> tuple[Tensor, Tensor, np.ndarray]:
    """One pattern whose amplitude one and two months ahead is `factor[month]` and its square times the present one."""
    random = np.random.default_rng(0)
    pattern = np.full(CELLS, 1 / np.sqrt(20))
    now = np.tile(random.normal(size=count), 2)
    now[count:] *= -1  # of mean zero
    last = np.tile(np.arange(count) % MONTHS, 2)
    before = np.repeat(now[:, None], T_IN, 1)
    after = now[:, None] * factor[last][:, None] ** np.arange(1, T_OUT + 1)
    frames = np.concatenate([before, after], 1)[..., None, None] * pattern
    frames += noise * random.normal(size=frames.shape)
    return _with_season(frames[:, :T_IN], last), torch.from_numpy(frames[:, T_IN:, ..., None]).float(), last


def test_each_calendar_month_has_its_own_regression() -> None:
    factor = np.linspace(-0.9, 1.2, MONTHS)
    context, target, _ = _windows(240, factor)
    model = SeasonalRegression(*SHAPES, modes=1, ridge=0)
    assert not model(context).any(), "not fitted: zeros"
    model.fit([(context[:100], target[:100]), (context[100:], target[100:])])
    torch.testing.assert_close(model(context), target, atol=1e-5, rtol=0)
    turned = SeasonalRegression((T_IN, *CELLS, 1), (T_OUT, *CELLS, 1), modes=1, ridge=0, seasons=1)
    turned.fit([(context[..., :1], target)])
    assert (turned(context[..., :1]) - target).square().mean() > 0.2 * target.square().mean()


def test_the_ridge_is_in_units_of_the_variance_of_an_amplitude() -> None:
    context, target, last = _windows(240, np.full(MONTHS, 0.5))
    plain, ridge = (SeasonalRegression(*SHAPES, modes=1, ridge=each) for each in (0.0, 0.3))
    for model in (plain, ridge):
        model.fit([(context, target)])
    frames = torch.cat([context[..., :1], target], 1).double().sum((2, 3, 4)) / 20**0.5
    variance = frames.square().mean()
    for month in (0, 5, 11):
        mine = frames[torch.from_numpy(last == month)][:, T_IN - 1].square().mean()
        share = (ridge.laws[month] / plain.laws[month]).double()
        torch.testing.assert_close(
            share, torch.full_like(share, float(mine / (mine + 0.3 * variance))), rtol=1e-5, atol=0
        )


def test_the_residual_of_the_patterns_is_damped_persistence_per_cell() -> None:
    random = np.random.default_rng(1)
    context, target, last = _windows(240, np.full(MONTHS, 0.9))
    damping = np.linspace(0, 1, 20).reshape(CELLS)
    rest = 1e-3 * random.normal(size=(len(last), *CELLS))
    rest -= rest.mean((0, 1, 2)) + (rest.mean((1, 2), keepdims=True) - rest.mean((0, 1, 2)))
    context[:, -1, ..., 0] += torch.from_numpy(rest)
    target[:, :, ..., 0] += torch.from_numpy(rest[:, None] * damping)
    model = SeasonalRegression(*SHAPES, modes=1, ridge=0)
    model.fit([(context, target)])
    np.testing.assert_allclose(model.slopes[0].reshape(CELLS), damping, atol=0.1)


def test_windows_with_gaps_and_months_without_windows() -> None:
    context, target, last = _windows(240, np.linspace(-0.9, 1.2, MONTHS))
    without = torch.from_numpy(last != 7)
    model, other = SeasonalRegression(*SHAPES, modes=1), SeasonalRegression(*SHAPES, modes=1)
    model.fit([(context[without], target[without])])
    holed = target.clone()
    holed[~without, 1, 2, 2] = torch.nan
    other.fit([(context, holed)])
    for key, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key].abs(), value.abs())
    assert not model.laws[7].any() and model(context[~without]).std() < 1e-3
    with pytest.raises(ValueError, match="no window of the training data is free of NaN"):
        SeasonalRegression(*SHAPES).fit([(context, torch.full_like(target, torch.nan))])


@pytest.mark.parametrize(
    ("shapes", "options", "words"),
    [
        (((3, 4, 5, 1), (2, 4, 5, 1)), {}, r"3 channels \(two of them the season: set task.calendar=true\), got 1"),
        (SHAPES, {"seasons": 4}, "seasons must be 1 or 12"),
        (SHAPES, {"ridge": -1}, "ridge must be 0 or more"),
        (SHAPES, {"modes": 21}, "got 20 values"),
        (((13, 384, 384, 3), (12, 384, 384, 1)), {}, "got 147456 values"),
    ],
)
def test_impossible_options_are_refused(shapes: tuple, options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SeasonalRegression(*shapes, **options)


class TestModesOfTheLinearInverseModel:
    @staticmethod
    def _record(months: int, persistent: int, seed: int = 0) -> Tensor:
        """Windows of 5 frames of 20 cells: `persistent` lasting patterns, and white noise in all cells."""
        random = np.random.default_rng(seed)
        patterns = np.linalg.qr(random.normal(size=(20, 20)))[0][:, :persistent]
        state, series = np.zeros(persistent), []
        for _ in range(months):
            state = 0.95 * state + 0.3 * random.normal(size=persistent)
            series.append(state @ patterns.T + 0.3 * random.normal(size=20))
        record = torch.from_numpy(np.array(series)).float()
        return record.unfold(0, 5, 1).movedim(-1, 1).reshape(-1, 5, 4, 5, 1)

    def test_auto_picks_the_modes_with_the_least_validation_error(self) -> None:
        windows = self._record(300, persistent=5)
        model = LinearInverse((3, 4, 5, 1), (2, 4, 5, 1), modes="auto")
        assert model.candidates == (3, 5, 8, 10, 15, 20)
        model.fit([(part[:, :3], part[:, 3:]) for part in windows.split(64)])
        assert int(model.modes) == 5
        fixed = LinearInverse((3, 4, 5, 1), (2, 4, 5, 1), modes=5)
        fixed.fit([(windows[:, :3], windows[:, 3:])])
        torch.testing.assert_close(model(windows[:9, :3]), fixed(windows[:9, :3]), atol=1e-5, rtol=1e-5)
        again = LinearInverse((3, 4, 5, 1), (2, 4, 5, 1), modes="auto")
        again.load_state_dict(model.state_dict())
        assert int(again.modes) == 5 and torch.equal(again(windows[:9, :3]), model(windows[:9, :3]))

    def test_too_few_windows_are_refused(self) -> None:
        windows = self._record(12, persistent=3)
        with pytest.raises(ValueError, match="modes=auto needs more than 8 windows of 5 frames"):
            LinearInverse((3, 4, 5, 1), (2, 4, 5, 1), modes="auto").fit([(windows[:, :3], windows[:, 3:])])

    def test_old_checkpoints_load(self) -> None:
        assert set(LinearInverse((3, 4, 5, 1), (2, 4, 5, 1)).state_dict()) == {"mean", "eofs", "propagators"}
