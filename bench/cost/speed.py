"""Latency and memory of a forecast, measured on the device where it will run."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from bench.api import Shape


@dataclass(frozen=True)
class Speed:
    """A measurement and its conditions."""

    latency_s: float
    """Median wall time of one forecast."""
    batch_size: int
    peak_memory_bytes: int
    """GPU: allocated by torch at the peak.  CPU: growth of the process's resident peak while forecasting."""
    device: str
    threads: int
    repeats: int

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types."""
        return asdict(self)


def measure_speed(model: nn.Module, input_shape: Shape, *, batch_size: int = 1, repeats: int = 5) -> Speed:
    """Returns latency and peak memory of a forecast from random values, on the model's device, in eval mode.

    Zeros would underestimate a model like STEPS, which skips its work if there is no rain.
    """
    parameter = next(model.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    random = torch.Generator().manual_seed(0)
    context = torch.rand((batch_size, *input_shape), generator=random).to(device)
    was_training = model.training
    model.eval()
    on_gpu = device.type == "cuda"
    if on_gpu:
        reset_peak_memory(device)
    resident = _resident_peak_bytes()
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):  # the first call warms up caches and compiles
            start = time.perf_counter()
            model(context)
            if on_gpu:
                torch.cuda.synchronize(device)
            elif device.type == "mps":
                torch.mps.synchronize()
            times.append(time.perf_counter() - start)
    model.train(was_training)
    return Speed(
        latency_s=sorted(times[1:])[repeats // 2],
        batch_size=batch_size,
        peak_memory_bytes=(torch.cuda.max_memory_allocated(device) if on_gpu else _resident_peak_bytes() - resident),
        device=torch.cuda.get_device_name(device) if on_gpu else device.type,
        threads=torch.get_num_threads(),
        repeats=repeats,
    )


def reset_peak_memory(device: torch.device) -> None:
    """Resets the peak memory of a GPU, initialising CUDA first, because torch refuses an unused GPU."""
    torch.cuda.init()
    torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(*, on_gpu: bool) -> int:
    """Returns the peak bytes that this process has used: of the current GPU's memory, or of the machine's."""
    return int(torch.cuda.max_memory_allocated()) if on_gpu else _resident_peak_bytes()


def _resident_peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
