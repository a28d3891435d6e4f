from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from official import PAPER_SETTINGS, as_official, trained_with, unet_like

from bench import registry
from bench.records.schema import MembersPart, RunRecord
from bench.tables import load_table
from bench.tables.admission import OTHER_CONVENTIONS, OTHER_ENSEMBLES, Excluded
from bench.tables.cells import Block, Cell, table_data
from bench.tables.definitions import Column, Published, Row, Table, load_published
from bench.tables.render import render
from bench.tables.values import value_of
from bench.tables.variants import comparable_key, variant_labels

SEVIR = load_table("earthformer/sevir")


def blocks_of(table: Table, published: Published | None, records: list[RunRecord]) -> list[Block]:
    return list(table_data(table, published, records).blocks)


def _cells(record_list: list[RunRecord], model: str = "persistence") -> dict[str, Cell]:
    block = blocks_of(SEVIR, load_published(SEVIR.published), record_list)[0]
    return {cell.column: cell for cell in block.cells if cell.model == model}


def test_a_complete_official_run_is_shown_beside_the_published_figure(measured: RunRecord) -> None:
    record = as_official(measured, scores={**measured.scores, "csi_m": 0.2614, "mse": 11.53379e-3})
    cells = _cells([record])
    assert (
        cells["csi_m"].ours == 0.2614
        and cells["csi_m"].difference == pytest.approx(1e-4)
        and cells["csi_m"].status == "differs"
    )
    assert cells["mse"].status == "match", "within half a unit of the last printed digit"
    assert cells["csi_160"].status == "measured" and cells["csi_160"].published is None


def _score_cells(records: list[RunRecord]) -> list[Cell]:
    """Returns the cells of persistence without its sizes, which are counted if there is no record."""
    return [cell for key, cell in _cells(records).items() if key not in ("parameters", "gmacs")]


def test_partial_runs_other_data_and_other_options_are_excluded(measured: RunRecord) -> None:
    official = as_official(measured)
    assert official.data is not None
    wrong = [
        measured,
        as_official(measured, scope="partial"),
        as_official(measured, status="failed"),
        official.model_copy(update={"data": official.data.model_copy(update={"split": "all"})}),
        official.model_copy(update={"data": official.data.model_copy(update={"origin": "synthetic storms"})}),
        official.model_copy(update={"data": official.data.model_copy(update={"sequence_count": 12_158})}),
        official.model_copy(update={"task": official.task.model_copy(update={"is_default": False})}),
        official.model_copy(update={"model": official.model.model_copy(update={"is_preset": False})}),
    ]
    assert all(cell.status == "partial" and cell.ours is None for cell in _score_cells(wrong))
    assert all(cell.status == "not run" for cell in _score_cells(wrong[2:]))
    text = render(SEVIR, wrong)
    assert "not shown: partial runs (1): persistence/" in text and "not shown: other data (3)" in text
    assert {one["run_id"] for one in json.loads(render(SEVIR, wrong, "json"))["left_out"]} == {measured.run_id}


def test_seeds_are_averaged_and_a_repeated_seed_counts_once(measured: RunRecord) -> None:
    runs = [
        unet_like(measured, run_id=f"2026-{n}", seed=seed, scores={**measured.scores, "csi_m": value})
        for n, (seed, value) in enumerate([(0, 0.9), (0, 0.2), (1, 0.4)])
    ]
    cell = _cells(runs, "unet")["csi_m"]
    assert cell.ours == pytest.approx(0.3) and cell.spread == pytest.approx(0.1414, abs=1e-4) and len(cell.run_ids) == 2


def test_one_checkpoint_under_three_seeds_and_a_model_without_weights_count_once(measured: RunRecord) -> None:
    evaluated = [unet_like(measured, run_id=f"2026-{n}", seed=n, checkpoint_sha256="c" * 64) for n in range(3)]
    assert _cells(evaluated, "unet")["csi_m"].run_ids == ("2026-2",)
    without = [as_official(measured, run_id=f"2026-{n}", seed=n) for n in range(3)]
    assert _cells(without)["csi_m"].run_ids == ("2026-2",) and "±" not in render(SEVIR, [*evaluated, *without])


