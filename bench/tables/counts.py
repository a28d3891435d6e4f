"""Sizes that need no data: our own counts of parameters and multiply-adds of the published tables' rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from bench.config import canonical_json, explain
from bench.errors import DataError, one_message
from bench.files import replacing
from bench.tables.definitions import Row, StrictModel, Table, published_folder

COUNTED = "counted"
"""Status of a size without a published figure."""
NOT_COUNTABLE = "not countable"


class CountedSize(StrictModel):
    """The result of `earthbench count` for a model at a task's shapes."""

    task: str
    model: str
    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    """Those in which it differs from its preset for the task."""
    parameters: int
    gmacs: float | None
    """As in a record; None where the multiply-adds cannot be counted."""
    gmacs_missing_because: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Returns the key that identifies it."""
        return _key(self.task, self.model, self.hyperparameters)

    def value_of(self, column: str) -> float | None:
        """Returns the value of a column's key; None for scores."""
        return {"parameters": float(self.parameters), "gmacs": self.gmacs}.get(column)


class Counts(StrictModel):
    """Our counts of all rows of all published tables."""

    schema_version: Literal[1]
    sizes: tuple[CountedSize, ...]

    def of(self, table: Table, row: Row) -> CountedSize | None:
        """Returns the size of a table's row; None if it was not counted."""
        wanted = _key(table.task, row.model, row.options)
        return next((one for one in self.sizes if one.key == wanted), None)


def counts_path() -> Path:
    """Returns the path of the counts, beside the published figures: `results/counts.json` in a checkout."""
    return published_folder().parent / "counts.json"


@cache
def load_counts() -> Counts:
    """Returns the committed counts.

    Raises:
        DataError: the file is missing or not valid.
    """
    path = counts_path()
    try:
        return Counts.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise DataError(one_message(f"{path} is not valid:", explain(error, Counts))) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def write_counts(sizes: Iterable[CountedSize]) -> Path:
    """Writes counts in the order of their tables, and returns the path."""
    content = {"schema_version": 1, "sizes": [size.model_dump(exclude_defaults=True) for size in sizes]}
    path = counts_path()
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    load_counts.cache_clear()
    return path


def rows_to_count(tables: Iterable[Table]) -> dict[tuple[str, str, str], tuple[str, str, dict[str, Any]]]:
    """Returns task, model and hyperparameters of all rows of some tables, once each, by their keys."""
    return {
        _key(table.task, row.model, row.options): (table.task, row.model, row.options)
        for table in tables
        for row in table.rows
    }


def _key(task: str, model: str, options: dict[str, Any]) -> tuple[str, str, str]:
    return task, model, canonical_json(options)
