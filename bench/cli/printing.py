"""`print` for the command line: control characters and secrets in foreign text are not printed."""

from __future__ import annotations

import builtins
import shlex
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
    lines = [""]
    for word in map(shlex.quote, shlex.split(command)):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return f" \\\n{' ' * indent}".join(lines)


def print(*words: object, sep: str = " ", end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Prints as Python's own `print` does, each word made safe for a terminal."""
    builtins.print(*(for_terminal(str(word)) for word in words), sep=sep, end=end, file=file, flush=flush)
