"""Rows of a board: ranks, references, styles, costs, deviations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from official import PAPER_SETTINGS, trained_with

import bench
from bench.records.schema import RunRecord
from bench.report.boards import column_groups, shown_columns, shown_rows, shown_side
from bench.report.charts import charts, styles
from bench.report.labels import label_of, name_of
from bench.report.model_pages import _deviations
from bench.report.overview import heading, overview
from bench.tables import load_table
from bench.tables.admission import read_store
from bench.tables.cells import Block, table_data
from bench.tables.definitions import Column, load_published, main_column

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def measured(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


@pytest.fixture(scope="module")
def published() -> Block:
    table = load_table("earthformer/sevir")
    assert table.published
    return table_data(table, load_published(table.published), []).blocks[0]


def _with_ours(block: Block, values: dict[str, float], best: tuple[str, ...] = ()) -> Block:
    cells = [
        replace(cell, ours=values.get(cell.row_key), mark=1 if cell.row_key in best else None)
        if cell.column == "csi_m"
        else cell
        for cell in block.cells
    ]
    return replace(block, cells=tuple(cells))


def test_rows_are_ranked_by_the_main_score_without_references(published: Block) -> None:
    table = load_table("earthformer/sevir")
    values = {"unet": 0.36004, "predrnn": 0.36, "persistence": 0.4, "earthformer": 0.44, "convlstm": 0.30}
    rows = shown_rows(table, _with_ours(published, values))
    assert [(row.model, row.rank) for row in rows[:5]] == [
        ("earthformer", "1"), ("persistence", ""), ("unet", "2="), ("predrnn", "2="), ("convlstm", "4"),
    ]  # fmt: skip
    assert [row.model for row in rows if row.reference] == ["persistence"]
    assert {row.rank for row in rows[5:]} == {""}, "rows without a value have no rank"


def test_rows_not_significantly_worse_share_the_first_rank(published: Block) -> None:
    values = {"unet": 0.36, "earthformer": 0.44, "convlstm": 0.43}
    rows = shown_rows(load_table("earthformer/sevir"), _with_ours(published, values, ("earthformer", "convlstm")))
    assert {row.model: row.rank for row in rows[:3]} == {"earthformer": "1=", "convlstm": "1=", "unet": "3"}


def test_rows_that_do_not_beat_the_trivial_reference_are_unranked(published: Block) -> None:
    table = load_table("earthformer/sevir")
    block = _with_ours(published, {"unet": 0.36, "earthformer": 0.44, "convlstm": 0.30})
    cells = [replace(c, beats_reference=False) if c.row_key == "convlstm" else c for c in block.cells]
    rows = shown_rows(table, replace(block, cells=tuple(cells)))
    assert {row.model: row.rank for row in rows[:3]} == {"earthformer": "1", "unet": "2", "convlstm": ""}


def test_a_board_without_runs_shows_the_published_values(published: Block) -> None:
    table = load_table("earthformer/sevir")
    assert shown_side(published, main_column(table)) == "published"
    assert shown_rows(table, published)[0].model == "earthformer"
    assert shown_side(_with_ours(published, {"unet": 0.3}), main_column(table)) == "ours"


def test_scores_come_before_costs() -> None:
    for name in ("runs/radar", "earthformer/sevir", "runs/enso_ersst"):
        table = load_table(name)
        groups = column_groups(table)
        assert groups[-1][0] == "Cost" and groups[0][1][0] == main_column(table)


def test_rows_of_a_board_have_distinct_styles() -> None:
    found = styles([(f"row {k}", k % 5 == 0) for k in range(50)])
    drawn = [(one.colour, one.symbol, one.dash) for one in found.values()]
    assert len(set(drawn)) == len(drawn)
    assert all((one.dash == "solid") != one.reference for one in found.values())


def test_incomparable_costs_are_stated_and_not_drawn(published: Block) -> None:
    chart = next(c for c in charts(load_table("earthformer/sevir"), published, {})["pareto"] if c["key"] == "csi_m")
    points = {point["label"]: point for point in chart["points"]}
    assert points["Earthformer"]["gmacs"] == 257
    assert points["PredRNN"]["gmacs"] is None and points["PredRNN"]["why"]["gmacs"] == "printed at 2 times our count"
    assert points["Persistence"]["gmacs"] is None and points["Persistence"]["why"]["gmacs"]
    assert len(points) == 9, "none is left out"


def test_doubled_published_counts_show_their_factor(published: Block) -> None:
    table = load_table("earthformer/sevir")
    place = [column.key for column in shown_columns(table)].index("gmacs")
    factors = {row.model: row.cells[place].factor for row in shown_rows(table, published)}
    assert factors["predrnn"] == factors["e3d_lstm"] == "2" and factors["earthformer"] == ""


def test_reliability_and_rank_histograms_are_drawn_for_ensembles_only(measured: RunRecord) -> None:
    def with_members(count: int, run_id: str) -> RunRecord:
        ranks = [float(k) for k in range(count + 1)]
        even = [1 / len(ranks)] * len(ranks)
        curves = {
            "rank_histogram": {"rank": ranks, "frequency": even},
            "reliability_133": {"probability": [k / count for k in ranks], "frequency": even},
            "reliability_74": {"probability": [k / count for k in ranks], "frequency": even},
        }
        model = measured.model.model_copy(update={"name": f"of_{count}"})
        return measured.model_copy(update={"curves": curves, "run_id": run_id, "model": model})

    records = [with_members(count, f"2026-{count}") for count in (1, 4, 8)]
    table = load_table("runs/sevir")
    (block,) = table_data(table, None, records).blocks
    found = charts(table, block, {record.run_id: record for record in records})
    ranks = [(one["label"], [curve["label"] for curve in one["curves"]]) for one in found["rank"]]
    assert ranks == [("4 members", ["of_4"]), ("8 members", ["of_8"])]
    assert [one["label"] for one in found["reliability"]] == ["threshold 74", "threshold 133"]
    assert all(len(one["curves"]) == 2 for one in found["reliability"])


def test_costs_of_trivial_references_are_not_drawn(measured: RunRecord) -> None:
    table = load_table("runs/sevir")
    (block,) = table_data(table, None, [measured]).blocks
    assert charts(table, block, {measured.run_id: measured})["pareto"] == []


@pytest.mark.parametrize(
    ("column", "label", "name"),
    [
        (Column(key="mse", label="MSE 1e-3"), "MSE, 10⁻³", "MSE"),
        (Column(key="mse_ocean", label="MSE ocean K^2"), "MSE ocean, K²", "MSE ocean"),
        (Column(key="rmse_nino34", label="Nino3.4 RMSE K"), "Nino3.4 RMSE, K", "Nino3.4 RMSE"),
        (Column(key="skill_mse", label="Skill MSE 1e-3", skill_of="mse"), "Skill MSE", "Skill MSE"),
        (Column(key="csi_m", label="CSI-M"), "CSI-M", "CSI-M"),
    ],
)
def test_labels_print_their_units(column: Column, label: str, name: str) -> None:
    assert (label_of(column), name_of(column)) == (label, name)


def test_the_first_page_lists_rows_that_beat_the_reference() -> None:
    table = load_table("runs/radar")
    records, _ = read_store(ROOT / "results", table.task)
    shown = overview(table, table_data(table, None, records))
    assert shown.heading == "Observed radar" and shown.run_count == len(records)
    ranked = [(row.rank, row.model) for row in shown.podiums[0].rows]
    assert ranked == [("1", "optical_flow"), ("2", "steps")], "nothing else beats persistence there"
    assert shown.podiums[0].rows[0].label == "optical_flow"
    assert "→" in heading(load_table("earthformer/sevir"))


def test_reduced_models_and_short_training_are_deviations(measured: RunRecord) -> None:
    tables = [load_table("earthformer/sevir"), load_table("runs/sevir")]
    assert _deviations(tables, [measured]) == ()
    small = measured.model.model_copy(update={"is_preset": False, "hyperparameters": {"base_units": 16}})
    given = {"training": trained_with(PAPER_SETTINGS), "model": small}
    (line,) = _deviations(tables, [measured.model_copy(update=given)] * 2)
    assert line.startswith("sevir, 2 runs: base_units=16")
    short = trained_with(PAPER_SETTINGS).model_copy(update={"sequence_count": 29, "epochs": 1})
    (line,) = _deviations(tables, [measured.model_copy(update={"training": short})])
    assert "29 sequences" in line and "1 epoch," in line and "no published table" in line
    folds = [short.model_copy(update={"sequence_count": count}) for count in (29, 31)]
    (line,) = _deviations(tables, [measured.model_copy(update={"training": one}) for one in folds])
    assert line.startswith("sevir, 2 runs: ") and "on 29 | 31 sequences" in line


@pytest.mark.parametrize("model", ["earthformer", "unet", "convlstm", "rainformer"])
def test_committed_runs_are_not_presented_as_the_papers(model: str) -> None:
    tables = [
        load_table(name) for name in ("earthformer/sevir", "earthformer/icar_enso", "earthformer/patterns_nbody_mnist")
    ]
    records = [record for record in read_store(ROOT / "results")[0] if record.model.name == model]
    assert {line.split(",")[0] for line in _deviations(tables, records)} == {r.task.name for r in records}
