"""Skill against the best trivial reference: its formula, the choice of the reference, and rows without a rank."""

from __future__ import annotations

import hashlib

import pytest
from official import as_official, trained_with

from bench import registry
from bench.records.schema import RunRecord
from bench.tables import load_table
from bench.tables.cells import Block, table_data
from bench.tables.columns import skill_columns
from bench.tables.definitions import Column, Table
from bench.tables.render import render
from bench.tables.skill import is_trivial, skill

_MSE = Column(key="mse", label="MSE", better="lower", digits=3)
_CSI = Column(key="csi_m", label="CSI-M", better="higher")
BOARD = Table(name="board", title="Made", task="sevir", columns=(_MSE, _CSI, *skill_columns(_MSE, _CSI)))


@pytest.mark.parametrize(
    ("value", "reference", "better", "expected"),
    [
        (2.0, 4.0, "lower", 0.5), (4.0, 4.0, "lower", 0.0), (6.0, 4.0, "lower", -0.5), (0.0, 4.0, "lower", 1.0),
        (0.4, 0.2, "higher", 0.25), (0.2, 0.2, "higher", 0.0), (1.0, 0.2, "higher", 1.0), (0.1, 0.2, "higher", -0.125),
        (0.0, 0.0, "lower", None), (0.5, 1.0, "higher", None),
    ],
)  # fmt: skip
def test_skill_is_zero_for_the_reference_and_one_for_a_perfect_forecast(
    value: float, reference: float, better: str, expected: float | None
) -> None:
    found = skill(value, reference, better)
    assert found == (None if expected is None else pytest.approx(expected))


def _run(
    measured: RunRecord, name: str, mse: float, *, seed: int = 0, trained: bool = True, **scores: float
) -> RunRecord:
    changes = {
        "checkpoint_sha256": hashlib.sha256(f"{name} {seed}".encode()).hexdigest() if trained else None,
        "statistics": None, "seed": seed, "run_id": f"2026-{name}-{seed}", "scores": {"mse": mse, **scores},
        "scores_per_lead": {}, "undefined": {}, "training": trained_with({}) if trained else None,
        "model": measured.model.model_copy(update={"name": name, "parameters": int(trained)}),
    }  # fmt: skip
    return as_official(measured, **changes)


def _block(records: list[RunRecord]) -> Block:
    (block,) = table_data(BOARD, None, records).blocks
    return block


def _column(block: Block, key: str) -> dict[str, float | None]:
    return {cell.model: cell.ours for cell in block.cells if cell.column == key}


def test_each_row_is_measured_against_the_best_trivial_reference(measured: RunRecord) -> None:
    records = [
        _run(measured, "persistence", 4.0, trained=False, csi_m=0.2),
        _run(measured, "blank", 2.0, trained=False, csi_m=0.0),
        _run(measured, "optical_flow", 3.0, trained=False, csi_m=0.3),
        _run(measured, "unet", 1.0, csi_m=0.1),
    ]
    block = _block(records)
    assert _column(block, "skill_mse") == pytest.approx(
        {"persistence": -1.0, "blank": 0.0, "optical_flow": -0.5, "unet": 0.5}
    )
    assert _column(block, "skill_csi_m") == pytest.approx(
        {"persistence": 0.0, "blank": -0.25, "optical_flow": 0.125, "unet": -0.125}
    )
    beats = {(cell.model, cell.column): cell.beats_reference for cell in block.cells}
    assert beats["unet", "mse"] and not beats["unet", "csi_m"] and beats["persistence", "csi_m"]
    assert beats["blank", "mse"] and not beats["optical_flow", "mse"], "it is not trivial, and worse than what is"


def test_rows_below_the_reference_are_shown_but_unranked(measured: RunRecord) -> None:
    records = [
        _run(measured, "persistence", 1.0, trained=False),
        _run(measured, "unet", 1.5),
        _run(measured, "convlstm", 2.0),
    ]
    block = _block(records)
    ranks = {cell.model: (cell.rank, cell.mark) for cell in block.cells if cell.column == "mse"}
    assert set(ranks.values()) == {(None, None)} and set(_column(block, "mse")) == set(ranks)
    (remark,) = [remark for remark in block.remarks if remark.startswith("skill in MSE")]
    assert "against persistence" in remark and "not ranked, since they do not beat it: convlstm, unet" in remark
    assert "**" not in render(BOARD, records).split("Skill")[1].split("skill in MSE")[0]
    good = [*records, _run(measured, "predrnn", 0.5)]
    ranks = {cell.model: cell.rank for cell in _block(good).cells if cell.column == "mse"}
    assert ranks == {"predrnn": 1, "persistence": 2, "unet": None, "convlstm": None}


def test_skill_has_a_spread_over_seeds_and_a_reference_on_the_same_data(measured: RunRecord) -> None:
    reference = _run(measured, "persistence", 2.0, trained=False)
    seeds = [_run(measured, "unet", 1 + 0.1 * seed, seed=seed) for seed in range(3)]
    cells = {cell.column: cell for cell in _block([reference, *seeds]).cells if cell.model == "unet"}
    spread = cells["mse"].spread
    assert spread is not None and cells["skill_mse"].spread == pytest.approx(0.05)
    assert reference.data is not None
    elsewhere = reference.model_copy(update={"data": reference.data.model_copy(update={"fingerprint": "0" * 64})})
    blocks = table_data(BOARD, None, [elsewhere, *seeds]).blocks
    (own,) = [block for block in blocks if any(cell.model == "unet" for cell in block.cells)]
    assert {cell.status for cell in own.cells if cell.column == "skill_mse"} == {"no reference"}
    assert any("no trivial reference" in remark for remark in own.remarks)


@pytest.mark.parametrize("name", [name for name in registry.names("table") if not load_table(name).rows])
def test_every_table_of_runs_shows_skill(name: str) -> None:
    table = load_table(name)
    shown = [table.column(column.skill_of) for column in table.columns if column.skill_of]
    assert shown and all(column.better in ("lower", "higher") for column in shown)
    assert any(column.better == "lower" for column in shown)


def test_only_declared_models_are_trivial() -> None:
    assert is_trivial("persistence") and not is_trivial("optical_flow") and not is_trivial("of_nobody")
