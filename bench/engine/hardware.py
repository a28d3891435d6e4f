"""Hardware of a run as its record describes it, and scores on devices without float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor

from bench.records.provenance import hardware, nvidia_driver

WITHOUT_FLOAT64 = frozenset({"mps"})
_STAY = ("scores", "validation_mean")


class ScoresWithFloat64(lightning.LightningModule):
    """A module whose metrics stay on the CPU when it is moved to a device without float64, such as Apple's `mps`."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        stay = {}
        if fn(torch.empty(0)).device.type in WITHOUT_FLOAT64:
            stay = {name: self._modules.pop(name) for name in _STAY if name in self._modules}
        try:
            return super()._apply(fn, recurse)
        finally:
            self._modules.update(stay)

    def for_scores(self, tensor: Tensor) -> Tensor:
        """Returns a tensor on the device of the metrics."""
        return tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor


def describe_hardware(device: torch.device, world: int, *, compiled: bool) -> dict[str, Any]:
    """Returns the part `hardware` of a record; call it while the run's settings are in force, on every process.

    Args:
        device: The device of this process.
        world: Number of processes, each on its own device.
        compiled: Whether the model was compiled.
    """
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else "Apple GPU (MPS)" if device.type == "mps" else None
    return {
        **hardware(name, torch.get_num_threads()),
        "devices": _names(name or device.type, world),
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "driver": nvidia_driver() if on_gpu else None,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "tf32_convolutions": torch.backends.cudnn.allow_tf32,
        "deterministic": _deterministic(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "compiled": compiled,
    }


def _names(own: str, world: int) -> list[str]:
    names: list[Any] = [own] * world
    if world > 1 and torch.distributed.is_initialized():
        torch.distributed.all_gather_object(names, own)
    return names


def _deterministic() -> bool | str:
    if not torch.are_deterministic_algorithms_enabled():
        return False
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else True
