"""Models fitted in closed form against numpy's means and regressions, and one in a whole run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from logged import logged

from baselines.climatology import Climatology
from baselines.damped_persistence import DampedPersistence
from baselines.linear_inverse import LinearInverse
from bench.config import compose
from bench.engine.run import run
from bench.errors import DataError

SHAPES = (3, 4, 5, 1), (2, 4, 5, 1)


def _batches(seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = np.random.default_rng(seed)
    found = []
    for size in (7, 1, 12):
        context = random.normal(0.6, 0.1, (size, 3, 4, 5, 1)).astype(np.float32)
        target = 0.2 + 0.5 * context[:, -1:] + random.normal(0, 0.05, (size, 2, 4, 5, 1)).astype(np.float32)
        context[:, :, 0, 0], target[:, :, 0, 0] = 0.6187, 0.6187  # land
        found.append((torch.from_numpy(context), torch.from_numpy(target)))
    return found


def test_climatology_is_the_mean_of_known_targets() -> None:
    batches = _batches()
    batches[0][1][2:4, 1, 1, 1] = torch.nan
    batches[2][1][:, :, 2, 2] = batches[0][1][:, :, 2, 2] = batches[1][1][:, :, 2, 2] = torch.nan
    model = Climatology(*SHAPES)
    model.fit(iter(batches))
    targets = torch.cat([target for _, target in batches]).numpy()
    expected = np.nan_to_num(np.nanmean(targets.reshape(-1, 4, 5, 1).astype(np.float64), 0))
    forecast = model(batches[0][0])
    assert forecast.shape == (7, 2, 4, 5, 1)
    np.testing.assert_allclose(forecast[3, 1], expected, atol=1e-6)


@pytest.mark.parametrize("slopes", ["cell", "global"])
def test_damped_persistence_is_the_least_squares_line(slopes: str) -> None:
    batches = _batches()
    batches[0][1][2:4, 1, 1, 1] = torch.nan
    model = DampedPersistence(*SHAPES, slopes=slopes)
    assert torch.equal(model(batches[0][0]), batches[0][0][:, -1:].repeat(1, 2, 1, 1, 1)), "not fitted: persistence"
    model.fit(iter(batches))
    last = torch.cat([context for context, _ in batches])[:, -1].double().numpy()
    targets = torch.cat([target for _, target in batches]).double().numpy()
    for lead in range(2):
        lines, shared = {}, [0.0, 0.0]
        for cell in np.ndindex(4, 5):
            x, y = last[:, *cell, 0], targets[:, lead, *cell, 0]
            x, y = x[np.isfinite(y)], y[np.isfinite(y)]
            shared[0] += ((x - x.mean()) * (y - y.mean())).sum()
            shared[1] += ((x - x.mean()) ** 2).sum()
            lines[cell] = np.polyfit(x, y, 1) if cell != (0, 0) else (0.0, y.mean()), x.mean(), y.mean()
        for cell, ((slope, intercept), x_mean, y_mean) in lines.items():
            if slopes == "global" and cell != (0, 0):
                slope = shared[0] / shared[1]
                intercept = y_mean - slope * x_mean
            assert float(model.slope[lead, *cell, 0]) == pytest.approx(slope, abs=1e-4)
            assert float(model.intercept[lead, *cell, 0]) == pytest.approx(intercept, abs=1e-4)
    with pytest.raises(ValueError, match="'cell' or 'global'"):
        DampedPersistence(*SHAPES, slopes="row")


def _spiral(frames: int, seed: int) -> torch.Tensor:
    """Returns (T, 4, 5, 1): two patterns that rotate into each other and decay, restarted every ten frames."""
    random = np.random.default_rng(seed)
    patterns = np.linalg.qr(random.normal(size=(20, 2)))[0]
    turn = 0.9 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    states = [random.normal(size=2)]
    for _ in range(1, frames):
        states.append(turn @ states[-1])
    return torch.from_numpy((np.array(states) @ patterns.T).reshape(frames, 4, 5, 1)).float()


@pytest.mark.parametrize("modes", [2, 6], ids=["as many as there are", "more than there are"])
def test_linear_inverse_recovers_a_linear_system(modes: int) -> None:
    model = LinearInverse((3, 4, 5, 1), (5, 4, 5, 1), modes=modes)
    clips = torch.stack([_spiral(8, 0) * scale for scale in (1.0, -1.0, 0.5, -0.5)])  # of mean zero
    assert not model(clips[:, :3]).any(), "not fitted: zeros"
    model.fit([(clips[:, :3], clips[:, 3:])])
    torch.testing.assert_close(model(clips[:, :3]), clips[:, 3:], atol=1e-5, rtol=0)


def test_linear_inverse_is_the_regression_of_consecutive_frames() -> None:
    random = np.random.default_rng(1)
    clips = random.normal(0.6, 1, (40, 5, 4, 5, 1)).cumsum(1) * np.linspace(0.2, 2, 20).reshape(4, 5, 1)
    clips[3, 2, 1, 1] = np.nan
    tensor = torch.from_numpy(clips)
    model = LinearInverse(*SHAPES, modes=20).double()  # all of them: no truncation, so plain least squares
    model.fit(iter([(part[:, :3], part[:, 3:]) for part in tensor.split(7)]))
    before, after = (frames.reshape(-1, 20) for frames in (clips[:, :-1], clips[:, 1:]))
    known = np.isfinite(before).all(1) & np.isfinite(after).all(1)
    before, after = before[known], after[known]
    mean = (before.mean(0) + after.mean(0)) / 2
    law = np.linalg.lstsq(before - before.mean(0), after - after.mean(0), rcond=None)[0]
    last = clips[:, 2].reshape(-1, 20)[known.reshape(40, 4)[:, 2]]
    found = model(torch.from_numpy(last.reshape(-1, 1, 4, 5, 1)).expand(-1, 3, -1, -1, -1)).numpy()
    for lead in (1, 2):
        expected = mean + (last - mean) @ np.linalg.matrix_power(law, lead)
        np.testing.assert_allclose(found[:, lead - 1].reshape(-1, 20), expected, atol=1e-9)


def test_linear_inverse_refuses_data_it_cannot_fit() -> None:
    with pytest.raises(ValueError, match="147456 values"):
        LinearInverse((13, 384, 384, 1), (12, 384, 384, 1))
    with pytest.raises(ValueError, match="at most the 20 values of a frame, got 21"):
        LinearInverse(*SHAPES, modes=21)
    with pytest.raises(ValueError, match="positive sizes"):
        LinearInverse(*SHAPES, modes=0)
    with pytest.raises(ValueError, match="free of NaN"):
        LinearInverse(*SHAPES).fit([(torch.full((2, 3, 4, 5, 1), torch.nan), torch.full((2, 2, 4, 5, 1), torch.nan))])


@pytest.mark.slow
def test_a_run_fits_records_and_reuses_the_checkpoint(storms: Path, tmp_path: Path) -> None:
    options = ["task=sevir", "model=climatology", f"data.root={storms}", f"results.root={tmp_path / 'results'}",
               f"work={tmp_path / 'work'}", "device=cpu", "progress=false", "picture=false"]  # fmt: skip
    with logged() as lines:
        records = [run(compose(options), training=True).record for _ in range(2)]
    assert records[0].training is not None and records[0].training.stopped_because == "fitted in closed form"
    assert records[0].scope == "full" and records[0].scores["mse"] == records[1].scores["mse"]
    assert records[0].checkpoint_sha256 == records[1].checkpoint_sha256 is not None
    assert any("its weights are used" in line for line in lines)
    untrained = run(compose(options), training=False).record
    assert untrained.scope == "partial" and untrained.scope_because == "untrained weights"


def test_data_refused_by_a_model_give_one_error(storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("nothing but NaN")

    monkeypatch.setattr(Climatology, "fit", refuse)
    options = ["task=sevir", "model=climatology", f"data.root={storms}", f"results.root={tmp_path / 'results'}",
               f"work={tmp_path / 'work'}", "device=cpu", "progress=false", "picture=false"]  # fmt: skip
    with pytest.raises(DataError, match=r"Climatology cannot be fitted to the training data of sevir: nothing but NaN"):
        run(compose(options), training=True)
