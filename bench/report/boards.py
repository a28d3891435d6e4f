"""A table as its page shows it: rows by the main score, and cells with what sorts them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bench.tables.cells import Block, Cell
from bench.tables.definitions import COSTS, Column, Table, main_column
from bench.tables.lines import number, ours_text, spread_text
from bench.tables.skill import is_trivial
from bench.tables.standings import DEVIATES


@dataclass(frozen=True)
class ShownCell:
    """A cell as the page prints it."""

    ours: str
    spread: str
    """Spread over seeds, or the interval of the single run."""
    published: str
    difference: str
    status: str
    mark: int | None
    note: str
    factor: str
    """Ratio of the published count to ours if the table prints one, else empty."""
    sort: dict[str, float | None]
    """Sort keys for the views of measured values, published values and differences."""


@dataclass(frozen=True)
class ShownRow:
    """A row of a leaderboard."""

    label: str
    model: str
    rank: str
    """Rank by the main score, with `=` if rows share it; empty for references and rows without a value."""
    reference: bool
    plugin: bool
    changed_code: bool
    has_record: bool
    cells: tuple[ShownCell, ...]
    """Cells in the order of `shown_columns`."""


def shown_columns(table: Table) -> list[Column]:
    """Returns the columns in page order: scores (main score first), then costs; ranks are not columns of the page."""
    return sorted((column for column in table.columns if not column.rank_of), key=lambda column: column.key in COSTS)


def shown_side(block: Block, column: Column | None) -> Literal["ours", "published"]:
    """Returns which values a block shows at first: ours, or the published ones if none of ours was scored."""
    values = [cell for cell in block.cells if column is not None and cell.column == column.key]
    any_of_ours = any(cell.ours is not None for cell in values) or all(cell.published is None for cell in values)
    return "ours" if any_of_ours else "published"


def shown_rows(table: Table, block: Block) -> list[ShownRow]:
    """Returns the rows of a block from best to worst by the main score, followed by those without a value."""
    column = main_column(table)
    ranks = _ranks(table, block, column)
    rows = []
    for cells in block.rows:
        by_key = {cell.column: cell for cell in cells}
        rank, place = ranks[cells[0].row_key]
        factors = factors_of(table, cells[0].row_key)
        shown = ShownRow(
            label=cells[0].row,
            model=cells[0].model,
            rank=rank,
            reference=is_trivial(cells[0].model),
            plugin="plugin" in cells[0].marks,
            changed_code="changed code" in cells[0].marks,
            has_record=any(cell.run_ids for cell in cells),
            cells=tuple(
                _shown(by_key[column.key], column, factors.get(column.key, 1.0)) for column in shown_columns(table)
            ),
        )
        rows.append((place, shown))
    return [shown for _, shown in sorted(rows, key=lambda row: row[0])]


def _ranks(table: Table, block: Block, column: Column | None) -> dict[str, tuple[str, int]]:
    """Returns the printed rank of each row, and its position on the page.

    Rows that are not significantly worse than the best share the first rank, and rows with the same printed score share
    a rank. References, and rows that do not beat the best trivial one, are not ranked but placed by their score.
    A table with a column of ranks has its own.
    """
    side = shown_side(block, column)
    sign = -1 if column is not None and column.better == "higher" else 1
    known: list[tuple[float, str]] = []
    best: set[str] = set()
    beaten: set[str] = set()
    for cells in block.rows:
        cell = next((cell for cell in cells if column is not None and cell.column == column.key), None)
        value = getattr(cell, side) if cell is not None else None
        if column is not None and cell is not None and value is not None:
            known.append((sign * value, cell.row_key))
            best |= {cell.row_key} if side == "ours" and cell.mark == 1 else set()
            beaten |= {cell.row_key} if side == "ours" and cell.beats_reference is False else set()
    known.sort(key=lambda one: one[0])
    digits = column.digits if column is not None else 0
    models = {cells[0].row_key: cells[0].model for cells in block.rows}
    competing = [(value, key) for value, key in known if not is_trivial(models[key]) and key not in beaten]
    shared: dict[str, float] = {key: (-math.inf if key in best else round(value, digits)) for value, key in competing}
    own = {cell.row_key: cell.ours for cell in block.cells if table.column(cell.column).rank_of}
    shared = {key: value for key, value in own.items() if value is not None} if own else shared
    ranked = {
        key: f"{1 + sum(other < mine for other in shared.values())}"
        + ("=" if [*shared.values()].count(mine) > 1 else "")
        for key, mine in shared.items()
    }
    places = {key: place for place, (_, key) in enumerate(known)}
    return {key: (ranked.get(key, ""), places.get(key, len(models))) for key in models}


def factors_of(table: Table, row_key: str) -> Mapping[str, float]:
    """Returns how many times our counts the published ones of a row are, by column."""
    return next((row.published_factors for row in table.rows if row.key == row_key), {})


def _shown(cell: Cell, column: Column, factor: float) -> ShownCell:
    status, _, _ = cell.status.partition(",")
    notes = [cell.note, "trained with another config than the table's" if DEVIATES in cell.status else ""]
    return ShownCell(
        ours=ours_text(cell, column, bare=True),
        spread=spread_text(cell, column),
        published=cell.published_text or "",
        difference=number(cell.difference, column, signed=True),
        status=status,
        mark=cell.mark,
        note="; ".join(note for note in notes if note),
        factor=f"{factor:g}" if factor != 1 and cell.published_text else "",
        sort={"ours": cell.ours, "published": cell.published, "difference": cell.difference},
    )


def column_groups(table: Table) -> list[tuple[str, list[Column]]]:
    """Returns the columns under their common headings, in page order."""
    groups: list[tuple[str, list[Column]]] = []
    for column in shown_columns(table):
        if groups and groups[-1][0] == column.group:
            groups[-1][1].append(column)
        else:
            groups.append((column.group, [column]))
    return groups
