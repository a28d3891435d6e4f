"""The text of a table's cells, the same in every format that is meant to be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from bench.tables.cells import NOT_MEASURED, NOT_RUN, Block, Cell
from bench.tables.definitions import SIZES, Column, Table
from bench.tables.standings import DEVIATES

Mark = Callable[[str, int | None], str]
"""Puts a format's marks around an escaped text: for 1 (best), 2 (next, and worse beyond chance) or None."""
Escape = Callable[[str], str]

LEGEND = {
    "†": "trained with another config than the table's; takes no part in best and second",
    "‡": "ran on code with uncommitted changes",
    "(plugin)": "the model comes from another distribution",
    "(own)": "not of the paper: a model that was put beside its rows, trained in its own way",
}


MARKS = (
    "bold: the best, and each row that is not worse beyond chance; italic or underlined: the best of the others "
    "(p < 0.05: permutation test over events, and t-test over seeds where a row has several; with other seeds, single "
    "runs may rank differently)"
)


def number(value: float | None, column: Column, *, signed: bool = False) -> str:
    """Returns a value with its column's digits, an empty text for None.

    A size, unlike a difference of sizes, has two digits other than leading zeros at least: no model but one that has no
    parameters shows 0 of them.
    """
    if value is None:
        return ""
    digits = column.digits
    if column.key in SIZES and not signed:
        digits = max(digits, 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:{'+' if signed else ''}.{digits}f}"


def ours_text(cell: Cell, column: Column, *, bare: bool = False) -> str:
    """Returns our side of a cell: the value with spread or interval (unless `bare`) and marks, or why there is none."""
    if cell.ours is None:
        return cell.status.partition(",")[0]
    spread = "" if bare else spread_text(cell, column)
    return number(cell.ours, column) + (spread and f" {spread}") + (" †" if DEVIATES in cell.status else "")


def spread_text(cell: Cell, column: Column) -> str:
    """Returns the spread over seeds `± s (n)`, else the interval of the one run `[l, u]`, else an empty text."""
    if cell.spread is not None:
        return f"± {number(cell.spread, column)} ({len(cell.run_ids)})"
    if cell.interval is not None:
        return f"[{number(cell.interval[0], column)}, {number(cell.interval[1], column)}]"
    return ""


def row_label(cells: Sequence[Cell]) -> str:
    """Returns the label of a row."""
    told = {"own": " (own)", "plugin": " (plugin)", "changed code": " ‡"}
    return cells[0].row + "".join(text for mark, text in told.items() if mark in cells[0].marks)


def filled_columns(table: Table, block: Block) -> list[Column]:
    """Returns the columns that a block has figures in: with other options, its neighbours may have other scores.

    A published table shows all columns, because it states what its rows lack.
    """
    if table.published:
        return list(table.columns)
    filled = {cell.column for cell in block.cells if cell.status != NOT_MEASURED}
    return [column for column in table.columns if column.key in filled] or list(table.columns)


def with_columns(table: Table, block: Block, columns: Sequence[Column]) -> tuple[Table, Block]:
    """Returns a table and one of its blocks with some of its columns only."""
    keys = {column.key for column in columns}
    part = table.model_copy(update={"columns": tuple(columns)})
    return part, replace(block, cells=tuple(cell for cell in block.cells if cell.column in keys))


def header(table: Table) -> list[str]:
    """Returns the texts of the heading: model, kind of line, then the columns."""
    return ["Model", *([""] if _two_sided(table) else []), *(column.label for column in table.columns)]


def printed_lines(table: Table, block: Block, escape: Escape, mark: Mark) -> list[list[str]]:
    """Returns the lines of a block: for each row published, ours, difference and status, or only ours."""
    lines = []
    for cells in block.rows:
        columns = [table.column(cell.column) for cell in cells]
        ours = [mark(escape(ours_text(cell, column)), cell.mark) for cell, column in zip(cells, columns, strict=True)]
        label = escape(row_label(cells))
        if not _two_sided(table):
            lines.append([label, *ours])
            continue
        if any(cell.published_text for cell in cells):
            lines.append([label, "published", *(escape(cell.published_text or "") for cell in cells)])
            label = ""
        lines.append([label, "ours", *ours])
        if any(cell.run_ids or cell.difference is not None for cell in cells):
            pairs = zip(cells, columns, strict=True)
            differences = [number(cell.difference, column, signed=True) for cell, column in pairs]
            lines.append(["", "difference", *differences])
            lines.append(["", "status", *(escape(cell.status.partition(",")[0]) for cell in cells)])
    return lines


def legend(blocks: Sequence[Block]) -> list[str]:
    """Returns the meaning of the marks that occur in some blocks."""
    cells = [cell for block in blocks for cell in block.cells]
    found = []
    if any(cell.spread is not None for cell in cells):
        found.append("a ± s (n): mean and standard deviation over n seeds")
    if any(cell.interval is not None for cell in cells):
        found.append("a [l, u]: one run and its 95 % interval over events (jackknife)")
    if any(cell.ours is not None and not cell.run_ids for cell in cells):
        found.append("sizes of rows that were not run are our counts, which need no data (`earthbench count`)")
    if any(cell.mark for cell in cells):
        found.append(MARKS)
    occurs = {
        "†": any(DEVIATES in cell.status and cell.status != NOT_RUN for cell in cells),
        "‡": any("changed code" in cell.marks for cell in cells),
        "(plugin)": any("plugin" in cell.marks for cell in cells),
        "(own)": any("own" in cell.marks for cell in cells),
    }
    return found + [f"{mark}: {LEGEND[mark]}" for mark, there in occurs.items() if there]


def _two_sided(table: Table) -> bool:
    return table.published is not None
