"""Cost of a training: processor and device time of its steps, and the time of its validations."""

from __future__ import annotations

import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from bench.engine.processes import Processes


class Spent(Callback):
    """Measures a training, including its parts before each resume, but not the loader processes.

    A step lasts from the end of the previous one, including its data. Must come before callbacks that save checkpoints.

    Args:
        processes: Processes whose CPU times are added up.
    """

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.device_s = self.validation_s = 0.0
        self._cpu_s = self._cpu_from = self._from = 0.0

    @property
    def cpu_s(self) -> float:
        """Returns the CPU seconds of the training steps, over all threads and processes; every process must ask."""
        if self.processes.world == 1:
            return self._cpu_s
        found: list[Any] = [None] * self.processes.world
        torch.distributed.all_gather_object(found, self._cpu_s)
        return float(sum(found))

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums so far."""
        return {"cpu_s": self.cpu_s, "device_s": self.device_s, "validation_s": self.validation_s}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the sums from a checkpoint."""
        self._cpu_s = state_dict["cpu_s"] if self.processes.main else 0.0
        self.device_s, self.validation_s = state_dict["device_s"], state_dict["validation_s"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clocks."""
        self._start()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Restarts the clocks after the checkpoint of an epoch."""
        self._start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds a batch, which a GPU may still be computing."""
        self._add()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Waits for the GPU, and adds the rest of its work."""
        self._wait_and_add(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Adds a validation."""
        self.validation_s += time.perf_counter() - self._from
        self._start()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Waits for the GPU, and adds the rest of its work."""
        self._wait_and_add(trainer)

    def _start(self) -> None:
        self._cpu_from, self._from = time.process_time(), time.perf_counter()

    def _add(self) -> None:
        cpu_from, start = self._cpu_from, self._from
        self._start()
        self._cpu_s += self._cpu_from - cpu_from
        self.device_s += self._from - start

    def _wait_and_add(self, trainer: lightning.Trainer) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        self._add()
