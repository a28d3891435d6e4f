"""A table for a terminal: aligned, fitted to the width, references below learned models."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bench import registry
from bench.errors import counted
from bench.records.schema import RunRecord
from bench.safe_text import one_line
from bench.tables.cells import NOT_RUN, Block, Cell, TableData
from bench.tables.definitions import COSTS, Column, Table
from bench.tables.lines import filled_columns, header, legend, printed_lines, with_columns
from bench.tables.render import load_table
from bench.tables.runs import added_columns, runs_table, score_column, task_of_runs
from bench.tables.skill import is_trivial

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_LABEL_WIDTH = 24
"""Width that labels are wrapped to, or to their longest word, before a column is left out."""
_GAP = 2
_MAX_SCORES = 8


def narrowed(
    table: Table, contents: TableData, columns: Sequence[str] = (), sort: str | None = None
) -> tuple[Table, TableData]:
    """Returns a table and its contents with some columns only, and its rows sorted.

    Args:
        table: The definition.
        contents: The contents.
        columns: Keys or labels, in order; none for all.
        sort: Key or label of the column to sort by, the best first; None for the order of the table.

    Raises:
        UnknownNameError: the table has no such column.
    """
    shown = [table.named(name) for name in columns] or list(table.columns)
    by = table.named(sort) if sort is not None else None
    blocks = tuple(
        replace(
            block,
            cells=tuple(
                cell
                for row in (sorted(block.rows, key=lambda row: _badness(row, by)) if by else block.rows)
                for column in shown
                for cell in row
                if cell.column == column.key
            ),
        )
        for block in contents.blocks
    )
    return table.model_copy(update={"columns": tuple(shown)}), replace(contents, blocks=blocks)


_OF_MEMBERS = tuple(score_column(key) for key in ("crps", "crps_fair", "spread_skill_ratio"))


def main_columns(record: RunRecord) -> list[Column]:
    """Returns the scores to show of a run: those of its task's table of runs, else some with a direction.

    Those of a table are followed by the additional scores of an ensemble.
    """
    tables = (load_table(name) for name in registry.names("table") if name == f"runs/{record.task.name}")
    if (table := next(tables, None)) is None and task_of_runs(f"runs/{record.task.name}"):
        table = runs_table(record.task.name, [record])
    if table is not None:
        shown = [column for column in table.columns if column.better and column.key in record.scores]
        of_members = [one for one in _OF_MEMBERS if one.key in record.scores and one not in shown]
        return [*shown, *of_members, *added_columns(record)]
    columns = (score_column(key) for key in record.scores)
    return [column for column in columns if column.better][:_MAX_SCORES]


def is_reference(model: str, records: Iterable[RunRecord] = ()) -> bool:
    """Returns whether a model is a reference: it is trivial, or nothing of it was trained in steps."""
    if is_trivial(model):
        return True
    mine = list(records)
    return bool(mine) and all(not one.model.parameters or (one.training and not one.training.steps) for one in mine)


def terminal(
    table: Table, contents: TableData, records: Mapping[str, RunRecord], *, width: int, styled: bool = True
) -> str:
    """Returns the text of a table for a terminal, ending in a newline.

    Parts that do not fit are left out and named: first spreads and intervals, then costs if there are scores of ours,
    then columns from the right.

    Args:
        table: The definition, with the columns to show.
        contents: The contents.
        records: Records by run id, which distinguish references from learned models.
        width: Width of the terminal, in characters.
        styled: Bold and italics as escape sequences; else as in Markdown.
    """
    from rich.console import Console
    from rich.text import Text

    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=styled, color_system="standard" if styled else None,
                      highlight=False, legacy_windows=False)  # fmt: skip
    console.print(Text(f"{one_line(table.name)}: {one_line(table.title)}", style="bold"))
    notes, shown, too_wide = list[str](), list[Block](), list[str]()
    for block in contents.blocks:
        if not block.cells:
            continue
        console.print()
        if block.title:
            console.print(Text(one_line(block.title)))
        drawn, form, left_out = _fitted(table, block, records, width, styled)
        console.print(drawn)
        shown.append(form)
        notes += block.absences
        if table.published and not all(row[0].run_ids for row in block.rows):
            notes.append("rows without `ours` were not run")
        too_wide += [one for one in left_out if one not in too_wide]
    if not any(block.cells for block in contents.blocks):
        console.print(f"\nNo complete runs. A first one: earthbench evaluate task={table.task} model=persistence "
                      "data.root=DIR", markup=False)  # fmt: skip
    if too_wide:
        notes.append(f"too wide for {width} characters: {', '.join(too_wide)}. --columns chooses, --format md has all")
    notes += [*legend(shown), *contents.remarks]
    if count := sum(len(block.remarks) for block in contents.blocks):
        notes.append(f"{counted(count, 'remark')} on the rows and their training: --format md")
    for note in dict.fromkeys(notes):
        console.print(Text(f"- {one_line(note)}", style="dim"))
    return text.getvalue()


def _badness(row: Sequence[Cell], by: Column) -> tuple[bool, float]:
    value = next((cell.ours for cell in row if cell.column == by.key), None)
    if value is None:
        value = next((cell.published for cell in row if cell.column == by.key), None)
    if value is None or math.isnan(value):
        return True, 0.0
    return False, -value if by.better == "higher" else value


def _fitted(
    table: Table, block: Block, records: Mapping[str, RunRecord], width: int, styled: bool
) -> tuple[RichTable, Block, list[str]]:
    """Returns the widest form of a block that fits, as text and as columns, and the parts left out."""
    bare = replace(block, cells=tuple(replace(cell, spread=None, interval=None) for cell in block.cells))
    kept, left_out, form = filled_columns(table, block), list[str](), block
    # In a published table without runs, only costs are ours.
    costs_first = any(cell.ours is not None for cell in block.cells if cell.column not in COSTS)
    while (drawn := _drawn(table, form, kept, records, width, styled)) is None:
        if form != bare:
            form = bare
            left_out.append("spreads and intervals")
            continue
        costs = [column for column in kept if column.key in COSTS]
        dropped = costs[0] if costs_first and 0 < len(costs) < len(kept) else kept[-1]
        kept = [column for column in kept if column is not dropped]
        left_out.append(dropped.label)
    return drawn, form, left_out


def _drawn(
    table: Table, block: Block, columns: Sequence[Column], records: Mapping[str, RunRecord], width: int, styled: bool
) -> RichTable | None:
    """Returns a block as a rich table; None if it is too wide, unless it has only one column."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable
    from rich.text import Text

    def mark(text: str, rank: int | None) -> str:
        styles = {1: ("[bold green]{}[/]", "**{}**"), 2: ("[italic]{}[/]", "*{}*")}
        return styles.get(rank or 0, ("{}", "{}"))[0 if styled else 1].format(text)

    part, shown = with_columns(table, block, columns)
    rows = shown.rows
    references = [row for row in rows if is_reference(row[0].model, (records[one] for one in row[0].run_ids))]
    groups = {"learned models": [row for row in rows if row not in references], "references": references}
    printed = {
        name: printed_lines(
            part,
            replace(block, cells=tuple(cell for row in group for cell in row)),
            lambda text: escape(one_line(text)),
            mark,
        )
        for name, group in groups.items()
        if group
    }
    if table.published:
        not_run = {"ours", NOT_RUN}
        printed = {name: [line for line in group if not set(line[1:]) <= not_run] for name, group in printed.items()}
    heads = [one_line(text) for text in header(part)]
    lines = [[Text.from_markup(text).cell_len for text in line] for group in printed.values() for line in group]
    widths = [max([*(line[at] for line in lines), *map(len, head.split())], default=0) for at, head in enumerate(heads)]
    if len(printed) > 1:
        widths[0] = max(widths[0], *(len(f"({name})") for name in printed))
    others = sum(widths[1:]) + _GAP * (len(widths) - 1)
    longest = max((len(word) for group in printed.values() for line in group for word in line[0].split()), default=0)
    if others + min(widths[0], max(_LABEL_WIDTH, min(longest, width // 2))) > width and len(columns) > 1:
        return None
    widths[0] = max(min(widths[0], width - others), 1)
    drawn = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    words = len(heads) - len(columns)
    for at, head in enumerate(heads):
        drawn.add_column(head, justify="left" if at < words else "right", width=widths[at], overflow="fold")
    for number, (name, group) in enumerate(printed.items()):
        if number:
            drawn.add_section()
        if len(printed) > 1:
            drawn.add_row(f"[dim]{name}[/]" if styled else f"({name})")
        for line in group:
            drawn.add_row(*line)
    return drawn
