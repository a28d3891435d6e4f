"""The gradient of an optimiser step is that of its batch, however it is split over micro-batches and processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from faults import tiny
from torch import Tensor, nn

from bench.data.loading import EpochOrder, MicroBatches
from bench.data.sevir.synthetic import make_sevir
from bench.engine.accumulation import Accumulation, scale_gradients, uses_batch_statistics
from bench.engine.losses import masked_mse
from bench.engine.run import run

PIXELS = 6
_SHORT = ["task.t_in=3", "task.t_out=2", "task.stride=20"]


class _Scaled(nn.Module):
    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.loss_reduction = reduction
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        forecast = self.weight[0] * x + self.weight[1]
        if self.loss_reduction == "sum":
            return (forecast - y).masked_fill(y.isnan(), 0).square().sum()
        return masked_mse(forecast, y)


def _gradients(reduction: str, x: Tensor, y: Tensor, micro_batch: int, world: int) -> list[Tensor]:
    """Returns the gradient of each step of an epoch: divided as Lightning does, averaged over processes as DDP does."""
    model = _Scaled(reduction)
    optimizer = torch.optim.SGD(model.parameters())
    cut = [MicroBatches(EpochOrder(len(x), 0), 8, micro_batch, rank, world) for rank in range(world)]
    adding = [Accumulation(model, batches) for batches in cut]
    found = []
    rounds = list(zip(*cut, strict=True))
    for number, of_all in enumerate(rounds):
        for rank, indices in enumerate(of_all):
            own = y[indices]
            loss = adding[rank].weighted(model.loss(x[indices], own), number, (~own.isnan()).sum(), PIXELS)
            (loss / cut[rank].per_step / world).backward()
        if (number + 1) % cut[0].per_step and number + 1 < len(rounds):
            continue
        if adding[0].needed and reduction == "mean":
            total = sum(one._known for one in adding[1:]) if world > 1 else 0
            adding[0]._known = adding[0]._known + total
            for one in adding:
                one.batches = MicroBatches(one.batches.sampler, 8, micro_batch, 0, 1) if world > 1 else one.batches
            factor = adding[0].correction()
            for one, batches in zip(adding, cut, strict=True):
                one.batches, one._known = batches, None
            assert factor is not None
            scale_gradients(optimizer, factor)
        assert model.weight.grad is not None
        found.append(model.weight.grad.clone())
        model.weight.grad = None
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("missing", [False, True])
def test_gradients_of_micro_batches_sum_to_those_of_the_batch(
    reduction: str, micro_batch: int, world: int, missing: bool
) -> None:
    """19 sequences in steps of 8, 8 and 3; the closed form is the gradient of one loss over a step's sequences."""
    draws = torch.Generator().manual_seed(1)
    x, y = torch.randn((2, 19, PIXELS), generator=draws, dtype=torch.float64)
    if missing:
        y = y.masked_fill(torch.rand(y.shape, generator=draws) < 0.4, torch.nan)
    order = list(EpochOrder(19, 0))
    found = _gradients(reduction, x, y, micro_batch, world)
    for step, gradient in zip(range(0, 19, 8), found, strict=True):
        chosen = order[step : step + 8]
        model = _Scaled(reduction)
        model.loss(x[chosen], y[chosen]).backward()
        torch.testing.assert_close(gradient, model.weight.grad, rtol=1e-6, atol=1e-9)


def test_gradients_without_missing_pixels_are_not_corrected() -> None:
    batches = MicroBatches(EpochOrder(6, 0), 6, 2)
    accumulation = Accumulation(nn.Linear(1, 1), batches)
    for number in range(3):
        assert float(accumulation.weighted(torch.tensor(0.7), number, torch.tensor(2 * 30), 30)) == pytest.approx(0.7)
    assert float(accumulation.correction()) == 1  # type: ignore[arg-type]


def test_models_with_batch_statistics_are_detected() -> None:
    class Says(nn.Linear):
        uses_batch_statistics = True

    assert uses_batch_statistics(nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
    assert uses_batch_statistics(Says(1, 1)) and not uses_batch_statistics(nn.GroupNorm(1, 1))


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storms of a size that ConvLSTM supports."""
    out = tmp_path_factory.mktemp("storms24") / "sevir"
    return make_sevir(out, events={"train": 4, "val": 2, "test": 3}, size=24, seed=1)


def _trained(storms: Path, out: Path, *overrides: str) -> tuple[Any, dict[str, Tensor]]:
    words = [*_SHORT, "data.batch_size=5", "train.max_epochs=2", "train.lr=1e-3", *overrides]
    record = run(tiny(storms, out, *words), training=True).record
    (path,) = out.glob("work/*/*/*/checkpoints/last.ckpt")
    return record, torch.load(path)["state_dict"]


def test_training_does_not_depend_on_the_micro_batch(storms: Path, tmp_path: Path) -> None:
    model = ["model=convlstm", "model.hidden=[4,4,4]"]
    whole, expected = _trained(storms, tmp_path / "whole", *model)
    for size in (1, 2, 3):
        record, found = _trained(storms, tmp_path / str(size), *model, f"data.micro_batch={size}")
        assert all(torch.allclose(found[key], expected[key], rtol=1e-4, atol=1e-6) for key in expected), size
        assert record.training.micro_batch == record.micro_batch == size
        assert record.training.identity.name == whole.training.identity.name
        assert record.config_fingerprint == whole.config_fingerprint and record.training.steps == whole.training.steps


def test_the_micro_batch_is_part_of_the_identity_with_batch_statistics(storms: Path, tmp_path: Path) -> None:
    model = ["model=unet", "model.channels=[4]", "model.center_channels=8"]
    whole, _ = _trained(storms, tmp_path, *model)
    split = run(
        tiny(storms, tmp_path, *_SHORT, *model, "data.batch_size=5", "data.micro_batch=2", "train.max_epochs=2"),
        training=True,
        again=False,
    ).record
    assert whole.training.identity.settings["data"]["micro_batch"] == 5 == whole.training.micro_batch
    assert split.training is not None and split.training.identity is not None
    assert split.training.identity.settings["data"]["micro_batch"] == 2
    assert split.training.identity.name != whole.training.identity.name and split.run_id != whole.run_id
