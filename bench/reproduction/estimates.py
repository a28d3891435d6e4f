"""How long a row takes on this device, and how much memory: measured, or estimated from multiply-adds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.config import Config
from bench.tables.definitions import Row, Table, load_published

if TYPE_CHECKING:
    from torch import nn

    from bench.tasks import Task

# Forward and backward pass; the latter costs about twice the former.
_PASSES_OF_A_STEP = 3
# Bytes per parameter in training: weights, gradients and the two moments of Adam, float32.
_BYTES_PER_PARAMETER = 16
_TIMED_BATCH = 2
"""Sequences of a timed step where data.micro_batch=auto says none."""
_TIMED_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """What a row takes on this device."""

    basis: str
    """How the times came about: `measured` steps, or estimated from multiply-adds at a measured throughput."""
    epoch_s: float
    """Training of one epoch, without validation."""
    total_s: float
    """All epochs, validation after each, and the evaluation."""
    memory_bytes: int
    memory_basis: str


def measured_throughput(device: str) -> float:
    """Returns multiply-adds per second of a 3x3 convolution in float32, forward and backward, on this device."""
    import torch

    place = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    size, channels = (128, 64) if place.type == "cpu" else (512, 128)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(place)
    image = torch.rand(2, channels, size, size, device=place, requires_grad=True)
    work = 2 * channels * channels * 9 * size * size * _PASSES_OF_A_STEP
    best = 0.0
    for _ in range(4):  # the first call warms up
        started = time.perf_counter()
        layer(image).sum().backward()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        best = max(best, work / (time.perf_counter() - started))
    return best


def estimated(
    table: Table,
    row: Row,
    model: nn.Module,
    task: Task,
    config: Config,
    counts: dict[str, int],
    *,
    trained: bool,
    throughput: Callable[[str], float],
) -> Estimate:
    """Returns times from multiply-adds, published or counted, at a measured throughput; the model does not run."""
    gmacs, source = _gmacs(table, row, model, task)
    speed = throughput(config.device)
    forward_s = gmacs * 1e9 / speed
    parameters = sum(p.numel() for p in model.parameters())
    epochs = _epochs(config, counts) if trained else 0.0
    epoch_s = forward_s * _PASSES_OF_A_STEP * counts["train"] if trained else 0.0
    return Estimate(
        basis=f"estimated, a lower bound: {gmacs:,.1f} GMACs ({source}) at {speed / 1e9:,.0f} GMAC/s, measured on a "
        "convolution on this device",
        epoch_s=epoch_s,
        total_s=epochs * epoch_s + forward_s * (_validations(config, epochs) * counts["val"] + counts["test"]),
        memory_bytes=parameters * (_BYTES_PER_PARAMETER if trained else 4),
        memory_basis="weights, gradients and optimiser state; activations come on top (--measure)",
    )


def _gmacs(table: Table, row: Row, model: nn.Module, task: Task) -> tuple[float, str]:
    from bench.cost import count_model

    figure = load_published(table.published).rows.get(row.key, {}).get("gmacs") if table.published else None
    if figure is not None and task.input_shape == _official_shape(table):
        return figure.value / row.published_factors.get("gmacs", 1.0), "published"
    return count_model(model, task.input_shape).gmacs, "counted"


def _official_shape(table: Table) -> tuple[int, int, int, int]:
    """Returns the shape of a context of the table's task as published, `(T, H, W, C)`."""
    from bench.tasks import load_task

    return load_task(table.task).input_shape


def _epochs(config: Config, counts: dict[str, int]) -> float:
    steps = max(1, counts["train"] // config.data.batch_size)
    limit = config.train.max_steps
    return min(config.train.max_epochs, limit / steps) if limit is not None else float(config.train.max_epochs)


def _validations(config: Config, epochs: float) -> float:
    return epochs / config.train.val_every_epochs


def measured(model: nn.Module, task: Task, config: Config, counts: dict[str, int], *, trained: bool) -> Estimate:
    """Returns times from a few real training steps and forecasts at the config's batch size, on random values."""
    import torch

    from bench.cost import measure_speed
    from bench.running.forecaster import masked_mse
    from bench.running.trainer import trainer_device, translated_errors

    where = trainer_device(config.device)
    place = torch.device("cpu" if where["accelerator"] == "cpu" else f"cuda:{(where['devices'] or [0])[0]}")
    size = config.micro_batch_limit if config.data.micro_batch != "auto" else min(config.data.batch_size, _TIMED_BATCH)
    model = model.to(place)
    step_s, peak = 0.0, 0
    with translated_errors(f"timed steps at batch size {size}"):
        if trained:
            optimizer = torch.optim.AdamW(model.parameters())
            context, target = (
                torch.rand((size, *shape), device=place) for shape in (task.input_shape, task.target_shape)
            )
            own = getattr(model, "training_loss", None)
            times = []
            for step in range(_TIMED_STEPS + 1):  # the first one warms up
                started = time.perf_counter()
                optimizer.zero_grad()
                loss = own(context, target, step=step, total_steps=100) if callable(own) else None
                loss = torch.stack(list(loss.values())).sum() if isinstance(loss, dict) else loss
                (masked_mse(model(context), target) if loss is None else loss).backward()
                optimizer.step()
                if place.type == "cuda":
                    torch.cuda.synchronize(place)
                times.append(time.perf_counter() - started)
            step_s = sorted(times[1:])[_TIMED_STEPS // 2]
            peak = torch.cuda.max_memory_allocated(place) if place.type == "cuda" else 0
            del optimizer
        speed = measure_speed(model, task.input_shape, batch_size=size, repeats=_TIMED_STEPS)
    epochs = _epochs(config, counts) if trained else 0.0
    epoch_s = step_s * counts["train"] / size
    forecast_s = speed.latency_s / size
    parameters = sum(p.numel() for p in model.parameters())
    return Estimate(
        basis=f"measured: {_TIMED_STEPS} steps at batch size {size} on {speed.device}, {speed.threads} threads",
        epoch_s=epoch_s,
        total_s=epochs * epoch_s + forecast_s * (_validations(config, epochs) * counts["val"] + counts["test"]),
        memory_bytes=peak or parameters * _BYTES_PER_PARAMETER + speed.peak_memory_bytes,
        memory_basis="peak of the timed steps"
        if peak
        else "weights, gradients, optimiser state, and what a forecast took",
    )
