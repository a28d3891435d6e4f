"""Ten training steps on noise leave forecasts that differ between windows, of every registered model that trains.

Nothing is to be learnt from noise but its mean, and ten steps do not get there: a model whose forecasts are alike by
then has shut itself, by gates or norms that saturate, and no data would open it again.
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
# Small, but as deep as by default; a deep stack is where it showed.
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
    # At the start of so long a training, scheduled sampling reads the truth wherever there is one.
    loss = own(context, target, step=step, total_steps=10**9) if own else masked_mse(module(context), target)
    return torch.stack(list(loss.values())).sum() if isinstance(loss, dict) else loss


def _spread(model: nn.Module, context: Tensor) -> float:
    with torch.no_grad():
        return float(model.eval()(context).std(0).mean())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in registry.names("model")]
)
def test_ten_steps_on_noise_leave_forecasts_that_differ_between_windows(name: str) -> None:
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
    # Some start with forecasts that hardly differ, and have to get there by training.
    assert _spread(model, context) > min(SPREAD, before / 2)
