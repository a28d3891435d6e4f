"""Reading data from disk or from a URL that fsspec opens: `s3://`, `https://`, `memory://`, ...

A folder on disk is a `pathlib.Path`; a remote one is a `upath.UPath`, which has the same methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import h5py
import requests
from fsspec.spec import AbstractBufferedFile

from bench.data.transfer.http import Remote, RetryPolicy, head, read_range
from bench.errors import DataError, EarthbenchError
from bench.paths import as_path

# An event of SEVIR has 7.2 MB: two to four blocks of it in one request, and headers in the first.
_BLOCK_BYTES = 4 << 20
_ANSWER_S = 30.0
"""Seconds without an answer after which a server counts as unreachable."""


def open_root(root: str | Path) -> Path:
    """Returns the folder of a root; for a URL, an object with the methods of a `Path`.

    Buckets are read without credentials, unless fsspec is configured otherwise, e.g. by `FSSPEC_S3_ANON=false`.

    Raises:
        ConfigError: the library for the protocol is not installed.
        DataError: the web server does not answer; fsspec would report a missing file.
    """
    if not isinstance(root, str):
        return root
    import fsspec.config

    if root.startswith(("http://", "https://")):
        _refuse_silent_server(root)

    anonymous = root.startswith(("s3://", "s3a://")) and "anon" not in fsspec.config.conf.get("s3", {})
    return cast(Path, as_path(root, "data.root", **({"anon": True} if anonymous else {})))


def _refuse_silent_server(root: str) -> None:
    try:
        requests.get(root, timeout=_ANSWER_S, stream=True).close()  # whatever it answers
    except requests.RequestException as error:
        raise DataError(f"data.root={root}: no answer: {' '.join(str(error).split())}") from error


@contextmanager
def as_os_errors(path: Path) -> Iterator[None]:
    """Turns the errors of protocol libraries (botocore, aiohttp) into `OSError`."""
    try:
        yield
    except (EarthbenchError, OSError):
        raise
    except Exception as error:
        if isinstance(path, Path):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error


def open_hdf5(path: Path) -> h5py.File:
    """Returns an HDF5 file, local or remote, open for reading.

    It is not locked: reading needs no lock, some network file systems have none, and a file that another program holds
    is not damaged.  HDF5 refuses to open a file twice in a process with and without locks, unless with two drivers:
    this one is not h5py's default, so that users can open the same files as they like.

    Raises:
        OSError: it cannot be read, or is not HDF5.
        DataError: the server refuses it.
    """
    if isinstance(path, Path):
        try:
            return h5py.File(path, "r", driver="stdio", locking=False)
        except OSError:  # the default driver has the better message
            return h5py.File(path, "r", locking=False)
    if str(path).startswith(("http://", "https://")):
        policy = RetryPolicy()
        return h5py.File(RemoteFile(head(str(path), policy), policy, _BLOCK_BYTES), "r")
    remote: Any = path
    options = {"block_size": _BLOCK_BYTES, "cache_type": "blockcache", "cache_options": {"maxblocks": 8}}
    with as_os_errors(path):
        return h5py.File(remote.fs.open(remote.path, "rb", **options), "r")


class RemoteFile(AbstractBufferedFile):
    """A remote file that is read by ranges of bytes, with retries and checks; blocks are cached.

    Args:
        remote: The server's description of it.
        policy: Tries and time limits.
        block_bytes: Bytes per request.
    """

    def __init__(self, remote: Remote, policy: RetryPolicy, block_bytes: int = 1 << 16) -> None:
        if remote.size is None:
            raise DataError(f"{remote.url}: the server does not report the length, so byte ranges cannot be requested")
        self.remote, self.policy = remote, policy
        super().__init__(
            None, remote.url, block_size=block_bytes, cache_type="blockcache", cache_options={"maxblocks": 8},
            size=remote.size,
        )  # fmt: skip

    def _fetch_range(self, start: int, end: int) -> bytes:
        return read_range(self.remote, start, min(end, self.size), self.policy)  # the last block is shorter
