"""What a checkpoint needs besides what Lightning saves, so that the resumed run has the bits of the unbroken one."""

from __future__ import annotations

from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from bench.config import Config
from bench.data.loading import TrainingLoader
from bench.errors import ConfigError
from bench.records.provenance import made_by
from bench.running.forecaster import Forecaster
from bench.running.processes import Processes


class Resume(Callback):
    """What has to be true of the state before anyone may save it, and what a checkpoint needs besides; comes first.

    Args:
        loader: Told how far in the epoch training is.
        config: Says whether other code may continue.
        processes: Each has a stream of random numbers of its own.
    """

    def __init__(self, loader: TrainingLoader, config: Config, processes: Processes) -> None:
        self.loader, self.config, self.processes = loader, config, processes
        self.own_state: torch.Tensor | None = None
        self.count = 0
        """How often the training was taken up again."""

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Counts the batch, and updates the running average of the weights."""
        assert isinstance(module, Forecaster)
        module.update_average()
        self.loader.batches_done = batch_idx + 1

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the code that wrote it and the random states of all processes."""
        checkpoint["made_by"], checkpoint["resumed_count"] = made_by(), self.count
        if self.processes.world > 1:
            states: list[Any] = [None] * self.processes.world
            torch.distributed.all_gather_object(states, torch.get_rng_state().tolist())
            checkpoint["torch_rng_of_processes"] = states

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes up the random state, and counts batches for the present number of processes.

        Raises:
            ConfigError: other code or libraries wrote it.
        """
        before, now = checkpoint.get("made_by", {}), made_by()
        changed = [f"{key} {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key]]
        if changed and self.config.train.resume != "anyway":
            raise ConfigError(
                f"the checkpoint was written by other code ({'; '.join(changed)}): the resumed run would not be the "
                "unbroken one. train.resume=anyway continues it all the same, train.resume=false starts anew."
            )
        self.count = checkpoint.get("resumed_count", 0) + 1
        states = checkpoint.get("torch_rng_of_processes", [None])
        if len(states) == self.processes.world and states[self.processes.rank] is not None:
            self.own_state = torch.tensor(states[self.processes.rank], dtype=torch.uint8)
        _rescale(checkpoint, len(states), self.processes.world)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """All processes drew the same initial weights; what they draw in training has to differ."""
        if self.processes.rank:
            state = np.random.SeedSequence([self.config.seed, self.processes.rank, trainer.global_step])
            torch.manual_seed(int(state.generate_state(1, np.uint64)[0] >> 1))
        if self.own_state is not None:
            torch.set_rng_state(self.own_state)


def _rescale(checkpoint: dict[str, Any], before: int, now: int) -> None:
    """Makes Lightning's counts of batches those of another number of processes; both divide `train.accumulate`."""
    if before != now:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            for key in counts:
                counts[key] = counts[key] * before // now
