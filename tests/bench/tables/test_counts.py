"""Our own counts in the published tables, for rows that were not run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import registry
from bench.cli.main import main
from bench.tables import load_table
from bench.tables.cells import Cell, table_data
from bench.tables.counts import counts_path, load_counts, rows_to_count
from bench.tables.definitions import Column, Row, Table, load_published
from bench.tables.render import render, tables_with_rows

TABLES = [name for name in registry.names("table") if load_table(name).rows]


@pytest.mark.parametrize("name", TABLES)
def test_every_row_has_a_count(name: str) -> None:
    table = load_table(name)
    assert {one.key for one in load_counts().sizes} >= set(rows_to_count([table]))
    for cell in _cells(table):
        if cell.column in ("parameters", "gmacs"):
            assert cell.status in ("match", "differs", "counted", "not countable") and not cell.run_ids
            assert (cell.ours is None) == (cell.status == "not countable")
        else:
            assert (cell.status, cell.ours) == ("not run", None)


def _cells(table: Table) -> tuple[Cell, ...]:
    published = load_published(table.published) if table.published else None
    return table_data(table, published, []).blocks[0].cells


def test_counted_and_published_sizes_are_shown_together() -> None:
    cells = {(cell.row_key, cell.column): cell for cell in _cells(load_table("earthformer/sevir"))}
    unet = cells["unet", "parameters"]
    (size,) = (one for one in load_counts().sizes if one.key == ("sevir", "unet", "{}"))
    assert unet.ours == pytest.approx(size.parameters / 1e6) and unet.published == 16.6
    assert unet.difference == pytest.approx(size.parameters / 1e6 - 16.6) and unet.status == "match"
    assert cells["convlstm", "gmacs"].status == "differs"
    halved = cells["predrnn", "gmacs"]  # published at twice the count
    assert halved.published is not None and halved.ours == pytest.approx(halved.published / 2, rel=0.01)
    text = render(load_table("earthformer/sevir"), [])
    assert "| match |" in " ".join(text.split()) and "sizes of rows that were not run are our counts" in text


def test_rows_of_one_model_are_distinguished_by_hyperparameters() -> None:
    sizes = {cell.row_key: cell.ours for cell in _cells(load_table("earthformer/depth")) if cell.column == "parameters"}
    assert len(set(sizes.values())) == len(sizes) == 5


def test_explain_shows_the_counting_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "earthformer/sevir", "unet", "parameters"]) == 0
    said = capsys.readouterr().out
    assert "published   16.6" in said and "match" in said and "earthbench count --table earthformer/sevir" in said
    assert main(["explain", "prediff/sevir_lr", "steps", "gmacs"]) == 0
    assert "not countable" in capsys.readouterr().out


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The counts of a table with one row, in a separate folder."""
    rows = (Row(model="persistence", label="Persistence"),)
    columns = (Column(key="parameters", label="Params"),)
    table = Table(name="small", title="small", task="sevir_lr", columns=columns, rows=rows)
    monkeypatch.setattr("bench.tables.render.tables_with_rows", lambda: [table])
    monkeypatch.setattr("bench.tables.counts.published_folder", lambda: tmp_path / "published")
    load_counts.cache_clear()
    yield tmp_path / "counts.json"
    load_counts.cache_clear()


def test_counts_are_written_and_checked(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "--check"]) == 2
    assert main(["count", "--write"]) == 0 and elsewhere.is_file()
    assert main(["count", "--check"]) == 0
    assert "1 count equal to fresh ones" in capsys.readouterr().out
    content = json.loads(elsewhere.read_text())
    content["sizes"][0]["parameters"] = 1
    content["sizes"].append({"task": "sevir_lr", "model": "unet", "parameters": 1, "gmacs": 1.0})
    elsewhere.write_text(json.dumps(content))
    load_counts.cache_clear()
    assert main(["count", "--check"]) == 4
    said = capsys.readouterr().err
    assert "persistence on sevir_lr" in said and "unet on sevir_lr: no table has this row" in said
    assert main(["count", "--check", "--model", "unet"]) == 2


@pytest.mark.slow
def test_the_committed_counts_equal_a_fresh_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["count", "--check"]) == 0
    assert f"{len(rows_to_count(tables_with_rows()))} counts" in capsys.readouterr().out
    assert counts_path().is_file()
