"""Checkpoint files: written whole, verified before they are used, on a disk or behind an fsspec URL.

Lightning writes a local checkpoint to the temporary folder, which may be another disk, and moves it without a sync; and
`torch.load` does not look at the checksums that `torch.save` wrote.  Both matter to a run that may be killed.  So a
checkpoint of ours carries its SHA-256 as the comment of the archive that it is; any program still reads it.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from bench.errors import DataError, RunFailedError, one_message
from bench.files import replacing, sync_folder
from bench.places import Place, is_url, place
from bench.safe_text import without_secrets

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"

_SEAL = b"earthbench sha256 "
_SEAL_BYTES = len(_SEAL) + 64
_COMMENT_LENGTH = struct.pack("<H", _SEAL_BYTES)
"""A checkpoint is a zip archive; its last two bytes say how long the comment behind them is."""


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints here; the one before `last.ckpt` is kept as `previous.ckpt`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint: whole under its final name, or not at all.

        Raises:
            RunFailedError: the disk refused; names the path and the free space.
        """
        if is_url(str(path)):
            _put(checkpoint, place(str(path), "train.checkpoints"))
        else:
            _write(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Returns the content of a checkpoint; anything but tensors and plain values is refused.

        Raises:
            DataError: the file is damaged or holds code.
        """
        problem = damage(Path(path))
        if problem:
            raise DataError(f"checkpoint {path} is damaged: {problem}")
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise DataError(
                f"checkpoint {path} cannot be read safely: it is not a file of tensors and plain values"
            ) from error
        return content


class KeptCheckpoints(ModelCheckpoint):
    """Lightning's, whose state in a checkpoint names its folder without the credentials of the address."""

    def state_dict(self) -> dict[str, Any]:
        """Returns scores and paths of the kept checkpoints."""
        return _replaced(super().state_dict(), str(self.dirpath), without_secrets(str(self.dirpath)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over scores and paths: Lightning drops them where the folder is not the same."""
        super().load_state_dict(_replaced(state_dict, without_secrets(str(self.dirpath)), str(self.dirpath)))


def _replaced(content: Any, old: str, new: str) -> Any:
    if isinstance(content, str):
        return content.replace(old, new)
    if isinstance(content, dict):
        return {_replaced(key, old, new): _replaced(value, old, new) for key, value in content.items()}
    return content


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w+b") as file:
            torch.save(checkpoint, file)
            _seal(file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.exists():
            path.replace(path.with_name(PREVIOUS))
        part.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        raise RunFailedError(f"checkpoint {path} cannot be written: {_first_line(error)}. {_space(path)}") from error
    finally:
        part.unlink(missing_ok=True)


def _put(checkpoint: dict[str, Any], url: Place) -> None:
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    _seal(buffer)
    try:
        url.parent.mkdir(parents=True, exist_ok=True)
        if url.name == LAST and url.exists():
            url.fs.copy(url.path, url.with_name(PREVIOUS).path)
        url.fs.pipe_file(url.path, buffer.getvalue())  # object stores publish an object whole
    except Exception as error:  # each backend has errors of its own
        raise RunFailedError(f"checkpoint {url} cannot be written: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _space(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free} bytes are free there; earlier checkpoints are intact."
    except OSError:
        return "Earlier checkpoints are intact."


def _seal(file: BinaryIO) -> None:
    """Puts the SHA-256 of an archive behind it, as the archive's comment."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(-len(_COMMENT_LENGTH), os.SEEK_END)
    file.write(_COMMENT_LENGTH + _SEAL + digest.encode())


def damage(path: Path) -> str | None:
    """Returns what is wrong with a checkpoint file, or None: every byte of it is as it was written."""
    try:
        with path.open("rb") as file:
            before = file.seek(0, os.SEEK_END) - _SEAL_BYTES - len(_COMMENT_LENGTH)
            if before < 0:
                return "it is cut short"
            digest, left = hashlib.sha256(), before
            file.seek(0)
            while left:
                block = file.read(min(left, 1 << 20))
                digest.update(block)
                left -= len(block)
            digest.update(b"\0\0")  # what stood where the comment's length stands
            end = file.read()
    except OSError as error:
        return _first_line(error)
    if not end.startswith(_COMMENT_LENGTH + _SEAL):
        return "it is cut short, or has no checksum of ours"
    return None if end.endswith(digest.hexdigest().encode()) else "its content does not have the checksum it carries"


def fetched(source: Place, folder: Path) -> Path:
    """Returns a local copy of a remote checkpoint in a folder; a local one is returned as it is.

    Raises:
        DataError: it is not there, or its server does not give it.
    """
    if isinstance(source, Path):
        return source
    copy = folder / source.name
    with replacing(copy) as part:
        try:
            source.fs.get_file(source.path, str(part))
        except Exception as error:  # each remote backend has errors of its own
            said = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"checkpoint {source} cannot be read: {said}") from error
    return copy


def newest_intact(folder: Place, scratch: Path, say: Callable[[str], None]) -> Path | None:
    """Returns the newest checkpoint to continue from as a local file, or None where there is none.

    Args:
        folder: Where checkpoints lie.
        scratch: A local folder, for copies of remote ones.
        say: Takes a line about each damaged checkpoint that was passed over.

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
        say(f"WARNING: checkpoint {folder / name} is damaged ({problem}): an older one is used")
    if problems:
        raise DataError(one_message("every checkpoint is damaged; train.resume=false starts anew:", problems))
    return None


def remove_all(folder: Place) -> None:
    """Removes a run's checkpoints: it starts anew."""
    for name in (LAST, PREVIOUS, BEST):
        (folder / name).unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Removes what killed processes left unfinished; only the holder of the run's lock may."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)
