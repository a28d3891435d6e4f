"""From records to cells: each figure of a table, and the best of each column."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.errors import counted
from bench.records.schema import RunRecord
from bench.records.uncertainty import too_few
from bench.tables.admission import (
    PARTIAL,
    Excluded,
    admitted,
    complete,
    latest_per_seed,
    of_a_plugin,
    summary,
)
from bench.tables.captions import captions, code_remark
from bench.tables.counts import COUNTED, NOT_COUNTABLE, CountedSize, load_counts
from bench.tables.definitions import SIZES, Column, Group, Published, PublishedValue, Row, Table, main_column
from bench.tables.durations import TimeAxis
from bench.tables.folds import pool_folds
from bench.tables.intervals import of_single_runs
from bench.tables.protocols import members
from bench.tables.recipes import deviations
from bench.tables.skill import references, skill_remarks, with_skill
from bench.tables.standings import DEVIATES, Tests, marked, ranked, why_no_mark, with_ranks
from bench.tables.values import compare, value_of
from bench.tables.variants import comparable_key, differing_options, listed, shared_choices, variant_labels

NOT_MEASURED = "not measured"
NOT_RUN = "not run"


@dataclass(frozen=True)
class Cell:
    """One figure of a table: published, ours, and their comparison, all in the paper's units."""

    row: str
    row_key: str
    model: str
    column: str
    label: str
    published: float | None
    published_text: str | None
    sources: tuple[str, ...]
    ours: float | None
    spread: float | None
    """Standard deviation over seeds, if there are two or more."""
    interval: tuple[float, float] | None
    """Jackknife interval of the run, if there is only one seed and its record has statistics."""
    run_ids: tuple[str, ...]
    difference: float | None
    status: str
    """match, differs, measured, undefined, not run, partial, tampered, unreadable; with `, config deviates`.
    For a size without a run: match, differs, counted, not countable."""
    rank: int | None
    """1 for the best of its column as printed, 2 for the second, without a test; None if nothing is comparable."""
    mark: int | None
    """1 for the best and rows that are not worse beyond chance; 2 for the next, which is worse."""
    marks: tuple[str, ...]
    """`own`: not in the paper.  `plugin`: from another distribution.  `changed code`: ran on uncommitted changes."""
    note: str
    beats_reference: bool | None = None
    """Whether ours beats or is the best trivial reference; None if there is none or the table needs none."""


@dataclass(frozen=True)
class Block:
    """A part of a table with comparable figures: one data set, one split."""

    title: str
    cells: tuple[Cell, ...]
    remarks: tuple[str, ...] = ()
    absences: tuple[str, ...] = ()
    """Why no best is marked, or why single runs have no interval."""

    @property
    def rows(self) -> list[list[Cell]]:
        """Returns the cells row by row, in the order of the table."""
        by_row: dict[str, list[Cell]] = {}
        for cell in self.cells:
            by_row.setdefault(cell.row_key, []).append(cell)
        return list(by_row.values())


@dataclass(frozen=True)
class TableData:
    """The contents of a table, which renderings show besides its definition."""

    blocks: tuple[Block, ...]
    left_out: tuple[Excluded, ...]
    whole: dict[str, RunRecord] = field(default_factory=dict)
    """With folds: the pooled record of all folds of a run, by id."""
    parts: dict[str, list[RunRecord]] = field(default_factory=dict)
    """The records of the folds, by the same id."""

    def by_id(self, records: Iterable[RunRecord]) -> dict[str, RunRecord]:
        """Returns all records that cells may name, by id.

        Args:
            records: Records that the table was made from.
        """
        return {record.run_id: record for record in records} | self.whole

    def run_ids(self, cell: Cell) -> list[str]:
        """Returns the ids of the runs behind a cell, with folds those of every fold."""
        found = [[part.run_id for part in self.parts.get(run_id, ())] or [run_id] for run_id in cell.run_ids]
        return [run_id for one in found for run_id in one]

    @property
    def remarks(self) -> list[str]:
        """Returns one line per reason for which records are not shown."""
        return summary(self.left_out)


def table_data(
    table: Table,
    published: Published | None,
    records: Sequence[RunRecord],
    unreadable: Sequence[Excluded] = (),
) -> TableData:
    """Returns the contents of a table: one block for a published table, one per data set for a table of runs.

    Args:
        table: The definition.
        published: Its published figures.
        records: Records of any task, in any order.
        unreadable: Files that are not records, from `read_store`.
    """
    records = sorted(records, key=lambda record: record.run_id)
    unreadable = [one for one in unreadable if one.task == table.task]
    parts: dict[str, list[RunRecord]] = {}
    if table.groups:
        found = members(table, records)
        left_out, parts = found.left_out, found.parts
        records = [record for mine in found.by_row.values() for record in mine]  # a board has its own references
        blocks = [_group_block(table, group, found.by_row) for group in table.groups]
    elif table.rows:
        by_row, left_out = admitted(table, records)
        blocks = [_published_block(table, published, by_row, [*left_out, *unreadable])]
    else:
        good, left_out = complete(table, records)
        records, parts = pool_folds(good)
        blocks = _run_blocks(table, records, parts)
    tests = Tests(table, {record.run_id: record for record in records})
    blocks = [_with_ranks_and_marks(table, block, tests) for block in blocks]
    if table.groups:
        blocks = [_ordered(table, group, block) for group, block in zip(table.groups, blocks, strict=True)]
    whole = {run_id: tests.records[run_id] for run_id in parts}
    named = sorted([*left_out, *unreadable], key=lambda one: (one.reason, one.run_id))
    return TableData(tuple(blocks), tuple(named), whole, parts)


