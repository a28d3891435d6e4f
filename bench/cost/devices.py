"""Data-sheet figures of GPUs for planning, and devices given on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from bench.errors import UsageError, did_you_mean

Arithmetic = Literal["bf16", "tf32", "fp32"]

UTILISATION = 0.35
"""Share of peak throughput that training reaches. Assumed, not measured: large matrix products reach 0.3 to 0.5."""
USABLE_MEMORY = 0.9
"""Share of a device's memory for tensors; driver, libraries and fragmentation take the rest. Assumed."""
_GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One kind of GPU: dense peaks, without structured sparsity."""

    label: str
    bf16_tflops: float
    """16-bit products with 32-bit sums."""
    tf32_tflops: float
    """32-bit products on tensor cores."""
    fp32_tflops: float
    memory_gib: float
    source: str

    def tflops(self, arithmetic: Arithmetic) -> float:
        """Returns the peak of a kind of arithmetic."""
        return {"bf16": self.bf16_tflops, "tf32": self.tf32_tflops, "fp32": self.fp32_tflops}[arithmetic]

    @property
    def usable_bytes(self) -> int:
        """Returns the bytes available to tensors."""
        return int(self.memory_gib * USABLE_MEMORY * _GIB)


# Data sheets write GB but mean GiB, as the sizes of memory stacks and chips show.
DEVICES = {
    "h200": Device("H200", 989, 494, 67, 141, "NVIDIA H200 data sheet, SXM (tensor cores: half of sparse)"),
    "h100": Device("H100", 989, 494, 67, 80, "NVIDIA H100 data sheet, SXM (tensor cores: half of sparse)"),
    "a100-80g": Device("A100 80 GB", 312, 156, 19.5, 80, "NVIDIA A100 data sheet"),
    "a100-40g": Device("A100 40 GB", 312, 156, 19.5, 40, "NVIDIA A100 data sheet"),
    "l40s": Device("L40S", 362, 183, 91.6, 48, "NVIDIA L40S data sheet"),
    "l4": Device("L4", 121, 60, 30.3, 24, "NVIDIA L4 data sheet (tensor cores: half of sparse)"),
}
"""By the name that `--on` takes."""
_SHORT = {"a100": "a100-80g"}
_COUNTED = re.compile(r"(?:(\d+)x)?([a-z0-9_-]+)")
_OWN = re.compile(r"([^:]+):([^,]+),([^,]+)(?:,([^,]+))?")


@dataclass(frozen=True)
class Devices:
    """A number of GPUs of one kind."""

    device: Device
    count: int

    def __str__(self) -> str:
        """Returns, for example, `8 x H100`."""
        return f"{self.count} x {self.device.label}"


def parse_devices(text: str) -> Devices:
    """Returns the devices that `8xH100`, `a100-80g` or `NAME:tflops,GiB[,count]` name.

    Raises:
        UsageError: an unknown device, or invalid numbers; lists the known devices.
    """
    if own := _OWN.fullmatch(text):
        name, tflops_text, memory_text, count_text = own.groups()
        try:
            tflops, memory, count = float(tflops_text), float(memory_text), int(count_text or 1)
        except ValueError:
            tflops = memory = count = 0
        if not (0 < tflops < float("inf") and 0 < memory < float("inf") and count > 0):
            raise UsageError(f"--on {text}: expected NAME:TFLOPS,GIB or NAME:TFLOPS,GIB,COUNT, e.g. mine:120,48,4")
        return Devices(Device(name, tflops, tflops, tflops, memory, "as given: one peak for all arithmetic"), count)
    found = _COUNTED.fullmatch(text.lower())
    name = found.group(2) if found else text.lower()
    name = _SHORT.get(name, name)
    count = int(found.group(1) or 1) if found else 1
    if name not in DEVICES or count < 1:
        raise UsageError(
            f"--on {text}: unknown device. {did_you_mean(name, DEVICES)} "
            "One of your own: --on NAME:TFLOPS,GIB,COUNT, e.g. --on mine:120,48,4"
        )
    return Devices(DEVICES[name], count)


def arithmetic_of(precision: str, matmul_precision: str) -> Arithmetic:
    """Returns the arithmetic of a training's matrix products.

    Args:
        precision: `train.precision`; mixed precisions compute products in 16 bits.
        matmul_precision: torch's setting for 32-bit products: `highest`, `high` (TF32) or `medium` (bf16).
    """
    if precision != "32-true":
        return "bf16"
    kinds: dict[str, Arithmetic] = {"high": "tf32", "medium": "bf16"}
    return kinds.get(matmul_precision, "fp32")
