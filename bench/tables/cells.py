"""From records to cells: which records may stand in a table, and what each cell then says."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.records.schema import RunRecord
from bench.tables.definitions import Column, Figure, Published, Row, Table
from bench.tables.durations import duration

NOT_RUN = "not run"


@dataclass(frozen=True)
class Cell:
    """One figure of a table: published, ours, and what the two say of each other.  All in the paper's units."""

    row: str
    model: str
    column: str
    label: str
    published: float | None
    published_text: str | None
    sources: tuple[str, ...]
    ours: float | None
    spread: float | None
    """Standard deviation over seeds, where there are two or more."""
    run_ids: tuple[str, ...]
    difference: float | None
    status: str
    """match, differs, measured, not run, published only, undefined; with `, config deviates` where it does."""
    note: str


@dataclass(frozen=True)
class Block:
    """A part of a table whose figures may be compared: one data set, one split."""

    title: str
    cells: tuple[Cell, ...]
    remarks: tuple[str, ...] = field(default=())


def blocks_of(table: Table, published: Published | None, records: Sequence[RunRecord]) -> list[Block]:
    """Returns the blocks of a table: one for a published table, one per data set for a table of runs."""
    complete = [r for r in records if r.task.name == table.task and r.status == "ok" and r.data is not None]
    if table.rows:
        return [_published_block(table, published, complete)]
    return _run_blocks(table, [r for r in complete if r.scope == "full"])


def _published_block(table: Table, published: Published | None, records: list[RunRecord]) -> Block:
    reasons = [_why_not(table, record) for record in records]
    admitted = [record for record, reason in zip(records, reasons, strict=True) if reason is None]
    cells, remarks = [], []
    for row in table.rows:
        mine = _latest_per_seed([r for r in admitted if r.model.name == row.model])
        deviations = sorted({d for record in mine for d in _deviations(table, record)})
        if deviations:
            remarks.append(f"{row.label}: config deviates from the paper's: {', '.join(deviations)}")
        figures = published.rows.get(row.model, {}) if published else {}
        cells += [_cell(row, column, figures.get(column.key), mine, bool(deviations)) for column in table.columns]
        remarks += [f"{row.label}, {_label(table, key)}: {note}" for key, note in row.notes.items() if key in figures]
    left_out = Counter(reason for reason in reasons if reason is not None)
    if left_out:
        listing = ", ".join(f"{reason} ({count})" for reason, count in sorted(left_out.items()))
        remarks.append(f"{left_out.total()} records of task {table.task} are not shown: {listing}")
    return Block("", tuple(cells), tuple(remarks))


def _label(table: Table, key: str) -> str:
    return next((column.label for column in table.columns if column.key == key), key)


def _why_not(table: Table, record: RunRecord) -> str | None:
    """Returns why a record may not stand in a published table, or None."""
    assert record.data is not None
    if record.scope != "full":
        return "partial runs"
    if record.data.split != table.split:
        return "other splits"
    if record.data.origin != "files" or record.data.sequence_count not in table.sequence_counts:
        return "other data"
    if not record.task.is_default:
        return "other task options"
    if not record.model.is_preset:
        return "other hyperparameters"
    if record.model.parameters and record.training is None:
        return "weights of unknown training"
    if record.training is not None and (
        record.training.data_origin != "files" or record.training.sequence_count not in table.training_sequence_counts
    ):
        return "trained on other data"
    return None


def _deviations(table: Table, record: RunRecord) -> list[str]:
    if record.training is None:
        return []
    used = record.training.settings
    return [
        f"train.{key}={used.get(key)!r} (paper: {value!r})"
        for key, value in table.training.items()
        if used.get(key) != value
    ]


def _latest_per_seed(records: list[RunRecord]) -> list[RunRecord]:
    return list({record.seed: record for record in sorted(records, key=lambda r: r.run_id)}.values())


