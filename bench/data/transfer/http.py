"""Robust HTTP reading: bounded retries, time limits, and checked byte ranges.

`requests` handles the protocol.  Added here: failed tries are repeated with growing waits, a body that ends early is an
error, and a range must return exactly the requested bytes.
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
_MAX_WAIT_S = 60.0
T = TypeVar("T")
_local = threading.local()


@dataclass(frozen=True)
class RetryPolicy:
    """Retries and time limits of requests."""

    tries: int = 5
    """Tries in a row without a new byte before giving up."""
    wait_s: float = 0.5
    """Wait before the second try; doubles with each try."""
    timeout_s: float = 60.0
    """Seconds without a byte before a try counts as failed."""


class StoppedError(Exception):
    """This download was stopped because another one of the same group failed."""


class RetryableError(Exception):
    """A failure that another try may resolve; the text says what happened."""

    def __init__(self, message: str, after_s: float = 0.0) -> None:
        super().__init__(message)
        self.after_s = after_s


@dataclass(frozen=True)
class Remote:
    """A server's description of a file."""

    url: str
    size: int | None
    validator: str | None
    """A strong ETag, else the date of change, which identifies the version of the file."""
    digests: dict[str, str] = field(default_factory=dict)
    """Hexadecimal digests of the whole file by algorithm, if the server gives any."""
    ranges: bool = False
    """Whether parts of it can be requested."""


def https(url: str) -> str:
    """Returns the https URL of a public bucket's `s3://` URL; http and https URLs are returned unchanged.

    Raises:
        UsageError: the URL has another protocol.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        return f"https://{parts.netloc}.s3.amazonaws.com{parts.path}"
    if parts.scheme in ("http", "https") and parts.netloc:
        return url
    raise UsageError(f"{url!r} is not a download URL: expected https://, http:// or s3://")


def head(url: str, policy: RetryPolicy, stop: threading.Event | None = None) -> Remote:
    """Returns a server's description of a file, by requesting its first byte, because not all servers support HEAD.

    Raises:
        DataError: the file does not exist, or the server does not answer.
    """

    def ask() -> Remote:
        with get(url, {"Range": "bytes=0-0"}, policy) as response:
            return describe(url, response)

    return retry(ask, url, policy, stop)


def describe(url: str, response: requests.Response) -> Remote:
    """Returns the description of the whole file in the headers of a response."""
    headers = response.headers
    partial = response.status_code in (206, 416)
    size = (content_range(response) or (0, 0, None))[2] if partial else _number(headers.get("Content-Length"))
    etag = headers.get("ETag")
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    return Remote(url, size, validator, _digests(headers), response.status_code == 206)


def _digests(headers: requests.structures.CaseInsensitiveDict[str]) -> dict[str, str]:
    found = {}
    # In the stores where data sets are published, an ETag of 32 digits is the MD5.  (The ETag of a multipart upload to
    # S3 ends in -N and is not a digest of the file.)
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
    """Yields the open response to a GET: status 200, 206, 412 or 416, with the body unread and not decompressed.

    Raises:
        DataError: the server refuses permanently.
        RetryableError: another try may succeed.
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
        raise RetryableError(_cause(error)) from error
    except requests.RequestException as error:
        raise DataError(f"{url}: {error}") from error
    try:
        status = response.status_code
        if status in _RETRIED:
            after = min(_number(response.headers.get("Retry-After")) or 0, _MAX_WAIT_S)
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
    """Yields the chunks of a body as they arrive.

    Raises:
        RetryableError: it stalls, breaks off or ends before its announced length.
    """
    try:
        # `iter_content` would lose the received part of a chunk when the connection breaks.
        while chunk := response.raw.read1(_CHUNK, decode_content=False):
            yield chunk
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise RetryableError(_cause(error)) from error


def read_range(remote: Remote, start: int, end: int, policy: RetryPolicy, stop: threading.Event | None = None) -> bytes:
    """Returns the bytes `start` to `end` (exclusive) of a remote file, exactly.

    Raises:
        DataError: the server does not support ranges, has another version of the file, or does not answer.
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
            content = b"".join(_until_stopped(stop, chunks(response)))
        if len(content) != end - start:
            raise RetryableError(f"{len(content)} of {end - start} bytes arrived")
        return content

    return retry(ask, remote.url, policy, stop) if end > start else b""


def _until_stopped(stop: threading.Event | None, parts: Iterator[bytes]) -> Iterator[bytes]:
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
    """Returns the result of an attempt, repeating it as long as it makes progress or tries are left.

    Args:
        attempt: Raises `RetryableError` for failures that another try may resolve.
        url: For messages.
        policy: Tries and waits.
        stop: Ends the waiting when set.
        reached: Returns the bytes reached; only a new maximum counts as progress.

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
            log.debug("%s: %s; trying again in %.3g s", url, error, wait)
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


def _cause(error: BaseException) -> str:
    """Returns the cause of an error without the names of Python classes around it."""
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
