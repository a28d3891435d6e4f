"""Time and memory of a row on this device: measured, or estimated from multiply-adds."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.config import Config, Train
from bench.reproduction.work import (
    Training,
    TrainingWork,
    budget_wall_s,
    epochs_of,
    forecast_flops_of,
    members_of,
    training_loss_of,
    trainings_of,
    validations_of,
    works_of,
)
from bench.tables.definitions import Row, Table, load_published
from bench.tables.settings import micro_batch, total_batch

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bench.tasks import Task

# Forward and backward pass; the latter costs about twice the former.
_PASSES_OF_A_STEP = 3
# Bytes per parameter in training: weights, gradients and the two moments of Adam, float32.
_BYTES_PER_PARAMETER = 16
_TIMED_STEPS = 3


@dataclass(frozen=True)
class Estimate:
    """The time and memory that a row needs on this device."""

    basis: str
    """Basis of the times: `measured` steps, or estimated from multiply-adds at a measured throughput."""
    epoch_s: float
    """Time of one training epoch, without validation."""
    total_s: float | None
    """Time of all epochs, their validations, and the evaluation; for a compute budget, without validations.

    None if unknown."""
    memory_bytes: int
    memory_basis: str


def measured_throughput(device: str) -> float:
    """Returns multiply-adds per second of a 3x3 convolution in float32, forward and backward, on this device."""
    import torch

    from bench.engine.trainer import torch_device

    place = torch.device(torch_device(device))
    size, channels = (128, 64) if place.type == "cpu" else (512, 128)
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1).to(place)
    image = torch.rand(2, channels, size, size, device=place, requires_grad=True)
    work = 2 * channels * channels * 9 * size * size * _PASSES_OF_A_STEP
    best = 0.0
    for _ in range(4):  # the first call is a warm-up
        started = time.perf_counter()
        layer(image).sum().backward()
        _wait_for(place)
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
    """Returns times from multiply-adds, published or counted, at a measured throughput; the model does not run.

    A published figure is halved if the paper counts multiply-adds twice (`Row.published_factors`). The model is left
    without its values.
    """
    parameters = sum(p.numel() for p in model.parameters())
    published = _published_gmacs(table, row, task)
    works = works_of(model, task, config, counts) if trained else []
    speed = throughput(config.device)
    if published is not None and len(works) < 2:
        source, forward_s = f"{published:,.1f} GMACs (published)", published * 1e9 / speed
        epochs = epochs_of(config, config.train, counts) if trained else 0.0
        epoch_s = forward_s * _PASSES_OF_A_STEP * counts["train"] if trained else 0.0
        validated = validations_of(config.train, epochs, counts, total_batch(config)) * counts["val"]
        training_s = budget_wall_s(config.train) if trained else None
        total_s = (training_s or epochs * epoch_s + forward_s * validated) + forward_s * counts["test"]
    else:
        forecast = forecast_flops_of(model, task, config)
        if forecast is None and not works:
            return Estimate("not estimated: its forecasts cannot be counted", 0.0, None, parameters * 4, "weights")
        source = f"{(forecast or 0) / 2e9:,.1f} GMACs a forecast (counted)"
        epoch_s = sum(work.epoch_flops(counts) for work in works) / 2 / speed
        trainings_s = (budget_wall_s(work.settings) or work.flops(counts) / 2 / speed for work in works)
        total_s = sum(trainings_s) + (forecast or 0) * counts["test"] / 2 / speed
    return Estimate(
        basis=f"estimated, a lower bound: {source} at {speed / 1e9:,.0f} GMAC/s, measured on a convolution on this "
        "device",
        epoch_s=epoch_s,
        total_s=total_s,
        memory_bytes=max((_memory(work, config) for work in works), default=parameters * 4),
        memory_basis="weights, gradients, optimiser state and activations of a batch, from a trace"
        if works
        else "weights",
    )


def _memory(work: TrainingWork, config: Config) -> int:
    return work.state_bytes + work.fixed_bytes + work.activation_bytes * micro_batch(config)


def _published_gmacs(table: Table, row: Row, task: Task) -> float | None:
    """Returns the multiply-adds of a forecast according to the paper; None for other shapes than the paper's."""
    figure = load_published(table.published).rows.get(row.key, {}).get("gmacs") if table.published else None
    if figure is None or task.input_shape != _official_shape(table):
        return None
    return figure.value / row.published_factors.get("gmacs", 1.0)


def _official_shape(table: Table) -> tuple[int, int, int, int]:
    """Returns the published context shape of the table's task, `(T, H, W, C)`."""
    from bench.tasks import load_task

    return load_task(table.task).input_shape


