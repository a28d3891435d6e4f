"""The states of all random numbers that a model may draw in training, as a checkpoint holds them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """Returns this process's random states as tensors and plain values, which `weights_only` loads."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state()
    _, key, *position = legacy
    states = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": [torch.from_numpy(key.astype(np.int64)), *position],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Takes up what `random_states` returned, wherever a checkpoint's tensors were loaded to."""
    torch.set_rng_state(states["torch"].cpu())
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    key, *position = states["numpy"]
    np.random.set_state(("MT19937", key.cpu().numpy().astype(np.uint32), *position))
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


def seed_all(*entropy: int) -> None:
    """Seeds this process's random numbers from several integers."""
    drawn = [int(word) for word in np.random.SeedSequence(entropy).generate_state(3, np.uint32)]
    random.seed(drawn[0])
    np.random.seed(drawn[1])
    torch.manual_seed(drawn[2])
