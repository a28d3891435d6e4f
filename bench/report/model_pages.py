"""What the page of a model says: what it is, what it costs, how it deviates, and its records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench import registry
from bench.errors import EarthbenchError
from bench.records.schema import RunRecord
from bench.tables.admission import deviations
from bench.tables.definitions import Table

_PAGE = re.compile(r"[^a-z0-9_]+")


@dataclass(frozen=True)
class Cost:
    """Size of a model on a task, as its records have it, beside what was published."""

    task: str
    parameters: int | None
    gmacs: float | None
    published_parameters: str
    published_gmacs: str


@dataclass(frozen=True)
class ModelPage:
    """A model."""

    name: str
    page: str
    labels: tuple[str, ...]
    origin: str
    summary: str
    doc: str
    problem: str
    costs: tuple[Cost, ...]
    deviations: tuple[str, ...]
    notes: tuple[str, ...]
    presets: dict[str, dict[str, Any]]
    records: tuple[RunRecord, ...]


def page_of(model: str) -> str:
    """Returns the file of a model's page; names in records are not trusted to be file names."""
    return f"model-{_PAGE.sub('-', model.lower())}.html"


def model_pages(
    tables: Sequence[tuple[Table, dict[str, dict[str, str]]]], records: Sequence[RunRecord]
) -> list[ModelPage]:
    """Returns a page for each model that has a row or a record.

    Args:
        tables: Tables with their published figures as printed, by row and column.
        records: All records.
    """
    names = {row.model for table, _ in tables for row in table.rows} | {record.model.name for record in records}
    return [_page(name, tables, [r for r in records if r.model.name == name]) for name in sorted(names)]


def _page(name: str, tables: Sequence[tuple[Table, dict[str, dict[str, str]]]], records: list[RunRecord]) -> ModelPage:
    origin, summary, doc, problem, presets = _card(name)
    costs, found, notes, labels = [], [], [], []
    for table, figures in tables:
        mine = [record for record in records if record.task.name == table.task and record.model.is_preset]
        for row in table.rows:
            if row.model != name:
                continue
            labels.append(row.label)
            notes += [f"{table.name}, {key}: {note}" for key, note in row.notes.items()]
            if row.options:
                continue
            printed = figures.get(row.key, {})
            costs.append(
                Cost(
                    task=table.name,
                    parameters=mine[-1].model.parameters if mine else None,
                    gmacs=mine[-1].model.gmacs if mine else None,
                    published_parameters=printed.get("parameters", ""),
                    published_gmacs=printed.get("gmacs", ""),
                )
            )
        if table.rows:
            own = next((row for row in table.rows if row.model == name), None)
            found += [f"{table.name}, {r.run_id}: {d}" for r in mine for d in deviations(table, r, own)]
    return ModelPage(
        name=name, page=page_of(name), labels=tuple(dict.fromkeys(labels)), origin=origin, summary=summary, doc=doc,
        problem=problem, costs=tuple(costs), deviations=tuple(dict.fromkeys(found)), notes=tuple(dict.fromkeys(notes)),
        presets=presets, records=tuple(reversed(records)),
    )  # fmt: skip


def _card(name: str) -> tuple[str, str, str, str, dict[str, dict[str, Any]]]:
    try:
        entry = registry.find("model", name)
        card = entry.card()
    except EarthbenchError as error:
        return "", "", "", str(error), {}
    return entry.origin, card.summary, card.doc, "", card.presets
