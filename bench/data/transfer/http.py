"""Robust HTTP reading: bounded retries, time limits, and checked byte ranges.

`requests` speaks the protocol.  What it leaves open is here: a try that got nowhere is repeated with a growing wait, a
body that ends early is an error, and a range must come back as the very bytes that were asked for.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from bench.errors import DataError, UsageError, first_line
from bench.logs import log

_CHUNK = 1 << 18
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 60.0
T = TypeVar("T")
_local = threading.local()


@dataclass(frozen=True)
class RetryPolicy:
    """Retries and time limits of requests."""

    tries: int = 5
    """In a row without a new byte, before it is given up."""
    wait_s: float = 0.5
    """Before the second try; doubles from try to try."""
    timeout_s: float = 60.0
    """Without a byte, before a try counts as failed."""


class StoppedError(Exception):
    """Another download of the same lot failed; this one was told to stop."""


class RetryableError(Exception):
    """What failed may work the next time; the text says what happened."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True)
class Remote:
    """A server's description of a file."""

    url: str
    size: int | None
    validator: str | None
    """A strong ETag, else the date of change: what tells one version of the file from another."""
    digests: dict[str, str] = field(default_factory=dict)
    """Algorithm to hexadecimal digest of the whole file, where the server names any."""
    ranges: bool = False
    """Whether parts of it can be asked for."""


