"""Downloads that resume, and get their final name only when complete.

A file grows under `NAME.part`, with its URL and version in `NAME.part.json`.  It gets its final name after checking
its length, the digests of server and caller, and the caller's own check; a file with a wrong digest is moved to
`NAME.bad`.  pooch does not resume and needs a hash before the first download, so it is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from bench.data.transfer.http import (
    Remote,
    RetryableError,
    RetryPolicy,
    StoppedError,
    chunks,
    describe,
    get,
    head,
    retry,
)
from bench.errors import DataError

Moved = Callable[[int], None]
"""Called with the number of bytes present."""
T = TypeVar("T")


@dataclass(frozen=True)
class Downloaded:
    """A complete, verified file."""

    path: Path
    bytes: int
    sha256: str
    checked_by: str
    """How its bytes were verified: `sha256`, `md5`, or `length` if the server gives no digest."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    check: Callable[[Path], None] | None = None,
    moved: Moved | None = None,
    policy: RetryPolicy | None = None,
    stop: threading.Event | None = None,
) -> Downloaded:
    """Returns a complete file, downloading its missing part.

    Args:
        url: http or https.
        path: Its final name; an existing file is verified instead of downloaded.
        sha256: Its expected digest, if known.
        check: Raises `DataError` for a wrong file; called before the file gets its final name.
        moved: Called with the number of bytes present.
        policy: Tries and time limits.
        stop: Stops the download at the next chunk; the part is kept.

    Raises:
        DataError: the server lacks the file, fails repeatedly, or sends other content than it announces.  A bad file
            never gets the final name.
        StoppedError: `stop` was set.
    """
    policy = policy or RetryPolicy()
    part, state = (path.with_name(path.name + suffix) for suffix in (".part", ".part.json"))
    if path.is_file():
        return _verify_existing(url, path, sha256, check, policy, stop)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part):
            remote = retry(
                lambda: _continue(url, part, state, moved, policy, stop), url, policy, stop, lambda: _size(part)
            )
            found = _verify(part, remote, sha256, check)
            part.replace(path)
            state.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}. The partial file is kept as {part.name}.") from error
    return Downloaded(path, found.bytes, found.sha256, found.checked_by)


def _verify_existing(
    url: str,
    path: Path,
    sha256: str | None,
    check: Callable[[Path], None] | None,
    policy: RetryPolicy,
    stop: threading.Event | None,
) -> Downloaded:
    if sha256 is None:
        remote = head(url, policy, stop)
        if remote.size not in (None, path.stat().st_size):
            raise DataError(
                f"{path} has {path.stat().st_size} bytes, {url} has {remote.size}: delete it, or choose another folder"
            )
    else:
        remote = Remote(url, None, None)
    return _verify(path, remote, sha256, check)


def _continue(
    url: str, part: Path, state: Path, moved: Moved | None, policy: RetryPolicy, stop: threading.Event | None
) -> Remote:
    """Downloads the missing rest of the part; returns the server's description of the whole file."""
    have, known = _size(part), _read_state(state, url)
    if known is None or (known.size is not None and have > known.size):
        have = 0
    elif known.size == have:
        return known  # stopped between the last byte and the verification
    headers = {}
    if have:
        assert known is not None
        headers["Range"] = f"bytes={have}-"
        if known.validator:
            headers["If-Range"] = known.validator
    with get(url, headers, policy) as response:
        remote = describe(url, response)
        if response.status_code == 206:
            # Without validators, a changed file can only be detected by its length.
            expected = known is not None and remote.size == known.size and remote.validator == known.validator
            if not expected or response.headers.get("Content-Range", "").split("-")[0] != f"bytes {have}":
                part.unlink()
                raise RetryableError("the server's range does not continue the partial file; the download starts over")
        elif response.status_code == 200:
            have = 0
        else:
            part.unlink(missing_ok=True)
            raise RetryableError(f"the server answers {response.status_code} to a range; the download starts over")
        if remote.size is not None and (free := shutil.disk_usage(part.parent).free) < remote.size - have:
            raise DataError(f"{part}: {remote.size - have} bytes are missing, the disk has {free} free")
        state.write_text(json.dumps({"url": url, "size": remote.size, "validator": remote.validator,
                                     "digests": remote.digests}))  # fmt: skip
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            for chunk in chunks(response):
                if stop is not None and stop.is_set():
                    raise StoppedError
                file.write(chunk)
                have += len(chunk)
                if moved:
                    moved(have)
            file.flush()
            os.fsync(file.fileno())
    if remote.size is not None and have != remote.size:
        raise RetryableError(f"{have} of {remote.size} bytes arrived")
    return remote


def _verify(path: Path, remote: Remote, sha256: str | None, check: Callable[[Path], None] | None) -> Downloaded:
    wanted = {**remote.digests, **({"sha256": sha256} if sha256 else {})}
    found = digests(path, {"sha256", *wanted})
    for name, digest in wanted.items():
        if found[name] != digest:
            bad = path.with_name(path.name.removesuffix(".part") + ".bad")
            path.replace(bad)
            path.with_name(path.name + ".json").unlink(missing_ok=True)
            raise DataError(
                f"{remote.url}: the downloaded bytes are not the published ones: expected {name} {digest}, found "
                f"{found[name]}. They are kept in {bad} for inspection; the same command downloads the file again."
            )
    if check is not None:
        try:
            check(path)
        except DataError:
            # Length and digest are as announced, so another try would give the same wrong file.
            path.with_name(path.name + ".json").unlink(missing_ok=True)
            path.replace(path.with_name(path.name.removesuffix(".part") + ".bad"))
            raise
    by = "sha256" if "sha256" in wanted else "md5" if wanted else "length"
    return Downloaded(path, path.stat().st_size, found["sha256"], by)


def digests(path: Path, algorithms: Iterable[str]) -> dict[str, str]:
    """Returns the hexadecimal digests of a file, read once."""
    hashes = {name: hashlib.new(name) for name in algorithms}
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            for running in hashes.values():
                running.update(chunk)
    return {name: running.hexdigest() for name, running in hashes.items()}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _read_state(path: Path, url: str) -> Remote | None:
    """Returns the description of a part's file, or None if it is unknown or another file."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return Remote(url, state["size"], state["validator"], state["digests"]) if state["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Locks a part against other processes; the lock is released when this process ends, however it ends."""
    lock = FileLock(part.with_name(part.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(f"{part}: another process is downloading this file") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not delete open files
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def run_parallel(
    jobs: Sequence[Callable[[threading.Event], T]], workers: int, *, ended: Callable[[int, int], None] | None = None
) -> list[T]:
    """Runs jobs in a number of threads and returns their results in order; the first failure stops the others.

    Args:
        jobs: Each is called with an event that is set once another has failed.
        workers: Number of threads.
        ended: Called with the number of jobs that have ended and that of all.

    Raises:
        DataError: the error of the first job that failed.
    """
    stop, lock, count = threading.Event(), threading.Lock(), 0

    def attempt(job: Callable[[threading.Event], T]) -> T:
        nonlocal count
        try:
            result = job(stop)
        except BaseException:
            stop.set()  # here: until this function's own thread hears of it, the pool would begin the next job
            raise
        if ended is not None:
            with lock:
                count += 1
                ended(count, len(jobs))
        return result

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(attempt, job) for job in jobs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:  # a Ctrl-C stops them, too
            stop.set()
            pool.shutdown(cancel_futures=True)
    failed = [error for future in futures if not future.cancelled() and (error := future.exception())]
    if failed:
        raise next((error for error in failed if not isinstance(error, StoppedError)), failed[0])
    return [future.result() for future in futures]
