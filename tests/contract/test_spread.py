"""After ten training steps on noise, forecasts of every trainable model still differ between windows.

Only the mean can be learnt from noise, which takes more than ten steps. A model whose forecasts are equal by then has
saturated gates or norms, and could not recover with any data.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import registry
from bench.engine.losses import masked_mse

CONTEXT, TARGET = (3, 32, 32, 1), (2, 32, 32, 1)
STEPS, WINDOWS = 10, 3
SPREAD = 1e-2
"""Standard deviation between windows, mean over pixels; noise has 1."""
# Small, but with the default depth, as the problem was found in deep stacks.
_OPTIONS: dict[str, dict[str, Any]] = {
    "e3d_lstm": {"hidden": (8,) * 4},
    "unet": {"channels": (4, 8, 8, 16), "center_channels": 32},
}
_SLOW = {"prediff", "prediff_ka"}


def _trains(name: str) -> bool:
    model_class = registry.find("model", name).load()
    # Statistical forecasts are fitted; optical flow and persistence have nothing to train.
    return not hasattr(model_class, "fit") and any(True for _ in _made(name).parameters())


def _made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model_class = registry.find("model", name).load()
    return model_class(
        CONTEXT, TARGET, **{**getattr(model_class, "presets", {}).get("tiny", {}), **_OPTIONS.get(name, {})}
    )


def _loss(module: nn.Module, context: Tensor, target: Tensor, step: int) -> Tensor:
    own = getattr(module, "training_loss", None)
    # At the start of such a long training, scheduled sampling always reads the truth.
    loss = own(context, target, step=step, total_steps=10**9) if own else masked_mse(module(context), target)
    return torch.stack(list(loss.values())).sum() if isinstance(loss, dict) else loss


def _spread(model: nn.Module, context: Tensor) -> float:
    with torch.no_grad():
        return float(model.eval()(context).std(0).mean())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in registry.names("model")]
)
def test_forecasts_differ_between_windows_after_ten_steps_on_noise(name: str) -> None:
    if not _trains(name):
        return
    model = _made(name)
    context, target = torch.randn(WINDOWS, *CONTEXT), torch.randn(WINDOWS, *TARGET)
    before = _spread(model, context)
    stages = getattr(model, "stages", None)
    for module in [stage.module for stage in stages()] if callable(stages) else [model]:
        trained = [parameter for parameter in module.train().parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0)
        for step in range(STEPS):
            optimizer.zero_grad()
            _loss(module, context, target, step).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
    # Some models start with forecasts that hardly differ, so training must make them differ.
    assert _spread(model, context) > min(SPREAD, before / 2)
