from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import bench
from baselines.phydnet import PhyDNet
from baselines.vqvae import VQVAEStage
from bench.api import model_traits
from bench.cli.main import main
from bench.engine.reach import warn_of_values_out_of_reach


class _Sigmoid(nn.Module):
    forecast_range = (0.0, 1.0)


@pytest.mark.parametrize(
    ("values", "warns"),
    [
        (torch.rand(1000), False),
        (torch.full((1000,), 255.0), True),
        (torch.linspace(-0.04, 1.04, 1000), False),
        (torch.linspace(-3, 3, 1000), True),
        (torch.cat((torch.rand(999), torch.tensor([9.0]))), False),
        (torch.full((1000,), torch.nan), False),
    ],
)
def test_unreachable_target_values_warn(
    values: torch.Tensor, warns: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("earthbench"), "propagate", True)
    warn_of_values_out_of_reach(_Sigmoid(), values)
    assert ("cannot forecast them" in caplog.text) == warns
    warn_of_values_out_of_reach(nn.Identity(), values * 1e6)
    assert caplog.text.count("cannot forecast") == warns


def test_models_that_end_in_a_sigmoid_or_clamp_declare_their_range() -> None:
    for model in (PhyDNet, VQVAEStage):
        assert model_traits(model).forecast_range == (0.0, 1.0)


def test_training_on_an_unreachable_scale_warns(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "digits"
    assert main(["data", "make", "nbody_mnist", "--out", str(data), "--train", "2", "--val", "2", "--test", "2"]) == 0
    capsys.readouterr()
    words = ["run", "task=nbody_mnist", "model=phydnet", "model.conv_hidden=[16,64]", f"data.root={data}", "device=cpu"]
    words += ["train.max_steps=1", "progress=false", "picture=false", "train.loggers=[]", f"work={tmp_path / 'work'}"]
    words += [f"results.root={tmp_path / 'results'}", "train.val_every_epochs=2", "task.t_in=3", "task.t_out=2"]
    for scale, warns in (("true", False), ("false", True)):
        assert main([*words, f"task.rescale_01={scale}"]) == 0
        said = capsys.readouterr()
        assert ("forecasts of PhyDNet lie between 0 and 1" in said.out + said.err) == warns
    assert bench.load_table("earthformer/nbody_mnist").row("phydnet").task_options == {"rescale_01": True}
