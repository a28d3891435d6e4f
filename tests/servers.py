"""A local file server with faults chosen by the test."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Faults:
    """The faults; `times` is how often each occurs per path, and is counted down."""

    cut_after: int | None = None
    """Bytes of a body after which the line is closed."""
    stall_after: int | None = None
    """Bytes of a body after which nothing comes any more."""
    status: int | None = None
    announce_more: int = 0
    """Added to the true length."""
    flip: int | None = None
    """Position of a byte of the file that is sent changed."""
    times: int = 10**9
    ranges: bool = True
    etag: str | None = "md5"
    only: str = ""
    """A part of the paths that have the fault."""
    redirect: bool = False

    @property
    def timeout_s(self) -> float:
        """Returns a client's timeout for a byte: short if none will come, else long enough for a busy machine."""
        return 60.0 if self.stall_after is None else 0.5


@dataclass
class Server:
    root: Path
    url: str = ""
    faults: Faults = field(default_factory=Faults)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and `Range` of each."""
    sent: int = 0
    """Bytes of bodies, counted before they are sent: a client that has got them all finds them counted."""
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    state, lock = Server(root), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            faults = state.faults
            with lock:
                state.requests.append((self.path, asked))
                probing = asked == "bytes=0-0"  # what only looks must not use up a fault that is for what downloads
                faulty = not probing and faults.times > 0 and faults.only in self.path
                faults.times -= faulty
            if faulty and faults.status:
                return self._status(faults.status)
            if faults.redirect and not self.path.startswith("/moved"):
                self.send_response(302)
                self.send_header("Location", "/moved" + self.path)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            path = state.root / self.path.removeprefix("/moved").lstrip("/")
            if not path.is_file():
                return self._status(404)
            content = path.read_bytes()
            etag = f'"{hashlib.md5(content).hexdigest()}"' if faults.etag == "md5" else faults.etag
            if faulty and faults.flip is not None:
                content = content[: faults.flip] + bytes([content[faults.flip] ^ 1]) + content[faults.flip + 1 :]
            start, end, total = 0, len(content), len(content)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "") if faults.ranges else None
            if wanted and self.headers.get("If-Range") in (None, etag):
                start, end = int(wanted[1]), min(total, int(wanted[2]) + 1 if wanted[2] else total)
                if start >= total:
                    return self._status(416, f"bytes */{total}")
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
            else:
                self.send_response(200)
            body = content[start:end]
            self.send_header("Content-Length", str(len(body) + (faults.announce_more if faulty else 0)))
            if etag:
                self.send_header("ETag", etag)
            self.end_headers()
            if self.command == "HEAD":
                return None
            stop_at = faults.cut_after if faults.stall_after is None else faults.stall_after
            if not faulty:
                stop_at = None
            with lock:
                state.sent += len(body[:stop_at])
            try:
                self.wfile.write(body[:stop_at])
                self.wfile.flush()
            except OSError:
                return None
            if faulty and faults.stall_after is not None:
                state.released.wait(5)
            if faulty and (stop_at is not None or faults.announce_more):
                self.close_connection = True
            return None

        do_HEAD = do_GET  # noqa: N815 - what http.server calls it

        def _status(self, status: int, content_range: str | None = None) -> None:
            self.send_response(status)
            if content_range:
                self.send_header("Content-Range", content_range)
            self.send_header("Content-Length", "0")
            self.end_headers()

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Ignores disconnecting clients, which the tests are about."""

    server = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
