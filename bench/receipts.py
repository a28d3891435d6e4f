"""The receipt of a table's cell: its records, their deviations from the paper, and its value by other conventions."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config import compose
from bench.config.overrides import literal
from bench.errors import EarthbenchError, UnknownNameError, did_you_mean
from bench.metrics.names import ADDED
from bench.metrics.skill.formulas import SCORES, VIL_THRESHOLDS, Convention, skill_scores
from bench.records.schema import RunRecord
from bench.tables.admission import Excluded
from bench.tables.cells import Cell, table_data
from bench.tables.definitions import COSTS, Row, Table, load_published
from bench.tables.folds import run_name
from bench.tables.recipes import deviations
from bench.tables.settings import SourcedSetting, overrides_of, sourced_settings
from bench.tables.values import value_of

_PAIR_COUNTS = {"mse": 2, "mae": 1}  # score -> power of the scale that it carries


@dataclass(frozen=True)
class AlternativeValue:
    """The score of the same forecasts under another convention of the metric."""

    convention: str
    value: float | None
    """In the metric's units, not in those of the table; None if undefined."""
    remark: str = ""


@dataclass(frozen=True)
class Receipt:
    """Everything behind one cell."""

    table: Table
    block: str
    cell: Cell
    records: tuple[RunRecord, ...]
    paths: tuple[Path, ...]
    published_sources: tuple[str, ...]
    deviations: tuple[str, ...]
    convention: str
    alternative_values: tuple[AlternativeValue, ...]
    commands: tuple[str, ...]
    settings: tuple[SourcedSetting, ...] = ()
    """Settings of a row without a run, with their sources."""
    row_note: str = ""
    """The note on a row of a published table."""


def receipts_of(
    table: Table,
    row: str,
    column: str,
    records: Sequence[RunRecord],
    root: Path,
    *,
    unreadable: Sequence[Excluded] = (),
) -> list[Receipt]:
    """Returns the receipts of a cell: one, or one per data set that has the row in a table of runs.

    Args:
        table: The table.
        row: A row's key or label; in a table of runs also a model's name, for all its rows.
        column: A column's key or label.
        records: Records of any task.
        root: Results root that they were read from.
        unreadable: Files that are not records.

    Raises:
        UnknownNameError: no such row or column; the message offers the nearest.
    """
    published = load_published(table.published) if table.published else None
    contents = table_data(table, published, records, unreadable)
    key = table.named(column).key
    by_id = {record.run_id: record for record in records}
    found, rows = [], []
    for block in contents.blocks:
        for cell in block.cells:
            rows.append(cell.row_key)
            # in a table of runs, a model's name stands for all its variants
            asked_for = (cell.row_key, cell.row) if table.rows else (cell.row_key, cell.row, cell.model)
            if cell.column != key or row not in asked_for:
                continue
            mine = tuple(by_id[run_id] for run_id in contents.run_ids(cell))
            folded = len(mine) > len(cell.run_ids)
            found.append(
                Receipt(
                    table=table,
                    block=block.title,
                    cell=cell,
                    records=mine,
                    paths=tuple(root / "runs" / r.task.name / r.model.name / f"{r.run_id}.json" for r in mine),
                    published_sources=tuple(
                        f"{name}: {source.title} ({source.by}; {source.kind}) {source.url}"
                        for name, source in (published.sources.items() if published else ())
                        if name in cell.sources
                    ),
                    deviations=tuple(
                        sorted({d for record in mine for d in deviations(table, record, _row_of(table, cell))})
                    ),
                    convention=_convention(mine[0], key) if mine else COSTS.get(key, ""),
                    alternative_values=tuple(alternative_values(mine[-1], key)) if mine and not folded else (),
                    commands=_commands(table, cell, mine),
                    settings=() if mine or cell.column in COSTS else _settings(table, cell),
                    row_note=row_of.note if (row_of := _row_of(table, cell)) else "",
                )
            )
    if not found:
        raise UnknownNameError(f"table {table.name!r} has no row {row!r}. {did_you_mean(row, set(rows))}")
    return found


