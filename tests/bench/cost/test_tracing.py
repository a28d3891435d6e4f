"""Operations and memory of a training step, from a trace without values, against the same step with values."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench import registry
from bench.config import compose
from bench.cost.tracing import Loss, samples_by_steps, state_bytes, traced_forecast, traced_sampling, traced_step
from bench.reproduction.work import training_loss_of, works_of
from bench.tasks import Task

CONTEXT, TARGET = (4, 32, 32, 1), (3, 32, 32, 1)
# Models that keep the same tensors on any device; cuboid attention pads and drops out differently on the CPU.
ALIKE = ["unet", "convlstm", "predrnn", "phydnet", "e3d_lstm", "rainformer", "simvp", "tau"]


def _made(name: str, **options: Any) -> nn.Module:
    found = registry.find("model", name).load()
    return found(CONTEXT, TARGET, **(getattr(found, "presets", {}).get("tiny", {}) | options))


def _loss(module: nn.Module) -> Loss:
    return training_loss_of(module)


@pytest.mark.parametrize("name", ALIKE)
def test_a_meta_step_saves_the_same_bytes_as_a_real_one(name: str) -> None:
    real = _made(name)
    for size in (1, 3):
        found = traced_step(real, _loss(real), CONTEXT, TARGET, size, device="cpu")
        without = _made(name).to("meta")
        assert traced_step(without, _loss(without), CONTEXT, TARGET, size).saved_bytes == found.saved_bytes > 0


# Fused attention recomputes its products in the backward pass. Earthformer has a shorter formulation on the CPU.
@pytest.mark.parametrize(
    ("name", "forward", "step"), [*((name, 0, 0) for name in ALIKE if name != "e3d_lstm"), ("e3d_lstm", 0, 0.05),
                                  ("earthformer", 0.1, 0.1)],
)  # fmt: skip
def test_operations_equal_the_count_of_torch(name: str, forward: float, step: float) -> None:
    real, without = _made(name), _made(name).to("meta")
    # Torch cannot count the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        real.train()
        loss = _loss(real)(torch.rand(2, *CONTEXT), torch.rand(2, *TARGET))
        forward_flops = counter.get_total_flops()
        loss.backward()
    found = traced_step(without, _loss(without), CONTEXT, TARGET, 2)
    assert found.forward_flops == pytest.approx(forward_flops, rel=forward)
    assert found.step_flops == pytest.approx(counter.get_total_flops(), rel=step)


def test_a_meta_step_with_attention_saves_about_the_bytes_of_the_cpu() -> None:
    real, without = _made("earthformer"), _made("earthformer").to("meta")
    here = traced_step(real, _loss(real), CONTEXT, TARGET, 2, device="cpu").saved_bytes
    assert traced_step(without, _loss(without), CONTEXT, TARGET, 2).saved_bytes == pytest.approx(here, rel=0.35)


@pytest.mark.parametrize("name", ["unet", "convlstm", "predrnn"])
def test_the_measured_peak_is_within_twice_the_estimate(name: str) -> None:
    real = _made(name)
    estimate = traced_step(real, _loss(real), CONTEXT, TARGET, 8, device="cpu").saved_bytes
    context, target = torch.rand(8, *CONTEXT), torch.rand(8, *TARGET)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        _loss(real)(context, target).backward()
    now, peak = 0, 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    gradients = sum(p.numel() * 4 for p in real.parameters())
    kept = estimate - (context.nbytes + target.nbytes)  # which were allocated before
    assert 0.9 * kept < peak < 2 * (estimate + gradients)


class _Line(nn.Module):
    """Keeps its context once, and its products."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.table = nn.Parameter(torch.ones(8, 8)), nn.Buffer(torch.ones(5))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> dict[str, Tensor]:
        if bool(torch.isnan(context).any()):
            raise ValueError
        return {"one": (context @ self.weight).square().sum(), "none": context.sum() * 0}


def test_closed_forms() -> None:
    module = _Line().to("meta")
    found = traced_step(module, _loss(module), (1, 1, 2, 8), (1, 1, 2, 8), 5)
    rows = 5 * 2
    # forward, and in the backward pass the gradient of the weight alone: the context has none
    assert (found.forward_flops, found.step_flops) == (2 * rows * 64, 2 * 2 * rows * 64)
    assert found.saved_bytes == 2 * rows * 8 * 4  # the context, and the product that is squared
    assert state_bytes(module, "adamw", averaged=False) == 4 * (64 + 3 + 5) + 4 * 64 * 3
    assert state_bytes(module, "sgd", averaged=True) == 2 * 4 * (64 + 3 + 5) + 4 * 64 * 2
    assert all(parameter.grad is None for parameter in module.parameters())


class _Unheaded(nn.Module):
    """Attention without an axis of heads, as DGMR's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> Tensor:
        x = context.flatten(1, 3) @ self.weight  # (B, L, 4)
        return nn.functional.scaled_dot_product_attention(x, x, x).sum()


def test_attention_without_a_head_axis_is_counted() -> None:
    module, batch, length = _Unheaded().to("meta"), 3, 5
    found = traced_step(module, _loss(module), (1, 1, length, 4), (1, 1, length, 4), batch)
    # the product with the weights, and those with keys and with values
    assert found.forward_flops == 2 * batch * (length * 4 * 4 + 2 * length * length * 4)


class _InTurns(nn.Module):
    """Two parts; the second, with four times the work, is trained in every third step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8, bias=False), nn.Linear(8, 32, bias=False)

    def optimizers(self) -> list[tuple[list[nn.Parameter], float, tuple[float, float]]]:
        return [(list(part.parameters()), 1e-3, (0.9, 0.999)) for part in (self.first, self.second)]

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> Tensor:
        return (self.second if step % 3 == 2 else self.first)(context).sum()


def test_a_step_of_alternating_parts_is_their_mean() -> None:
    task = SimpleNamespace(input_shape=(1, 1, 1, 8), target_shape=(1, 1, 1, 8))
    config = compose(["task=sevir", "model=unet"])
    (work,) = works_of(_InTurns(), cast(Task, task), config, {"train": 1, "val": 1, "test": 1})
    assert work.forward_flops == (2 * 64 + 2 * 64 + 2 * 256) // 3
    assert work.step_flops == 2 * work.forward_flops  # the context has no gradient


class _Sampler(nn.Module):
    """Draws in steps, each a product of 8 x 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.taken = nn.Parameter(torch.ones(8, 8)), 0

    def sample(self, context: Tensor, *, members: int, generator: Any = None, advance: Any = None) -> Tensor:
        values = context[0, 0, :, :, 0]
        for done in range(1000):
            self.taken += 1
            values = values @ self.weight
            advance(done + 1, 1000)
        return values


def test_sampling_is_counted_from_two_of_its_steps() -> None:
    model = _Sampler().to("meta")
    assert samples_by_steps(model) and not samples_by_steps(_Line())
    assert traced_sampling(model, (1, 8, 8, 1)) == 1000 * 2 * 8**3 and model.taken == 2
    assert traced_sampling(_Line(), (1, 8, 8, 1)) is None


def test_a_data_dependent_forecast_is_not_counted() -> None:
    class _Numpy(nn.Module):
        def forward(self, context: Tensor) -> Tensor:
            return torch.from_numpy(context.numpy())

    assert traced_forecast(_Numpy(), CONTEXT) is None
    assert traced_forecast(_made("unet").to("meta"), CONTEXT) and math.prod(CONTEXT)
