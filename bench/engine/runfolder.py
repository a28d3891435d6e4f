"""The folder of a run: its lock, owner and progress.  Imports no torch, because `earthbench status` reads it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from bench.errors import ConfigError, DataError, InterruptedRunError, UsageError, first_line
from bench.files import replacing
from bench.logs import log
from bench.safe_text import without_secrets

State = Literal["running", "done", "failed", "stopped", "killed"]
_LOCK, _OWNER, _PROGRESS = ".lock", "owner.json", "progress.json"
_WAIT_S = 1.0
"""`earthbench status` holds a lock for a moment; a run waits longer than that."""
_ORPHANS_S = 15.0
"""Loader processes of a killed run inherited its lock, and need up to five seconds to notice that they are orphans."""


class Owner(BaseModel):
    """The process that holds a run's folder, or held it last."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    pid: int
    host: str
    job: str | None
    """The scheduler's job id, if any."""
    started_utc: str
    config_fingerprint: str
    ended: Literal["done", "failed", "stopped"] | None = None
    """How the run ended; None while it is running, and after a kill."""
    why: str | None = None
    """The first line of the error it ended with."""


class Progress(BaseModel):
    """The last reported progress of a run."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    phase: Literal["training", "evaluation"]
    epoch: int = 0
    """Counted from 1; 0 in an evaluation."""
    epochs: int = 0
    """Upper limit of epochs."""
    done: int
    """Optimiser steps, or batches of an evaluation."""
    total: int
    loss: float | None = None
    """The last finite training loss."""
    score_name: str | None = None
    score: float | None = None
    """Score of the last validation, by which checkpoints are selected."""
    sequences_per_s: float | None = None
    """Over all processes, in about the last minute."""
    waiting_share: float | None = None
    """Share of time that the training process waits for data, 0 to 1."""
    device_gb: float | None = None
    """Peak memory of tensors on this process's GPU, GB."""
    left_s: float | None = None
    """Remaining seconds of the training or evaluation, if nothing ends it early."""
    updated_utc: str = ""

    def __str__(self) -> str:
        """Returns one line: epoch, step, loss, score, speed and time left."""
        parts = [f"epoch {self.epoch} of {self.epochs}"] if self.phase == "training" else ["evaluation"]
        parts.append(f"{'step' if self.phase == 'training' else 'batch'} {self.done:,} of {self.total:,}")
        parts += [f"loss {self.loss:.4g}"] if self.loss is not None else []
        parts += [f"{self.score_name} {self.score:.4g}"] if self.score is not None else []
        parts += [f"{self.sequences_per_s:.3g} sequences/s"] if self.sequences_per_s is not None else []
        parts += [f"{self.waiting_share:.0%} waiting for data"] if self.waiting_share is not None else []
        parts += [f"{self.device_gb:.1f} GB"] if self.device_gb is not None else []
        parts += [f"{duration(round(self.left_s))} left"] if self.left_s is not None else []
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """Returns a duration in a readable unit, days, h, min or s, with three digits below two minutes."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.3g} s"


def write_progress(folder: Path, progress: Progress) -> None:
    """Writes the progress of a run; a failure to write does not end the run."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with suppress(DataError), replacing(folder / _PROGRESS) as part:
        part.write_text(progress.model_copy(update={"updated_utc": now}).model_dump_json() + "\n", encoding="utf-8")


def read_progress(folder: Path) -> Progress | None:
    """Returns the last reported progress of a folder's run, or None."""
    try:
        return Progress.model_validate_json((folder / _PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError, ValidationError):
        return None


@contextmanager
def run_lock(folder: Path, config_fingerprint: str, *, wait: bool = False) -> Iterator[None]:
    """Locks a run's folder; the operating system releases it when the process ends, however it ends.

    Args:
        folder: Made if it does not exist.
        config_fingerprint: Fingerprint of the run's config.
        wait: Wait until another process releases it, such as a job of the same sweep that trains for both.

    Raises:
        ConfigError: another process holds it, and `wait` is False; names process and machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=_WAIT_S)
    except Timeout:
        _acquire_from_another(lock, folder, wait)
    try:
        before = read_owner(folder)
        if before is not None and before.ended is None:
            log.info(f"taking over from process {before.pid} on {before.host}, which died without a message")
        owner = Owner(
            pid=os.getpid(),
            host=socket.gethostname(),
            job=os.environ.get("SLURM_JOB_ID"),
            started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            config_fingerprint=config_fingerprint,
        )
        _write(folder, owner)
        try:
            yield
        except UsageError as error:
            if before is None:
                _remove_run_files(folder)  # refused before it did anything
            else:
                _write(folder, owner.model_copy(update={"ended": "failed", "why": without_secrets(first_line(error))}))
            raise
        except BaseException as error:
            ended = "stopped" if isinstance(error, InterruptedRunError | KeyboardInterrupt) else "failed"
            with suppress(DataError):  # a full disk must not hide what happened
                _write(folder, owner.model_copy(update={"ended": ended, "why": without_secrets(first_line(error))}))
            raise
        _write(folder, owner.model_copy(update={"ended": "done"}))
    finally:
        lock.release()


@contextmanager
def checkpoint_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Locks a local folder of checkpoints outside the run's folder (`train.checkpoints`).

    Runs with different `work` share it.

    Raises:
        ConfigError: another process holds it, and `wait` is False.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=_WAIT_S)
    except Timeout as error:
        if not wait:
            raise ConfigError(
                f"the checkpoints in {folder} are in use: the same training is running with another work=DIR. Wait "
                "for it, or change train.checkpoints=DIR."
            ) from error
        log.info(f"waiting for another process, which holds the checkpoints in {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _acquire_from_another(lock: FileLock, folder: Path, wait: bool) -> None:
    owner = read_owner(folder)
    try:
        lock.acquire(timeout=_ORPHANS_S if owner is not None and _is_gone(owner) else 0)
    except Timeout as error:
        who = f"process {owner.pid} on {owner.host}, since {owner.started_utc}" if owner else "another process"
        if not wait:
            raise ConfigError(
                f"run folder {folder} is in use by {who}: the same run is active there. Wait for it, or change the "
                "config, the seed or work=DIR."
            ) from error
        log.info(f"waiting for {who}, which holds {folder}")
        lock.acquire()


def _is_gone(owner: Owner) -> bool:
    if owner.host != socket.gethostname() or os.name != "posix":  # elsewhere, nothing is forked and 0 is a signal
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # a process of another user
        return False
    return False


def _remove_run_files(folder: Path) -> None:
    for path in (folder / _OWNER, folder / _LOCK, folder / _PROGRESS, *folder.glob("run*.log")):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty
        folder.rmdir()


def _write(folder: Path, owner: Owner) -> None:
    with replacing(folder / _OWNER) as part:
        part.write_text(owner.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read_owner(folder: Path) -> Owner | None:
    """Returns the process that holds or held a run's folder, or None if unknown."""
    try:
        return Owner.model_validate(json.loads((folder / _OWNER).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None


def state(folder: Path, owner: Owner) -> State:
    """Returns the state of a run; `killed` if no process holds the folder and no end was recorded."""
    if owner.ended is not None:
        return owner.ended
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return "running"
    lock.release()
    return "killed"
