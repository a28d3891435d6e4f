"""A table as its page shows it: cells with what sorts them, and the data of its charts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.metrics.skill.formulas import VIL_THRESHOLDS
from bench.records.schema import RunRecord
from bench.tables.cells import Block, Cell
from bench.tables.definitions import Column, Table
from bench.tables.intervals import interval
from bench.tables.lines import number, ours_text, spread_text
from bench.tables.standings import DEVIATES

_MOST_LEAD_SCORES = 12


@dataclass(frozen=True)
class ShownCell:
    """A cell in the words of its page."""

    ours: str
    spread: str
    """Over seeds, or the interval of the one run."""
    published: str
    difference: str
    status: str
    mark: int | None
    note: str
    sort: dict[str, float | None]
    """What orders it when measured, published or differing figures are shown."""


@dataclass(frozen=True)
class ShownRow:
    """A row of a leaderboard."""

    label: str
    model: str
    plugin: bool
    changed_code: bool
    has_record: bool
    cells: tuple[ShownCell, ...]


def shown_rows(table: Table, block: Block) -> list[ShownRow]:
    """Returns the rows of a block."""
    return [
        ShownRow(
            label=cells[0].row,
            model=cells[0].model,
            plugin="plugin" in cells[0].marks,
            changed_code="changed code" in cells[0].marks,
            has_record=any(cell.run_ids for cell in cells),
            cells=tuple(_shown(cell, table.column(cell.column)) for cell in cells),
        )
        for cells in block.rows
    ]


def _shown(cell: Cell, column: Column) -> ShownCell:
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
        sort={"ours": cell.ours, "published": cell.published, "difference": cell.difference},
    )


def column_groups(table: Table) -> list[tuple[str, list[Column]]]:
    """Returns the columns under their common headings, in the order of the table."""
    groups: list[tuple[str, list[Column]]] = []
    for column in table.columns:
        if groups and groups[-1][0] == column.group:
            groups[-1][1].append(column)
        else:
            groups.append((column.group, [column]))
    return groups


def charts(table: Table, block: Block, records: dict[str, RunRecord]) -> dict[str, Any]:
    """Returns the data of a block's charts as JSON types; what nothing was recorded for is an empty list."""
    runs = []
    for cells in block.rows:
        mine = [records[run_id] for run_id in cells[0].run_ids if run_id in records]
        if mine:
            runs.append((cells[0].row, mine))
    return {
        "lead": _lead_curves(table, runs),
        "threshold": _threshold_curves(runs),
        "pareto": _pareto(table, block, dict(runs)),
        "reliability": _recorded_curves(runs, "reliability_"),
        "rank": _recorded_curves(runs, "rank_histogram"),
    }


def _lead_curves(table: Table, runs: Sequence[tuple[str, list[RunRecord]]]) -> list[dict[str, Any]]:
    """One chart per score of the table: a curve over lead times per row."""
    found = []
    for column in table.columns[: _MOST_LEAD_SCORES + 2]:
        curves = []
        for label, records in runs:
            base = column.key.removesuffix("_per_lead_mean")
            key = base if base in records[-1].scores_per_lead else base.removesuffix("_m")
            count = max(len(record.scores_per_lead.get(key, [])) for record in records)
            leads = [f"{key}_lead_{lead + 1}" for lead in range(count)]
            seeds = [(record.scores_per_lead.get(key) or [None] * count) for record in records]
            curve = _curve(label, seeds, [_bounds(records, lead) for lead in leads], column.scale)
            if any(value is not None for value in curve["y"]):  # scored per lead time, and defined at one of them
                minutes = [(lead + 1) * _cadence(records[-1]) for lead in range(count)]
                curves.append({**curve, "minutes": minutes})
        if curves:
            found.append({"key": column.key, "label": column.label, "curves": curves})
    return found


def _curve(
    label: str,
    seeds: Sequence[Sequence[float | None]],
    bounds: Sequence[tuple[float, float] | None],
    scale: float = 1.0,
) -> dict[str, Any]:
    """Returns a curve: the mean over seeds, and as its band their range, or the interval of the one run."""
    defined = [
        [value for value in values if value is not None and math.isfinite(value)] for values in zip(*seeds, strict=True)
    ]
    if len(seeds) > 1:
        bounds = [(min(values), max(values)) if values else None for values in defined]
    return {
        "label": label,
        "y": [scale * statistics.fmean(values) if values else None for values in defined],
        "low": [scale * found[0] if found else None for found in bounds],
        "high": [scale * found[1] if found else None for found in bounds],
    }


def _bounds(records: Sequence[RunRecord], score: str) -> tuple[float, float] | None:
    return interval(records[0], score) if len(records) == 1 else None


def _cadence(record: RunRecord) -> float:
    return record.data.cadence_minutes if record.data else 1.0


def _threshold_curves(runs: Sequence[tuple[str, list[RunRecord]]]) -> list[dict[str, Any]]:
    """One chart per categorical score: a curve over thresholds per row."""
    found = []
    for score in ("csi", "pod", "far", "bias", "hss"):
        curves = []
        for label, records in runs:
            levels = [level for level in VIL_THRESHOLDS if f"{score}_{level}" in records[-1].scores]
            if not levels:
                continue
            names = [f"{score}_{level}" for level in levels]
            seeds = [[record.scores.get(name) for name in names] for record in records]
            curve = _curve(label, seeds, [_bounds(records, name) for name in names])
            curves.append({**curve, "x": [int(level) for level in levels]})
        if curves:
            found.append({"key": score, "label": score.upper(), "curves": curves})
    return found


def _pareto(table: Table, block: Block, runs: dict[str, list[RunRecord]]) -> list[dict[str, Any]]:
    """One chart per score that has a better side: score against what a forecast costs, measured and published."""
    costs = {
        cells[0].row: {
            side: {cell.column: getattr(cell, side) for cell in cells if cell.column in ("parameters", "gmacs")}
            for side in ("ours", "published")
        }
        for cells in block.rows
    }
    found = []
    for column in table.columns:
        if column.better is None:
            continue
        points = []
        for cell in block.cells:
            if cell.column != column.key:
                continue
            for side, value in (("ours", cell.ours), ("published", cell.published)):
                if value is None:
                    continue
                latency = _seconds_per_sequence(runs.get(cell.row, [])) if side == "ours" else None
                points.append(
                    {"label": cell.row, "side": side, "y": value, "latency": latency, **costs[cell.row][side]}
                )
        if points:
            found.append({"key": column.key, "label": column.label, "better": column.better, "points": points})
    return found


def _seconds_per_sequence(records: Sequence[RunRecord]) -> float | None:
    record = records[-1] if records else None
    if record is None or record.data is None or not record.data.sequence_count:
        return None
    return record.time.evaluation_s / record.data.sequence_count


def _recorded_curves(runs: Sequence[tuple[str, list[RunRecord]]], prefix: str) -> list[dict[str, Any]]:
    """Reliability curves or rank histograms, as the newest seed's record has them: one chart per name."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for label, records in runs:
        for name, columns in records[-1].curves.items():
            if name.startswith(prefix):
                by_name.setdefault(name, []).append({"label": label, **columns})
    return [
        {"key": name, "label": name.replace("_", " "), "curves": curves} for name, curves in sorted(by_name.items())
    ]
