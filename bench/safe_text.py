"""Foreign text made safe for a terminal, a CSV cell, Markdown, HTML or LaTeX, with secrets masked.

File names, names of data sets and plugins, messages of servers and other people's records may hold escape sequences,
formulas and markup; addresses may hold credentials.
"""

from __future__ import annotations

import html
import logging
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

MASK = "***"
# The user's part of an address: up to the last @ before the host's end; a secret may contain slashes, a port may not.
_USER = re.compile(r"(?<=://)(?!\*\*\*@)[^\s/@]+(?::(?!\d{1,5}(?:[/?#]|$))[^\s@]*)?@(?:[^\s/@]*@)*")
# A parameter of an address whose name says that its value is a secret: ?sig=, &X-Amz-Signature=, #access_token=
_SECRET_NAMES = r"sig|token|key|secret|pass|pwd|auth|cred|jwt|session|code|x-amz-|x-goog-"
_PARAMETER = re.compile(rf"(?i)(://\S*?[?&;#][\w.~%-]*(?:{_SECRET_NAMES})[\w.~%-]*=)(?!\*\*\*)[^\s&;#'\"]+")
_SECRET_VARIABLE = re.compile(r"(?i)key|secret|token|pass|pwd|auth|cred|sas|sig|jwt")
_MIN_SECRET_LENGTH = 6
_known_secrets: dict[str, str] = {}

# Direction marks and invisible characters, which make a line read differently from how it is stored.
_DIRECTION = {*range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C, 0xFEFF}
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # noqa: RUF001 - wide ones count, too
_MARKDOWN = {"\\": "\\\\", "|": "\\|", "<": "&lt;", "\r": " ", "\n": " "}
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "†": r"$^\dagger$", "‡": r"$^\ddagger$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " ", "\r": " ",
}  # fmt: skip


def without_secrets(text: str) -> str:
    """Returns a text with the credentials of every address masked: `s3://***@bucket`, `?sig=***`.

    Secrets given to `remember_secret` are masked everywhere.
    """
    for value, name in _known_secrets.items():
        text = text.replace(value, name)
    if "://" not in text:
        return text
    text = _USER.sub(f"{MASK}@", text)
    while (masked := _PARAMETER.sub(rf"\g<1>{MASK}", text)) != text:  # several parameters of one address
        text = masked
    return text


def content_without_secrets(content: Any) -> Any:
    """Returns plain containers with `without_secrets` applied to every text in them."""
    if isinstance(content, str):
        return without_secrets(content)
    if isinstance(content, Mapping):
        return {key: content_without_secrets(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(content_without_secrets(value) for value in content)
    return content


def remember_secret(variable: str, value: str) -> None:
    """Masks the value of an environment variable from now on if the variable's name says that it is a secret."""
    if _SECRET_VARIABLE.search(variable) and len(value) >= _MIN_SECRET_LENGTH:
        _known_secrets[value] = f"${{oc.env:{variable}}}"


def for_terminal(text: str) -> str:
    r"""Returns a text without control and direction characters, with secrets masked.

    Line breaks and tabs stay. Any other control character becomes `\u001b` and the like, which JSON reads back.
    """
    return "".join(
        f"\\u{ord(character):04x}" if _is_control(character) else character for character in without_secrets(text)
    )


def one_line(text: str) -> str:
    """Returns foreign text as one line for a terminal."""
    return for_terminal(" ".join(text.split()))


def for_csv(text: str) -> str:
    """Returns a CSV cell that no spreadsheet takes for a formula; numbers, one or several, stay as they are."""
    text = for_terminal(text)
    if not text.lstrip().startswith(_FORMULA):
        return text
    try:
        _ = [float(word) for word in text.split()]
    except ValueError:
        return f"'{text}"
    return text


def for_html(text: str) -> str:
    """Returns a text escaped for HTML, in an element or in a quoted attribute."""
    return html.escape(_visible(text))


def for_markdown(text: str) -> str:
    """Returns a text escaped for a Markdown table and the HTML in it."""
    return "".join(_MARKDOWN.get(character, character) for character in _visible(text))


def for_latex(text: str) -> str:
    """Returns a text escaped for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in _visible(text))


class Formatter(logging.Formatter):
    """The formatter of the log's lines, ours and Hydra's."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns a line of the log made safe for a terminal."""
        return for_terminal(super().format(record))


def _visible(text: str) -> str:
    return "".join(character for character in text if not _is_control(character))


def _is_control(character: str) -> bool:
    if character in "\n\t":
        return False
    return unicodedata.category(character) == "Cc" or ord(character) in _DIRECTION or character in "\u2028\u2029"
