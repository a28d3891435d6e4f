"""Widths for a target number of parameters: results of `model.target_params` for every model with widths."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import bench
from bench import registry
from bench.config import check_hyperparameters
from bench.errors import ConfigError
from bench.model_sizes import widths_for
from bench.models import load_model, made_from

_ABLE = [name for name in registry.names("model") if registry.find("model", name).card().widths]
_UNABLE = [name for name in registry.names("model") if name not in _ABLE]
# Widths in groups, or so small that one more makes a large difference, cannot reach every size.
_COARSE = {"earthformer", "earthformer_no_global", "earthformer_released", "phydnet", "rainformer", "simvp", "tau"}
_TASKS = ("nbody_mnist", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sevir_lr", "icar_enso")))


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("task", _TASKS)
@pytest.mark.parametrize("name", _ABLE)
def test_every_trainable_model_is_sized_within_ten_per_cent(name: str, task: str) -> None:
    target = 500_000
    try:
        model = _without_values(name, task, target_params=target)
    except ConfigError as error:
        nearest = re.search(r"have (\d+) parameters", str(error))
        assert name in _COARSE and nearest is not None
        target = int(nearest[1])
        model = _without_values(name, task, target_params=target)
    assert abs(_size(model) - target) <= 0.1 * target
    found = made_from(model).hyperparameters
    assert "target_params" not in found
    assert _size(_without_values(name, task, **found)) == _size(model)


def _without_values(name: str, task: str, **hyperparameters: object) -> nn.Module:
    with torch.device("meta"):
        return load_model(name, bench.load_task(task), **hyperparameters)


def test_deterministic_models_of_the_tables_can_be_sized() -> None:
    assert {"convlstm", "e3d_lstm", "earthformer", "phydnet", "predrnn", "rainformer", "simvp", "tau", "unet"} <= {
        *_ABLE
    }


def test_a_sized_model_starts_with_the_same_weights() -> None:
    task = bench.load_task("nbody_mnist")
    torch.manual_seed(0)
    aimed = load_model("unet", task, target_params=100_000)
    torch.manual_seed(0)
    plain = load_model("unet", task, **made_from(aimed).hyperparameters)
    for key, value in plain.state_dict().items():
        assert torch.equal(aimed.state_dict()[key], value)


def test_given_widths_set_the_proportions() -> None:
    model = load_model("convlstm", bench.load_task("nbody_mnist"), hidden=[1, 2], strides=[2, 2], conv_kernels=[3, 3],
                       deconv_kernels=[4, 4], target_params=300_000)  # fmt: skip
    fine, coarse = made_from(model).hyperparameters["hidden"]
    assert coarse == pytest.approx(2 * fine, abs=1)
    assert abs(_size(model) - 300_000) <= 30_000


@pytest.mark.parametrize("target", [0, -1, True, 1.5, "350k"])
def test_an_invalid_size_is_refused(target: object) -> None:
    with pytest.raises(ConfigError, match=r"target_params must be a positive integer"):
        load_model("unet", bench.load_task("nbody_mnist"), target_params=target)


def test_an_unreachable_size_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"target_params=3: no widths .* nearest, hidden=\d+, have \d+ parameters"):
        load_model("rainformer", bench.load_task("nbody_mnist"), target_params=3)


@pytest.mark.parametrize("name", _UNABLE)
def test_models_without_widths_refuse_a_target_size(name: str) -> None:
    with pytest.raises(ConfigError, match="target_params"):
        check_hyperparameters(name, {"target_params": 1000})


def test_widths_refused_by_the_model_are_skipped() -> None:
    def make(widths: dict[str, int]) -> nn.Module:
        if widths["width"] % 8:
            raise ValueError("width must be divisible by 8")
        return nn.Linear(widths["width"], widths["width"], bias=False)

    assert widths_for(40 * 40, {"width": 1}, {"width": 8}, make) == {"width": 40}