def test_a_run_that_deviates_from_the_papers_config_is_marked(measured: RunRecord) -> None:
    assert _cells([unet_like(measured)], "unet")["csi_m"].status == "differs"
    record = unet_like(measured, training=trained_with({**PAPER_SETTINGS, "max_epochs": 3}))
    assert _cells([record], "unet")["csi_m"].status.endswith("config deviates")
    assert "train.max_epochs=3 (table: 100)" in render(SEVIR, [record])


def test_a_later_deviating_run_does_not_replace_a_matching_one(measured: RunRecord) -> None:
    kept = unet_like(measured, run_id="2026-1")
    other = unet_like(
        measured, run_id="2026-2", seed=1, training=trained_with({**PAPER_SETTINGS, "max_epochs": 3}), scores={}
    )
    assert _cells([kept, other], "unet")["csi_m"] == _cells([kept], "unet")["csi_m"]
    text = render(SEVIR, [kept, other])
    assert "another config than the table's, which other runs have (1): unet/2026-2" in text and "†" not in text


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        (None, "weights of unknown training (1)"),
        (trained_with(PAPER_SETTINGS, data_origin="synthetic storms"), "trained on other data (1)"),
        (trained_with(PAPER_SETTINGS, sequence_count=12), "trained on other data (1)"),
    ],
)
def test_weights_of_other_data_or_unknown_training_are_excluded(measured: RunRecord, training, reason: str) -> None:
    record = unet_like(measured, training=training)
    assert _cells([record], "unet")["csi_m"].status == "not run"
    assert reason in render(SEVIR, [record])


def test_runs_tables_keep_different_trainings_apart(measured: RunRecord) -> None:
    runs = [
        unet_like(measured, run_id=f"2026-{n}", seed=seed, training=trained_with({**PAPER_SETTINGS, "lr": lr}))
        for n, (seed, lr) in enumerate([(0, 1e-3), (1, 1e-3), (0, 1e-2)])
    ]
    (block,) = blocks_of(load_table("runs/sevir"), None, runs)
    assert {cell.row: len(cell.run_ids) for cell in block.cells} == {"unet (lr=0.001)": 2, "unet (lr=0.01)": 1}


def test_doubled_gflops_are_compared_with_half_the_published_figure(measured: RunRecord) -> None:
    model = measured.model.model_copy(update={"name": "predrnn", "gmacs": 164.12, "parameters": 46_551_889})
    cells = _cells([unet_like(measured, model=model)], "predrnn")
    assert cells["gmacs"].status == cells["parameters"].status == "match" and "twice" in cells["gmacs"].note


def test_runs_tables_keep_data_sets_apart(measured: RunRecord) -> None:
    other = measured.model_copy(
        update={"run_id": "later", "data": measured.data.model_copy(update={"fingerprint": "0" * 64})}
    )
    blocks = blocks_of(load_table("runs/sevir"), None, [measured, other])
    assert len(blocks) == 2 and all("synthetic storms, test split, 9 sequences" in block.title for block in blocks)
    assert blocks_of(load_table("runs/sevir"), None, [measured.model_copy(update={"scope": "partial"})]) == []


BOARD = Table(
    name="toy", title="toy", task="sevir",
    columns=(
        Column(key="csi_m", label="CSI", better="higher"), Column(key="mse", label="MSE", better="lower"),
        Column(key="hss_m", label="HSS"),
    ),
    training={"max_epochs": 100},
    sequence_counts=(12_159,), training_sequence_counts=(35_718,),
    rows=tuple(Row(model=name, label=name) for name in ("unet", "convlstm", "predrnn", "phydnet", "persistence")),
)  # fmt: skip


def _scored(measured: RunRecord, name: str, csi: float | None, epochs: int = 100, **changes: object) -> RunRecord:
    model = measured.model.model_copy(update={"name": name, "parameters": 1})
    scores = {**measured.scores, "csi_m": csi}
    training = trained_with({"max_epochs": epochs})
    fields = {"model": model, "training": training, "scores": scores, "run_id": f"2026-{name}", **changes}
    return as_official(measured, **fields)


def _ranks(records: list[RunRecord], column: str = "csi_m") -> dict[str, int | None]:
    (block,) = table_data(BOARD, None, records).blocks
    return {cell.model: cell.rank for cell in block.cells if cell.column == column}


