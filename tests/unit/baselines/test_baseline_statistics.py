"""Climatology and damped persistence against numpy's own means and regressions, and through a whole run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.climatology import Climatology
from baselines.damped_persistence import DampedPersistence
from bench.config import compose
from bench.running.pipeline import run

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


@pytest.mark.slow
def test_a_run_fits_records_and_uses_the_checkpoint_again(storms: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    options = ["task=sevir", "model=climatology", f"data.root={storms}", f"results.root={tmp_path / 'results'}",
               f"work={tmp_path / 'work'}", "device=cpu", "progress=false", "picture=false"]  # fmt: skip
    records = [run(compose(options), training=True, say=lines.append).record for _ in range(2)]
    assert records[0].training is not None and records[0].training.stopped_because == "fitted in closed form"
    assert records[0].scope == "full" and records[0].scores["mse"] == records[1].scores["mse"]
    assert records[0].checkpoint_sha256 == records[1].checkpoint_sha256 is not None
    assert any("its weights are used" in line for line in lines)
    untrained = run(compose(options), training=False, say=lines.append).record
    assert untrained.scope == "partial" and untrained.scope_because == "untrained weights"