def _settings(table: Table, cell: Cell) -> tuple[SourcedSetting, ...]:
    row = _row_of(table, cell)
    if row is None:
        return ()
    try:
        return tuple(sourced_settings(table, row.key, compose(overrides_of(table, row, (), seed=0))))
    except EarthbenchError:  # no such model here: `earthbench reproduce` says so
        return ()


def _row_of(table: Table, cell: Cell) -> Row | None:
    return table.row(cell.row_key) if table.rows else None


def _convention(record: RunRecord, key: str) -> str:
    if key in COSTS:
        return COSTS[key]
    metric = _metric_of(record, key)
    options = record.conventions.get(metric, {})
    return f"{metric}: " + (", ".join(f"{name}={value}" for name, value in sorted(options.items())) or "defaults")


def _metric_of(record: RunRecord, key: str) -> str:
    """Returns the metric that a score comes from, inferred from the score's name."""
    for name in record.conventions:
        if key in (name, name.replace(ADDED, "_")):
            return name
    if key.startswith(SCORES) and "skill" in record.conventions:
        return "skill"
    family = next((name for name in record.conventions if name in key), None)
    return family or "/".join(sorted(record.conventions))


def alternative_values(record: RunRecord, key: str) -> list[AlternativeValue]:
    """Returns a record's score under every convention that the stored counts allow."""
    if key.split("_")[0] in SCORES and record.counts is not None:
        return _from_counts(record, key)
    if key in _PAIR_COUNTS:
        return _scales(record, key)
    if key in ("c_nino34_m", "c_nino34_wm"):
        return _nino(record)
    return []


def _from_counts(record: RunRecord, key: str) -> list[AlternativeValue]:
    assert record.counts is not None
    options = record.conventions.get("skill", {})
    thresholds, pools = options.get("thresholds", VIL_THRESHOLDS), options.get("pools", (1,))
    counted = options.get("convention", "upstream")
    base = key.removesuffix("_per_lead_mean")
    found = []
    conventions: tuple[Convention, ...] = ("upstream", "correct")
    for convention in conventions:
        scores = skill_scores(record.counts, thresholds, convention, pools)
        formula = "1e-4 in denominators" if convention == "upstream" else "0/0 left out of means"
        remark = "" if convention == counted else f"formula only: the events were counted by the rules of {counted!r}"
        for name, pooled in ((base, "pooled over leads"), (f"{base}_per_lead_mean", "mean of scores per lead")):
            found.append(AlternativeValue(f"{convention}, {pooled} ({formula})", _known(scores.get(name)), remark))
    if base.startswith(("csi_", "pod_")) and "_pool" not in base:
        empty = _with_empty_as_one(record, base, thresholds)
        remark = "formula only: its own code also drops pairs with a value outside 0..254"
        found.append(AlternativeValue("MIT 2020, pooled over leads (0/0 is 1)", empty, remark))
    return found


def _with_empty_as_one(record: RunRecord, base: str, thresholds: Sequence[float]) -> float | None:
    """Returns the pooled score if a score without events in forecast and target counts as perfect."""
    assert record.counts is not None
    name, _, level = base.partition("_")
    # columns after those of the thresholds are of max-pooled fields
    totals = {
        state: [sum(column) for column in zip(*rows, strict=True)][: len(thresholds)]
        for state, rows in record.counts.items()
    }
    values = []
    for hits, misses, alarms in zip(totals["hits"], totals["misses"], totals["false_alarms"], strict=True):
        over = hits + misses + (alarms if name == "csi" else 0)
        values.append(hits / over if over else 1.0)
    if level == "m":
        return sum(values) / len(values)
    return next((v for t, v in zip(thresholds, values, strict=True) if f"{t:g}" == level), None)


