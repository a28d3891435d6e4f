"""Tests that need a GPU: the same counts, the same units, a training step in mixed precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bench
from bench.config import compose
from bench.engine.run import run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def test_every_code_round_trips_through_the_unit_scale() -> None:
    task = bench.load_task("sevir")
    codes = torch.arange(256, dtype=torch.uint8, device="cuda").view(1, 16, 16, 1)
    assert torch.equal(task.denormalise(task.normalise(codes)).flatten()[:255].cpu(), torch.arange(255.0))


@pytest.mark.parametrize("convention", ["upstream", "correct"])
def test_counts_equal_those_of_the_cpu(convention: str) -> None:
    generator = torch.Generator().manual_seed(0)
    forecast = torch.rand((3, 4, 33, 20, 1), generator=generator) * 300 - 20
    target = torch.randint(0, 256, forecast.shape, generator=generator).float()
    forecast[0, 0, 0, 0, 0], target[1, 1, 1, 1, 0] = float("nan"), float("nan")
    states = []
    for device in ("cpu", "cuda"):
        metric = bench.load_metric("skill", convention=convention).to(device)
        metric.update(forecast.to(device), target.to(device))
        states.append(metric.counts())
    assert states[0] == states[1]


def test_a_run_in_mixed_precision_ends_with_a_record(storms: Path, tmp_path: Path) -> None:
    overrides = [
        "model=unet", "model.channels=[8]", "model.center_channels=16", "train.max_epochs=1", "device=cuda",
        "train.precision=bf16-mixed", "progress=false", "picture=false", f"data.root={storms}",
        f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}",
    ]  # fmt: skip
    record = run(compose(overrides), training=True).record
    assert record.status == "ok" and record.hardware["accelerator"]
