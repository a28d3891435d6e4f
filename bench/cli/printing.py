"""`print` for the command line: control characters and secrets in foreign text are not printed."""

from __future__ import annotations

import builtins
import shutil
import sys
import textwrap
from typing import TextIO

from bench.safe_text import for_terminal


def wrapped(text: str, indent: int) -> str:
    """Returns a line, in a terminal wrapped to its width with all lines but the first indented."""
    if not sys.stdout.isatty():
        return text
    return textwrap.fill(text, shutil.get_terminal_size().columns, subsequent_indent=" " * indent,
                         break_long_words=False, break_on_hyphens=False, replace_whitespace=False)  # fmt: skip


def wrapped_command(command: str, indent: int) -> str:
    """Returns a command, in a terminal wrapped to its width with backslashes that a shell understands."""
    if not sys.stdout.isatty():
        return command
    width = shutil.get_terminal_size().columns - indent - len(" \\")
    lines = textwrap.wrap(command, max(width, 20), break_long_words=False, break_on_hyphens=False)
    return f" \\\n{' ' * indent}".join(lines)


def print(*words: object, sep: str = " ", end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Prints as Python's own `print` does, each word made safe for a terminal."""
    builtins.print(*(for_terminal(str(word)) for word in words), sep=sep, end=end, file=file, flush=flush)