def measured(model: nn.Module, task: Task, config: Config, counts: dict[str, int], *, trained: bool) -> Estimate:
    """Returns times from a few real training steps and forecasts at the config's batch size, on random values.

    Steps run in the config's precision; the memory peak is that of this row alone.
    """
    import torch

    from bench.cost.speed import peak_memory_bytes, reset_peak_memory
    from bench.engine.micro_batch import known_micro_batch
    from bench.engine.trainer import torch_device, translated_errors

    place = torch.device(torch_device(config.device))
    # None if a training would search for the size that fits
    size = known_micro_batch(model, task, config, on_gpu=place.type == "cuda") or min(2, config.micro_batch_limit)
    model.to(place)
    on_gpu = place.type == "cuda"
    if on_gpu:
        reset_peak_memory(place)
    epoch_s = total_s = 0.0
    with translated_errors(f"timed steps at batch size {size}"):
        for training in trainings_of(model, config) if trained else []:
            step_s = _timed_step(training, task, size, place)
            own_epoch_s = step_s * counts["train"] / size
            epoch_s += own_epoch_s
            settings, epochs = training.settings, epochs_of(config, training.settings, counts, training.stage)
            count = validations_of(settings, epochs, counts, total_batch(config, training.stage))
            # A validation is a forward pass, about a third of a training step.
            validations_s = count * step_s / _PASSES_OF_A_STEP * counts["val"] / size
            total_s += budget_wall_s(settings) or epochs * own_epoch_s + validations_s
        steps_bytes = peak_memory_bytes(on_gpu=True) if on_gpu else 0  # before the peak of the forecasts
        forecast_s, forecast_bytes = _timed_forecast(model, task, config, size, place)
    peak = max(steps_bytes, peak_memory_bytes(on_gpu=True)) if on_gpu else 0
    parameters = sum(p.numel() for p in model.parameters())
    where = torch.cuda.get_device_name(place) if place.type == "cuda" else place.type
    return Estimate(
        basis=f"measured: {_TIMED_STEPS} steps at batch size {size} in {config.train.precision} on {where}, "
        f"{torch.get_num_threads()} threads",
        epoch_s=epoch_s,
        total_s=total_s + forecast_s * counts["test"],
        memory_bytes=peak or parameters * _BYTES_PER_PARAMETER + forecast_bytes,
        memory_basis="peak of the timed steps"
        if peak
        else "weights, gradients, optimiser state, and what a forecast took",
    )


def _timed_step(training: Training, task: Task, size: int, place: torch.device) -> float:
    """Returns the seconds of a training step: the median of a few after a warm-up, averaged over alternating parts."""
    import torch
    from timm.optim import create_optimizer_v2

    from bench.engine.optimizers import MAX_ALTERNATION, has_own_optimizers

    module, settings = training.module.to(place).train(), training.settings
    context, target = (torch.rand((size, *shape), device=place) for shape in (task.input_shape, task.target_shape))
    if training.prepare is not None:
        training.prepare([(context, target)])
    optimizer = create_optimizer_v2(module, opt=settings.optimizer, lr=settings.lr)
    times = []
    with _in_precision(settings, place.type) as scaler:
        for step in range(1 + (MAX_ALTERNATION if has_own_optimizers(module) else _TIMED_STEPS)):
            started = time.perf_counter()
            optimizer.zero_grad()
            with _autocast(settings, place.type):
                value = training_loss_of(module, step)(context, target)
            scaler.scale(value).backward()
            if settings.clip_norm is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            _wait_for(place)
            times.append(time.perf_counter() - started)
    return statistics.fmean(times[1:]) if has_own_optimizers(module) else statistics.median(times[1:])


@contextlib.contextmanager
def _in_precision(settings: Train, device: str) -> Iterator[torch.amp.GradScaler]:
    """Sets the precision of 32-bit products while steps are timed; yields the gradient scaler for float16."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(settings.matmul_precision)
    try:
        yield torch.amp.GradScaler(device, enabled=settings.precision == "16-mixed")
    finally:
        torch.set_float32_matmul_precision(before)


def _autocast(settings: Train, device: str) -> contextlib.AbstractContextManager[object]:
    import torch

    kinds = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    if settings.precision not in kinds:
        return contextlib.nullcontext()
    return torch.autocast(device, kinds[settings.precision])


def _timed_forecast(model: nn.Module, task: Task, config: Config, size: int, place: torch.device) -> tuple[float, int]:
    """Returns the seconds of a forecast of one sequence with all its members, and its peak memory in bytes."""
    import torch

    from bench.cost import measure_speed
    from bench.cost.tracing import first_steps, samples_by_steps

    if not samples_by_steps(model):
        speed = measure_speed(model, task.input_shape, batch_size=size, repeats=_TIMED_STEPS)
        return speed.latency_s / size, speed.peak_memory_bytes
    seen: list[tuple[float, int]] = []

    def note(done: int) -> bool:
        _wait_for(place)
        seen.append((time.perf_counter(), done))
        return len(seen) <= _TIMED_STEPS

    # As many sequences and members as an evaluation draws at a time: a GPU takes as long for one as for several.
    context = torch.rand((size, *task.input_shape), device=place)
    with torch.no_grad(), _in_precision(config.train, place.type), _autocast(config.train, place.type):
        steps = first_steps(model, context, note, members=members_of(model, config))
    (started, first), (ended, last) = seen[0], seen[-1]
    return steps * (ended - started) / max(1, last - first) / size, 0


def _wait_for(place: torch.device) -> None:
    import torch

    if place.type == "cuda":
        torch.cuda.synchronize(place)
    elif place.type == "mps":
        torch.mps.synchronize()