def _with_ranks_and_marks(table: Table, block: Block, tests: Tests) -> Block:
    """Returns a block with the best of its columns marked, and the reasons for absent marks or intervals."""
    by_id = tests.records
    mine = [by_id[run_id] for run_id in dict.fromkeys(run_id for cell in block.cells for run_id in cell.run_ids)]
    best, remarks = {}, block.remarks
    if any(column.skill_of for column in table.columns):
        best = references(table, mine, list(by_id.values()))
        block = replace(block, cells=with_skill(table, block.cells, best))
        remarks = (*remarks, *skill_remarks(table, block.cells, best))
    cells = with_ranks(table, marked(table, ranked(table, block.cells), tests), tests)
    absences = [why_no_mark(cells, mine)]
    if any(len(cell.run_ids) == 1 for cell in cells):
        absences += [reason and f"no intervals: {reason}" for reason in sorted({too_few(record) for record in mine})]
    for row in block.rows:
        changed = code_remark([by_id[run_id] for run_id in row[0].run_ids])
        absences.append(changed and f"{row[0].row}: {changed}")
    return replace(block, cells=cells, remarks=remarks, absences=tuple(filter(None, absences)))


def _published_block(
    table: Table,
    published: Published | None,
    by_row: dict[str, list[RunRecord]],
    left_out: Sequence[Excluded],
) -> Block:
    cells, remarks = [], []
    run = {row.key: mine for row in table.rows if (mine := latest_per_seed(by_row[row.key]))}
    counts = load_counts()
    for row in table.rows:
        mine = run.get(row.key, [])
        deviating = sorted({d for record in mine for d in deviations(table, record, row)})
        if deviating:
            remarks.append(f"{row.label}: {DEVIATES} from the table's: {', '.join(deviating)}")
        figures = published.rows.get(row.key, {}) if published else {}
        absent, size = _absent(row, left_out), None if mine else counts.of(table, row)
        cells += _cells(table, row, mine, figures, deviates=bool(deviating), absent=absent, size=size)
        remarks += [f"{row.label}: {row.note}"] if row.note else []
        remarks += [f"{row.label}, {_label(table, key)}: {note}" for key, note in row.notes.items() if key in figures]
        remarks += _incomparable(table, row, figures)
    told = [(row.label, run[row.key]) for row in table.rows if row.key in run]
    return Block("", tuple(cells), (*remarks, *captions(told)))


