"""Cost of a row on other devices: hours, memory with activations, and the batch that fits.

No device is used: operations and activations come from a trace on torch's meta device, peaks from data sheets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bench.config import Config, Train
from bench.cost.devices import UTILISATION, Devices, arithmetic_of
from bench.reproduction.work import TrainingWork, forecast_flops_of, works_of

if TYPE_CHECKING:
    from torch import nn

    from bench.tasks import Task

_MIN_SHOWN_HOURS = 1.0
"""Shorter evaluations are only included in a table's sum."""


@dataclass(frozen=True)
class PartProjection:
    """One training: of the whole model, or of a stage."""

    stage: str
    """Empty for a model that is trained at once."""
    arithmetic: str
    """Arithmetic of matrix products: bf16, tf32 or fp32."""
    peak_tflops: float
    epochs: float
    step_gflops: float
    """Operations of a training step per sequence, forward and backward (a multiply-add is two)."""
    gpu_hours: float
    """GPU-hours of the training with its validations."""
    state_bytes: int
    """Parameters, gradients, the optimiser's state and a running average, per device."""
    activation_bytes: int
    """Bytes that a step keeps per sequence for its backward pass, in 32 bits.

    Fused cuboid attention and mixed precision keep less."""
    total_batch: int
    micro_batch: int
    """Largest number of sequences that fits on a device at once; 0 if not even one does."""


@dataclass(frozen=True)
class Projection:
    """A row on other devices."""

    devices: str
    count: int
    source: str
    """Source of the devices' figures."""
    utilisation: float
    """Assumed share of the peak throughput."""
    parts: tuple[PartProjection, ...]
    evaluation_gpu_hours: float | None
    """GPU-hours of the forecasts of the test split; None if the model's forecast cannot be traced."""

    @property
    def gpu_hours(self) -> float:
        """Returns the hours of all parts and the evaluation on one device."""
        return sum(part.gpu_hours for part in self.parts) + (self.evaluation_gpu_hours or 0.0)

    @property
    def hours(self) -> float:
        """Returns the hours on all devices, assuming that communication and reading cost nothing."""
        return self.gpu_hours / self.count

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields and the sums as JSON types."""
        return {**asdict(self), "gpu_hours": self.gpu_hours, "hours": self.hours}


def projected(
    model: nn.Module, task: Task, config: Config, counts: dict[str, int], devices: Devices, *, trained: bool
) -> Projection:
    """Returns the cost of a row on other devices.

    Args:
        model: Model of the run; it is left on the meta device, without its values.
        task: Task with the shapes.
        config: Config of the run.
        counts: Sequences per split.
        devices: Devices to estimate for.
        trained: Whether the model has anything to train.

    Raises:
        NotCountableError: a training step depends on more than shapes.
    """
    works = works_of(model, task, config, counts) if trained else []
    forecast = forecast_flops_of(model, task, config)
    evaluation = None
    if forecast is not None:  # in 32 bits, whatever the training's precision
        peak = devices.device.tflops(arithmetic_of("32-true", _matmul_precision(config.train)))
        evaluation = _hours(forecast * counts["test"], peak)
    parts = tuple(_part(work, config, counts, devices) for work in works)
    return Projection(str(devices), devices.count, devices.device.source, UTILISATION, parts, evaluation)


def _part(work: TrainingWork, config: Config, counts: dict[str, int], devices: Devices) -> PartProjection:
    state = math.ceil(work.state_bytes / (devices.count if config.strategy == "fsdp" else 1))
    fits = (devices.device.usable_bytes - state - work.fixed_bytes) // max(1, work.activation_bytes)
    arithmetic = arithmetic_of(work.settings.precision, _matmul_precision(work.settings))
    peak = devices.device.tflops(arithmetic)
    return PartProjection(
        stage=work.stage,
        arithmetic=arithmetic,
        peak_tflops=peak,
        epochs=work.epochs,
        step_gflops=work.step_flops / 1e9,
        gpu_hours=_hours(work.flops(counts), peak),
        state_bytes=state,
        activation_bytes=work.activation_bytes,
        total_batch=work.total_batch,
        micro_batch=max(0, fits),
    )


def _hours(flops: float, peak_tflops: float) -> float:
    return flops / (peak_tflops * 1e12 * UTILISATION) / 3600


def _matmul_precision(train: Train) -> str:
    return train.matmul_precision


def text_lines(found: Projection) -> list[str]:
    """Returns a projection as lines of text."""
    lines = []
    for part in found.parts:
        name = f"{part.stage}: " if part.stage else ""
        lines.append(
            f"time     {name}{part.gpu_hours:,.1f} GPU-hours, {part.gpu_hours / found.count:,.1f} h on "
            f"{found.devices}: "
            f"{part.epochs:g} epochs, {part.step_gflops:,.0f} GFLOP per step and sequence, {part.arithmetic} at "
            f"{found.utilisation:.0%} (assumed) of {part.peak_tflops:g} TFLOP/s"
        )
        lines.append(
            f"memory   {name}{part.state_bytes / 1e9:.2f} GB of weights, gradients and optimiser state, "
            f"{part.activation_bytes / 1e9:.2f} GB of activations per sequence: "
            + (
                f"micro-batches of up to {part.micro_batch:,} fit (total batch {part.total_batch})"
                if part.micro_batch
                else "not even one sequence fits"
            )
        )
    evaluation = found.evaluation_gpu_hours
    known = "not estimated: its forecasts cannot be counted" if evaluation is None else f"{evaluation:,.2f} GPU-hours"
    lines.append(f"time     evaluation: {known}")
    lines.append(f"in all   {found.gpu_hours:,.1f} GPU-hours, {found.hours:,.1f} h; peaks: {found.source}")
    return lines


def markdown(rows: Sequence[tuple[str, Projection | None]]) -> str:
    """Returns a Markdown table of rows with a line of their sums; rows that cannot be planned have no figures."""
    lines = [
        "| row | arithmetic | GFLOP per step and sequence | state GB | activations GB per sequence | "
        "largest micro-batch | total batch | GPU-hours | hours |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    hours = gpu_hours = 0.0
    for name, found in rows:
        if found is None:
            lines.append(f"| {name} | | | | | | | | |")
            continue
        for part in found.parts:
            label = f"{name}, {part.stage}" if part.stage else name
            lines.append(
                f"| {label} | {part.arithmetic} | {part.step_gflops:,.0f} | {part.state_bytes / 1e9:.2f} | "
                f"{part.activation_bytes / 1e9:.2f} | {part.micro_batch:,} | {part.total_batch} | "
                f"{_figure(part.gpu_hours)} | {_figure(part.gpu_hours / found.count)} |"
            )
        if found.evaluation_gpu_hours is not None and (
            found.evaluation_gpu_hours >= _MIN_SHOWN_HOURS or not found.parts
        ):
            evaluation = found.evaluation_gpu_hours
            lines.append(
                f"| {name}, evaluation | | | | | | | {_figure(evaluation)} | {_figure(evaluation / found.count)} |"
            )
        if found.evaluation_gpu_hours is None and not found.parts:
            lines.append(f"| {name}, not estimated | | | | | | | | |")
        hours, gpu_hours = hours + found.hours, gpu_hours + found.gpu_hours
    lines.append(f"| all, one seed | | | | | | | {_figure(gpu_hours)} | {_figure(hours)} |")
    return "\n".join(lines)


def _figure(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.05 else "< 0.1"
