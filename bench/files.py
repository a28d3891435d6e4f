"""Atomic writing and checksums of files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.errors import DataError
from bench.paths import AnyPath


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which takes the final name only when the block ends without an error.

    Raises:
        DataError: the folder cannot be written to, or the disk is full; names the path.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:  # HDF5 puts its own state into the text
        said = error if error.errno is None else os.strerror(error.errno)
        raise DataError(f"{path} cannot be written: {said}") from error
    finally:
        if part.parent.is_dir():
            part.unlink(missing_ok=True)


def sha256_of(path: AnyPath) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut, on file systems that let a folder be synced."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(folder: AnyPath, key: str) -> None:
    """Refuses a folder that cannot be written to, before a run rather than after it.

    Args:
        folder: Local or remote; made if it does not exist.
        key: The config key that names it.

    Raises:
        DataError: says which folder, why, and what to set.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except Exception as error:  # a disk gives OSError, each remote backend errors of its own
        said = str(error) or type(error).__name__
        raise DataError(f"{key}: folder {str(folder)!r} cannot be written to: {said}. Set {key}=DIR.") from error
