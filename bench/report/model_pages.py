"""The page of a model: its source, its size, its deviations from the papers, and its records."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import registry
from bench.errors import EarthbenchError, counted
from bench.records.schema import RunRecord
from bench.report.downloads import RunFiles
from bench.report.labels import label_of, name_of
from bench.report.overview import page_of_table
from bench.tables.cells import TableData
from bench.tables.columns import GMACS
from bench.tables.counts import load_counts
from bench.tables.definitions import Table, main_column
from bench.tables.lines import number
from bench.tables.recipes import deviations
from bench.tables.values import value_of
from bench.tables.variants import listed

_PAGE = re.compile(r"[^a-z0-9_]+")
_COUNT = "{count}"


@dataclass(frozen=True)
class Cost:
    """Size of a model on a task, from its records or counted, and as published."""

    task: str
    page: str
    parameters: int | None
    gmacs: str
    published_parameters: str
    published_gmacs: str


@dataclass(frozen=True)
class ShownRecord:
    """A record on a model's page."""

    record: RunRecord
    files: RunFiles
    page: str
    """Title of the table that lists it; empty if none."""
    score: str


@dataclass(frozen=True)
class ModelPage:
    """The content of a model's page."""

    name: str
    page: str
    labels: tuple[str, ...]
    origin: str
    summary: str
    doc: str
    problem: str
    reference: bool
    costs: tuple[Cost, ...]
    deviations: tuple[str, ...]
    notes: tuple[str, ...]
    presets: dict[str, dict[str, Any]]
    records: tuple[ShownRecord, ...]


def page_of(model: str) -> str:
    """Returns the file of a model's page; names in records are not trusted as file names."""
    return f"model-{_PAGE.sub('-', model.lower())}.html"


def model_pages(
    tables: Sequence[tuple[Table, dict[str, dict[str, str]], TableData]],
    records: Sequence[RunRecord],
    files: Mapping[str, RunFiles],
) -> list[ModelPage]:
    """Returns a page for each model that has a row or a record.

    Args:
        tables: Tables with their published values as printed, by row and column, and their contents.
        records: All records.
        files: Files of each run, by run id.
    """
    rows = [row for _, _, contents in tables for block in contents.blocks for row in block.rows]
    names = {row[0].model for row in rows} | {record.model.name for record in records}
    standing = {
        run_id: table
        for table, _, contents in tables
        for block in contents.blocks
        for cell in block.cells
        for run_id in contents.run_ids(cell)
    }
    return [
        _page(name, tables, [r for r in records if r.model.name == name], files, standing) for name in sorted(names)
    ]


def _page(
    name: str,
    tables: Sequence[tuple[Table, dict[str, dict[str, str]], TableData]],
    records: list[RunRecord],
    files: Mapping[str, RunFiles],
    standing: Mapping[str, Table],
) -> ModelPage:
    costs, labels = [], []
    scores = {column.key: name_of(column) for table, _, _ in tables for column in table.columns}
    notes: dict[str, dict[str, None]] = {}  # with the tables that have each, in order
    for table, printed_values, _ in tables:
        mine = [record for record in records if record.task.name == table.task and record.model.is_preset]
        for row in table.rows:
            if row.model != name:
                continue
            labels.append(row.label)
            for key, note in row.notes.items():
                notes.setdefault(f"{scores.get(key, key)}: {note}", {})[table.name] = None
            if row.options:
                continue
            printed, size = printed_values.get(row.key, {}), load_counts().of(table, row)
            gmacs = mine[-1].model.gmacs if mine else size.gmacs if size else None
            costs.append(
                Cost(
                    task=table.name,
                    page=page_of_table(table),
                    parameters=mine[-1].model.parameters if mine else size.parameters if size else None,
                    gmacs=number(gmacs, GMACS),
                    published_parameters=printed.get("parameters", ""),
                    published_gmacs=printed.get("gmacs", ""),
                )
            )
    try:
        entry = registry.find("model", name)
        card, origin, problem = entry.card(), entry.origin, ""
    except EarthbenchError:
        card, origin, problem = None, "", "No model of this name is installed: the table has its published values only."
    return ModelPage(
        name=name, page=page_of(name), labels=tuple(dict.fromkeys(labels)), origin=origin,
        summary=card.summary if card else "", doc=card.doc if card else "", problem=problem,
        reference=bool(card and card.trivial), costs=tuple(costs),
        deviations=_deviations([table for table, _, _ in tables], records),
        notes=tuple(f"{note} ({', '.join(names)})" for note, names in notes.items()),
        presets=card.presets if card else {},
        records=tuple(_shown(record, files[record.run_id], standing) for record in reversed(records)),
    )  # fmt: skip


def _shown(record: RunRecord, files: RunFiles, standing: Mapping[str, Table]) -> ShownRecord:
    table = standing.get(record.run_id)
    column = main_column(table) if table else None
    value = value_of(record, column.key) if column else None
    score = f"{label_of(column)}: {value * column.scale:.{column.digits}f}" if column and value is not None else ""
    return ShownRecord(record, files, page_of_table(table) if table else "", score)


def _deviations(tables: Sequence[Table], records: Sequence[RunRecord]) -> tuple[str, ...]:
    """Returns how the records differ from the papers' models and trainings, one line per task, data and training.

    A record of the preset with the data and training of a published table adds no line.
    """
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        training = _training_deviations(tables, record)
        if training or not record.model.is_preset:
            groups.setdefault((record.task.name, training), []).append(record)
    lines = []
    for (task, training), several in groups.items():
        values: dict[str, dict[str, None]] = {}
        for record in several:
            for key, value in {} if record.model.is_preset else record.model.hyperparameters.items():
                values.setdefault(key, {})[f"{value}"] = None
        model = listed({key: " | ".join(found) for key, found in values.items()})
        counts = [record.training.sequence_count for record in several if record.training is not None]
        training = training.replace(_COUNT, " | ".join(f"{count:,}" for count in dict.fromkeys(counts)))
        lines.append(f"{task}, {counted(len(several), 'run')}: {'; '.join(filter(None, (model, training)))}")
    return tuple(lines)


def _training_deviations(tables: Sequence[Table], record: RunRecord) -> str:
    """Returns how a training differs from the published one; `_COUNT` stands for its sequences, as folds differ."""
    training = record.training
    if training is None:
        return ""
    rows = [
        (table, row)
        for table in tables
        if table.published and table.task == record.task.name
        for row in table.rows
        if row.model == record.model.name and training.sequence_count in table.training_counts_of(row)
    ]
    if rows:
        fewest = min((deviations(table, record, row) for table, row in rows), key=len)
        return ", ".join(fewest)
    how = (
        f"trained for {counted(training.epochs, 'epoch')}, {training.steps:,} steps, on {_COUNT} sequences"
        if training.steps
        else "fitted on the validation split"
        if not training.sequence_count
        else f"fitted on {_COUNT} sequences"
    )
    return f"{how} ({training.data_origin}), which is the training of no published table"