def _run_blocks(table: Table, records: list[RunRecord]) -> list[Block]:
    groups: dict[tuple[Any, ...], list[RunRecord]] = {}
    for record in records:
        assert record.data is not None
        options = tuple(sorted((k, str(v)) for k, v in record.task.fields.items()))
        groups.setdefault((record.data.fingerprint, record.data.split, record.task.version, options), []).append(record)
    blocks = []
    for group in sorted(groups.values(), key=lambda g: g[0].run_id):
        data = group[0].data
        assert data is not None
        shape = "x".join(map(str, data.identity.get("event_shape", [])))
        title = (
            f"{data.origin}, {data.split} split, {data.sequence_count} sequences, events of {shape}, "
            f"every {duration(data.cadence_minutes)}, data {data.fingerprint[:10]}"
        )
        variants: dict[tuple[str, str], list[RunRecord]] = {}
        for record in group:
            variants.setdefault((record.model.name, _variant(record, group)), []).append(record)
        cells = [
            _cell(Row(model=model, label=label), column, None, _latest_per_seed(mine), False)
            for (model, label), mine in sorted(variants.items())
            for column in table.columns
        ]
        blocks.append(Block(title, tuple(cells)))
    return blocks


def _variant(record: RunRecord, group: list[RunRecord]) -> str:
    """Returns what tells a run from others of its model but for the seed: hyperparameters, and settings that differ."""
    told = {} if record.model.is_preset else dict(record.model.hyperparameters)
    settings = [_training_settings(other) for other in group if other.model.name == record.model.name]
    mine = _training_settings(record)
    told |= {key: mine[key] for key in mine if any(other.get(key) != mine[key] for other in settings)}
    options = ", ".join(f"{key}={value}" for key, value in sorted(told.items()))
    return f"{record.model.name} ({options})" if options else record.model.name


def _training_settings(record: RunRecord) -> dict[str, Any]:
    if record.training is None:
        return {"weights": record.checkpoint_sha256[:10]} if record.checkpoint_sha256 else {}
    settings = {k: v for k, v in record.training.settings.items() if k not in ("loggers", "resume")}
    return {**settings, "trained on": record.training.data_fingerprint[:10], "weights": record.training.weights}


def _cell(row: Row, column: Column, figure: Figure | None, records: list[RunRecord], deviates: bool) -> Cell:
    values = [value * column.scale for record in records if (value := _value(record, column.key)) is not None]
    ours = statistics.fmean(values) if values else None
    difference = None
    if not records:
        status = NOT_RUN
    elif ours is None:
        status = "undefined"
    elif figure is None:
        status = "measured"
    else:
        difference, status = compare(row, column, figure, ours)
    if deviates and status != NOT_RUN:
        status += ", config deviates"
    notes = [row.notes.get(column.key), figure.note if figure else None]
    return Cell(
        row=row.label,
        model=row.model,
        column=column.key,
        label=column.label,
        published=figure.value if figure else None,
        published_text=figure.text if figure else None,
        sources=figure.sources if figure else (),
        ours=ours,
        spread=statistics.stdev(values) if len(values) > 1 else None,
        run_ids=tuple(record.run_id for record in records),
        difference=difference,
        status=status,
        note="; ".join(note for note in notes if note),
    )


def _value(record: RunRecord, key: str) -> float | None:
    if key == "parameters":
        return float(record.model.parameters)
    return record.model.gmacs if key == "gmacs" else record.scores.get(key)


def compare(row: Row, column: Column, figure: Figure, ours: float) -> tuple[float, str]:
    """Returns the difference of our value from a published figure, and whether that is a `match` or it `differs`.

    Both in the paper's units; where the row says that the figure carries a factor, it is taken out first.
    """
    comparable = figure.value / row.published_factors.get(column.key, 1.0)
    _, _, decimals = figure.text.partition(".")
    tolerance = 0.5 * 10.0 ** -len(decimals) * (1 + 1e-9)  # half a unit of the last printed digit
    if column.tolerance_percent is not None:
        tolerance = max(tolerance, abs(comparable) * column.tolerance_percent / 100)
    difference = ours - comparable
    return difference, "match" if abs(difference) <= tolerance else "differs"
