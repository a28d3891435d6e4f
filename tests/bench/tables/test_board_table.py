"""A board's table: only its own runs, references in a separate block, and ranks robust to seeds and units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from official import as_official, trained_with

from bench.cli.main import main
from bench.errors import ConfigError, UnknownNameError
from bench.protocols.board import BoardFile, read_board, run_names
from bench.protocols.decided import Decided, Decision, write_decided
from bench.records import write_record
from bench.records.schema import MetricStatistics, RunRecord, StatisticsPart
from bench.records.statistics import compact, content_sha256
from bench.report import build
from bench.tables.cells import Block, table_data
from bench.tables.render import load_table, render

BOARD = """
title: Made
task: sevir
data: earthbench data make sevir --out storms
units: storms of their own
budget: {steps: 5}
seeds: [0, 1, 2]
columns: [mse]
references:
  blank:
  persistence:
  optical_flow:
rows:
  unet:
  convlstm:
  predrnn:
  rainformer:
"""
WEATHER = np.random.default_rng(0).exponential(size=40) + 1


@pytest.fixture
def board(tmp_path: Path) -> BoardFile:
    path = tmp_path / "results/boards/made.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(BOARD, encoding="utf-8")
    return read_board(path)


def _records(measured: RunRecord, board: BoardFile, errors: Mapping[str, Sequence[float]]) -> list[RunRecord]:
    """Returns a run per seed of each row, with a squared error added to that of the weather."""
    found = []
    for row in board.rows():
        for (seed, names), error in zip(run_names(row).items(), errors.get(row.key, ()), strict=False):
            found += [_record(measured, row.model, name, seed, error, fold) for fold, name in enumerate(names)]
    return found


def _record(measured: RunRecord, model: str, name: str, seed: int, error: float, fold: int = 0) -> RunRecord:
    """Returns a run on the weather of a fold: the first on all of it, the second on ten cases four times as hard."""
    weather = 4 * WEATHER[:10] if fold else WEATHER
    values = weather + error + np.random.default_rng([seed, *model.encode()]).normal(0, 0.01, weather.size)
    arrays = compact({"mse.error_sum": values[:, None], "mse.pixel_count": np.ones((values.size, 1), np.int64)})
    metric = MetricStatistics(family="errors", options={"score": "mse", "scale": 1.0, "convention": "upstream"})
    part = StatisticsPart(
        kind="event", unit_count=values.size, units_sha256=f"{values.size} events", metrics={"mse": metric},
        content_sha256=content_sha256(arrays),
    )  # fmt: skip
    trained = model in ("unet", "convlstm", "predrnn", "rainformer")
    changes = {
        "config_fingerprint": name, "statistics": part, "seed": seed,
        "run_id": f"2026-{model.replace('_', '-')}-{seed}" + "b" * fold,
        "scores": {"mse": float(values.mean())}, "scores_per_lead": {}, "undefined": {},
        "checkpoint_sha256": f"{model} {seed}" if trained else None,
        "training": trained_with({}).model_copy(update={"cpu_s": 7.0}) if trained else None,
        "model": measured.model.model_copy(update={"name": model, "parameters": int(trained)}),
    }  # fmt: skip
    return as_official(measured, **changes).with_arrays(arrays)


REFERENCES = {"blank": [3.0], "persistence": [1.0], "optical_flow": [0.2]}
LEARNED = {
    "unet": [0.30, 0.34, 0.26],
    "convlstm": [0.31, 0.37, 0.29],  # nearer than seeds are apart
    "predrnn": [0.60, 0.64, 0.56],
    "rainformer": [2.0, 2.1, 1.9],  # behind persistence
}


def _blocks(board: BoardFile, records: Sequence[RunRecord]) -> dict[str, Block]:
    return {block.title: block for block in table_data(load_table(board.table, board.root), None, records).blocks}


def _column(block: Block, key: str) -> dict[str, float | str | None]:
    found = {cell.row: cell.status if cell.ours is None else cell.ours for cell in block.cells if cell.column == key}
    return dict(found)


def test_ranks_are_shared_within_noise_and_withheld_below_the_reference(measured: RunRecord, board: BoardFile) -> None:
    blocks = _blocks(board, _records(measured, board, {**REFERENCES, **LEARNED}))
    assert list(blocks) == ["Learned models", "References"]
    assert _column(blocks["Learned models"], "rank") == {
        "unet": 1,
        "convlstm": 1,
        "predrnn": 3,
        "rainformer": "unranked",
    }
    assert list(_column(blocks["References"], "mse")) == ["optical_flow", "persistence", "blank"], "the best first"
    assert set(_column(blocks["References"], "rank").values()) == {"reference"}
    cells = {(cell.row, cell.column): cell for cell in blocks["Learned models"].cells}
    skill, mse = cells["unet", "skill_mse"], cells["unet", "mse"]
    persistence = _column(blocks["References"], "mse")["persistence"]
    assert isinstance(persistence, float) and mse.ours is not None and skill.ours is not None
    assert skill.ours == pytest.approx(1 - mse.ours / persistence), "the flow is not a trivial reference"
    assert mse.spread == pytest.approx(np.std([0.30, 0.34, 0.26], ddof=1) * 1e3, rel=0.2) and len(mse.run_ids) == 3
    assert cells["unet", "cpu_s"].ours == 7.0


def test_the_text_states_rule_units_and_missing_rows(measured: RunRecord, board: BoardFile) -> None:
    errors = {**REFERENCES, **LEARNED, "predrnn": []}
    text = render(load_table(board.table, board.root), _records(measured, board, errors))
    assert "independent units of the test split: 40 events" in text and "storms of their own" in text
    assert "Welch" in text and "| predrnn" in text and "not run" in text


def test_only_runs_of_the_board_are_listed(measured: RunRecord, board: BoardFile) -> None:
    records = _records(measured, board, {**REFERENCES, **LEARNED})
    stranger = _record(measured, "unet", "f" * 64, 9, 0.0)
    assert _blocks(board, [*records, stranger]) == _blocks(board, records)
    assert measured.data is not None
    write_decided(board, Decided(data={"test": measured.data.fingerprint}))
    elsewhere = records[-1].model_copy(update={"data": measured.data.model_copy(update={"fingerprint": "e" * 64})})
    table = load_table(board.table, board.root)
    found = table_data(table, None, [*records[:-1], elsewhere])
    assert [(one.run_id, one.reason) for one in found.left_out] == [(elsewhere.run_id, "other data")]


def test_an_undecided_row_has_no_runs(measured: RunRecord, board: BoardFile) -> None:
    records = _records(measured, board, LEARNED)
    board.path.write_text(BOARD.replace("{steps: 5}", "{cpu_s: 5}"), encoding="utf-8")
    timed = read_board(board.path)
    assert set(_column(_blocks(timed, records)["Learned models"], "mse").values()) == {"not run"}
    unet = next(row for row in timed.rows() if row.key == "unet")
    write_decided(timed, Decided(rows={"unet": Decision(asked=unet.asked, steps=5)}))
    assert isinstance(_column(_blocks(timed, records)["Learned models"], "mse")["unet"], float), "the same training"


def test_scores_of_folds_are_pooled_over_all_cases(
    measured: RunRecord, board: BoardFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board.path.write_text(BOARD + "folds: [task.t_out=10, task.t_out=12]\n", encoding="utf-8")
    folded = read_board(board.path)
    records = _records(measured, folded, {**REFERENCES, **LEARNED})
    blocks = _blocks(folded, records)
    assert _column(blocks["Learned models"], "rank") == {
        "unet": 1,
        "convlstm": 1,
        "predrnn": 3,
        "rainformer": "unranked",
    }
    persistence = next(cell for cell in blocks["References"].cells if (cell.row, cell.column) == ("persistence", "mse"))
    cases = np.concatenate([4 * WEATHER[:10], WEATHER]) + 1.0
    assert persistence.ours == pytest.approx(cases.mean() * 1e3, abs=5), "not the mean of two means"
    assert persistence.interval is not None and "50 events" in " ".join(blocks["References"].remarks)
    unet = next(cell for cell in blocks["Learned models"].cells if (cell.row, cell.column) == ("unet", "cpu_s"))
    assert unet.ours == 14.0 and len(unet.run_ids) == 3, "one training per fold"
    without_one = [record for record in records if record.run_id != "2026-unet-1b"]
    mse = next(c for c in _blocks(folded, without_one)["Learned models"].cells if (c.row, c.column) == ("unet", "mse"))
    assert len(mse.run_ids) == 2, "a seed counts with all of its folds"

    for record in records:
        write_record(record, folded.root)
    monkeypatch.chdir(folded.root.parent)
    assert main(["table", "boards/made", "--write"]) == 0 and main(["report", "--out", "site"]) == 0
    page = (folded.root.parent / "site/table-boards_made.html").read_text(encoding="utf-8")
    assert "50 independent units: storms of their own; 3 seeds; 2 folds, scored together" in page
    assert "5 optimiser steps of training a seed" in page and "persistence: the best trivial one in MSE" in page
    assert 'src="pictures/made_compute.svg"' in page and (folded.root.parent / "site/pictures/made_seeds.svg").is_file()
    assert main(["table", "boards/made", "--format", "text"]) == 0
    capsys.readouterr()
    assert main(["explain", "boards/made", "unet", "mse"]) == 0
    said = capsys.readouterr().out
    assert "2026-unet-0.json" in said and "2026-unet-0b.json" in said


def test_a_board_where_a_blur_wins_is_on_the_first_page(measured: RunRecord, board: BoardFile) -> None:
    worse = {name: [error + 3 for error in errors] for name, errors in LEARNED.items()}
    for record in _records(measured, board, {**REFERENCES, **worse}):
        write_record(record, board.root)
    text = build(board.root, board.root.parent / "site").read_text(encoding="utf-8")
    measured_ones, _, others = text.partition("boards without runs")
    assert "boards/made" in measured_ones and "boards/made" not in others
    assert "Top 3 of 4 by MSE" in measured_ones and "none has a rank" in measured_ones


def test_a_board_is_listed_printed_verified_and_checked(
    measured: RunRecord, board: BoardFile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in _records(measured, board, {**REFERENCES, **LEARNED}):
        write_record(record, board.root)
    monkeypatch.chdir(board.root.parent)
    assert main(["list", "tables"]) == 0 and "boards/made" in capsys.readouterr().out
    assert main(["table", "boards/made", "--write"]) == 0
    assert main(["board", "check", str(board.path)]) == 0 and "boards_made.md is up to date" in capsys.readouterr().out
    assert main(["board", "table", str(board.path), "--format", "json"]) == 0
    assert '"unranked"' in capsys.readouterr().out
    assert main(["report", "--out", "site"]) == 0
    page = (board.root.parent / "site/table-boards_made.html").read_text(encoding="utf-8")
    assert "Learned models" in page and "1=" in page
    capsys.readouterr()
    path = board.root / "tables/boards_made.md"
    path.write_text(path.read_text(encoding="utf-8").replace("unranked", "1"), encoding="utf-8")
    assert main(["board", "check", str(board.path)]) == 4 and "stale" in capsys.readouterr().err
    assert main(["verify"]) == 4 and "boards_made.md differs" in capsys.readouterr().err


def test_an_unknown_board_gets_a_suggestion(tmp_path: Path, board: BoardFile) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'boards/made'"):
        load_table("boards/mode", board.root)
    board.path.write_text("title: x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="task: missing"):
        load_table("boards/made", board.root)