def test_best_and_second_are_among_comparable_runs_only(measured: RunRecord) -> None:
    records = [
        _scored(measured, "unet", 0.4),
        _scored(measured, "convlstm", 0.3),
        _scored(measured, "predrnn", 0.9, epochs=3),  # another config than the paper's
        _scored(measured, "phydnet", 0.95, scope="partial"),
        _scored(measured, "persistence", None, undefined={"csi_m": "0/0"}),
    ]
    assert _ranks(records) == {"unet": 1, "convlstm": 2, "predrnn": None, "phydnet": None, "persistence": None}
    assert set(_ranks(records, "hss_m").values()) == {None}, "a column without a better side has no best"
    text = render(BOARD, records, "latex")
    assert r"0.9000 $^\dagger$" in text and "textbf" not in text, "three events: nothing is beyond chance"
    assert "undefined" in text and "partial" in text


def test_ties_as_printed_share_a_rank(measured: RunRecord) -> None:
    names = {"unet": 0.40001, "convlstm": 0.4, "predrnn": 0.3, "phydnet": 0.2}
    assert _ranks([_scored(measured, name, value) for name, value in names.items()]) == {
        "unet": 1, "convlstm": 1, "predrnn": 2, "phydnet": None, "persistence": None,
    }  # fmt: skip


def test_a_single_value_is_not_ranked(measured: RunRecord) -> None:
    assert set(_ranks([_scored(measured, "unet", 0.4)]).values()) == {None}


def test_versions_of_a_task_never_share_a_column(measured: RunRecord) -> None:
    newer = measured.task.model_copy(update={"version": 2})
    records = [_scored(measured, "unet", 0.4), _scored(measured, "convlstm", 0.3, task=newer)]
    contents = table_data(BOARD, None, records)
    assert {c.model for c in contents.blocks[0].cells if c.ours is not None} == {"convlstm"}
    assert [one.reason for one in contents.left_out] == ["version 1 of the task"]


def test_records_are_matched_to_rows_by_hyperparameters(measured: RunRecord) -> None:
    table = load_table("earthformer/patterns_nbody_mnist")
    card = registry.find("model", "earthformer").card()
    task = measured.task.model_copy(update={"name": "nbody_mnist"})
    data = measured.data.model_copy(update={"origin": "files", "sequence_count": 1_000})
    options = {"axial_global": {}, "video_swin_2x8": {"enc_attn_patterns": "video_swin_2x8", "num_global_vectors": 0}}
    records = [
        measured.model_copy(
            update={
                "run_id": f"2026-{row}", "task": task, "data": data, "scores": {"ssim": 0.5},
                "training": trained_with(dict(table.training), sequence_count=20_000),
                "model": measured.model.model_copy(
                    update={
                        "name": "earthformer", "is_preset": not changed,
                        "hyperparameters": {**card.presets["nbody_mnist"], **changed},
                    }
                ),
            }
        )
        for row, changed in {**options, "nowhere": {"num_global_vectors": 3}}.items()
    ]  # fmt: skip
    contents = table_data(table, None, records)
    shown = {c.row_key: c.run_ids for c in contents.blocks[0].cells if c.ours is not None and c.column == "ssim"}
    assert shown == {row: (f"2026-{row}",) for row in options}
    assert [one.reason for one in contents.left_out] == ["other hyperparameters"]


def test_a_figure_of_another_protocol_is_printed_but_not_compared() -> None:
    table = load_table("prediff/sevir_lr")
    (block,) = table_data(table, load_published(table.published), []).blocks
    cell = next(c for c in block.cells if c.row_key == "unet" and c.column == "csi_m")
    assert cell.published_text == "0.3593" and "another protocol" in cell.note
    assert any("UNet, CSI-M: not compared" in remark for remark in block.remarks)