def _scales(record: RunRecord, key: str) -> list[AlternativeValue]:
    value, power = record.scores.get(key), _PAIR_COUNTS[key]
    if value is None:
        return []
    scale = float(record.conventions.get(key, {}).get("scale", 1.0))
    found = [AlternativeValue("mean over pixels, 0-1 scale", value)]
    if scale != 1.0:
        found.append(AlternativeValue(f"mean over pixels, physical units (x {scale:g}^{power})", value * scale**power))
    shape = record.data.identity.get("event_shape") if record.data else None
    if shape and len(shape) >= 2:
        height, width = shape[:2]  # of an event: H, W, T
        found.append(AlternativeValue(f"sum over a frame of {height}x{width}, 0-1 scale", value * height * width))
    return found


def _nino(record: RunRecord) -> list[AlternativeValue]:
    by_lead = record.scores_per_lead.get("c_nino34", [])
    known = [value for value in by_lead if value is not None]
    if not known:
        return []
    k = range(1, len(by_lead) + 1)
    weights = [(1.5 if i <= 4 else 2.0 if i <= 11 else 3.0 if i <= 18 else 4.0) * math.log(i) for i in k]
    weighted = sum(w * v for w, v in zip(weights, by_lead, strict=True) if v is not None)
    return [
        AlternativeValue("C-Nino3.4-M: mean over leads", sum(known) / len(known)),
        AlternativeValue("C-Nino3.4-WM: weighted by b_k ln k, divided by the number of leads", weighted / len(by_lead)),
        AlternativeValue("weighted, normalised so that a perfect forecast is 1", weighted / sum(weights)),
    ]


def _known(value: float | None) -> float | None:
    return None if value is None or value != value else value


def _commands(table: Table, cell: Cell, records: Sequence[RunRecord]) -> tuple[str, ...]:
    if not records and cell.ours is not None:
        return (f"earthbench count --table {table.name}",)
    if not records:
        return (f"earthbench reproduce {table.name}/{cell.row_key} data.root=DIR",) if table.rows else ()
    return tuple(command_of(record) for record in records)


def command_of(record: RunRecord) -> str:
    """Returns the command that repeats a record's run, with `DIR` for the folder of its data."""
    config = record.config
    if config.get("api"):
        return f"bench.evaluate({record.model.name!r}, task, split={config['split']!r}, limit={config['limit']!r})"
    from bench.config import Config

    defaults = Config.model_validate({"task": {"name": "x"}, "model": {"name": "x"}}).model_dump(mode="json")
    verb = "run" if record.training is not None and not config.get("checkpoint") else "evaluate"
    words = ["earthbench", verb]
    for section in ("task", "model"):
        words += [f"{section}={config[section]['name']}"]
        words += [f"{section}.{k}={literal(v)}" for k, v in config[section].items() if k != "name"]
    words += _changed(config, defaults)
    words += ["data.root=DIR"] + (["data.test_root=DIR"] if config["data"].get("test_root") else [])
    return shlex.join(words)


def _changed(given: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns the overrides by which a config differs from the defaults, without locations and speed."""
    left_out = {"task", "model", "work", "progress", "picture", "results", "device"}
    words = []
    for key, value in given.items():
        if (not prefix and key in left_out) or (prefix == "data." and key in ("root", "test_root", "num_workers")):
            continue
        default = defaults.get(key)
        if isinstance(value, dict) and isinstance(default, dict):
            words += _changed(value, default, f"{prefix}{key}.")
        elif value != default or key == "seed":
            words.append(f"{prefix}{key}={literal(value)}")
    return words


def run_values(receipt: Receipt) -> list[tuple[str, float | None]]:
    """Returns the seed (and fold) of each record, and its value in the table's units."""
    column = receipt.table.column(receipt.cell.column)
    values = [(run_name(record), value_of(record, column.key)) for record in receipt.records]
    return [(name, None if value is None else value * column.scale) for name, value in values]
