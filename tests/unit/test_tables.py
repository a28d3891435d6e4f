from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

import bench
from bench import registry
from bench.errors import DataError, VerificationError
from bench.records.schema import RunRecord, TrainingSummary
from bench.records.store import write_record
from bench.tables import definitions, load_table
from bench.tables.cells import blocks_of
from bench.tables.definitions import load_published
from bench.tables.render import FORMATS, check_renderings, render, write_renderings

SEVIR = load_table("earthformer/sevir")


@pytest.fixture(scope="module")
def measured(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


def _as_official(record: RunRecord, **changes: object) -> RunRecord:
    """The record as if it had been made on the complete official test set."""
    assert record.data is not None
    data = record.data.model_copy(
        update={"origin": "files", "sequence_count": 12_159, "sequence_count_available": 12_159}
    )
    return record.model_copy(update={"data": data, **changes})


def _cells(record_list: list[RunRecord], model: str = "persistence") -> dict[str, object]:
    block = blocks_of(SEVIR, load_published(SEVIR.published), record_list)[0]
    return {cell.column: cell for cell in block.cells if cell.model == model}


@pytest.mark.parametrize("name", registry.names("table"))
@pytest.mark.parametrize("form", FORMATS)
def test_every_table_renders_with_no_record(name: str, form: str) -> None:
    text = render(load_table(name), [], form)
    assert text.endswith("\n") and (load_table(name).published is None or "not run" in text)


@pytest.mark.parametrize("name", [n for n in registry.names("table") if load_table(n).published])
def test_published_figures_have_allowed_sources_and_known_places(name: str) -> None:
    table = load_table(name)
    published = load_published(table.published)
    assert published.table == table.name
    assert set(published.rows) == {row.model for row in table.rows}
    assert {key for figures in published.rows.values() for key in figures} <= {column.key for column in table.columns}
    assert {source.kind for source in published.sources.values()} <= {"authors", "transcribed"}


def test_published_means_of_six_thresholds_are_the_published_csi_m() -> None:
    rows = load_published("earthformer_sevir.json").rows
    complete = [r for r in rows.values() if all(f"csi_{t}" in r for t in (16, 74, 133, 160, 181, 219))]
    assert len(complete) == 2
    for figures in complete:
        mean = sum(figures[f"csi_{t}"].value for t in (16, 74, 133, 160, 181, 219)) / 6
        assert mean == pytest.approx(figures["csi_m"].value, abs=1e-4)


def test_a_published_file_without_a_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((definitions.published_folder() / "earthformer_sevir.json").read_text())
    content["rows"]["unet"]["mse"] = {"value": 4.2, "text": "4.1", "sources": ["memory"]}
    (tmp_path / "x.json").write_text(json.dumps(content))
    monkeypatch.setattr(definitions, "published_folder", lambda: tmp_path)
    with pytest.raises(DataError, match=r"unet\.mse: source 'memory'") as caught:
        load_published("x.json")
    assert "'4.1' is not 4.2" in str(caught.value)


def test_a_complete_official_run_stands_beside_the_published_figure(measured: RunRecord) -> None:
    record = _as_official(measured, scores={**measured.scores, "csi_m": 0.2614, "mse": 11.53379e-3})
    cells = _cells([record])
    assert (
        cells["csi_m"].ours == 0.2614
        and cells["csi_m"].difference == pytest.approx(1e-4)
        and cells["csi_m"].status == "differs"
    )
    assert cells["mse"].status == "match", "within half a unit of the last printed digit"
    assert cells["csi_160"].status == "measured" and cells["csi_160"].published is None


def test_partial_runs_other_data_and_other_options_stay_out(measured: RunRecord) -> None:
    official = _as_official(measured)
    assert official.data is not None
    wrong = [
        measured,
        _as_official(measured, scope="partial"),
        _as_official(measured, status="failed"),
        official.model_copy(update={"data": official.data.model_copy(update={"split": "all"})}),
        official.model_copy(update={"data": official.data.model_copy(update={"origin": "synthetic storms"})}),
        official.model_copy(update={"data": official.data.model_copy(update={"sequence_count": 12_158})}),
        official.model_copy(update={"task": official.task.model_copy(update={"is_default": False})}),
        official.model_copy(update={"model": official.model.model_copy(update={"is_preset": False})}),
    ]
    assert all(cell.status == "not run" for cell in _cells(wrong).values())
    assert "records of task sevir are not shown" in render(SEVIR, wrong)


def test_seeds_are_averaged_and_a_repeated_seed_counts_once(measured: RunRecord) -> None:
    runs = [
        _as_official(measured, run_id=f"2026-{n}", seed=seed, scores={**measured.scores, "csi_m": value})
        for n, (seed, value) in enumerate([(0, 0.9), (0, 0.2), (1, 0.4)])
    ]
    cell = _cells(runs)["csi_m"]
    assert cell.ours == pytest.approx(0.3) and cell.spread == pytest.approx(0.1414, abs=1e-4) and len(cell.run_ids) == 2


PAPER_SETTINGS = {"max_epochs": 100, "max_steps": None, "limit": None, "lr": 1e-3, "weight_decay": 0.0}


def _trained(settings: dict, **changes: object) -> TrainingSummary:
    fields = {
        "settings": settings, "data_fingerprint": "f" * 64, "data_origin": "files", "sequence_count": 35_718,
        "validation_sequence_count": 9_060, "epochs": 3, "steps": 3, "resumed_count": 0,
        "stopped_because": "max_epochs", "monitor": None, "best_score": None, "weights": "last", "averaged": False,
        "final_loss": 1.0, "wall_s": 1.0,
    }  # fmt: skip
    return TrainingSummary(**{**fields, **changes})


def _unet(measured: RunRecord, **changes: object) -> RunRecord:
    model = measured.model.model_copy(update={"name": "unet", "parameters": 16_556_044, "gmacs": 32.80})
    return _as_official(measured, **{"model": model, "training": _trained(PAPER_SETTINGS), **changes})


def test_a_run_that_deviates_from_the_papers_config_is_marked(measured: RunRecord) -> None:
    assert _cells([_unet(measured)], "unet")["csi_m"].status == "differs"
    record = _unet(measured, training=_trained({**PAPER_SETTINGS, "max_epochs": 3}))
    assert _cells([record], "unet")["csi_m"].status.endswith("config deviates")
    assert "train.max_epochs=3 (paper: 100)" in render(SEVIR, [record])


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        (None, "weights of unknown training (1)"),
        (_trained(PAPER_SETTINGS, data_origin="synthetic storms"), "trained on other data (1)"),
        (_trained(PAPER_SETTINGS, sequence_count=12), "trained on other data (1)"),
    ],
)
def test_weights_of_other_data_or_of_unknown_training_stay_out(measured: RunRecord, training, reason: str) -> None:
    record = _unet(measured, training=training)
    assert _cells([record], "unet")["csi_m"].status == "not run"
    assert reason in render(SEVIR, [record])


