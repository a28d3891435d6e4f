"""README's table of rows agrees with the tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from pages import REPO

from bench import registry
from bench.tables import load_table
from bench.tables.admission import read_store
from bench.tables.cells import table_data
from bench.tables.definitions import load_published

TABLES = ("earthformer/sevir", "earthformer/sevir_per_lead", "earthformer/icar_enso", "prediff/sevir_lr")
_COST = ("parameters", "gmacs")


def _statuses(name: str, results: Path) -> dict[str, str]:
    """Returns the statuses of each row's scores by its label; none for a row without a model of that name."""
    table = load_table(name)
    published = load_published(table.published) if table.published else None
    records, unreadable = read_store(results, table.task)
    found = {}
    for cells in table_data(table, published, records, unreadable).blocks[0].rows:
        statuses = {cell.status for cell in cells if cell.column not in _COST}
        known = cells[0].model in registry.names("model")
        found[cells[0].row] = ", ".join(sorted(statuses)) if known else "no model"
    return found


def _of_a_paper(name: str) -> bool:
    return bool(load_table(name).rows) and load_table(name).data_origin == "files"


def status_lines(results: Path) -> list[str]:
    """The lines of README's table."""
    columns = [_statuses(name, results) for name in TABLES]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    return [f"| {label} | " + " | ".join(column.get(label, "") for column in columns) + " |" for label in labels]


def test_readme_has_the_status_of_every_row(committed_results: Path) -> None:
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    missing = [line for line in status_lines(committed_results) if line not in readme]
    assert not missing, "README.md lacks these lines of its status table:\n" + "\n".join(missing)


@pytest.mark.parametrize("name", [name for name in registry.names("table") if _of_a_paper(name)])
def test_rows_not_listed_in_readme_have_no_runs(name: str, committed_results: Path) -> None:
    if name not in TABLES:
        found = set(_statuses(name, committed_results).values())
        assert found == {"not run"}, f"README.md says that no row of {name} was run"
