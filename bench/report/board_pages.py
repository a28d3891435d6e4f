"""The top of a board's page: five questions with their answers, and the board's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import counted
from bench.protocols.board import TABLES, Board, Budget, read_board
from bench.records.schema import RunRecord
from bench.report.board_pictures import ShownBoard, draw_shown, shown_board
from bench.report.boards import shown_columns, shown_rows
from bench.report.labels import label_of, name_of
from bench.tables.cells import TableData
from bench.tables.definitions import COSTS, Table

_FOLDER = "pictures"


@dataclass(frozen=True)
class BoardPage:
    """The first part of a board's page."""

    questions: tuple[tuple[str, str], ...]
    """Questions with their answers."""
    pictures: tuple[tuple[str, str], ...]
    """Path within the site, and caption."""


def board_page(
    table: Table, contents: TableData, records: Sequence[RunRecord], root: Path, out: Path
) -> BoardPage | None:
    """Draws a board's pictures into the site; returns None for other tables, and for a board without a reference yet.

    Args:
        table: Definition of the table.
        contents: Contents of the table.
        records: Runs that the contents were made from.
        root: Results root.
        out: Folder of the site.
    """
    if not table.name.startswith(TABLES):
        return None
    file = read_board(root / f"{table.name}.yaml")
    shown = shown_board(file, table, contents, records)
    if shown is None:
        return None
    drawn = draw_shown(shown, out / _FOLDER, ".svg") if shown.learned else {}
    pictures = tuple((f"{_FOLDER}/{path.name}", words) for path, words in drawn.items())
    return BoardPage(_questions(file.board, table, contents, shown), pictures)


def _questions(board: Board, table: Table, contents: TableData, shown: ShownBoard) -> tuple[tuple[str, str], ...]:
    column = shown.column
    formula = "1 - score / reference" if column.better == "lower" else "(score - reference) / (1 - reference)"
    cases = [shown.units, counted(len(board.seeds), "seed")]
    if board.folds:
        cases.append(f"{counted(len(board.folds), 'fold')}, scored together")
    return (
        ("Which reference?", f"{shown.reference_label}: the best trivial one in {name_of(column)}."),
        ("Which score?", f"{label_of(column)}: {column.better} is better. Skill is {formula}."),
        ("How many independent cases?", f"{'; '.join(cases)}."),
        ("What budget?", _budget(board)),
        ("What would change the ranking?", " ".join([*_other_firsts(table, contents, shown), board.note.strip()])),
    )


def _budget(board: Board) -> str:
    budgets = [board.budget] if board.rows else []
    budgets += [one.budget or board.budget for one in board.ablations.values()]
    amounts = list(dict.fromkeys(_amount(one) for one in budgets if one is not None))
    tried = f" Tried for each row, and chosen by validation: {'; '.join(map(str, board.grid))}." if board.grid else ""
    return f"{' or '.join(amounts)} of training a seed.{tried}" if amounts else ""


def _amount(budget: Budget) -> str:
    if budget.cpu_s is not None:
        return f"{budget.cpu_s:g} processor seconds"
    if budget.device_s is not None:
        return f"{budget.device_s:g} seconds of the device"
    return counted(budget.steps or 0, "optimiser step")


def _other_firsts(table: Table, contents: TableData, shown: ShownBoard) -> list[str]:
    """Returns which rows would be first by the other scores of the table."""
    labels = {label for label, _ in shown.learned}
    block = next((one for one in contents.blocks if {cells[0].row for cells in one.rows} & labels), None)
    if block is None:
        return []
    rows, firsts = shown_rows(table, block), {}
    for place, column in enumerate(shown_columns(table)):
        if column.better is None or column.skill_of or column.key in COSTS:
            continue
        known = [(row.cells[place].sort["ours"], row.label) for row in rows]
        values = [(value, label) for value, label in known if value is not None]
        if values:
            firsts[name_of(column)] = (max if column.better == "higher" else min)(values, key=lambda one: one[0])[1]
    first = firsts.pop(name_of(shown.column), None)
    by_label: dict[str, list[str]] = {}
    for score, label in firsts.items():
        by_label.setdefault(label, []).append(score)
    same = by_label.pop(first or "", [])
    lines = [f"{first} is also first among the learned rows by {_listed(same)}."] if same else []
    return [*lines, *(f"By {_listed(scores)}, {label} is first." for label, scores in by_label.items())]


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