def test_runs_tables_keep_different_trainings_apart(measured: RunRecord) -> None:
    runs = [
        _unet(measured, run_id=f"2026-{n}", seed=seed, training=_trained({**PAPER_SETTINGS, "lr": lr}))
        for n, (seed, lr) in enumerate([(0, 1e-3), (1, 1e-3), (0, 1e-2)])
    ]
    (block,) = blocks_of(load_table("runs/sevir"), None, runs)
    assert {cell.row: len(cell.run_ids) for cell in block.cells} == {"unet (lr=0.001)": 2, "unet (lr=0.01)": 1}


def test_doubled_gflops_are_compared_with_half_the_published_figure(measured: RunRecord) -> None:
    model = measured.model.model_copy(update={"name": "predrnn", "gmacs": 164.12, "parameters": 46_551_889})
    cells = _cells([_unet(measured, model=model)], "predrnn")
    assert cells["gmacs"].status == cells["parameters"].status == "match" and "twice" in cells["gmacs"].note


def test_renderings_do_not_depend_on_the_order_of_records(measured: RunRecord) -> None:
    runs = [_as_official(measured, run_id=f"2026-{seed}", seed=seed) for seed in range(4)]
    for form in FORMATS:
        assert render(SEVIR, runs, form) == render(SEVIR, runs[::-1], form)


def test_formats_parse(measured: RunRecord) -> None:
    record = [_as_official(measured)]
    lines = list(csv.DictReader(io.StringIO(render(SEVIR, record, "csv"))))
    assert len(lines) == len(SEVIR.rows) * len(SEVIR.columns)
    assert {"published", "ours", "difference", "status", "sources"} <= set(lines[0])
    assert len(json.loads(render(SEVIR, record, "json"))["blocks"][0]["cells"]) == len(lines)
    latex = render(SEVIR, record, "latex")
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1


def test_runs_tables_keep_data_sets_apart(measured: RunRecord) -> None:
    other = measured.model_copy(
        update={"run_id": "later", "data": measured.data.model_copy(update={"fingerprint": "0" * 64})}
    )
    blocks = blocks_of(load_table("runs/sevir"), None, [measured, other])
    assert len(blocks) == 2 and all("synthetic storms, test split, 9 sequences" in block.title for block in blocks)
    assert blocks_of(load_table("runs/sevir"), None, [measured.model_copy(update={"scope": "partial"})]) == []


def test_markup_in_a_name_is_escaped(measured: RunRecord) -> None:
    model = measured.model.model_copy(update={"hyperparameters": {"x": "<script>|"}, "is_preset": False})
    text = render(load_table("runs/sevir"), [measured.model_copy(update={"model": model})])
    assert "<script>" not in text and "&lt;script>\\|" in text


def test_a_stale_rendering_fails_the_check(measured: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="no rendering"):
        check_renderings(SEVIR, tmp_path)
    write_renderings(SEVIR, tmp_path)
    assert len(check_renderings(SEVIR, tmp_path)) == 4
    write_record(_as_official(measured), tmp_path)
    with pytest.raises(VerificationError, match="stale") as caught:
        check_renderings(SEVIR, tmp_path)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", [n for n in registry.names("table") if load_table(n).published])
def test_committed_renderings_are_fresh(name: str) -> None:
    check_renderings(load_table(name), Path(__file__).resolve().parents[2] / "results")
