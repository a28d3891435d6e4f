"""How often Python waits for the device, and how many operations it starts, on a simulated GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from simulated_gpu import OnGPU, simulated_gpu
from torch import nn

import bench
from bench import registry
from bench.config import Train
from bench.data.sequences import Example
from bench.engine.callbacks.divergence import _norm
from bench.engine.forecaster import Forecaster


def _task() -> Any:
    return bench.load_task("nbody_mnist", t_in=4, t_out=3)  # every operation of a pretended GPU takes long


def _batch(task: Any, device: str) -> Example:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    frames = [torch.rand((2, *shape), generator=generator) * 255 for shape in (task.input_shape, task.target_shape)]
    labels = [torch.rand(2, 3, 28, 28) * 255, torch.rand(2, 2, 3, 2).double() * 40 + 20, torch.rand(2, 3).double()]
    context, target = (part.to(device) for part in frames)
    return Example(context, target, [part.to(device) for part in labels], torch.arange(2).to(device))


_STAGES = ("autoencoder", "denoiser", "alignment", "vqvae", "gpt")


def _trained() -> Iterator[tuple[str, str | None]]:
    for name in registry.names("model"):
        model_class = registry.find("model", name).load()
        if callable(getattr(model_class, "stages", None)):
            yield from ((name, stage) for stage in _STAGES)
        else:
            yield name, None


@pytest.mark.parametrize(("name", "stage"), list(_trained()))
def test_training_micro_batches_do_not_wait_for_the_device(name: str, stage: str | None) -> None:
    task = _task()
    model_class = registry.find("model", name).load()
    sizes = {"kilometres": 1.0, "threshold": 0.1} if name == "steps" else {}  # nothing to train, and no digits
    model = bench.load_model(name, task, **getattr(model_class, "presets", {}).get("tiny", sizes))
    module: nn.Module = model
    if stage is not None:
        stages = {one.name: one.module for one in model.stages()}
        if stage not in stages:
            return  # a model without it
        module = stages[stage]
    if not any(p.requires_grad for p in module.parameters()):
        return  # nothing to train
    forecaster = Forecaster(module, task, Train(), total_steps=10)
    forecaster.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]
    with simulated_gpu() as log:
        forecaster.to("cuda")
        model.to("cuda")
        batch = _batch(task, "cuda")
        optimizer = forecaster.configure_optimizers()["optimizer"]
        forecaster.training_step(batch, 0).backward()  # masks, tables and the like are made once
        log.waits.clear()
        loss = forecaster.training_step(batch, 1)
        loss.backward()
        forecaster.losses.add_step(_norm(optimizer), step=0, epoch=0, lr=0.0)
        assert isinstance(loss, OnGPU) and not log.waits
        assert [step.losses.keys() >= {"train/loss"} for step in forecaster.losses.checked_steps()] == [True]
        assert sum(log.waits.values()) == 1, "one look, however many losses"
        forecaster.eval()


# Waits and operations per batch of a metric; before: 4,800 waits of `probabilistic`, 12,800 operations of `energy`.
_BOUNDS = {
    "skill": (0, 200),
    "mse": (0, 20),
    "mae": (0, 20),
    "frames": (0, 300),
    "probabilistic": (2, 400),
    "energy": (8, 3000),
}


@pytest.mark.parametrize("convention", ["upstream", "correct"])
@pytest.mark.parametrize("name", _BOUNDS)
def test_metrics_rarely_wait_for_the_device_and_match_the_cpu(name: str, convention: str) -> None:
    options: dict[str, Any] = {} if name == "energy" else {"convention": convention}
    generator = torch.Generator().manual_seed(1)
    target = (torch.rand((2, 10, 64, 64, 1), generator=generator) * 255).round()
    forecast = (target + 30 * torch.randn(target.shape, generator=generator)).clamp(0, 254)
    forecast[0, 0, 1, 2, 0] = float("nan") if convention == "correct" and name != "energy" else 3
    given = [forecast, target]
    if name == "probabilistic":
        given[0] = torch.stack([forecast + shift for shift in range(-8, 8, 2)])
    if name == "energy":
        given += [torch.rand(2, 3, 28, 28) * 255, torch.rand(2, 2, 3, 2).double() * 40 + 20]
    on_cpu, there = bench.load_metric(name, **options), bench.load_metric(name, **options)
    on_cpu.update(*given)
    with simulated_gpu() as log:
        there.to("cuda")
        moved = [part.to("cuda") for part in given]
        there.update(*moved)  # bands and the like are made once
        there.reset()
        log.waits.clear()
        log.kernels = 0
        there.update(*moved)
        waits, kernels = sum(log.waits.values()), log.kernels
        states = {key: state.held if isinstance(state, OnGPU) else state for key, state in there.metric_state.items()}
    assert waits <= _BOUNDS[name][0], log.waits
    assert kernels <= _BOUNDS[name][1]
    for key, state in on_cpu.metric_state.items():
        assert torch.allclose(states[key].double(), state.double(), rtol=1e-9, equal_nan=True), key