def https(url: str) -> str:
    """Returns the address that a public bucket's `s3://` one stands for; http and https addresses as they are.

    Raises:
        UsageError: another kind of address.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        return f"https://{parts.netloc}.s3.amazonaws.com{parts.path}"
    if parts.scheme in ("http", "https") and parts.netloc:
        return url
    raise UsageError(f"{url!r} is not a download URL: expected https://, http:// or s3://")


def head(url: str, policy: RetryPolicy, stop: threading.Event | None = None) -> Remote:
    """Returns what a server says about a file, by asking for its first byte: not every server answers HEAD.

    Raises:
        DataError: there is no such file, or no answer.
    """

    def ask() -> Remote:
        with get(url, {"Range": "bytes=0-0"}, policy) as response:
            return describe(url, response)

    return retry(ask, url, policy, stop)


def describe(url: str, response: requests.Response) -> Remote:
    """Returns what the headers of an answer say about the whole file."""
    headers = response.headers
    partial = response.status_code in (206, 416)
    size = (content_range(response) or (0, 0, None))[2] if partial else _number(headers.get("Content-Length"))
    etag = headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    return Remote(url, size, validator, _digests(headers), response.status_code == 206)


def _digests(headers: requests.structures.CaseInsensitiveDict[str]) -> dict[str, str]:
    found = {}
    # An ETag of 32 digits is the MD5 in the stores that data sets are published in.  (That of a file which was
    # uploaded to S3 in parts ends in -N and is not a digest of the file.)
    if etag := re.fullmatch(r'"([0-9a-f]{32})"', headers.get("ETag", "")):
        found["md5"] = etag[1]
    encoded = headers.get("x-amz-checksum-sha256")
    if match := re.search(r"sha-256=:?([A-Za-z0-9+/=]+)", headers.get("Repr-Digest", headers.get("Digest", "")), re.I):
        encoded = encoded or match[1]
    if encoded:
        try:
            digest = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            return found
        if len(digest) == 32:
            found["sha256"] = digest.hex()
    return found


@contextmanager
def get(url: str, headers: dict[str, str], policy: RetryPolicy) -> Iterator[requests.Response]:
    """Gives the open answer to a GET: status 200, 206, 412 or 416, body unread and unchanged by compression.

    Raises:
        DataError: the server refuses, for good.
        RetryableError: it may work the next time.
    """
    try:
        if not hasattr(_local, "session"):
            _local.session = requests.Session()
        response = _local.session.get(
            url,
            headers={"Accept-Encoding": "identity", **headers},
            stream=True,
            timeout=(min(policy.timeout_s, 15.0), policy.timeout_s),
        )
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        raise RetryableError(_plainly(error)) from error
    except requests.RequestException as error:
        raise DataError(f"{url}: {error}") from error
    try:
        status = response.status_code
        if status in _RETRIED:
            after = min(_number(response.headers.get("Retry-After")) or 0, _LONGEST_WAIT_S)
            raise RetryableError(f"the server answers {status} {response.reason}", after)
        if status not in (200, 206, 412, 416):
            raise DataError(f"{url}: the server answers {status} {response.reason}. Check the address.")
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity" and status != 416:
            raise DataError(f"{url}: the server sends it as {encoding}, though asked not to; its bytes would differ")
        yield response
    finally:
        response.close()


def chunks(response: requests.Response) -> Iterator[bytes]:
    """Yields a body as it comes in.

    Raises:
        RetryableError: it stalls, breaks off or ends before its announced length.
    """
    try:
        # Not `iter_content`: that loses what had come in of a chunk when the line breaks.
        while chunk := response.raw.read1(_CHUNK, decode_content=False):
            yield chunk
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise RetryableError(_plainly(error)) from error


def read_range(remote: Remote, start: int, end: int, policy: RetryPolicy, stop: threading.Event | None = None) -> bytes:
    """Returns the bytes `start` to `end` (exclusive) of a remote file, exactly.

    Raises:
        DataError: the server gives no ranges, another version of the file, or nothing.
    """

    def ask() -> bytes:
        headers = {"Range": f"bytes={start}-{end - 1}"}
        if remote.validator and remote.validator.startswith('"'):
            headers["If-Match"] = remote.validator
        with get(remote.url, headers, policy) as response:
            if response.status_code == 412 or (
                remote.validator and describe(remote.url, response).validator != remote.validator
            ):
                raise DataError(f"{remote.url} changed on the server while it was being read; start again")
            if content_range(response) != (start, end, remote.size):
                raise DataError(
                    f"{remote.url}: asked for bytes {start} to {end} of {remote.size}, the server answers "
                    f"{response.status_code} with {response.headers.get('Content-Range', 'the whole file')}. "
                    "Single events need a server that gives ranges; whole files (no --events, --split, --limit) do not."
                )
            content = b"".join(_until(stop, chunks(response)))
        if len(content) != end - start:
            raise RetryableError(f"{len(content)} of {end - start} bytes arrived")
        return content

    return retry(ask, remote.url, policy, stop) if end > start else b""


def _until(stop: threading.Event | None, parts: Iterator[bytes]) -> Iterator[bytes]:
    for part in parts:
        if stop is not None and stop.is_set():
            raise StoppedError
        yield part


def retry(
    attempt: Callable[[], T],
    url: str,
    policy: RetryPolicy,
    stop: threading.Event | None = None,
    reached: Callable[[], int] = lambda: 0,
) -> T:
    """Returns what an attempt returns, repeated as long as it gets further or tries are left.

    Args:
        attempt: Raises `RetryableError` for what may work the next time.
        url: For messages.
        policy: Tries and waits.
        stop: Ends the waiting when set.
        reached: How far it got, in bytes; only more than ever before is progress.

    Raises:
        DataError: no try was left.
        StoppedError: `stop` was set.
    """
    failures, furthest = 0, reached()
    while True:
        if stop is not None and stop.is_set():
            raise StoppedError
        try:
            return attempt()
        except RetryableError as error:
            if reached() > furthest:
                failures, furthest = 0, reached()
            failures += 1
            if failures >= policy.tries:
                raise DataError(
                    f"{url}: {error}; given up after {failures} tries in a row. "
                    "The same command resumes; or download the file yourself from that URL."
                ) from error
            wait = max(policy.wait_s * 2 ** (failures - 1), error.after_s)
            log.debug("%s: %s; tries again in %.3g s", url, error, wait)
            if stop is None:
                time.sleep(wait)
            else:
                stop.wait(wait)


def content_range(response: requests.Response) -> tuple[int, int, int | None] | None:
    """Returns first byte, end (exclusive) and size of the whole of an answer's `Content-Range`, or None."""
    text = response.headers.get("Content-Range", "")
    if match := re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", text.strip()):
        return int(match[1]), int(match[2]) + 1, _number(match[3])
    if match := re.fullmatch(r"bytes \*/(\d+)", text.strip()):
        return 0, 0, int(match[1])
    return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _plainly(error: BaseException) -> str:
    """Returns what went wrong without the names of Python classes around it."""
    text = str(error)
    if "timed out" in text or "timeout" in type(error).__name__.lower():
        return "no byte came for too long"
    if "IncompleteRead" in text or "broken" in text.lower():
        return "the connection broke off"
    if "NameResolution" in text or "Name or service" in text or "getaddrinfo" in text:
        return "the host's name is not known (no network?)"
    if "refused" in text:
        return "the connection was refused"
    return first_line(error)[:200]
