"""A record's value in a column, and its comparison with the published figure."""

from __future__ import annotations

from bench.records.schema import RunRecord
from bench.tables.definitions import Column, PublishedValue, Row


def value_of(record: RunRecord, key: str) -> float | None:
    """Returns a record's value for a column's key in its own units: a score, or a cost."""
    if key == "parameters":
        return float(record.model.parameters)
    trained = record.training
    if key in ("training_s", "cpu_s") and not record.model.parameters and trained is None:
        return 0.0  # nothing to train
    costs = {
        "gmacs": record.model.gmacs,
        "training_s": record.time.training_s,
        "cpu_s": None if trained is None else trained.cpu_s,
    }
    return costs[key] if key in costs else record.scores.get(key)


def compare(row: Row, column: Column, figure: PublishedValue, ours: float) -> tuple[float, str]:
    """Returns the difference of our value from a published figure, and whether that is a `match` or `differs`.

    Both are in the paper's units; if the row gives a factor of the figure, the figure is divided by it first.
    """
    comparable = figure.value / row.published_factors.get(column.key, 1.0)
    _, _, decimals = figure.text.partition(".")
    tolerance = 0.5 * 10.0 ** -len(decimals) * (1 + 1e-9)  # half a unit of the last printed digit
    if column.tolerance_percent is not None:
        tolerance = max(tolerance, abs(comparable) * column.tolerance_percent / 100)
    difference = ours - comparable
    return difference, "match" if abs(difference) <= tolerance else "differs"
