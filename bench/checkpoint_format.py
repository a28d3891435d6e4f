"""The file format of checkpoints: `torch.save`'s archive with its own SHA-256 as the archive's comment.

`torch.load` does not verify the checksums that `torch.save` wrote.  Any program that reads checkpoints reads these,
too.  Shared weights (`bench.pretrained`) are a safetensors file beside a `config.json`, which has the checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from bench.errors import DataError, first_line
from bench.files import replacing, sha256_of
from bench.paths import AnyPath, as_path

_SEAL = b"earthbench sha256 "
_SEAL_BYTES = len(_SEAL) + 64
_COMMENT_LENGTH = struct.pack("<H", _SEAL_BYTES)
"""Length of the comment, the last two bytes of an archive without one; there they are 0."""

OURS = "trained"
"""Key of a checkpoint's description of its weights, see `bench.models.Trained`."""

SHARED, SHARED_CONFIG = "model.safetensors", "config.json"
"""The files of shared weights, named as in `huggingface_hub`."""
_FILES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")


def local_weights(address: str, key: str, folder: Path) -> Path:
    """Returns the local file of weights: a checkpoint, or the file in a folder of shared weights.

    Args:
        address: A file, a folder that `save_pretrained` wrote, or an fsspec URL of either, e.g. `hf://owner/name`.
        key: The config key, for messages.
        folder: Where copies of remote files go.

    Raises:
        ConfigError: the protocol cannot be used.
        DataError: a remote file is missing or cannot be read.
    """
    path = as_path(address, key)
    if isinstance(path, Path):
        return path / SHARED if path.is_dir() else path
    if path.suffix not in _FILES:
        path = path / SHARED
    if path.name == SHARED:
        fetched(path.parent / SHARED_CONFIG, folder)
    return fetched(path, folder)


def fetched(source: AnyPath, folder: Path) -> Path:
    """Returns a copy of a remote checkpoint in a folder, or the path of a local one.

    Raises:
        DataError: it is missing or cannot be read.
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


def shared_config(path: Path) -> dict[str, Any]:
    """Returns the content of the `config.json` beside shared weights; empty unless earthbench wrote it.

    Raises:
        DataError: it cannot be read.
    """
    config = path.parent / SHARED_CONFIG
    if path.name != SHARED or not config.is_file():
        return {}
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{config} cannot be read: {error}") from error
    return found if isinstance(found, dict) and OURS in found else {}


def _read_shared(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = shared_config(path)
    sha256 = sha256_of(path)
    if config and config.get("sha256") != sha256:
        raise DataError(f"weights {path} are damaged: they do not have the checksum in {SHARED_CONFIG}")
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"weights {path} cannot be read: {error}") from error
    said = {OURS: config[OURS]} if config.get(OURS) else {}
    return {"state_dict": state, **said}


def seal(file: BinaryIO) -> str:
    """Appends the SHA-256 of an archive as its comment, and returns it."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    file.seek(-len(_COMMENT_LENGTH), os.SEEK_END)
    file.write(_COMMENT_LENGTH + _SEAL + digest.encode())
    return digest


def seal_of(path: AnyPath) -> str | None:
    """Returns the SHA-256 that a checkpoint carries, or None if it carries none or there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(-_SEAL_BYTES - len(_COMMENT_LENGTH), os.SEEK_END)
            end = file.read()
    except (OSError, ValueError):  # not there, or shorter than a seal
        return None
    return end[-64:].decode("ascii", "replace") if end.startswith(_COMMENT_LENGTH + _SEAL) else None


def damage(path: Path) -> str | None:
    """Returns the problem of a checkpoint file, or None if every byte is as it was written."""
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
            digest.update(b"\0\0")  # the comment's length before it was sealed
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
    if path.suffix == ".safetensors" and not sealed:
        return _read_shared(path)
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
        raise DataError(f"checkpoint {path} is damaged: earthbench wrote it, but its checksum is missing")
    return content
