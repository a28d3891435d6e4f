"""Functions run by processes of a test: with a group that refuses CPU tensors after the teardown, and with a lock."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy

from bench.config import compose
from bench.engine.processes import Processes, main_process_lock
from bench.engine.run import run
from bench.engine.runfolder import run_lock


def run_on_gpu_like_group(overrides: list[str], training: bool) -> Any:
    """Runs a config with collectives that refuse CPU tensors after the teardown, like those of a GPU group."""
    down, teardown, setup = [False], Strategy.teardown, Strategy.setup_environment

    def set_up(self: Strategy) -> None:
        down[0] = False  # the evaluation after a training has a trainer of its own
        setup(self)

    def torn_down(self: Strategy) -> None:
        teardown(self)
        down[0] = True

    def refusing(collective: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            tensors = [part for part in arguments if isinstance(part, torch.Tensor)]
            if down[0] and any(part.device.type == "cpu" for part in tensors):
                raise RuntimeError("No backend type associated with device type cpu")
            return collective(*arguments, **options)

        return called

    Strategy.teardown, Strategy.setup_environment = torn_down, set_up  # type: ignore[method-assign]
    for name in ("all_gather", "all_reduce", "broadcast"):
        setattr(torch.distributed, name, refusing(getattr(torch.distributed, name)))
    record = run(compose(overrides), training=training).record
    return record.model_dump(mode="json")


def wait_for_lock(folder: str, limit_s: float, held_s: float) -> float:
    """Joins a group with a timeout, and takes a lock that another process holds for longer."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=limit_s))
    if rank == 0:  # somebody else's run
        if os.fork() == 0:
            with run_lock(Path(folder), "another"):
                (Path(folder) / "taken").touch()
                time.sleep(held_s)
            os._exit(0)
        while not (Path(folder) / "taken").exists():
            time.sleep(0.1)
    torch.distributed.barrier()
    started = time.monotonic()
    with main_process_lock(Processes(rank, world), lambda: run_lock(Path(folder), "ours", wait=True)):
        took = time.monotonic() - started
        torch.distributed.barrier()
    return took
