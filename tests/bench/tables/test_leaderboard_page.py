"""The values in `docs/leaderboards.md`, which are typed by hand, are those of the rendered tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/leaderboards.md"
FIGURE = re.compile(r"(?P<ours>-?[\d.]+)(?: ± (?P<spread>[\d.]+) \((?P<runs>\d+)\))?")

Row = dict[str, dict[str, Any]]
"""Column label to cell."""


def _rendered(name: str) -> list[Row]:
    content = json.loads((ROOT / f"results/tables/{name}.json").read_text(encoding="utf-8"))
    rows: dict[tuple[int, str], Row] = {}
    for number, block in enumerate(content["blocks"]):
        for cell in block["cells"]:
            rows.setdefault((number, cell["row"]), {})[cell["label"]] = cell
    return [row for row in rows.values() if row["Params M"]["run_ids"]]


def _printed(header: str) -> list[dict[str, str]]:
    """Returns the rows of the page's only Markdown table with this start of the header line."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.startswith(header))
    columns = [name.strip() for name in lines[at].strip("|").split("|")]
    rows = []
    for line in lines[at + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(columns, (cell.strip() for cell in line.strip("|").split("|")), strict=True)))
    return rows


def _says(text: str, cell: dict[str, Any]) -> bool:
    """Returns whether a printed figure equals that of a cell, up to the printed digits."""
    if cell["ours"] is None:
        return text == cell["status"]
    found = FIGURE.fullmatch(text)
    if found is None:
        return False
    digits = len(found["ours"].partition(".")[2])
    if found["spread"] is None:
        return cell["spread"] is None and f"{cell['ours']:.{digits}f}" == text
    of_seeds = cell["spread"] is not None and f"{cell['spread']:.{digits}f}" == found["spread"]
    return of_seeds and f"{cell['ours']:.{digits}f}" == found["ours"] and len(cell["run_ids"]) == int(found["runs"])


def _label(column: str) -> str:
    return "Training min" if column.startswith("training") else column


@pytest.mark.parametrize(
    ("header", "table"),
    [
        ("| model on N-body MNIST", "boards_nbody16"),
        ("| pattern on N-body MNIST", "boards_nbody16_patterns"),
        ("| pattern on moving MNIST", "boards_moving16_patterns"),
        ("| radar, six frames", "boards_radar_places"),
        ("| radar on days left out", "boards_radar_days"),
        ("| ensembles of radar", "boards_radar_ensembles"),
        ("| tropical Pacific", "boards_sst_decades"),
    ],
)
def test_printed_boards_equal_their_renderings(header: str, table: str) -> None:
    rendered = {row["Rank"]["row"]: row for row in _rendered(table)}
    printed = _printed(header)
    for line in printed:
        (_, name), *figures = line.items()
        for column, text in figures:
            assert _says(text, rendered[name][column]), f"{name}: {column}: {text} is not what {table}.json has"
    assert [next(iter(line.values())) for line in printed] == list(rendered)
