"""The random states that a training depends on, in the form that checkpoints store."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

_CPU = torch.device("cpu")


def random_states(device: torch.device = _CPU) -> dict[str, Any]:
    """Returns this process's random states as tensors and plain values, which `weights_only` loads.

    Args:
        device: Where the process computes. Only the state of this CUDA device is kept, because others belong to other
            processes and may be missing when the training is resumed.
    """
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    _, key, *position = legacy
    states = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": [torch.from_numpy(key.astype(np.int64)), *position],
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Any], device: torch.device | None = None) -> str | None:
    """Restores what `random_states` returned, on whatever device a checkpoint's tensors are.

    Args:
        states: From this code, or from older code, which kept those of all visible CUDA devices in a list.
        device: Where the process computes; None for the current CUDA device, or the CPU if there is none.

    Returns:
        Why the training will draw other numbers than an uninterrupted one, or None if it draws the same.
    """
    torch.set_rng_state(states["torch"].cpu())
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    key, *position = states["numpy"]
    np.random.set_state(("MT19937", key.cpu().numpy().astype(np.uint32), *position))
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else _CPU
    kept = states.get("cuda")
    if device.type != "cuda":
        on_gpu = isinstance(kept, torch.Tensor)  # a list is also in checkpoints of trainings on a CPU beside GPUs
        return "it was trained on a GPU and resumes on a CPU" if on_gpu else None
    if kept is None:
        return "it was trained on a CPU and resumes on a GPU"
    index = torch.cuda.current_device() if device.index is None else device.index
    if isinstance(kept, list):
        visible, count = torch.cuda.device_count(), len(kept)
        if index >= count:
            return f"the checkpoint has the states of {count} CUDA devices, but not of device {index}"
        torch.cuda.set_rng_state(kept[index].cpu(), index)
        if visible < count:
            return (
                f"the checkpoint has the states of {count} CUDA devices, and {visible} is visible: the state of device "
                f"{index} is used, and results differ if it was trained on another"
            )
        return None
    torch.cuda.set_rng_state(kept.cpu(), index)
    return None


def seed_all(*entropy: int) -> None:
    """Seeds this process's random numbers from several integers."""
    drawn = [int(word) for word in np.random.SeedSequence(entropy).generate_state(3, np.uint32)]
    random.seed(drawn[0])
    np.random.seed(drawn[1])
    torch.manual_seed(drawn[2])
