"""The tables on the first page: how much of each is measured, and its best three rows."""

from __future__ import annotations

from dataclasses import dataclass

from bench.report.boards import shown_rows
from bench.report.labels import label_of
from bench.tables.cells import TableData
from bench.tables.definitions import Table, main_column

_RUNS = "Every complete run on "


@dataclass(frozen=True)
class Top:
    """One of the best rows of a block."""

    rank: str
    label: str
    model: str
    value: str
    spread: str
    """Over seeds, or the interval of the one run."""


@dataclass(frozen=True)
class Podium:
    """The best rows of a block."""

    title: str
    score: str
    better: str
    rows: tuple[Top, ...]
    row_count: int
    ranked: bool
    """False if no row of the table beats the best trivial reference: then the best rows have no rank."""


@dataclass(frozen=True)
class Overview:
    """A table on the first page."""

    table: Table
    heading: str
    page: str
    row_count: int
    measured_count: int
    """Number of rows with a record."""
    run_count: int
    statuses: dict[str, int]
    podiums: tuple[Podium, ...]
    """One podium per block with a measured main score."""


def page_of_table(table: Table) -> str:
    """Returns the file of a table's page."""
    return f"table-{table.file_stem}.html"


def heading(table: Table) -> str:
    """Returns a table's title as a heading; for a table of runs, the task and data of the runs."""
    title = table.title.removeprefix(_RUNS) if not table.rows else table.title
    return (title[:1].upper() + title[1:]).replace("->", "→")


def overview(table: Table, contents: TableData) -> Overview:
    """Returns the first page's entry for a table."""
    cells = [cell for block in contents.blocks for cell in block.cells]
    rows = [row for block in contents.blocks for row in block.rows]
    statuses: dict[str, int] = {}
    for cell in cells:
        status = cell.status.partition(",")[0]
        statuses[status] = statuses.get(status, 0) + 1
    return Overview(
        table=table,
        heading=heading(table),
        page=page_of_table(table),
        row_count=len(rows),
        measured_count=sum(any(cell.run_ids for cell in row) for row in rows),
        run_count=len({run_id for cell in cells for run_id in contents.run_ids(cell)}),
        statuses={key: statuses[key] for key in ("match", "differs") if key in statuses},
        podiums=_podiums(table, contents),
    )


def _podiums(table: Table, contents: TableData) -> tuple[Podium, ...]:
    column = main_column(table)
    if column is None:
        return ()
    blocks = [
        (block.title, [row for row in shown_rows(table, block) if row.cells[0].sort["ours"] is not None])
        for block in contents.blocks
    ]
    any_ranked = any(row.rank for _, rows in blocks for row in rows)
    found = []
    for title, measured in blocks:
        top = [row for row in measured if row.rank or not any_ranked][:3]
        if top:
            shown = tuple(Top(row.rank, row.label, row.model, row.cells[0].ours, row.cells[0].spread) for row in top)
            found.append(Podium(title, label_of(column), column.better or "", shown, len(measured), any_ranked))
    return tuple(found)
