"""Unpacking of untrusted archives: names are checked before a byte is written, and sizes are limited.

`zipfile` stays inside its folder but unpacks zip bombs; `tarfile` of Python 3.11 leaves its folder, follows links and
makes devices.  Here only regular files are allowed, and one bad member refuses the archive.
"""

from __future__ import annotations

import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from bench.data.report import Advance
from bench.errors import DataError, one_message

_CHUNK = 1 << 20
# Errors of the libraries for archives that are truncated, changed, encrypted or compressed in an unknown way.
_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
    RuntimeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """Limits on what an archive may unpack to."""

    files: int
    bytes: int


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    kind: str
    """`file`, `folder`, or another kind in words."""
    entry: Any


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield archive
        else:
            with tarfile.open(path) as archive:
                yield archive
    except _BROKEN as error:
        raise DataError(f"{path}: not a whole zip or tar archive: {error}") from error


def _members(archive: zipfile.ZipFile | tarfile.TarFile, limits: Limits) -> list[_Member]:
    """Returns the members, up to the first that exceeds the limits."""
    found: list[_Member] = []
    if isinstance(archive, zipfile.ZipFile):
        for entry in archive.infolist()[: limits.files + 1]:
            form = stat.S_IFMT(entry.external_attr >> 16)
            plain = form in (0, stat.S_IFREG, stat.S_IFDIR)
            kind = "a link or device" if not plain else "folder" if entry.is_dir() else "file"
            found.append(_Member(entry.filename, entry.file_size, kind, entry))
        return found
    total = 0
    for info in archive:
        plain = info.isreg() or info.isdir()
        kind = "a link or device" if not plain else "folder" if info.isdir() else "file"
        found.append(_Member(info.name, info.size, kind, info))
        total += info.size
        if len(found) > limits.files or total > limits.bytes:  # continuing would decompress all of it
            break
    return found


def archive_files(path: Path, limits: Limits) -> dict[str, int]:
    """Returns the files of a zip or tar archive with their announced bytes, after checking that all are harmless.

    Raises:
        DataError: it is truncated; has absolute names, names that leave the folder, links, devices or a name twice; or
            exceeds the limits.  All problems are listed.
    """
    with _opened(path) as archive:
        return {member.name: member.size for member in _checked(path, archive, limits)}


def _checked(path: Path, archive: zipfile.ZipFile | tarfile.TarFile, limits: Limits) -> list[_Member]:
    members = _members(archive, limits)
    problems = [f"more than {limits.files} members"] if len(members) > limits.files else []
    files = [member for member in members if member.kind != "folder"]
    seen: set[PurePosixPath] = set()
    for member in members:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts or any(sign in member.name for sign in "\\:\0") or not name.parts:
            problems.append(f"{member.name!r} leaves the folder, or is not a name that every system allows")
        elif member.kind not in ("file", "folder"):
            problems.append(f"{member.name!r} is {member.kind}")
        elif name in seen and member.kind == "file":
            problems.append(f"{member.name!r} is repeated")
        seen.add(name)
    if (total := sum(member.size for member in files)) > limits.bytes:
        problems.append(f"it unfolds to {total:,} bytes, expected {limits.bytes:,} at most")
    if problems:
        raise DataError(one_message(f"{path} is refused; nothing was written:", problems))
    return files


def unpack(path: Path, folder: Path, places: Mapping[str, str], limits: Limits, advance: Advance | None = None) -> None:
    """Writes members of an archive into a folder.

    Args:
        path: A zip or tar archive, compressed or not.
        folder: Made if it does not exist.
        places: Path below the folder by name in the archive, for the wanted members.
        limits: Most that may be written, whatever the archive announces.
        advance: Called with `(done, total)` in bytes.

    Raises:
        DataError: as `archive_files`; or a member has the wrong checksum or length.
    """
    with _opened(path) as archive:
        wanted = [member for member in _checked(path, archive, limits) if member.name in places]
        done, total = 0, sum(member.size for member in wanted)
        for member in wanted:
            target = folder / places[member.name]
            target.parent.mkdir(parents=True, exist_ok=True)
            written = 0
            with _reader(archive, member) as source, target.open("wb") as file:
                # at most the announced size, which is within the limits: a member may unpack to more
                while chunk := source.read(min(_CHUNK, member.size - written + 1)):
                    written += len(chunk)
                    if written > member.size:
                        break
                    file.write(chunk)
                    if advance:
                        advance(done + written, total)
            if written != member.size:
                raise DataError(f"{path}: {member.name!r} does not have the {member.size} bytes that it announces")
            done += written
        if isinstance(archive, tarfile.TarFile):
            _read_to_the_end(archive, limits)


def _read_to_the_end(archive: tarfile.TarFile, limits: Limits) -> None:
    """Reads a tar archive to its end, so that its decompressor compares the checksum after the last member."""
    file, left = archive.fileobj, limits.bytes
    while file is not None and left > 0 and (chunk := file.read(_CHUNK)):
        left -= len(chunk)


def _reader(archive: zipfile.ZipFile | tarfile.TarFile, member: _Member) -> IO[bytes]:
    found = archive.open(member.entry) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(member.entry)
    assert found is not None  # a regular file
    return found
