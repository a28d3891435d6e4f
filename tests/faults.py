"""A small run that trains in a second, and child processes that may be killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.config import Config, compose

TINY = [
    "task=sevir", "model=unet", "data.batch_size=2", "train.max_epochs=4", "train.loggers=[]", "train.lr=1e-2",
    "train.save_every_minutes=1e-9", "progress=false", "picture=false", "device=cpu",
]  # fmt: skip


class Small(nn.Module):
    """A few weights and a random number of each kind per step, so that every state in a checkpoint matters."""

    def __init__(self, t_out: int) -> None:
        super().__init__()
        self.weight, self.drop = nn.Parameter(torch.linspace(0.5, 1, t_out)), nn.Dropout(0.3)

    def forward(self, context: Tensor) -> Tensor:
        last = self.drop(context[:, -1:])
        if self.training:
            last = last * (1 + 0.1 * random.random() + 0.1 * np.random.normal())
        return last * self.weight[None, :, None, None, None]


def tiny(storms: Path, out: Path, *overrides: str) -> Config:
    given = {override.partition("=")[0] for override in overrides}
    usual = [*TINY, f"data.root={storms}", f"results.root={out / 'results'}", f"work={out / 'work'}"]
    return compose([*(override for override in usual if override.partition("=")[0] not in given), *overrides])


def _called(function: Callable[..., Any], arguments: tuple[Any, ...], log: str) -> None:
    with open(log, "a") as file:  # noqa: PTH123 - a plain descriptor for both streams
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            code = function(*arguments)
        except BaseException as error:
            traceback.print_exc()
            code = getattr(error, "exit_code", 1)
        os._exit(code if isinstance(code, int) else 0)


def child(function: Callable[..., Any], *arguments: Any, log: Path) -> Any:
    """Starts a forked child with all modules imported; its exit code is that of the function, or of its error."""
    process = multiprocessing.get_context("fork").Process(target=_called, args=(function, arguments, str(log)))
    process.start()
    return process


def ended(process: Any, timeout: float = 60) -> int:
    """Returns the exit code of a child that must end; a negative one is the signal that killed it."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"the child did not end within {timeout} s")
    return process.exitcode


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
