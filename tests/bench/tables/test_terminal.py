"""Tables in a terminal: fitted to the width, references in a separate block, sorted; omitted columns are named."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.cli.main import main
from bench.errors import UnknownNameError
from bench.records.schema import RunRecord
from bench.tables import load_table
from bench.tables.admission import read_store
from bench.tables.cells import NOT_MEASURED, TableData, table_data
from bench.tables.definitions import Table, load_published, main_column
from bench.tables.render import texts_of
from bench.tables.terminal import is_reference, narrowed, terminal

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
TABLES = ("runs/radar", "runs/enso_ersst", "earthformer/sevir", "prediff/sevir_lr", "runs/sevir")


def _of_one_evening(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Returns the records of the board `radar_places`: one block."""
    return [record for record in records if record.task.fields.get("folds") is None]


@functools.cache
def _contents(results: Path, name: str) -> tuple[Table, TableData, list[RunRecord]]:
    table = load_table(name)
    records, unreadable = read_store(results, table.task)
    if name == "runs/radar":
        records = _of_one_evening(records)
    published = load_published(table.published) if table.published else None
    return table, table_data(table, published, records, unreadable), records


def _text(results: Path, name: str, *, columns: tuple[str, ...] = (), sort: str | None = None, **options) -> str:
    table, contents, records = _contents(results, name)
    return terminal(*narrowed(table, contents, columns, sort), contents.by_id(records), **options)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("name", TABLES)
def test_no_line_is_wider_than_the_terminal(committed_results: Path, name: str, width: int) -> None:
    for styled in (True, False):
        text = _ESCAPES.sub("", _text(committed_results, name, width=width, styled=styled))
        assert max(map(len, text.splitlines())) <= width


def test_references_are_listed_apart_from_learned_models(committed_results: Path) -> None:
    text = _text(committed_results, "runs/radar", width=200, styled=False)
    learned, references = text.split("(references)")
    assert "(learned models)" in learned, "the ranking comes first"
    for name in ("optical_flow ", "persistence "):
        assert name in references and name not in learned
    assert "unet" in learned and "unet" not in references
    assert is_reference("persistence") and is_reference("climatology") and not is_reference("unet")
    assert not is_reference("of_a_plugin_that_is_not_here")


def test_requested_columns_and_rows_are_shown_best_first(committed_results: Path) -> None:
    text = _text(committed_results, "runs/radar", columns=("MSE 1e-3", "csi_m"), sort="mse", width=200, styled=False)
    lines = [line.replace("*", "") for line in text.splitlines()]
    (head,) = [line for line in lines if line.startswith("Model")]
    assert head.split() == ["Model", "MSE", "1e-3", "CSI-M"]
    start = lines.index(next(line for line in lines if line.startswith("(learned")))
    found = [re.match(r"[a-z0-9_]+ +(\d+\.\d{4}) ± ", line) for line in lines[start + 1 :]]
    values = [float(match[1]) for match in found if match]
    assert len(values) == 4 and values == sorted(values)
    best = _text(committed_results, "runs/radar", sort="csi_m", width=200, styled=False)
    order = [best.index(f"\n{name}") for name in ("convlstm", "predrnn", "unet", "earthformer")]
    assert order == sorted(order)


def test_hidden_columns_are_named_and_costs_are_hidden_first(committed_results: Path) -> None:
    text = _text(committed_results, "runs/radar", width=80, styled=False)
    (note,) = re.findall(r"too wide for 80 characters: (.*?)\. --columns", " ".join(text.split()))
    assert note.split(", ")[:4] == ["spreads and intervals", "Params M", "GMACs", "Training min"]
    table = load_table("runs/radar")
    shown = next(line for line in text.splitlines() if line.startswith("Model"))
    for column in table.columns:
        assert (column.label in note.split(", ")) != (
            column.label in shown.split() or (column.label in shown and " " in column.label)
        )
    assert "too wide" not in _text(committed_results, "runs/radar", width=400, styled=False)
    # an undefined score is last, and no reason for an error
    assert "climatology" in _text(committed_results, "runs/enso_ersst", sort="c_nino34_m", width=80)


def test_a_column_is_found_by_key_or_label() -> None:
    table = load_table("runs/radar")
    assert table.named("csi_m") is table.named("CSI-M") is table.named("csi-m") is main_column(table)
    with pytest.raises(UnknownNameError, match="Did you mean 'csi_m'"):
        table.named("csim")


def test_piped_output_is_markdown_and_a_terminal_gets_a_fitted_table(capsys, monkeypatch, committed_results) -> None:
    given = ["table", "runs/radar", "--results", str(committed_results)]
    assert main(given) == 0
    assert capsys.readouterr().out == (committed_results / "tables/runs_radar.md").read_text()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "\x1b[" in shown and max(len(line) for line in _ESCAPES.sub("", shown).splitlines()) <= 80
    assert main([*given, "--format", "json", "--columns", "mse", "--sort", "mse"]) == 0
    cells = json.loads(capsys.readouterr().out)["blocks"][0]["cells"]
    values = [cell["ours"] for cell in cells]
    assert {cell["column"] for cell in cells} == {"mse"} and values == sorted(values)


def test_terminal_escapes_in_names_are_neutralised(committed_results: Path) -> None:
    table = load_table("runs/radar")
    records = _of_one_evening(read_store(committed_results, table.task)[0])
    contents = table_data(table, None, records)
    (block,) = contents.blocks
    cells = tuple(replace(cell, row=f"{cell.row}\x1b[2J[red]x") for cell in block.cells)
    hostile = replace(contents, blocks=(replace(block, cells=cells, title="\x1b]0;mine\x07"),))
    text = terminal(table, hostile, {record.run_id: record for record in records}, width=200, styled=False)
    assert "\x1b" not in text and "\x07" not in text and "[red]x" in text


def test_a_written_table_always_has_all_columns(capsys, tmp_path: Path) -> None:
    assert main(["table", "runs/radar", "--results", str(tmp_path), "--write", "--sort", "mse"]) == 2
    assert "apply to printed tables only" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_empty_columns_are_hidden_per_block(committed_results: Path) -> None:
    table = load_table("runs/radar")
    records = _of_one_evening(read_store(committed_results, table.task)[0])
    contents = table_data(table, None, records, ())
    without = replace(
        contents,
        blocks=tuple(
            replace(
                block,
                cells=tuple(
                    replace(cell, ours=None, status=NOT_MEASURED) if cell.column == "mae" else cell
                    for cell in block.cells
                ),
            )
            for block in contents.blocks
        ),
    )
    by_id = {record.run_id: record for record in records}
    assert "MAE 1e-2" in terminal(table, contents, by_id, width=400, styled=False)
    texts = texts_of(table, None, without, ("md", "latex", "html"))
    for text in (terminal(table, without, by_id, width=400, styled=False), *texts.values()):
        assert "MAE 1e-2" not in text and "MSE 1e-3" in text
    body = texts["latex"].split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert {line.count("&") for line in body.splitlines() if line.endswith(r"\\")} == {len(table.columns) - 1}
