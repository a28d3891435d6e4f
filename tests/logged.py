"""The lines of the logger `earthbench`, for helpers that return them; tests themselves use `caplog`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from bench.logs import log


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def logged() -> Iterator[list[str]]:
    """Appends every line within the context to the list."""
    handler, level = _Lines([]), log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield handler.lines
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
