"""The logger `earthbench`, and where its lines go: a console, the folder of a run, the parent process.

As a library, earthbench leaves the console to the program that uses it; the command line shows lines of level INFO.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from bench.safe_text import Formatter, without_secrets

LEVEL = "EARTHBENCH_LOG_LEVEL"
"""Environment variable with the level of the console, inherited by the processes of a run and of a sweep."""
LOGGED = "logged"
"""Tag of a log record that a process sends to its parent."""

log = logging.getLogger("earthbench")


def _mask(record: logging.LogRecord) -> bool:
    """Masks the credentials in a record before any handler sees it, including those of other programs."""
    record.msg, record.args = without_secrets(record.getMessage()), None
    if record.exc_info and record.exc_info[0] is not None:
        record.exc_text = without_secrets(logging.Formatter().formatException(record.exc_info))
    return True


log.addFilter(_mask)


def console_level() -> int:
    """Returns the lowest level that the console shows."""
    return logging.getLevelNamesMapping().get(os.environ.get(LEVEL, "INFO"), logging.INFO)


class _Console(logging.Handler):
    """Prints to the current `sys.stdout` or `sys.stderr`; an error of the stream is the command's error."""

    def __init__(self, stream: str) -> None:
        super().__init__(console_level())
        self.stream = stream
        self.setFormatter(Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a line."""
        print(self.format(record), file=getattr(sys, self.stream), flush=True)


class _RunFile(logging.FileHandler):
    """Appends to the log of a run; a disk that refuses a line does not end the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Drops the line."""


class _ToParent(logging.Handler):
    """Sends records through a pipe."""

    def __init__(self, parent: Connection) -> None:
        super().__init__()
        self.parent = parent

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a record without its traceback object, which no pipe takes; it is text by now."""
        record.exc_info = None
        self.parent.send((LOGGED, record))


class _Listener(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())


@contextmanager
def _handled_by(*handlers: logging.Handler, level: int, propagate: bool) -> Iterator[None]:
    before = log.handlers[:], log.level, log.propagate
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)
    try:
        yield
    finally:
        log.handlers[:], log.propagate = before[0], before[2]
        log.setLevel(before[1])


def shown_on(stream: Literal["stdout", "stderr"]) -> AbstractContextManager[None]:
    """Returns a context in which the log is shown on one stream of the command line only."""
    # In a sweep, Hydra and launchers give the root logger a console of its own.
    elsewhere = any(type(handler) is logging.StreamHandler for handler in logging.root.handlers)
    return _handled_by(_Console(stream), level=logging.DEBUG, propagate=not elsewhere)


def only_in_files() -> AbstractContextManager[None]:
    """Returns a context in which the console shows nothing: of several processes, only the first one logs there."""
    return _handled_by(logging.NullHandler(), level=log.level, propagate=False)


def forward_to(parent: Connection, level: int) -> None:
    """Sends the log of this process to the one that started it, which passes the records to its own logger."""
    log.handlers[:] = [_ToParent(parent)]
    log.setLevel(level)
    log.propagate = False


@contextmanager
def run_log(folder: Path, rank: int) -> Iterator[None]:
    """Appends the log of a block to `run.log` in a folder, or to `run.rank1.log` in the second process.

    An error that leaves the block is written there with its traceback.
    """
    try:
        file = _RunFile(folder / (f"run.rank{rank}.log" if rank else "run.log"), "a", "utf-8", errors="replace")
    except OSError as error:
        log.warning("WARNING: this run has no log file: %s", error)
        yield
        return
    file.setFormatter(Formatter("%(asctime)s %(message)s"))
    others = log.handlers if log.hasHandlers() or logging.lastResort is None else [logging.lastResort]
    with _handled_by(*others, file, level=log.level or logging.INFO, propagate=log.propagate):
        try:
            yield
        except BaseException as error:
            ended = logging.ERROR, __file__, 0, f"ended by {type(error).__name__}: {error}", (), sys.exc_info()
            record = logging.LogRecord(log.name, *ended)
            _mask(record)
            file.handle(record)
            raise
        finally:
            with suppress(OSError):
                file.close()


@contextmanager
def said_to(say: Callable[[str], None]) -> Iterator[None]:
    """Passes each line of a block to a function, as `run(..., say=...)` did until 0.1."""
    warnings.warn(
        "say= is now the logger `earthbench`; the argument will be removed in 0.3", DeprecationWarning, stacklevel=4
    )
    with _handled_by(*log.handlers, _Listener(say), level=log.level or logging.INFO, propagate=log.propagate):
        yield
