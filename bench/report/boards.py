"""A table as its page shows it: cells with what sorts them, and the data of its charts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench import registry
from bench.errors import EarthbenchError
from bench.metrics.skill.formulas import VIL_THRESHOLDS
from bench.records.learning_curves import LearningCurve
from bench.records.schema import RunRecord
from bench.tables.cells import Block, Cell
from bench.tables.definitions import COSTS, Column, Table, main_column
from bench.tables.durations import UNITS_IN_FULL, TimeAxis
from bench.tables.folds import run_name
from bench.tables.intervals import intervals
from bench.tables.lines import number, ours_text, spread_text
from bench.tables.standings import DEVIATES

_MOST_LEAD_SCORES = 12
_SIDES: tuple[Literal["ours"], Literal["published"]] = ("ours", "published")


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
    rank: str
    """By the main score: a number, with `=` where rows share it; empty for references and rows without a value."""
    reference: bool
    plugin: bool
    changed_code: bool
    has_record: bool
    cells: tuple[ShownCell, ...]
    """In the order of `shown_columns`."""


def shown_columns(table: Table) -> list[Column]:
    """Columns in the order of a page: scores, the main one first, then costs; a rank stands in front of its row."""
    return sorted((column for column in table.columns if not column.rank_of), key=lambda column: column.key in COSTS)


def is_reference(model: str) -> bool:
    """Whether a model is a trivial reference; unknown models are not."""
    try:
        return registry.find("model", model).card().trivial
    except EarthbenchError:
        return False


def shown_side(block: Block, column: Column | None) -> Literal["ours", "published"]:
    """Which values a block opens with: ours, or the published ones where nothing of ours was scored."""
    values = [cell for cell in block.cells if column is not None and cell.column == column.key]
    any_of_ours = any(cell.ours is not None for cell in values) or all(cell.published is None for cell in values)
    return "ours" if any_of_ours else "published"


def shown_rows(table: Table, block: Block) -> list[ShownRow]:
    """The rows of a block from best to worst by the main score, and below them those without a value."""
    column = main_column(table)
    ranks = _ranks(table, block, column)
    rows = []
    for cells in block.rows:
        by_key = {cell.column: cell for cell in cells}
        rank, place = ranks[cells[0].row_key]
        shown = ShownRow(
            label=cells[0].row,
            model=cells[0].model,
            rank=rank,
            reference=is_reference(cells[0].model),
            plugin="plugin" in cells[0].marks,
            changed_code="changed code" in cells[0].marks,
            has_record=any(cell.run_ids for cell in cells),
            cells=tuple(_shown(by_key[column.key], column) for column in shown_columns(table)),
        )
        rows.append((place, shown))
    return [shown for _, shown in sorted(rows, key=lambda row: row[0])]


def _ranks(table: Table, block: Block, column: Column | None) -> dict[str, tuple[str, int]]:
    """The printed rank of each row, and its place on the page.

    Rows that are not worse than the best beyond chance share the first rank, and rows that are printed alike share one.
    References, and what does not beat the best trivial one, take no rank, but stand where their score puts them.
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
    competing = [(value, key) for value, key in known if not is_reference(models[key]) and key not in beaten]
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


@dataclass(frozen=True)
class Style:
    """How the lines of a row are drawn: no two of a block alike."""

    colour: str
    symbol: str
    dash: str
    reference: bool


# Okabe and Ito's colours but for black and yellow, which one of the two grounds hides, and a brown.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
_GREYS = ("#6e7781", "#8c959f", "#57606a", "#a3acb5")
_DASHES = ("dash", "dot", "dashdot", "longdash")


def styles(rows: Sequence[tuple[str, bool]]) -> dict[str, Style]:
    """A style for each row: grey and dashed for references; for models, colours that repeat with another symbol.

    Args:
        rows: Label, and whether it is a reference, the best first.
    """
    found: dict[str, Style] = {}
    counts = {True: 0, False: 0}
    for label, reference in rows:
        number = counts[reference]
        counts[reference] += 1
        around, at = divmod(number, len(_GREYS) if reference else len(_COLOURS))
        symbol = _SYMBOLS[around % len(_SYMBOLS)]
        found[label] = (
            Style(_GREYS[at], symbol, _DASHES[at], True) if reference else Style(_COLOURS[at], symbol, "solid", False)
        )
    return found


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
    """The columns under their common headings, in the order of the page."""
    groups: list[tuple[str, list[Column]]] = []
    for column in shown_columns(table):
        if groups and groups[-1][0] == column.group:
            groups[-1][1].append(column)
        else:
            groups.append((column.group, [column]))
    return groups


