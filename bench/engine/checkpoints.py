"""Checkpoint files on a disk or at an fsspec URL: written atomically, verified before use.

Lightning writes a local checkpoint to the temporary folder, possibly on another disk, and moves it without a sync: a
run that is killed then may lose it.
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from bench.checkpoint_format import damage, fetched, read_checkpoint, seal, seal_of
from bench.errors import DataError, RunFailedError, first_line, one_message
from bench.files import sync_folder
from bench.logs import log
from bench.paths import AnyPath, as_path, is_url
from bench.safe_text import without_secrets

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's plugin that writes and reads checkpoints; the former `last.ckpt` is kept as `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint: whole under its final name, or not at all.

        Raises:
            RunFailedError: it cannot be written; names the path and, on a local disk, the free space.
        """
        if is_url(str(path)):
            _upload(checkpoint, as_path(str(path), "train.checkpoints"))
        else:
            _write(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Returns the content of a checkpoint, which may hold only tensors and plain values.

        Raises:
            DataError: the file is damaged or holds code.
        """
        content: dict[str, Any] = read_checkpoint(Path(path), sealed=True)
        return content


class KeptCheckpoints(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, whose state names its folder without the credentials of the address."""

    def state_dict(self) -> dict[str, Any]:
        """Returns scores and paths of the kept checkpoints."""
        return _with_replaced_paths(super().state_dict(), str(self.dirpath), without_secrets(str(self.dirpath)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores scores and paths, which Lightning drops unless the folder is the same."""
        super().load_state_dict(_with_replaced_paths(state_dict, without_secrets(str(self.dirpath)), str(self.dirpath)))


def _with_replaced_paths(content: Any, old: str, new: str) -> Any:
    if isinstance(content, str):
        return content.replace(old, new)
    if isinstance(content, dict):
        return {
            _with_replaced_paths(key, old, new): _with_replaced_paths(value, old, new) for key, value in content.items()
        }
    return content


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w+b") as file:
            torch.save(checkpoint, file)
            seal(file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        part.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        raise RunFailedError(f"checkpoint {path} cannot be written: {first_line(error)}. {_space(path)}") from error
    finally:
        part.unlink(missing_ok=True)


def _upload(checkpoint: dict[str, Any], url: AnyPath) -> None:
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    seal(buffer)
    try:
        url.parent.mkdir(parents=True, exist_ok=True)
        if url.name == LAST and url.exists():
            url.fs.copy(url.path, url.with_name(PREVIOUS).path)
        url.fs.pipe_file(url.path, buffer.getvalue())  # object stores publish an object whole
    except Exception as error:  # each backend has errors of its own
        raise RunFailedError(f"checkpoint {url} cannot be written: {first_line(error)}") from error


def _space(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free} bytes are free there; earlier checkpoints are intact."
    except OSError:
        return "Earlier checkpoints are intact."


def newest_intact(folder: AnyPath, scratch: Path) -> Path | None:
    """Returns the newest intact checkpoint to resume from as a local file, or None if there is no checkpoint.

    Args:
        folder: Folder of the checkpoints.
        scratch: A local folder, for copies of remote ones.

    Raises:
        DataError: there are checkpoints, and all are damaged.
    """
    problems = []
    for name in (LAST, PREVIOUS, BEST):
        if not (folder / name).exists():
            continue
        path = fetched(folder / name, scratch)
        problem = damage(path)
        if problem is None:
            return path
        problems.append(f"{folder / name}: {problem}")
        log.warning(f"WARNING: checkpoint {folder / name} is damaged ({problem}): trying an older one")
    if problems:
        raise DataError(one_message("every checkpoint is damaged; train.resume=false starts again:", problems))
    return None


def seals(folder: AnyPath) -> dict[str, str]:
    """Returns the checksum that each of a run's checkpoints carries, by its stem."""
    found = {Path(name).stem: seal_of(folder / name) for name in (BEST, LAST)}
    return {stem: seal for stem, seal in found.items() if seal is not None}


def remove_all(folder: AnyPath) -> None:
    """Removes a run's checkpoints, so that it starts from scratch."""
    for name in (LAST, PREVIOUS, BEST):
        (folder / name).unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Removes unfinished files of killed processes; only the holder of the run's lock may call it."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)
