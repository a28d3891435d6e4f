"""Progress of a run: for its progress bar, for lines in a log, and for `earthbench status`.

It reads wall-clock time only, so nothing waits for the device.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from bench.engine.runfolder import Progress, duration, write_progress
from bench.logs import console_level, log

_LINE_EVERY_S = 60.0
_FILE_EVERY_S = 10.0
_WINDOW_S = 60.0
"""Window of mean speeds, which has at least the last two batches."""


class ProgressMeter(Callback):
    """Measures the speed of a training or evaluation, and writes it to the log and to `progress.json`.

    Args:
        folder: The run's folder, for `progress.json`; None to write none.
        score: The validation score that checkpoints are selected by.
        clock: Returns seconds.
        lines: Log a line every minute and at the end of each epoch.
    """

    def __init__(
        self,
        folder: Path | None,
        score: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        lines: bool = True,
    ) -> None:
        self.folder, self.score_name, self.clock, self.lines = folder, score, clock, lines
        self.progress: Progress | None = None
        """State after the last batch."""
        self._score: float | None = None
        self._waited_s = self._trained_s = 0.0
        self._ready = self._began = clock()
        self._batches: deque[tuple[float, int, int]] = deque()
        """Time without validations, sequences and steps after each batch in the window."""
        self._sequences = 0
        self._validation_began, self._validation_s, self._validations_s = clock(), 0.0, 0.0
        self._line_at = self._file_at = clock()

    # Training

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self._restart()
        self._batches.append((self.clock(), 0, trainer.global_step))

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the wait for the first batch."""
        self._ready = self.clock()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends the wait for a batch."""
        self._began = self.clock()
        self._waited_s += self._began - self._ready

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds a batch."""
        now = self.clock()
        self._trained_s += now - self._began
        self._add(now, len(batch[0]) * trainer.world_size, trainer.global_step)
        total = int(getattr(pl_module, "total_steps", 0)) or trainer.global_step
        self.progress = Progress(
            phase="training",
            epoch=trainer.current_epoch + 1,
            epochs=trainer.max_epochs or 0,
            done=trainer.global_step,
            total=total,
            loss=_last_loss(pl_module),
            score_name=self.score_name,
            score=self._score,
            sequences_per_s=self._speed(1),
            waiting_share=self._waited_s / max(1e-9, self._waited_s + self._trained_s),
            device_gb=_device_gb(pl_module),
            left_s=self._left_s(trainer, total, epochs_done=trainer.current_epoch),
        )
        self._report(now)
        self._ready = self.clock()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock of a validation."""
        self._validation_began = self.clock()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keeps the score, and the duration of the validation, which does not count as training."""
        self._validation_s = self.clock() - self._validation_began
        self._validations_s += self._validation_s
        value = trainer.callback_metrics.get(self.score_name) if self.score_name else None
        score = float(value) if value is not None else math.nan
        self._score = score if math.isfinite(score) else None

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Reports the end of the epoch."""
        if self.progress is not None:
            left = self._left_s(trainer, self.progress.total, epochs_done=trainer.current_epoch + 1)
            self.progress = self.progress.model_copy(update={"score": self._score, "left_s": left})
            self._report(self.clock(), always=True)

    # Evaluation

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Starts the clock."""
        self._restart()
        self._batches.append((self.clock(), 0, 0))

    def on_test_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch."""
        now, total = self.clock(), int(sum(trainer.num_test_batches))
        self._add(now, len(batch[0]) * trainer.world_size, batch_idx + 1)
        speed = self._speed(2)
        self.progress = Progress(
            phase="evaluation",
            done=batch_idx + 1,
            total=total,
            sequences_per_s=self._speed(1),
            device_gb=_device_gb(pl_module),
            left_s=(total - batch_idx - 1) / speed if speed else None,
        )
        self._report(now)

    # Both

    def _restart(self) -> None:
        self._batches.clear()
        self._sequences, self._waited_s, self._trained_s, self._validations_s = 0, 0.0, 0.0, 0.0
        self._ready = self._line_at = self.clock()
        self._file_at = -math.inf

    def _add(self, now: float, sequences: int, steps: int) -> None:
        self._sequences += sequences
        self._batches.append((now - self._validations_s, self._sequences, steps))
        while len(self._batches) > 2 and self._batches[-1][0] - self._batches[1][0] > _WINDOW_S:
            self._batches.popleft()

    def _speed(self, what: int) -> float | None:
        first, last = self._batches[0], self._batches[-1]
        passed = last[0] - first[0]
        return (last[what] - first[what]) / passed if passed > 0 else None

    def _left_s(self, trainer: lightning.Trainer, total: int, *, epochs_done: int) -> float | None:
        speed = self._speed(2)
        if not speed:
            return None
        if trainer.check_val_every_n_epoch is None:
            every_steps = int(trainer.val_check_interval)
            validations = math.ceil((total - trainer.global_step) / every_steps)
            return (total - trainer.global_step) / speed + validations * self._validation_s
        every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs or 0
        if epochs_done and trainer.max_steps > 0:  # may end the training before the last epoch
            epochs = min(epochs, math.ceil(total * epochs_done / max(1, trainer.global_step)))
        validations = max(0, epochs // every - epochs_done // every)
        return (total - trainer.global_step) / speed + validations * self._validation_s

    def _report(self, now: float, *, always: bool = False) -> None:
        assert self.progress is not None
        if self.lines and (always or now - self._line_at >= _LINE_EVERY_S):
            log.info(str(self.progress))
            self._line_at = now
        if self.folder is not None and (always or now - self._file_at >= _FILE_EVERY_S):
            write_progress(self.folder, self.progress)
            self._file_at = now


_WIDE = 140
"""Terminal width from which a bar and all its figures fit on one line."""


class RunProgressBar(RichProgressBar):
    """Lightning's bar of an epoch, with speed and the remaining time of the whole training.

    Args:
        meter: Measures both.
    """

    def __init__(self, meter: ProgressMeter) -> None:
        # On a narrow terminal, each figure gets a line, because one long text would be broken anywhere.
        delimiter = " " if shutil.get_terminal_size().columns >= _WIDE else "\n"
        super().__init__(leave=True, theme=RichProgressBarTheme(metrics_text_delimiter=delimiter))
        self.meter = meter

    def get_metrics(self, trainer: Any, pl_module: Any) -> dict[str, Any]:
        """Returns the figures shown after the bar."""
        shown = dict(super().get_metrics(trainer, pl_module))
        shown.pop("v_num", None)  # the number of a log folder
        if (loss := _last_loss(pl_module)) is not None:
            shown["train/loss"] = loss
        now = self.meter.progress
        if now is None:
            return shown
        if now.sequences_per_s is not None:
            shown["seq/s"] = f"{now.sequences_per_s:.3g}"
        if now.waiting_share is not None:
            shown["data"] = f"{now.waiting_share:.0%}"
        if now.device_gb is not None:
            shown["GB"] = f"{now.device_gb:.1f}"
        if now.left_s is not None:
            shown["left"] = duration(round(now.left_s))
        return shown


def shown_progress(folder: Path, *, wanted: bool, score: str | None) -> tuple[ProgressMeter, *tuple[Callback, ...]]:
    """Returns the callbacks that report a training: the meter, with a bar on a terminal and log lines elsewhere.

    Args:
        folder: The run's folder, for `progress.json`.
        wanted: `progress` of the config.
        score: The validation score that checkpoints are selected by.
    """
    terminal = sys.stdout.isatty()
    meter = ProgressMeter(folder, score, lines=wanted and not terminal)
    bar = wanted and terminal and console_level() <= logging.INFO
    return (meter, RunProgressBar(meter)) if bar else (meter,)


def evaluation_meter(folder: Path, *, wanted: bool) -> Callback:
    """Returns the callback that reports an evaluation: in `progress.json` and, without a terminal, in log lines."""
    return ProgressMeter(folder, lines=wanted and not sys.stdout.isatty())


def _last_loss(module: lightning.LightningModule) -> float | None:
    """Returns the loss as of the last look at it: nothing waits for a newer one."""
    losses = getattr(module, "losses", None)
    return None if losses is None else losses.last


def _device_gb(module: lightning.LightningModule) -> float | None:
    if module.device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(module.device) / 1e9  # counted on the host: nothing waits
