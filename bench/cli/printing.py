"""`print` for the command line: whatever foreign text a line holds, it moves no cursor and shows no secret."""

from __future__ import annotations

import builtins
from typing import TextIO

from bench.safe_text import for_terminal


def print(*words: object, sep: str = " ", end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Prints as Python's own `print` does, each word made safe for a terminal."""
    builtins.print(*(for_terminal(str(word)) for word in words), sep=sep, end=end, file=file, flush=flush)