def _incomparable(table: Table, row: Row, figures: dict[str, PublishedValue]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for key, figure in figures.items():
        if figure.incomparable:
            by_reason.setdefault(figure.incomparable, []).append(_label(table, key))
    return [f"{row.label}, {', '.join(labels)}: not compared: {reason}" for reason, labels in by_reason.items()]


def _absent(row: Row, left_out: Sequence[Excluded]) -> str:
    """Returns the status of a row without an admitted record."""
    reasons = [one.reason for one in left_out if one.model == row.model]
    for status, is_it in (
        ("tampered", lambda reason: reason.startswith("tampered")),
        ("partial", lambda reason: PARTIAL in reason.split("; ")),
        ("unreadable", lambda reason: reason.startswith(("not a", "written by a newer"))),
    ):
        if not row.options and any(is_it(reason) for reason in reasons):
            return status
    return NOT_RUN


def _label(table: Table, key: str) -> str:
    return next((column.label for column in table.columns if column.key == key), key)


def _run_blocks(table: Table, records: list[RunRecord], parts: Mapping[str, list[RunRecord]]) -> list[Block]:
    groups: dict[tuple[Any, ...], list[RunRecord]] = {}
    for record in records:
        groups.setdefault(comparable_key(record), []).append(record)
    blocks = []
    in_order = sorted(groups.values(), key=lambda g: g[0].run_id)
    for group, apart in zip(in_order, differing_options(in_order), strict=True):
        variants: dict[tuple[str, str], list[RunRecord]] = {}
        for record, label in zip(group, variant_labels(group), strict=True):
            variants.setdefault((record.model.name, label), []).append(record)
        rows = [(model, label, latest_per_seed(mine)) for (model, label), mine in sorted(variants.items())]
        cells = [
            cell for model, name, mine in rows for cell in _cells(table, Row(model=model, name=name, label=name), mine)
        ]
        remarks = [
            f"hyperparameters of {model}: {listed(options)}"
            for model, options in sorted(shared_choices(group).items())
            if options
        ]
        remarks += captions([(label, mine) for _, label, mine in rows])
        blocks.append(Block(_block_title(group[0], parts) + apart, tuple(cells), tuple(remarks)))
    return blocks


def _group_block(table: Table, group: Group, by_row: Mapping[str, list[RunRecord]]) -> Block:
    """Returns a block of a board, the best row first."""
    run = {row.key: mine for row in group.rows if (mine := by_row[row.key])}
    cells = [cell for row in group.rows for cell in _cells(table, row, run.get(row.key, []))]
    first = next((mine[0] for mine in run.values()), None)
    remarks = [] if first is None else [f"data: {_block_title(first)}", *_units(first)]
    remarks += [f"{row.label}: {row.note}" for row in group.rows if row.note]
    return Block(
        group.title, tuple(cells), (*remarks, *captions([(r.label, run[r.key]) for r in group.rows if r.key in run]))
    )


def _ordered(table: Table, group: Group, block: Block) -> Block:
    """Returns a block of a board with the best row first; references take no rank."""
    main = main_column(table)

    def badness(row: Sequence[Cell]) -> float:
        score = next((cell.ours for cell in row if main is not None and cell.column == main.key), None)
        return math.inf if main is None or score is None else -score if main.better == "higher" else score

    cells = [cell for row in sorted(block.rows, key=badness) for cell in row]
    if not group.ranked:
        ranks = [column.key for column in table.columns if column.rank_of is not None]
        cells = [replace(cell, ours=None, status="reference") if cell.column in ranks else cell for cell in cells]
    return replace(block, cells=tuple(cells))


def _units(record: RunRecord) -> list[str]:
    """Returns a line with the number of independent units of a record's split, if it has statistics."""
    if record.statistics is None:
        return []
    split = record.data.split if record.data is not None else ""
    return [f"independent units of the {split} split: {counted(record.statistics.unit_count, record.statistics.kind)}"]


def _block_title(record: RunRecord, parts: Mapping[str, list[RunRecord]] | None = None) -> str:
    data = record.data
    assert data is not None
    folds = f"{len(parts[record.run_id])} folds together, " if parts and record.run_id in parts else ""
    shape = "x".join(map(str, data.identity.get("event_shape", [])))
    events = f", events of {shape}" if shape else ""
    return (
        f"{data.described}, {data.split} split, {folds}{counted(data.sequence_count, 'sequence')}{events}, "
        f"{TimeAxis.of_record(record).every()}, data {data.fingerprint[:10]}"
    )


def _cells(
    table: Table,
    row: Row,
    records: list[RunRecord],
    figures: Mapping[str, PublishedValue] | None = None,
    *,
    deviates: bool = False,
    absent: str = NOT_RUN,
    size: CountedSize | None = None,
) -> list[Cell]:
    bounds = of_single_runs(records, [column.key for column in table.columns])
    return [
        _cell(row, column, (figures or {}).get(column.key), records, bounds.get(column.key), deviates, absent, size)
        for column in table.columns
    ]


def _cell(
    row: Row,
    column: Column,
    figure: PublishedValue | None,
    records: list[RunRecord],
    bounds: tuple[float, float] | None,
    deviates: bool,
    absent: str,
    size: CountedSize | None,
) -> Cell:
    known = [(record, value) for record in records if (value := value_of(record, column.key)) is not None]
    values = [value * column.scale for _, value in known]
    counted = size.value_of(column.key) if size is not None else None
    values += [] if counted is None else [counted * column.scale]
    ours = statistics.fmean(values) if values else None
    difference = None
    if ours is None and not records:
        status = NOT_COUNTABLE if size is not None and column.key in SIZES else absent
    elif ours is None:
        status = "undefined" if any(column.key in record.scores for record in records) else NOT_MEASURED
    elif figure is None or figure.incomparable:
        status = "measured" if records else COUNTED
    else:
        difference, status = compare(row, column, figure, ours)
    if deviates and records:
        status += f", {DEVIATES}"
    undefined = next((r.undefined[column.key] for r in records if column.key in r.undefined), None)
    notes = [row.notes.get(column.key), figure.note if figure else None, figure.incomparable if figure else None]
    return Cell(
        row=row.label,
        row_key=row.key,
        model=row.model,
        column=column.key,
        label=column.label,
        published=figure.value if figure else None,
        published_text=figure.text if figure else None,
        sources=figure.sources if figure else (),
        ours=ours,
        # Sizes are equal for all seeds, so they have no spread.
        spread=statistics.stdev(values) if len(values) > 1 and column.key not in SIZES else None,
        interval=(bounds[0] * column.scale, bounds[1] * column.scale) if bounds else None,
        run_ids=tuple(record.run_id for record in records),
        difference=difference,
        status=status,
        rank=None,
        mark=None,
        marks=("own", *_marks(records)) if row.own_runs else _marks(records),
        note="; ".join(note for note in (*notes, undefined if ours is None else None) if note),
    )


def _marks(records: Sequence[RunRecord]) -> tuple[str, ...]:
    marks = []
    if any(of_a_plugin(record) for record in records):
        marks.append("plugin")
    if any(record.code.dirty for record in records):
        marks.append("changed code")
    return tuple(marks)
