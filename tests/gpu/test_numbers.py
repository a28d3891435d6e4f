"""A GPU's numbers against the CPU's: models, metrics, members, precision, and how often Python waits."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench import registry
from bench.config import Train
from bench.data.sequences import Example
from bench.engine.ensembles import Ensemble, draw_members
from bench.engine.forecaster import Forecaster
from bench.errors import BrokenPluginError, EarthbenchError

pytestmark = pytest.mark.gpu


def _models() -> list[tuple[str, str, bool]]:
    """Returns models that train by `forward`, each tiny on N-body MNIST and with its preset on ICAR-ENSO."""
    found = []
    for name in registry.names("model"):
        try:
            model_class = registry.find("model", name).load()
        except BrokenPluginError:  # optical flow and STEPS where pysteps is missing: nothing of theirs runs on a GPU
            continue
        if not callable(getattr(model_class, "stages", None)):
            found.append((name, "nbody_mnist", True))
            if "icar_enso" in getattr(model_class, "presets", {}):
                found.append((name, "icar_enso", False))
    return found


def _batch(task: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand((2, *shape), generator=generator) for shape in (task.input_shape, task.target_shape))


def _step(model: nn.Module, device: str, context: Tensor, target: Tensor) -> tuple[float, Tensor, Tensor]:
    model.to(device).eval()  # without dropout, whose draws are each device's own
    model.zero_grad()
    forecast = model(context.to(device))
    loss = (forecast - target.to(device)).square().mean()
    if loss.requires_grad:
        loss.backward()
    gradients = [p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(gradients) if gradients else torch.zeros(1), forecast.detach().cpu()


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / one.double().norm().clamp(min=1e-12))


def _errors(exact: tuple[float, Tensor, Tensor], found: tuple[float, Tensor, Tensor]) -> dict[str, float]:
    return {
        "loss": abs(found[0] - exact[0]) / max(exact[0], 1e-12),
        "gradient": _difference(exact[1], found[1]),
        "forecast": _difference(exact[2], found[2]),
    }


@pytest.mark.parametrize(("name", "task_name", "tiny"), _models())
def test_models_agree_with_the_cpu(
    name: str, task_name: str, tiny: bool, device: str, small: bool, report: Callable[..., None]
) -> None:
    if small and not tiny:
        return
    task = bench.load_task(task_name)
    presets = getattr(registry.find("model", name).load(), "presets", {})
    torch.manual_seed(0)
    try:
        model = bench.load_model(name, task, **(presets.get("tiny", {}) if tiny else {}))
    except EarthbenchError:
        return  # not for this grid
    batch = _batch(task)
    exact = _step(copy.deepcopy(model).double(), "cpu", *(part.double() for part in batch))
    # Rounding has similar effects on a CPU: PhyDNet's gradients differ by 2e-3 between one thread and two.
    rounding = _errors(exact, _step(model, "cpu", *batch))
    row: dict[str, Any] = {"model": name, "task": task_name, "size": "tiny" if tiny else "preset"}
    for tf32 in (False, True):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        found = _errors(exact, _step(model, device, *batch))
        row |= {f"{key}, {'TF32' if tf32 else 'float32'}": found[key] for key in ("forecast", "gradient")}
        tolerated = {key: max(1e-3, 5 * error) for key, error in rounding.items()}
        bound = {"loss": 1e-2, "gradient": 0.3, "forecast": 5e-2} if tf32 else tolerated
        assert all(found[key] <= bound[key] for key in found), found
    if any(True for _ in model.parameters()):
        report(**row)


@pytest.mark.parametrize("convention", ["upstream", "correct"])
@pytest.mark.parametrize("name", ["skill", "mse", "mae", "frames", "probabilistic", "enso", "energy"])
def test_metrics_agree_with_the_cpu(name: str, convention: str, device: str, report: Callable[..., None]) -> None:
    generator = torch.Generator().manual_seed(1)
    grid = (24, 48, 1) if name == "enso" else (64, 64, 1)
    target = (torch.rand((3, 6, *grid), generator=generator) * 255).round()
    forecast = target + 30 * torch.randn(target.shape, generator=generator)
    given = [torch.stack([forecast, forecast + 9, forecast - 5]) if name == "probabilistic" else forecast, target]
    if name == "energy":
        given += [torch.rand(3, 3, 28, 28) * 255, torch.rand(3, 2, 3, 2).double() * 40 + 20]
    options = {} if name == "energy" else {"convention": convention}
    scores = []
    for where in ("cpu", device):
        metric = bench.load_metric(name, **options).to(where)
        metric.update(*(part.to(where) for part in given))
        scores.append(metric.compute())
    largest = 0.0
    for key, value in scores[0].items():
        assert scores[1][key] == pytest.approx(value, rel=1e-4 if name == "energy" else 1e-9, nan_ok=True), key
        largest = max(largest, abs(scores[1][key] - value)) if value == value and abs(value) < 1e300 else largest
    report(metric=name, convention=convention, largest=largest)


def test_members_equal_those_of_the_cpu(device: str, report: Callable[..., None]) -> None:
    task = bench.load_task("nbody_mnist")
    model = bench.load_model("prediff", task, **registry.find("model", "prediff").load().presets["tiny"]).eval()
    context, drawn = _batch(task)[0], []
    with torch.inference_mode():
        for where in ("cpu", device):
            ensemble = Ensemble(2, seed=3)
            members = draw_members(model.to(where), context.to(where), torch.arange(2), ensemble, task.target_shape)
            drawn.append(members.cpu())
    difference = _difference(*drawn)
    report(members=2, difference=difference)
    assert difference < 1e-2


@pytest.mark.parametrize("name", ["unet", "convlstm", "earthformer"])
def test_losses_and_scores_are_not_in_bfloat16(name: str, device: str) -> None:
    task = bench.load_task("nbody_mnist")
    model = bench.load_model(name, task, **getattr(registry.find("model", name).load(), "presets", {}).get("tiny", {}))
    forecaster = Forecaster(model, task, Train(precision="bf16-mixed"), total_steps=5).to(device)
    seen: list[torch.dtype] = []
    logged: list[torch.dtype] = []
    forecaster.scores.add = lambda found, *_: seen.extend(part.dtype for part in found["forecast"])  # type: ignore[method-assign]
    forecaster._log_validation = lambda loss, known: logged.append(loss.dtype)  # type: ignore[method-assign]
    batch = Example(*((part * 255).to(device) for part in _batch(task)), [], torch.arange(2))
    with torch.autocast(device, torch.bfloat16):
        layer = nn.Linear(2, 2, device=device)
        assert layer(torch.zeros(1, 2, device=device)).dtype == torch.bfloat16, "it is on"
        assert forecaster.training_step(batch, 0).dtype == torch.float32
        forecaster.eval()
        with torch.no_grad():
            forecaster.validation_step(batch, 0)
    assert seen == [torch.float32] and logged == [torch.float32]


@pytest.mark.parametrize("name", ["unet", "convlstm", "predrnn", "earthformer"])
def test_waits_of_a_training_micro_batch(name: str, device: str, small: bool, report: Callable[..., None]) -> None:
    task = bench.load_task("nbody_mnist")
    model = bench.load_model(name, task, **getattr(registry.find("model", name).load(), "presets", {}).get("tiny", {}))
    forecaster = Forecaster(model, task, Train(), total_steps=5).to(device)
    batch = Example(*((part * 255).to(device) for part in _batch(task)), [], torch.arange(2))
    forecaster.training_step(batch, 0).backward()
    if small:
        return  # a CPU does not count them: tests/bench/engine/test_waits.py does
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            forecaster.training_step(batch, 1).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message) for one in told if "synchroniz" in str(one.message)]
    report(model=name, waits=len(waits))
    assert not waits
