"""The code of the documentation pages: every fenced block, with what its page says about running it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md"))]
CHECKED_ONLY = {
    "data.md": "downloads of the real archives; tests/bench/data runs each verb against a local server",
    "baselines.md": "trainings of minutes each, whose figures the page gives",
}
"""Pages without marks of their own, none of whose blocks are run, and why."""
SHELL = ("sh", "bash", "console", "shell")
_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (?P<kind>run|not run): (?P<words>[^>]+?) -->\s*\Z")
_INLINE = re.compile(r"`(earthbench [^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block. The HTML comment right before it says how it is tested:

    `<!-- run: KEY=VALUE ... -->`: run with these overrides behind every command that takes some (tiny models);
    `<!-- not run: REASON -->`: only checked: verbs, flags, names and overrides exist.  Without a comment, run as it is.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str = ""
    added: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """Returns the words of each command, in order; `a && b` are two."""
        found: list[list[str]] = []
        for line in self.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, "&&"]:
                if word not in ("&&", ";"):
                    words.append(word)
                elif words:
                    found.append(words)
                    words = []
        return found


def blocks(page: Path) -> list[Block]:
    """Returns every fenced block of a page."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in _FENCE.finditer(text):
        mark = _MARK.search(text, 0, match.start())
        kind, words = (mark["kind"], mark["words"]) if mark else ("", "")
        found.append(
            Block(
                page, text.count("\n", 0, match.start()) + 1, match["language"], match["text"],
                not_run=words if kind == "not run" else "", added=tuple(words.split()) if kind == "run" else (),
            )
        )  # fmt: skip
    return found


def inline_commands(page: Path) -> list[list[str]]:
    """Returns the words of each `earthbench ...` in running text; `[a|b]` and `...` are placeholders."""
    return [shlex.split(" ".join(text.split())) for text in _INLINE.findall(_FENCE.sub("", page.read_text()))]
