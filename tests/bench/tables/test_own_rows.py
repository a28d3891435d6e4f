"""A user's own model in the table of a paper."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from official import PAPER_SETTINGS, as_official, trained_with, unet_like

from bench.cli.main import main
from bench.errors import DataError, EarthbenchError, UnknownNameError, UsageError
from bench.records.schema import RunRecord
from bench.tables import load_table
from bench.tables.cells import table_data
from bench.tables.definitions import load_published
from bench.tables.own_rows import with_own
from bench.tables.render import FORMATS, render

SEVIR = load_table("earthformer/sevir")
OWN_SETTINGS = {**PAPER_SETTINGS, "max_epochs": 3, "lr": 0.1}


def own(measured: RunRecord, run_id: str = "2026-1", share: float = 0.9, **changes: Any) -> RunRecord:
    """A complete run of a plugin's model with its own training."""
    model = measured.model.model_copy(
        update={
            "name": "my_model", "origin": "my_model:MyModel (file my_model.py)", "parameters": 1, "is_preset": False,
            "hyperparameters": {"share": share},
        }
    )  # fmt: skip
    given = {"model": {"name": "my_model", "share": share}}
    return as_official(
        measured,
        **{"run_id": run_id, "model": model, "training": trained_with(OWN_SETTINGS), "config": given, **changes},
    )


def test_a_models_own_row_follows_the_papers_rows(measured: RunRecord) -> None:
    record = own(measured, scores={**measured.scores, "csi_m": 0.99})
    records = [record, unet_like(measured)]
    table = with_own(SEVIR, ["my_model"], records)
    assert table.rows[:-1] == SEVIR.rows
    contents = table_data(table, load_published(table.published), records)
    assert not contents.left_out
    (cell,) = [cell for cell in contents.blocks[0].cells if cell.model == "my_model" and cell.column == "csi_m"]
    assert (cell.ours, cell.published, cell.difference, cell.status) == (0.99, None, None, "measured")
    assert cell.marks == ("own", "plugin") and cell.run_ids == ("2026-1",) and cell.rank == 1
    assert "my_model: not of the paper; hyperparameters: share=0.9" in contents.blocks[0].remarks


def test_every_format_marks_own_rows(measured: RunRecord) -> None:
    records = [own(measured)]
    table = with_own(SEVIR, ["my_model"], records)
    texts = {form: render(table, records, form) for form in FORMATS}
    for form in ("md", "html"):
        assert "my_model (own) (plugin)" in texts[form].replace("\\", "")
        assert "(own): not of the paper" in texts[form].replace("\\", "")
    assert r"my\_model (own) (plugin)" in texts["latex"]
    assert {line["marks"] for line in csv.DictReader(io.StringIO(texts["csv"])) if line["model"] == "my_model"} == {
        "own plugin"
    }
    (block,) = json.loads(texts["json"])["blocks"]
    assert {tuple(cell["marks"]) for cell in block["cells"] if cell["model"] == "my_model"} == {("own", "plugin")}
    assert all("(own)" not in render(SEVIR, records, form) for form in ("html", "latex"))


def test_each_variant_has_one_row_for_all_seeds(measured: RunRecord) -> None:
    records = [
        own(measured, "2026-1", seed=0), own(measured, "2026-2", seed=1), own(measured, "2026-3", share=0.5),
    ]  # fmt: skip
    rows = [row for row in with_own(SEVIR, ["my_model", "my_model"], records).rows if row.own_runs]
    assert [(row.label, row.own_runs) for row in rows] == [
        ("my_model (share=0.5)", ("2026-3",)),
        ("my_model (share=0.9)", ("2026-1", "2026-2")),
    ]


def test_a_variant_of_a_papers_model_has_its_own_row(measured: RunRecord) -> None:
    preset, other = unet_like(measured), unet_like(measured, run_id="2026-9")
    other = other.model_copy(
        update={"model": other.model.model_copy(update={"is_preset": False, "hyperparameters": {"channels": [4]}})}
    )
    table = with_own(SEVIR, ["unet"], [preset, other])
    cells = {cell.row_key: cell.run_ids for cell in table_data(table, None, [preset, other]).blocks[0].cells}
    assert cells["unet"] == (preset.run_id,) and [runs for key, runs in cells.items() if key.startswith("own")] == [
        ("2026-9",)
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"scope": "partial"}, "partial runs"),
        ({"status": "failed"}, "failed runs"),
        ({"training": None}, "weights of unknown training"),
        ({"training": trained_with(OWN_SETTINGS, sequence_count=12)}, "trained on other data"),
    ],
)
def test_an_inadmissible_run_is_refused_with_the_reason(
    measured: RunRecord, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DataError, match=rf"(?s)expected a complete run on 12,159 test sequences.*{reason}"):
        with_own(SEVIR, ["my_model"], [own(measured, **changes)])


@pytest.mark.parametrize(
    ("table", "model", "error", "said"),
    [
        ("earthformer/sevir", "my_modl", UnknownNameError, "unknown model"),
        ("earthformer/sevir", "simvp", DataError, "earthbench run task=sevir model=simvp"),
        ("runs/sevir", "simvp", UsageError, "every model"),
    ],
)
def test_invalid_own_rows_are_refused(table: str, model: str, error: type[EarthbenchError], said: str) -> None:
    with pytest.raises(error, match=said):
        with_own(load_table(table), [model], [])


def test_own_rows_on_the_command_line(storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [f"results.root={tmp_path}", f"data.root={storms}", "picture=false", "progress=false", "device=cpu"]
    assert main(["evaluate", "task=sevir", "model=blurred_persistence", *where]) == 0
    capsys.readouterr()
    shown = ["table", "earthformer/sevir", "--with", "blurred_persistence", "--results", str(tmp_path)]
    assert main(shown) == 2
    assert "other data (1): blurred_persistence/" in capsys.readouterr().err
    assert main([*shown, "--check"]) == 2
    assert "--with applies to tables that are printed or drawn" in capsys.readouterr().err
