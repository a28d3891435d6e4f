"""The running average of weights: trained weights are averaged, everything else is copied from the model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import bench
from bench.config import Train
from bench.engine.forecaster import Forecaster
from bench.engine.weights import RunningAverage
from bench.errors import ContractError
from bench.testing import check_model


class _Everything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.trained_mask = nn.Parameter(torch.tensor([0.0, -math.inf]))
        self.mask = nn.Parameter(torch.tensor([0.0, -math.inf]), requires_grad=False)
        self.frozen = nn.Parameter(torch.tensor(5.0), requires_grad=False)
        self.index = nn.Parameter(torch.tensor([3, 4]), requires_grad=False)
        self.register_buffer("variance", torch.tensor(7.0))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("hidden", torch.tensor(math.inf), persistent=False)
        self.short = nn.Parameter(torch.tensor(1.0, dtype=torch.float16))


def test_only_trained_weights_are_averaged() -> None:
    model = _Everything()
    average = RunningAverage(model, decay=0.9)
    average.update(model, step=1)  # the first one copies
    with torch.no_grad():
        model.weight += 1
        model.short += 1
        model.frozen.fill_(6.0)
        model.index += 1
        model.mask[0] = -math.inf
        model.variance.fill_(8.0)
        model.count += 1
    average.update(model, step=2)
    kept = average.module
    torch.testing.assert_close(kept.weight, torch.tensor([1.1, 2.1]))
    torch.testing.assert_close(kept.short, torch.tensor(1.1, dtype=torch.float16))
    for name in ("trained_mask", "mask", "frozen", "index", "variance", "count", "hidden"):
        assert torch.equal(getattr(kept, name), getattr(model, name)), name


def test_the_average_of_constant_weights_is_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))
    average = RunningAverage(model, decay=0.999)
    for step in range(1, 50):
        average.update(model, step=step)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), average.state_dict().values(), strict=True)
    )


def test_batch_norm_statistics_are_those_of_the_model() -> None:
    model = nn.BatchNorm1d(3)
    average = RunningAverage(model, decay=0.5)
    for step in range(1, 4):
        model(torch.randn(8, 3))
        average.update(model, step=step)
    assert torch.equal(average.module.running_var, model.running_var)
    assert int(average.module.num_batches_tracked) == 3


def test_averaging_keeps_the_masks_of_rainformer() -> None:
    task = bench.load_task("icar_enso")
    model = bench.load_model("rainformer", task, hidden=16, downscale=(1, 2, 2, 2), heads=(2, 2, 4, 4), window=3)
    forecaster = Forecaster(model, task, Train(ema_decay=0.99), 10)
    for step in (1, 2, 3):
        forecaster.average.update(model, step=step)
    context = torch.randn(1, *task.input_shape)
    with torch.no_grad():
        assert torch.equal(forecaster.evaluated.eval()(context), model.eval()(context))


def test_a_model_with_state_that_cannot_be_averaged_breaks_the_contract() -> None:
    class CountsInAList(nn.Module):
        """Its forecast depends on state that cannot be averaged."""

        def __init__(self, input_shape, target_shape) -> None:
            super().__init__()
            self.scale, self.t_out, self.seen = nn.Parameter(torch.ones(1)), target_shape[0], 0.0

        def forward(self, context):
            self.seen += float(self.training)
            return context[:, -1:].repeat(1, self.t_out, 1, 1, 1) * self.scale + self.seen

    with pytest.raises(ContractError, match="running average"):
        check_model(CountsInAList)
