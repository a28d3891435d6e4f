"""How this project starts Lightning's trainer: on which device, and how quietly."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.errors import ConfigError, InterruptedRunError, RunFailedError


def trainer_device(device: str) -> dict[str, Any]:
    """Returns Lightning's `accelerator` and `devices` for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return {"accelerator": "cpu", "devices": 1}
    if not torch.cuda.is_available():
        raise ConfigError(f"device={device}: torch sees no CUDA device here; use device=cpu or device=auto")
    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise ConfigError(f"device={device}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return {"accelerator": "gpu", "devices": [index]}


def torch_device(device: str) -> str:
    """Returns torch's name of the device that `trainer_device` chooses.

    Raises:
        ConfigError: no such device here.
    """
    chosen = trainer_device(device)
    return "cpu" if chosen["accelerator"] == "cpu" else f"cuda:{chosen['devices'][0]}"


def quiet_lightning() -> None:
    """Keeps Lightning's start-up lines off the terminal, and warnings that describe what we do on purpose."""
    warnings.filterwarnings("ignore", message=".*LeafSpec", module="lightning.*")  # a deprecation in its own code
    warnings.filterwarnings("ignore", message=".*exists and is not empty")  # a resumed run's own checkpoints
    warnings.filterwarnings("ignore", message=".*module\\(s\\) in eval mode")  # the running average of the weights
    warnings.filterwarnings("ignore", message=".*defined a `validation_step` but")  # a tree without that split
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def translated_errors(phase: str) -> Iterator[None]:
    """Gives what can end a run from outside our own words and exit codes.

    Raises:
        RunFailedError: memory ran out.
        InterruptedRunError: a signal outside a training step; Lightning would leave without a word, after SIGTERM even
            with exit code 0.
    """
    import torch
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunFailedError(
            f"out of memory in {phase}: {str(error).splitlines()[0]} "
            "Lower data.batch_size; in training, raise train.accumulate by the same factor: the effective batch stays."
        ) from error
    except SystemExit as error:
        if isinstance(error, SIGTERMException) or isinstance(error.__context__, KeyboardInterrupt):
            raise InterruptedRunError(
                f"interrupted in {phase}; nothing was recorded. The same command continues from the last checkpoint."
            ) from error
        raise