def test_a_single_run_shows_an_interval(measured: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    def intervals(record: RunRecord, scores: Sequence[str]) -> dict[str, tuple[float, float] | None]:
        return {score: (0.1, 0.5) if score == "csi_m" else None for score in scores}

    monkeypatch.setattr("bench.tables.intervals.intervals", intervals)
    one, two = unet_like(measured), unet_like(measured, run_id="2026-x", seed=7)
    assert "[0.1000, 0.5000]" in render(SEVIR, [one])
    assert "±" in render(SEVIR, [one, two]) and "[" not in render(SEVIR, [one, two])


def test_a_plugin_and_changed_code_are_marked(measured: RunRecord) -> None:
    model = measured.model.model_copy(update={"origin": "elsewhere:Model (my-models 1.0)"})
    code = measured.code.model_copy(update={"dirty": True})
    text = render(load_table("runs/sevir"), [measured.model_copy(update={"model": model, "code": code})])
    assert "persistence (plugin) ‡" in text and "another distribution" in text


def test_every_exclusion_names_its_records(measured: RunRecord) -> None:
    records = [measured.model_copy(update={"run_id": f"2026-{n}", "scope": "partial"}) for n in range(5)]
    text = render(load_table("runs/sevir"), records)
    assert "partial runs (5): persistence/2026-0, persistence/2026-1, persistence/2026-2 and 2 more" in text


def test_records_of_other_tasks_are_not_mentioned(measured: RunRecord) -> None:
    other = Excluded("x", "icar_enso", "unet", "tampered")
    assert "tampered" not in render(SEVIR, [], unreadable=[other])


def test_only_trained_models_have_a_training_time(measured: RunRecord) -> None:
    assert value_of(measured, "training_s") == 0.0
    unknown = measured.model_copy(update={"model": measured.model.model_copy(update={"parameters": 1})})
    assert value_of(unknown, "training_s") is None, "weights from elsewhere"


def _with(record: RunRecord, conventions: dict, **changes: object) -> RunRecord:
    return record.model_copy(update={"conventions": {**record.conventions, **conventions}, **changes})


OTHER_SCALE = {"mse": {"convention": "correct", "scale": 1.0, "t_out": 12}}


def test_no_cell_mixes_metric_conventions(measured: RunRecord) -> None:
    other = _with(measured, OTHER_SCALE, run_id="2026-b", seed=1, scores={**measured.scores, "mse": 700.0})
    same = measured.model_copy(update={"run_id": "2026-c", "seed": 2})
    assert comparable_key(other) != comparable_key(measured) == comparable_key(same)
    blocks = table_data(load_table("runs/sevir"), None, [measured, other, same]).blocks
    found = [set(cell.run_ids) for block in blocks for cell in block.cells if cell.column == "mse"]
    assert {"2026-b"} in found and not any({"2026-b"} < run_ids for run_ids in found)


def test_a_published_table_uses_the_conventions_of_its_task(measured: RunRecord) -> None:
    good = as_official(measured)
    other = as_official(_with(measured, OTHER_SCALE), run_id="2026-b", seed=1)
    contents = table_data(SEVIR, None, [good, other])
    assert {cell.run_ids for block in contents.blocks for cell in block.cells if cell.run_ids} == {(good.run_id,)}
    assert [(one.run_id, one.reason) for one in contents.left_out] == [("2026-b", OTHER_CONVENTIONS)]


def test_ensemble_scores_are_separate_from_those_of_single_forecasts(measured: RunRecord) -> None:
    def drawn(count: int, scale: float, **changes: object) -> RunRecord:
        added = {"mse_members": measured.conventions["mse"], "probabilistic": {"scale": scale}, "frechet": {}}
        return _with(measured, added, members=MembersPart(count=count, seed=0), **changes)

    ensembles = [
        drawn(4, 255.0, run_id="2026-b", seed=1),
        drawn(8, 255.0, run_id="2026-c", seed=2),
        drawn(8, 1.0, run_id="2027-d", seed=3),
    ]
    runs = [measured, *ensembles]
    assert len({comparable_key(record) for record in runs}) == 1
    assert variant_labels(runs) == [
        "persistence",
        "persistence (members=4, probabilistic.scale=255.0)",
        "persistence (members=8, probabilistic.scale=255.0)",
        "persistence (members=8, probabilistic.scale=1.0)",
    ]
    official = [as_official(record) for record in runs]
    contents = table_data(SEVIR, None, official)
    assert {cell.run_ids for block in contents.blocks for cell in block.cells if cell.run_ids} == {("2027-d",)}
    assert {one.reason for one in contents.left_out} == {OTHER_ENSEMBLES}
