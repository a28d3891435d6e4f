"""The data of a board's charts, and how its rows are drawn."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.metrics.skill.formulas import VIL_THRESHOLDS
from bench.records.learning_curves import LearningCurve
from bench.records.schema import RunRecord
from bench.report.boards import factors_of, shown_columns, shown_rows
from bench.report.labels import label_of
from bench.tables.cells import Block, Cell
from bench.tables.definitions import Table
from bench.tables.durations import UNITS_IN_FULL, TimeAxis
from bench.tables.folds import run_name
from bench.tables.intervals import intervals

_MOST_LEAD_SCORES = 12
_RELIABILITY = "reliability_"
_OF_SINGLE_FORECASTS = 2
"""Probabilities of a single forecast, 0 and 1, and ranks among one member: no reliability or histogram to draw."""
_SIDES: tuple[Literal["ours"], Literal["published"]] = ("ours", "published")


@dataclass(frozen=True)
class Style:
    """How the lines of a row are drawn, unique within a block."""

    colour: str
    symbol: str
    dash: str
    reference: bool


# Okabe and Ito's colours without black and yellow, which are invisible on one of the two backgrounds, plus a brown.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star")
_GREYS = ("#6e7781", "#8c959f", "#57606a", "#a3acb5")
_DASHES = ("dash", "dot", "dashdot", "longdash")


def styles(rows: Sequence[tuple[str, bool]]) -> dict[str, Style]:
    """Returns a style per row: grey and dashed for references; for models, colours, which repeat with other symbols.

    Args:
        rows: Labels and whether they are references, best first.
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


def charts(
    table: Table,
    block: Block,
    records: dict[str, RunRecord],
    losses: Mapping[str, LearningCurve] | None = None,
    parts: Mapping[str, Sequence[RunRecord]] | None = None,
) -> dict[str, Any]:
    """Returns the data of a block's charts as JSON types; charts without recorded data are empty lists.

    Args:
        table: Definition of the table.
        block: Block of its contents.
        records: Records by run id.
        losses: Learning curves by run id.
        parts: For runs with folds, the records of the folds by the id of the joined record.
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
        # what trivial references cost is noise
        "pareto": [] if all(reference for _, reference in order) else _pareto(table, block, dict(runs)),
        "reliability": _reliability_curves(runs),
        "rank": _rank_histograms(runs),
        "losses": _loss_curves(
            [(label, [part for one in mine for part in (parts or {}).get(one.run_id, [one])]) for label, mine in runs],
            losses or {},
        ),
    }


def _loss_curves(
    runs: Sequence[tuple[str, list[RunRecord]]], losses: Mapping[str, LearningCurve]
) -> list[dict[str, Any]]:
    """Returns training and validation losses of each row's runs."""
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
    """Returns one chart per score of the table, with a curve over lead times per row."""
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
            label = label_of(column).removesuffix("-M") if of_mean else label_of(column)
            found.append({"key": column.key, "label": label, "better": column.better, "curves": curves})
    return found


def _curve(
    label: str,
    seeds: Sequence[Sequence[float | None]],
    bounds: Sequence[tuple[float, float] | None],
    scale: float = 1.0,
) -> dict[str, Any]:
    """Returns a curve: the mean over seeds with their range as a band, or the interval of the single run."""
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
    """Returns one chart per categorical score, with a curve over thresholds per row."""
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
    """Returns one chart per score with a better direction: score against the cost of a forecast, ours and published.

    A point has its costs, and `why` gives the reason for each cost that cannot be drawn.
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
            found.append({"key": column.key, "label": label_of(column), "better": column.better, "points": points})
    return found


def _costs(
    table: Table, cells: Sequence[Cell], side: Literal["ours", "published"], runs: dict[str, list[RunRecord]]
) -> dict[str, Any]:
    by_key = {cell.column: cell for cell in cells}
    mine = runs.get(cells[0].row, []) if side == "ours" else []
    found: dict[str, float | None] = {key: getattr(by_key.get(key), side, None) for key in ("gmacs", "parameters")}
    found["latency"] = _seconds_per_sequence(mine)
    why = {key: "measured runs only" if key == "latency" and side == "published" else "not known" for key in found}
    if side == "ours" and mine and mine[-1].model.gmacs is None:
        why["gmacs"] = (mine[-1].model.gmacs_missing_because or "not counted").splitlines()[0].rstrip(":")
    for key, factor in factors_of(table, cells[0].row_key).items():
        if side == "published" and found.get(key) is not None:
            found[key], why[key] = None, f"printed at {factor:g} times our count"
    return {**found, "why": why}


def _seconds_per_sequence(records: Sequence[RunRecord]) -> float | None:
    record = records[-1] if records else None
    if record is None or record.data is None or not record.data.sequence_count:
        return None
    return record.time.evaluation_s / record.data.sequence_count


def _reliability_curves(runs: Sequence[tuple[str, list[RunRecord]]]) -> list[dict[str, Any]]:
    """Reliability of ensembles, as the newest seed's record has it: one chart per threshold."""
    by_threshold: dict[str, list[dict[str, Any]]] = {}
    for label, records in runs:
        for name, columns in records[-1].curves.items():
            if name.startswith(_RELIABILITY) and len(columns["probability"]) > _OF_SINGLE_FORECASTS:
                by_threshold.setdefault(name, []).append({"label": label, **columns})
    return [
        {"key": name, "label": f"threshold {name.removeprefix(_RELIABILITY)}", "curves": by_threshold[name]}
        for name in sorted(by_threshold, key=lambda name: float(name.removeprefix(_RELIABILITY)))
    ]


def _rank_histograms(runs: Sequence[tuple[str, list[RunRecord]]]) -> list[dict[str, Any]]:
    """Rank histograms of ensembles, as the newest seed's record has them: one chart per number of members."""
    by_members: dict[int, list[dict[str, Any]]] = {}
    for label, records in runs:
        columns = records[-1].curves.get("rank_histogram")
        if columns is not None and len(columns["rank"]) > _OF_SINGLE_FORECASTS:
            by_members.setdefault(len(columns["rank"]) - 1, []).append({"label": label, **columns})
    return [
        {"key": f"{count}", "label": f"{count} members", "curves": curves}
        for count, curves in sorted(by_members.items())
    ]
