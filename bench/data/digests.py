"""Digests of events, which reveal changed values; cached until their file changes.

Reading 150 GB takes minutes, so digests are kept in the user's cache folder with the file's path, size, inode and times
of change.  If any of these differs, the events are read again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bench.data.transfer.http import RetryPolicy, head
from bench.errors import DataError
from bench.files import replacing

_SETTLED_NS = 2_000_000_000
"""File systems keep times to two seconds or better: a file that was changed just before reading may change again
unnoticed, so its digests are not cached."""
_LINE_EVERY_S = 60.0
"""Interval of progress lines without a terminal."""
_WAIT_S = 3600.0
"""How long to wait for another process that reads the same file; then both read it."""


@dataclass(frozen=True)
class FileState:
    """The state of a file, which changes with its content."""

    path: str
    size: int
    version: str
    """Inode and times of change; for a remote file its validator, such as an ETag."""
    changed_ns: int = 0


def file_state(path: Path) -> FileState | None:
    """Returns the state of a file, or None if its versions cannot be distinguished."""
    if isinstance(path, Path) and path.is_dir():
        return _folder_state(path)
    if isinstance(path, Path):
        found = path.stat()  # follows links, as reading does
        version = f"{found.st_dev}:{found.st_ino}:{found.st_mtime_ns}:{found.st_ctime_ns}"
        return FileState(os.path.realpath(path), found.st_size, version, found.st_ctime_ns)
    address = str(path)
    if address.startswith(("http://", "https://")):
        remote = head(address, RetryPolicy())
        return FileState(address, remote.size or 0, remote.validator) if remote.validator else None
    details: dict[str, Any] = path.fs.info(path.path)
    known = (details.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "created"))
    version = next((str(value) for value in known if value), "")
    return FileState(address, int(details.get("size") or 0), version) if version else None


def _folder_state(folder: Path) -> FileState:
    """Returns the state of a folder with all files in it, such as a Zarr store."""
    listing, size, changed = hashlib.sha256(), 0, 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            found = Path(parent, name).stat()
            listing.update(
                os.fsencode(f"{parent}/{name}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}")
            )
            size, changed = size + found.st_size, max(changed, found.st_ctime_ns)
    return FileState(os.path.realpath(folder), size, listing.hexdigest(), changed)


def event_digests(
    path: Path, events: Iterable[int], read: Callable[[int], Iterable[Any]], *, kind: str = ""
) -> dict[int, str]:
    """Returns the SHA-256 of events of a file, by their index in it.

    Args:
        path: The file or Zarr store, on disk or at a URL.
        events: Indices of the events.
        read: Returns the content of an event as buffers, in the order of hashing.
        kind: Distinguishes several kinds of events in a file, e.g. by variable.
    """
    wanted = list(events)
    state = file_state(path)
    settled = state is not None and time.time_ns() - state.changed_ns > _SETTLED_NS
    cached = _cache_path(state, kind) if state is not None and settled else None
    with _locked(cached):
        known = _remembered(cached, state)
        missing = [number for number in wanted if number not in known]
        for number in _shown(missing, path):
            content = hashlib.sha256()
            for part in read(number):
                content.update(part)
            known[number] = content.hexdigest()
        if missing and cached is not None and state is not None:
            _remember(cached, state, known)
    return {number: known[number] for number in wanted}


def _shown(events: list[int], path: Path) -> Iterator[int]:
    """Yields the events with a progress bar; without a terminal, a line every minute."""
    from rich.console import Console
    from rich.progress import track

    title = f"fingerprint of {path.name}"
    if sys.stderr.isatty():
        yield from track(events, title, console=Console(stderr=True), transient=True)
        return
    told = time.monotonic()
    for done, number in enumerate(events):
        yield number
        if time.monotonic() - told > _LINE_EVERY_S:
            told = time.monotonic()
            print(f"{title}: {done + 1} of {len(events)} events", file=sys.stderr)  # noqa: T201 - as a bar would


def _cache_path(state: FileState, kind: str) -> Path:
    import platformdirs

    name = hashlib.sha256(os.fsencode(f"{state.path}{kind and '#' + kind}")).hexdigest()[:32]
    return Path(platformdirs.user_cache_dir("earthbench")) / "digests" / f"{name}.json"


@contextmanager
def _locked(cached: Path | None) -> Iterator[None]:
    """Lets one of several processes read a file while the others wait for its digests."""
    lock = None
    if cached is not None:
        with suppress(OSError, Timeout):  # a home folder without write access or locks costs time, not the run
            cached.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(cached.with_suffix(".lock"))
            lock.acquire(timeout=_WAIT_S)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _remembered(cached: Path | None, state: FileState | None) -> dict[int, str]:
    if cached is None or state is None:
        return {}
    try:
        content = json.loads(cached.read_text(encoding="utf-8"))
        if content["file"] == asdict(state):
            return {int(number): str(digest) for number, digest in content["events"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # not there, or not ours
    return {}


def _remember(cached: Path, state: FileState, digests: dict[int, str]) -> None:
    content = {"file": asdict(state), "events": {str(number): digest for number, digest in sorted(digests.items())}}
    with suppress(DataError), replacing(cached) as part:
        part.write_text(json.dumps(content), encoding="utf-8")
