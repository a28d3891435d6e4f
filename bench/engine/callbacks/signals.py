"""Signals, which end a run after the training step under way."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint

from bench.engine.callbacks.validations import Validations
from bench.errors import InterruptedRunError

# Ctrl-C, a scheduler's notice, SLURM's early warning, submitit's early warning.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
_SAME_S = 1.0
"""A terminal and a launcher both forward Ctrl-C: within this time, repeated signals count as one."""


class SignalWatch:
    """A context in which the first signal ends the run: a training after the step and its checkpoint, others at once.

    A second signal ends the process immediately.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self.deferring = False
        """Whether a signal waits for the end of the step."""
        self.then = "The same command starts again."
        """A sentence about what to do after a signal."""
        self._before: dict[int, Any] = {}
        self._left_alone: Any = None
        self._number, self._at, self._pid = 0, 0.0, os.getpid()

    def __enter__(self) -> SignalWatch:
        """Starts to watch."""
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
                before = signal.getsignal(number)
                if number == signal.SIGTERM and callable(before):
                    self._left_alone = before  # submitit's, which ignores it and waits for another signal
                else:
                    self._before[number] = before
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the former handlers."""
        self._restore()

    def _restore(self) -> None:
        """Restores the former handlers; twice if a run ends early, since Lightning reinstalls ours at its end."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Installs our handlers, again after a library has replaced them."""
        for number in self._before:
            signal.signal(number, self._receive)
        if self._left_alone is not None:
            signal.signal(signal.SIGTERM, self._left_alone)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a loader process, which the main one ends
        if self.received:
            if time.monotonic() - self._at > _SAME_S:
                sys.stderr.write(f"stopped at once by a second signal ({signal.Signals(number).name})\n")
                sys.stderr.flush()
                os._exit(InterruptedRunError.exit_code)
            return
        self.received, self._number, self._at = signal.Signals(number).name, number, time.monotonic()
        if not self.deferring:
            self.interrupt("nothing was recorded")

    def interrupt(self, saved: str) -> None:
        """Ends the run.

        Args:
            saved: What has been saved or recorded, for the message.

        Raises:
            InterruptedRunError: always, unless the former handler leaves first (submitit's, which requeues the job).
        """
        before = self._before.get(self._number)
        self._restore()
        if callable(before) and before is not signal.default_int_handler:
            before(self._number, None)
        raise InterruptedRunError(f"stopped by {self.received}; {saved}. {self.then}")


class InstallSignalHandlers(Callback):
    """Reinstalls our signal handlers after Lightning's, which wait for other processes."""

    def __init__(self, watch: SignalWatch) -> None:
        self.watch = watch

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Installs ours; Lightning has installed its handlers by now."""
        self.watch.install()

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Installs ours; Lightning has installed its handlers by now."""
        self.watch.install()


class StopAndSave(InstallSignalHandlers, Checkpoint):
    """Saves `last.ckpt` after the optimiser step in which a signal came, and every `every_minutes`.

    Args:
        watch: Signals.
        path: Path of the checkpoint.
        every_minutes: None for signals only.
        validations: Returns whether a validation follows a step; the checkpoint is then saved after it.
    """

    def __init__(self, watch: SignalWatch, path: str, every_minutes: float | None, validations: Validations) -> None:
        super().__init__(watch)
        self.path, self.validations = path, validations
        self.every_s = math.inf if every_minutes is None else 60 * every_minutes
        self._saved, self._step = time.monotonic(), 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Lets signals wait for the end of the step from now on."""
        super().on_train_start(trainer, pl_module)
        self.watch.deferring = True
        self._step = trainer.global_step  # that of the checkpoint, if resumed

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and leaves, but only between optimiser steps, since accumulated gradients are in no checkpoint.

        Not before a validation, which Lightning would skip when resumed from there, and not after the last step of an
        epoch, whose own checkpoint follows.
        """
        before, self._step = self._step, trainer.global_step
        if trainer.global_step > before and not (trainer.is_last_batch or self.validations.due):
            self._save_and_leave(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves and leaves after a validation within an epoch."""
        if not trainer.is_last_batch:
            self._save_and_leave(trainer)

    def _save_and_leave(self, trainer: lightning.Trainer) -> None:
        stop, late = any_process(
            trainer, self.watch.received is not None, time.monotonic() - self._saved > self.every_s
        )
        if stop or late:
            trainer.save_checkpoint(self.path)
            self._saved = time.monotonic()
        if stop:
            self.watch.interrupt(f"saved after step {trainer.global_step} in {self.path}")

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leaves if a signal came during validation: the epoch's own checkpoint is complete by now."""
        if any(any_process(trainer, self.watch.received is not None)):
            self.watch.interrupt(f"saved after step {trainer.global_step} in {self.path}")


def any_process(trainer: lightning.Trainer, *decisions: bool) -> list[bool]:
    """Returns each decision as true if any process made it, because all must save at the same step.

    The flags are on the CPU, which groups for GPUs accept too, so that no process waits for its device.
    """
    flags = torch.tensor(decisions, dtype=torch.uint8)
    if trainer.world_size > 1:
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in flags]
