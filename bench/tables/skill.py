"""Skill against the best trivial reference on the same data, and the rows without skill.

A trivial reference predicts neither motion nor growth: its model's class has `trivial = True` (`blank`, `climatology`,
`persistence`, `blurred_persistence`, `damped_persistence`).  A row that does not beat the best of them is shown, but
not ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from bench import registry
from bench.errors import EarthbenchError
from bench.records.schema import RunRecord
from bench.tables.admission import complete
from bench.tables.definitions import Column, Table
from bench.tables.variants import comparable_key

if TYPE_CHECKING:
    from bench.tables.cells import Cell

NO_REFERENCE = "no reference"


@dataclass(frozen=True)
class Reference:
    """The best trivial forecast of a column."""

    model: str
    value: float
    """In the column's printed units."""


def skill(value: float, reference: float, better: str | None) -> float | None:
    """Returns 1 - value / reference for errors and (value - reference) / (1 - reference) for scores whose best is 1.

    Args:
        value: The score.
        reference: The same score of the reference.
        better: `lower` or `higher`.
    """
    if better == "lower":
        return 1 - value / reference if reference > 0 else None
    return (value - reference) / (1 - reference) if reference < 1 else None


@cache
def is_trivial(model: str) -> bool:
    """Returns whether a registered model is a trivial reference."""
    try:
        return registry.find("model", model).card().trivial
    except EarthbenchError:
        return False


def references(table: Table, shown: Sequence[RunRecord], records: Sequence[RunRecord]) -> dict[str, Reference]:
    """Returns the best trivial reference of each column with a direction, by the column's key.

    Args:
        table: Gives the columns.
        shown: The runs of a block.
        records: All runs, including the references on the same data.
    """
    if not shown:
        return {}
    key = comparable_key(shown[0])
    trivial = [record for record in complete(table, records)[0] if is_trivial(record.model.name)]
    trivial = [record for record in trivial if comparable_key(record) == key]
    found: dict[str, Reference] = {}
    for column in table.columns:
        for record in trivial if column.better else ():
            score = record.scores.get(column.key)
            if score is None:
                continue
            value = score * column.scale
            known = found.get(column.key)
            if known is None or _beats(value, known.value, column):
                found[column.key] = Reference(record.model.name, value)
    return found


def with_skill(table: Table, cells: Sequence[Cell], best: dict[str, Reference]) -> tuple[Cell, ...]:
    """Returns the cells with skill columns filled, and with whether each beats the best reference."""
    if not any(column.skill_of for column in table.columns):
        return tuple(cells)
    by_place = {(cell.row_key, cell.column): cell for cell in cells}
    judged = []
    for cell in cells:
        column = table.column(cell.column)
        if column.skill_of is not None:
            judged.append(_skill_cell(cell, by_place[cell.row_key, column.skill_of], table, best.get(column.skill_of)))
            continue
        reference = best.get(cell.column)
        if reference is not None and cell.ours is not None:
            is_it = cell.model == reference.model and cell.ours == reference.value
            cell = replace(cell, beats_reference=is_it or _beats(cell.ours, reference.value, column))
        judged.append(cell)
    return tuple(judged)


def _skill_cell(cell: Cell, score: Cell, table: Table, reference: Reference | None) -> Cell:
    column = table.column(score.column)
    if score.ours is None:
        return replace(cell, status=score.status)
    found = None if reference is None else skill(score.ours, reference.value, column.better)
    if reference is None or found is None:
        return replace(cell, status=NO_REFERENCE if reference is None else "undefined")
    span = abs((skill(1.0, reference.value, column.better) or 0) - (skill(0.0, reference.value, column.better) or 0))
    spread = None if score.spread is None else score.spread * span
    return replace(cell, ours=found, spread=spread, status="measured")


def skill_remarks(table: Table, cells: Sequence[Cell], best: dict[str, Reference]) -> list[str]:
    """Returns the reference of each skill, and the rows that do not beat it and are not ranked."""
    lines = []
    for column in (table.column(one.skill_of) for one in table.columns if one.skill_of):
        reference = best.get(column.key)
        if reference is None:
            continue
        without = [cell.row for cell in cells if cell.column == column.key and cell.beats_reference is False]
        refused = f"; not ranked, since they do not beat it: {', '.join(without)}" if without else ""
        lines.append(
            f"skill in {column.label}: against {reference.model} ({reference.value:.{column.digits}f}), the best "
            f"trivial reference on these data{refused}"
        )
    if not lines and cells:
        lines.append("no skill: no trivial reference (persistence, climatology, ...) was run on these data")
    return lines


def _beats(value: float, reference: float, column: Column) -> bool:
    return value < reference if column.better == "lower" else value > reference
