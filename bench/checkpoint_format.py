"""The file format of checkpoints: `torch.save`'s archive with the SHA-256 of itself as the archive's comment.

`torch.load` does not look at the checksums that `torch.save` wrote.  Any program still reads such a file.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from bench.errors import DataError, first_line
from bench.paths import AnyPath

_SEAL = b"earthbench sha256 "
_SEAL_BYTES = len(_SEAL) + 64
_COMMENT_LENGTH = struct.pack("<H", _SEAL_BYTES)
"""The last two bytes of an archive without a comment are 0: its length."""

OURS = "trained"
"""Key under which a checkpoint says what its weights are, see `bench.models.Trained`."""


def seal(file: BinaryIO) -> str:
    """Puts the SHA-256 of an archive behind it, as the archive's comment, and returns it."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(-len(_COMMENT_LENGTH), os.SEEK_END)
    file.write(_COMMENT_LENGTH + _SEAL + digest.encode())
    return digest


def seal_of(path: AnyPath) -> str | None:
    """Returns the SHA-256 that a checkpoint carries, or None where there is no file or it carries none."""
    try:
        with path.open("rb") as file:
            file.seek(-_SEAL_BYTES - len(_COMMENT_LENGTH), os.SEEK_END)
            end = file.read()
    except (OSError, ValueError):  # not there, or shorter than a seal
        return None
    return end[-64:].decode("ascii", "replace") if end.startswith(_COMMENT_LENGTH + _SEAL) else None


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
        return first_line(error)
    if not end.startswith(_COMMENT_LENGTH + _SEAL):
        return "it is cut short, or has no checksum of ours"
    return None if end.endswith(digest.hexdigest().encode()) else "its content does not have the checksum it carries"


def read_checkpoint(path: Path, *, sealed: bool = False) -> Any:
    """Returns the content of a file of weights: tensors and plain values, on the CPU.

    Args:
        path: A checkpoint of ours, or what `torch.save` wrote elsewhere.
        sealed: Refuse a file without a checksum.

    Raises:
        DataError: the file is missing, damaged, or holds code.
    """
    import torch

    if not path.is_file():
        raise DataError(f"checkpoint {str(path)!r} is not a file")
    problem = damage(path) if sealed or seal_of(path) is not None else None
    if problem:
        raise DataError(f"checkpoint {path} is damaged: {problem}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # never unpickles code
    except Exception as error:
        raise DataError(
            f"checkpoint {path} cannot be read safely: it is not a file of tensors and plain values"
        ) from error
    if not sealed and isinstance(content, dict) and OURS in content and seal_of(path) is None:
        raise DataError(f"checkpoint {path} is damaged: it is one of earthbench, and has lost its checksum")
    return content
