"""The report of the tests on a GPU as Markdown, and its place in the documentation.

python tests/gpu_report.py gpu_report/report.json docs/performance.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_BEGIN, _END = "<!-- gpu report: begin -->", "<!-- gpu report: end -->"


def markdown(content: dict[str, Any]) -> str:
    """Returns a table for each test."""
    lines = [f"On {content['device']}, PyTorch {content['torch']}, CUDA {content['cuda']}."]
    for test in dict.fromkeys(row["test"] for row in content["found"]):
        rows = [{k: v for k, v in row.items() if k != "test"} for row in content["found"] if row["test"] == test]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["", test.removeprefix("test_").replace("_", " ") + ":", ""]
        lines += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_text(row.get(key, "")) for key in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def publish(report: Path, page: Path) -> None:
    """Writes a report into a page, between its two marks.

    Raises:
        ValueError: the page does not have the marks.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"{page} has no place between {_BEGIN} and {_END}")
    made = markdown(json.loads(report.read_text(encoding="utf-8")))
    page.write_text(f"{before}{_BEGIN}\n{made}{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    publish(Path(sys.argv[1]), Path(sys.argv[2]))
