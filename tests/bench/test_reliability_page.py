"""docs/reliability.md names every fault of the list and existing tests."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
_COUNTS = {"F": 11, "D": 14, "M": 23, "C": 13, "R": 6, "T": 4, "E": 7, "X": 4, "P": 3}


def _rows() -> dict[str, str]:
    """Returns the last column by fault."""
    text = (REPO / "docs/reliability.md").read_text(encoding="utf-8").partition("## Faults tried")[2]
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| [A-Z]\d\d \|", line)]
    assert all(len(row) == 4 and all(cell.strip() for cell in row) for row in cells)
    return {row[0]: row[3] for row in cells}


def test_every_fault_is_on_the_page() -> None:
    assert list(_rows()) == [f"{kind}{n:02d}" for kind, count in _COUNTS.items() for n in range(1, count + 1)]


def test_every_named_test_exists() -> None:
    tests = {path: ast.parse(path.read_bytes()) for path in (REPO / "tests").rglob("test_*.py")}
    known = {node.name for tree in tests.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    known |= {path.relative_to(REPO).as_posix() for path in tests}
    for fault, said in _rows().items():
        named = {name for name in re.findall(r"`([^`]+)`", said) if "test_" in name}
        assert named and named <= known, f"{fault}: {sorted(named - known)}"
