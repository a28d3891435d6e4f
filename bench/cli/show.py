"""`earthbench show KIND NAME`: what one registered object is, without importing torch."""

from __future__ import annotations

import argparse
import json
from typing import Any

from bench import registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("kind", choices=registry.KINDS)
    parser.add_argument("name")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(options: argparse.Namespace) -> int:
    """Prints the object's description."""
    entry = registry.find(options.kind, options.name)
    card = entry.card()
    shown: dict[str, Any] = {
        "name": entry.name,
        "kind": entry.kind,
        "origin": entry.origin,
        "summary": card.summary,
    }
    shown["description"] = card.doc
    if entry.kind in ("model", "metric"):
        shown["hyperparameters" if entry.kind == "model" else "options"] = card.parameters
    if entry.kind == "model":
        shown["presets"] = card.presets
    elif entry.kind == "task":
        shown |= _task(entry.name)
    elif entry.kind == "table":
        shown |= _table(entry.name)
    if options.format == "json":
        print(json.dumps(shown, indent=1, default=str))
    else:
        _print(shown)
    return 0


def _task(name: str) -> dict[str, Any]:
    from bench.tasks import load_task

    task = load_task(name)
    return {
        "version": task.version,
        "units": task.units,
        "input_shape": list(task.input_shape),
        "target_shape": list(task.target_shape),
        "cadence_minutes": task.cadence_minutes,
        "metrics": task.metrics,
        "published_sequences": task.published_sequences,
        "fields": {
            key: {"default": getattr(task, key), "meaning": field.description or ""}
            for key, field in type(task).model_fields.items()
            if key != "data_root"
        },
    }


def _table(name: str) -> dict[str, Any]:
    from bench.tables import load_table
    from bench.tables.definitions import load_published

    table = load_table(name)
    published = load_published(table.published) if table.published else None
    return {
        "title": table.title,
        "task": table.task,
        "columns": {column.key: column.label for column in table.columns},
        "rows": {row.model: row.label for row in table.rows} or "one per model that has a complete run",
        "published": published.paper if published else None,
        "note": table.note,
    }


def _print(shown: dict[str, Any], indent: str = "") -> None:
    for key, value in shown.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{key}:")
            _print(value, indent + "  ")
        elif isinstance(value, str) and "\n" in value:
            print(f"{indent}{key}:")
            print("\n".join(f"{indent}  {line}".rstrip() for line in value.splitlines()))
        else:
            print(f"{indent}{key}: {'none' if value in ({}, None, '') else value}")
