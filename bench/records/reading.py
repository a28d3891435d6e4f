"""Safe reading of the files of a results root: content of bounded size, or one clear error.

A store is written by many runs and machines: one truncated, corrupted, huge or special file must not prevent reading
the others.
"""

from __future__ import annotations

import io
import json
import math
import stat
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import DataError
from bench.paths import AnyPath

MAX_TEXT_BYTES = 16 << 20
"""Most bytes of a text file: a thousand times a record or a learning curve."""
MAX_ARRAY_BYTES = 1 << 30
"""Most bytes of a file's unpacked arrays: ten times the statistics of the largest data set."""
MAX_DEPTH = 64
"""Most levels of a record's JSON; our own have at most ten."""
_NESTED = (dict, list)
_ENTRY, _MOST_ENTRIES = b"PK\x01\x02", 10_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_bytes(path: AnyPath, largest: int, what: str) -> bytes:
    """Returns the content of an ordinary file.

    Args:
        path: The file, local or at a URL.
        largest: Most bytes.
        what: What it should be, with its article, for the message.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: not a regular file (reading a pipe would block forever), too large, or not readable.
    """
    try:
        with _regular_file(path).open("rb") as file:
            content: bytes = file.read(largest + 1)
        if len(content) > largest:
            raise ValueError(f"larger than {largest >> 20} MiB")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path}: not {what}: {error or 'out of memory'}") from error
    return content


def _regular_file(path: AnyPath) -> AnyPath:
    if getattr(path, "protocol", None) in ("file", "local"):
        path = Path(path.path)
    if isinstance(path, Path):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'no ordinary file')}")
    return path


def read_json(path: AnyPath, what: str) -> Any:
    """Returns the content of a JSON file.

    Args:
        path: The file.
        what: See `read_bytes`.

    Raises:
        DataError: not a regular file, too large, not JSON, or nested too deeply.
    """
    try:
        content = json.loads(read_bytes(path, MAX_TEXT_BYTES, what).decode())
    except (FileNotFoundError, ValueError, RecursionError, MemoryError) as error:
        raise DataError(f"{path}: not {what}: {error or 'out of memory'}") from error
    level = [content]
    for _ in range(MAX_DEPTH):
        parts = [part.values() if part.__class__ is dict else part for part in level if part.__class__ in _NESTED]
        level = [item for part in parts for item in part if item.__class__ in _NESTED]
        if not level:
            return content
    raise DataError(f"{path}: not {what}: nested more than {MAX_DEPTH} levels deep")


def read_npz(path: AnyPath, what: str, largest: int = MAX_ARRAY_BYTES) -> dict[str, np.ndarray]:
    """Returns the read-only arrays of an `.npz` file; a false header cannot make it allocate memory.

    Args:
        path: The file.
        what: See `read_bytes`.
        largest: Most bytes of all arrays.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: not a regular file, too large, damaged, or arrays of other types than numbers.
    """
    content = read_bytes(path, largest, what)
    try:
        if content.count(_ENTRY) > _MOST_ENTRIES:  # each costs memory before the first array is read
            raise ValueError(f"more than {_MOST_ENTRIES} arrays")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > largest:
                raise ValueError(f"larger than {largest >> 20} MiB when unpacked")
            return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
    except Exception as error:  # damage raises a dozen kinds of errors in zipfile, zlib and numpy
        raise DataError(f"{path}: not {what}: {error or type(error).__name__}") from error


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # other methods cannot be bounded
        raise ValueError(f"{member.filename} is not packed by numpy")
    with archive.open(member) as file:
        content = file.read(member.file_size)  # unpacks no more than declared
    length = content[8:10] if content[6:7] == b"\x01" else content[8:12]
    start = 8 + len(length) + int.from_bytes(length, "little")
    shape, fortran, dtype = _header(content[:start])
    if dtype.kind not in "biuf":
        raise ValueError(f"{member.filename} holds {dtype}, expected numbers")
    held = len(content) - start
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{member.filename} says {shape} of {dtype}, and holds {held} bytes")
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=1024)  # thousands of files share a few headers, which take about 40 us each to parse
def _header(content: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array has format {version}")
    found: tuple[tuple[int, ...], bool, np.dtype] = _HEADERS[version](file)
    return found