def charts(
    table: Table,
    block: Block,
    records: dict[str, RunRecord],
    losses: Mapping[str, LearningCurve] | None = None,
    parts: Mapping[str, Sequence[RunRecord]] | None = None,
) -> dict[str, Any]:
    """The data of a block's charts as JSON types; what nothing was recorded for is an empty list.

    Args:
        table: The definition.
        block: Of its contents.
        records: By run id.
        losses: Learning curves by run id.
        parts: With folds, the record of each by the id of that of all.
    """
    rows = {cells[0].row: cells[0] for cells in block.rows}
    order = [(row.label, row.reference) for row in shown_rows(table, block)]
    runs = []
    for label, _ in order:
        mine = [records[run_id] for run_id in rows[label].run_ids if run_id in records]
        if mine:
            runs.append((label, mine))
    return {
        "styles": {label: asdict(style) for label, style in styles(order).items()},
        "lead": _lead_curves(table, runs),
        "threshold": _threshold_curves(runs),
        "pareto": _pareto(table, block, dict(runs)),
        "reliability": _recorded_curves(runs, "reliability_"),
        "rank": _recorded_curves(runs, "rank_histogram"),
        "losses": _loss_curves(
            [(label, [part for one in mine for part in (parts or {}).get(one.run_id, [one])]) for label, mine in runs],
            losses or {},
        ),
    }


def _loss_curves(
    runs: Sequence[tuple[str, list[RunRecord]]], losses: Mapping[str, LearningCurve]
) -> list[dict[str, Any]]:
    """Training and validation losses of each row's runs."""
    return [
        {
            "key": label,
            "label": label,
            "runs": [
                {"name": run_name(record), "train": losses[record.run_id].train, "val": losses[record.run_id].val}
                for record in mine
                if record.run_id in losses
            ],
        }
        for label, mine in runs
        if any(record.run_id in losses for record in mine)
    ]


def _lead_curves(table: Table, runs: Sequence[tuple[str, list[RunRecord]]]) -> list[dict[str, Any]]:
    """One chart per score of the table: a curve over lead times per row."""
    found = []
    for column in shown_columns(table)[: _MOST_LEAD_SCORES + 2]:
        curves = []
        for label, records in runs:
            base = column.key.removesuffix("_per_lead_mean")
            key = base if base in records[-1].scores_per_lead else base.removesuffix("_m")
            count = max(len(record.scores_per_lead.get(key, [])) for record in records)
            leads = [f"{key}_lead_{lead + 1}" for lead in range(count)]
            seeds = [(record.scores_per_lead.get(key) or [None] * count) for record in records]
            curve = _curve(label, seeds, _bounds(records, leads), column.scale)
            if any(value is not None for value in curve["y"]):  # scored per lead time, and defined at one of them
                times = TimeAxis.of_record(records[-1])
                curves.append({**curve, "x": times.values(count), "unit": UNITS_IN_FULL[times.unit]})
        if curves:
            # a score at one lead time is not its mean over lead times
            of_mean = column.key.endswith("_m") and not any(
                column.key in r.scores_per_lead for _, rs in runs for r in rs
            )
            label = column.label.removesuffix("-M") if of_mean else column.label
            found.append({"key": column.key, "label": label, "curves": curves})
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


def _bounds(records: Sequence[RunRecord], scores: Sequence[str]) -> list[tuple[float, float] | None]:
    return list(intervals(records[0], scores).values()) if len(records) == 1 else [None] * len(scores)


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
            curve = _curve(label, seeds, _bounds(records, names))
            curves.append({**curve, "x": [int(level) for level in levels]})
        if curves:
            found.append({"key": score, "label": score.upper(), "curves": curves})
    return found


def _pareto(table: Table, block: Block, runs: dict[str, list[RunRecord]]) -> list[dict[str, Any]]:
    """One chart per score that has a better side: score against what a forecast costs, measured and published.

    A point has its costs, and `why` says of each cost that cannot be drawn why not.
    """
    costs = {(cells[0].row, side): _costs(table, cells, side, runs) for cells in block.rows for side in _SIDES}
    found = []
    for column in shown_columns(table):
        if column.better is None:
            continue
        points = [
            {"label": cell.row, "side": side, "y": value, **costs[cell.row, side]}
            for cell in block.cells
            if cell.column == column.key
            for side in _SIDES
            if (value := getattr(cell, side)) is not None
        ]
        if points:
            found.append({"key": column.key, "label": column.label, "better": column.better, "points": points})
    return found


def _costs(
    table: Table, cells: Sequence[Cell], side: Literal["ours", "published"], runs: dict[str, list[RunRecord]]
) -> dict[str, Any]:
    by_key = {cell.column: cell for cell in cells}
    factors = next((row.published_factors for row in table.rows if row.key == cells[0].row_key), {})
    mine = runs.get(cells[0].row, []) if side == "ours" else []
    found: dict[str, float | None] = {key: getattr(by_key.get(key), side, None) for key in ("gmacs", "parameters")}
    found["latency"] = _seconds_per_sequence(mine)
    why = {key: "measured runs only" if key == "latency" and side == "published" else "not known" for key in found}
    if side == "ours" and mine and mine[-1].model.gmacs is None:
        why["gmacs"] = (mine[-1].model.gmacs_missing_because or "not counted").splitlines()[0].rstrip(":")
    for key, factor in factors.items():
        if side == "published" and found.get(key) is not None:
            found[key], why[key] = None, f"printed at {factor:g} times our count"
    return {**found, "why": why}


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
