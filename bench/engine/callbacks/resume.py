"""Adds to Lightning's checkpoints what makes a resumed run bit-identical to an uninterrupted one."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from bench.checkpoint_format import OURS
from bench.data.loading import TrainingLoader
from bench.engine.forecaster import Forecaster
from bench.engine.identity import refuse_another_training
from bench.engine.processes import Processes
from bench.engine.randomness import random_states, restore_random_states, seed_all
from bench.logs import log
from bench.records.schema import TrainingIdentity


class Resume(Callback):
    """What has to be true of the state before anyone may save it, and what a checkpoint needs besides; comes first.

    Args:
        loader: Told how far in the epoch training is.
        processes: Each has a stream of random numbers of its own.
        identity: Of the training.
        stored: What every checkpoint says of it, see `stored_identity`.
        seed: Of the run.
        max_steps: Of the training, None where only epochs end it.
        anyway: Whether other code may continue.
    """

    def __init__(
        self,
        loader: TrainingLoader,
        processes: Processes,
        identity: TrainingIdentity,
        stored: dict[str, Any],
        *,
        seed: int,
        max_steps: int | None,
        anyway: bool,
    ) -> None:
        self.loader, self.processes = loader, processes
        self.identity, self.stored, self.seed, self.anyway = identity, stored, seed, anyway
        self.max_steps = max_steps
        self.own_states: dict[str, Any] | None = None
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
        """Adds what is trained and the random states of all processes."""
        checkpoint |= {**self.stored, "resumed_count": self.count}
        if self.processes.world > 1:
            states: list[Any] = [None] * self.processes.world
            torch.distributed.all_gather_object(states, random_states(trainer.strategy.root_device))
            checkpoint["random_states_of_processes"] = states

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes up random states and the place in the data, and counts batches for the present number of processes.

        Raises:
            ConfigError: another training wrote it, or other code or libraries.
        """
        said = checkpoint.get(OURS)
        refuse_another_training(
            None if said is None else TrainingIdentity.model_validate(said["identity"]),
            self.identity,
            "the checkpoint to continue from",
            anyway=self.anyway,
            continued=True,
        )
        self.count = checkpoint.get("resumed_count", 0) + 1
        states = checkpoint.get("random_states_of_processes", [None])
        if len(states) == self.processes.world:
            self.own_states = states[self.processes.rank]
        # Lightning does so within an epoch only: between two, loaders would read ahead in the order of the first one.
        (place,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        _rescale(checkpoint, place["batches_per_step"], self.loader.batches.per_step)
        self.loader.load_state_dict(place)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """All processes drew the same initial weights; what they draw in training has to differ.

        Lightning learns here how many steps there are: had it known when it took up the checkpoint of an
        epoch's end, it would take up that epoch again, and train on the sequences of the one after the next.
        """
        if self.max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps = self.max_steps
        if self.processes.rank:
            seed_all(self.seed, self.processes.rank, trainer.global_step)
        assert isinstance(module, Forecaster)
        other = module.other_numbers
        if self.own_states is not None:
            other = restore_random_states(self.own_states, trainer.strategy.root_device)
        if self.count and other is not None:
            log.warning(f"WARNING: the bits will not be those of an unbroken training: {other}")


def _rescale(checkpoint: dict[str, Any], before: int, now: int) -> None:
    """Makes Lightning's counts of batches those of steps with another number of micro-batches."""
    if before != now:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            for key in counts:
                counts[key] = math.ceil(counts[key] / before) * now
