"""A board from its YAML: run once, not run again, reproduced from scratch with equal numbers, and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli.main import main
from bench.protocols.board import read_board
from bench.protocols.decided import read_decided
from bench.records.schema import RunRecord
from bench.records.store import read_records

BOARD = """
title: Two small models
task: nbody_mnist
data: earthbench data make nbody_mnist --out digits
units: sequences of independently drawn digits
base: [data.batch_size=4, data.num_workers=0, picture=false, train.early_stopping.patience=1000]
budget: {cpu_s: 0.5, val_every_steps: 2}
seeds: [0, 1]
columns: [mse_frame_sum, ssim]
references:
  blank:
  climatology: {label: mean frame}
rows:
  unet: {label: UNet, overrides: ["model.channels=[2,4]", model.center_channels=4]}
grid: ["train.lr=1e-3,1e-1"]
ablations:
  centre:
    title: Centre
    base: [model=unet, "model.channels=[2,4]"]
    sweeps: [[model.center_channels=8]]
    budget: {steps: 3, val_every_steps: 3}
"""
QUIET = ["device=cpu", "progress=false"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "digits"
    counts = ["--train", "8", "--val", "2", "--test", "12"]
    assert main(["data", "make", "nbody_mnist", "--out", str(folder), *counts]) == 0
    return folder


def _write(folder: Path) -> Path:
    path = folder / "results/boards/small.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(BOARD, encoding="utf-8")
    return path


def _records(path: Path) -> list[RunRecord]:
    return read_records(read_board(path).root, "nbody_mnist")[0]


def _scores(path: Path) -> dict[str, float | None]:
    return {record.config_fingerprint: record.scores["mse_frame_sum"] for record in _records(path)}


@pytest.mark.slow
def test_a_board_runs_from_scratch_and_resumes(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = _write(tmp_path)
    words = ["board", "run", str(path), f"data.root={digits}", *QUIET]
    assert main(words) == 0
    assert "## Learned models" in capsys.readouterr().out
    board, records = read_board(path), _records(path)
    decided = read_decided(board)
    decision = decided.rows["unet"]
    assert list(decided.rows) == ["unet"] and len(decision.tried) == 2 and decision.monitor == "val/loss"
    best = min((one for one in decision.tried if one.score is not None), key=lambda one: one.score or 0.0)
    assert (decision.chosen, decision.steps) == (best.settings, best.steps) and decision.on
    assert {record.config["results"]["root"] for record in records} == {"results"}, "not where this clone lies"
    assert len(records) == 2 + 2 + 2 and {record.data.split for record in records if record.data} == {"test"}
    unet = [r for r in records if r.training and r.model.hyperparameters.get("center_channels") == 4]
    assert [r.training.steps for r in unet if r.training] == [decision.steps] * 2
    tried = read_records(tmp_path / "outputs/tuning", "nbody_mnist")[0]
    assert {r.data.split for r in tried if r.data} == {"val"}, "the grid does not look at the test split"

    assert main(words) == 0 and len(_records(path)) == 6 and "0 runs to make" in capsys.readouterr().err
    assert main(["board", "check", str(path)]) == 0 and main(["verify"]) == 0
    capsys.readouterr()
    assert main(["board", "plan", str(path), "--format", "json"]) == 0
    assert {run["state"] for run in json.loads(capsys.readouterr().out)["runs"]} == {"recorded"}
    assert main(["board", "picture", str(path), "--out", "pictures"]) == 0
    drawn = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert drawn == ["small_centre.png", "small_compute.png", "small_lead.png", "small_seeds.png"]

    # In another folder, from the two committed files alone: the same trainings and therefore the same scores.
    again = _write(tmp_path / "elsewhere")
    read_board(again).decided_path.write_text(board.decided_path.read_text(encoding="utf-8"), encoding="utf-8")
    assert main([*words[:2], str(again), *words[3:], f"work={tmp_path / 'other'}"]) == 0
    assert _scores(again) == _scores(path)


@pytest.mark.slow
def test_a_board_refuses_other_data(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = _write(tmp_path)
    path.with_name("small.decided.yaml").write_text("data: {test: abc}\n", encoding="utf-8")
    assert main(["board", "run", str(path), f"data.root={digits}", *QUIET]) == 2
    said = capsys.readouterr().err
    assert "the test data are not those" in said and "earthbench data make nbody_mnist --out digits" in said
    assert main(["board", "run", str(path), "results.root=elsewhere"]) == 2
    assert "results.root" in capsys.readouterr().err
    assert not _records(path)


@pytest.mark.slow
def test_tune_runs_a_grid(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["tune", "task=nbody_mnist", "model=unet", "model.channels=[2,4]", "train.max_epochs=1", *QUIET]
    words += [f"data.root={digits}", "picture=false"]
    assert main([*words, "train.lr=1e-3,1e-1", "data.batch_size=4,8", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    scores = [trial["val/loss"] for trial in found["trials"]]
    assert len(scores) == 4 and scores == sorted(scores)
    first = found["trials"][0]
    assert found["best"] == [f"train.lr={first['train.lr']}", f"data.batch_size={first['data.batch_size']}"]
    assert not (tmp_path / "results").exists(), "what was tried is not a result"
    assert main([*words, "train.lr=1e-3"]) == 2 and "several values" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["train.max_steps=1", "data.batch_size=2"], "has 1 step, and its first validation is after 4 (1 epoch of 4)"),
        (["train.max_epochs=1", "train.val_every_epochs=3"], "its first validation is after 3 (3 epochs of 1)"),
        (["train.limit=2", "data.batch_size=1", "train.max_steps=1"], "after 2 (1 epoch of 2)"),
    ],
)
def test_a_grid_of_runs_too_short_to_validate_is_refused(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given, said
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["tune", "task=nbody_mnist", "model=unet", *QUIET, f"data.root={digits}", "picture=false", *given]
    assert main([*words, "train.lr=1e-3,1e-1"]) == 2
    told = capsys.readouterr()
    assert said in told.err and "train.val_every_steps" in told.err and "epoch 0" not in told.err
    assert not (tmp_path / "outputs").exists()
