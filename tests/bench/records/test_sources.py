"""Digests of source change with the code, and with nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from bench.records.sources import code_of

REPO = Path(__file__).parents[3]
CODE = b'''"""A module."""

import math  # of the standard library


def area(radius):
    """Returns an area."""
    text = """a # b

    c"""
    return math.pi * radius**2, text, "# d"
'''


@pytest.mark.parametrize(
    ("now", "edited", "counts"),
    [
        (b"a # b", b"a # c", True),
        (b"a # b\n\n", b"a # b\n", True),
        (b'"# d"', b'"# e"', True),
        (b"radius**2", b"radius**3", True),
        (b'    text = """a', b'    text = "" """a', True),
        (b'"""A module."""\n', b"", False),
        (b"  # of the standard library", b"", False),
        (b"import math", b"# Words.\nimport math", False),
        (b'"""Returns an area."""', b'"""Returns\n\n    # an area.\n    """', False),
        (b"    return", b"\n    # why\n\n    return", False),
        (b'"""A module."""', b'\xef\xbb\xbf"""A module."""', False),
    ],
)
def test_source_digests_ignore_comments_and_docstrings(now: bytes, edited: bytes, counts: bool) -> None:
    assert CODE.count(now) == 1 and (code_of(CODE) != code_of(CODE.replace(now, edited))) is counts


@pytest.mark.parametrize("text", [b"width: 1\n\x00", b"def (:\n", b"\xff", b'"""', b"if x:\n  y\n z\n", b""])
def test_files_that_are_not_python_are_digested_unchanged(text: bytes) -> None:
    assert code_of(text) == text


@pytest.mark.parametrize("folder", ["baselines", "earthformer", "bench/metrics"])
def test_stripped_source_is_the_same_program(folder: str) -> None:
    for path in (REPO / folder).rglob("*.py"):
        left = code_of(path.read_bytes())
        assert code_of(left) == left, path
        try:
            program = ast.parse(left)
        except (IndentationError, SyntaxError):  # a body of a docstring alone
            continue
        assert ast.dump(program) == ast.dump(_without_docstrings(ast.parse(path.read_bytes()))), path


def _without_docstrings(program: ast.Module) -> ast.Module:
    for node in ast.walk(program):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return program


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
