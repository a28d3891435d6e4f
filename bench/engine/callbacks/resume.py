"""State added to Lightning's checkpoints, so that a resumed run is bit-identical to an uninterrupted one."""

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
    """Updates the state that checkpoints contain, and saves and restores what Lightning does not; must come first.

    Args:
        loader: Gets the position in the epoch.
        processes: Each has its own stream of random numbers.
        identity: Identity of the training.
        stored: Description of the training in every checkpoint, see `stored_identity`.
        seed: Seed of the run.
        max_steps: Optimiser steps of the training; None if only epochs end it.
        anyway: Whether a training by other code may be resumed.
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
        """How often the training was resumed."""

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
        """Adds the identity of the training and the random states of all processes."""
        checkpoint |= {**self.stored, "resumed_count": self.count}
        if self.processes.world > 1:
            states: list[Any] = [None] * self.processes.world
            torch.distributed.all_gather_object(states, random_states(trainer.strategy.root_device))
            checkpoint["random_states_of_processes"] = states

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores random states and the position in the data, converted to the current number of processes.

        Raises:
            ConfigError: the checkpoint is of another training, or of other code or libraries.
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
        # Lightning does so within an epoch only: between epochs, loaders would read ahead in the order of the first.
        (place,) = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        _rescale(checkpoint, place["batches_per_step"], self.loader.batches.per_step)
        self.loader.load_state_dict(place)

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Seeds each process for itself, because all of them drew the same initial weights until now.

        Also sets Lightning's number of steps. Had it been set before a checkpoint of an epoch's end was loaded,
        Lightning would repeat that epoch, with the sequences of the epoch after the next.
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
            log.warning(f"WARNING: the results will not be bit-identical to an uninterrupted training: {other}")


def _rescale(checkpoint: dict[str, Any], before: int, now: int) -> None:
    """Converts Lightning's counts of batches to another number of micro-batches per step."""
    if before != now:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            for key in counts:
                counts[key] = math.ceil(counts[key] / before) * now
