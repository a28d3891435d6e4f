"""The summary that a run prints at its end."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faults import tiny

from bench.cli.outcome import print_outcome
from bench.engine.run import Outcome, run


@pytest.fixture(scope="module")
def persistence(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("persistence")
    return run(tiny(storms, out, "model=persistence"), training=False)


@pytest.fixture
def trained(storms: Path, persistence: Outcome, small_model: None) -> Outcome:
    out = persistence.record_path.parents[4]
    return run(tiny(storms, out, "train.max_epochs=2"), training=True)


def _said(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    print_outcome(outcome)
    return capsys.readouterr().out


@pytest.mark.usefixtures("small_model")
def test_without_a_persistence_record_the_next_command_scores_it(storms: Path, tmp_path: Path, capsys) -> None:
    said = _said(run(tiny(storms, tmp_path, "train.max_epochs=1"), training=True), capsys)
    assert f"earthbench evaluate task=sevir model=persistence data.root={storms} results.root={tmp_path}" in said
    assert "1 epoch, " in said and "CSI-M" in said


@pytest.mark.usefixtures("small_model")
def test_the_next_commands_take_the_data_that_were_evaluated(storms: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(storms, tmp_path / "others")
    given = [f"data.test_root={tmp_path}/others", "split=all", "limit=2", "train.max_epochs=1", "train.resume=anyway"]
    said = _said(run(tiny(storms, tmp_path, *given), training=True), capsys)
    data = f"data.root={storms} data.test_root={tmp_path}/others split=all limit=2"
    assert f"earthbench evaluate task=sevir model=persistence {data}" in said
    assert re.search(rf"earthbench forecast .* data.root={tmp_path}/others checkpoint=", said)


def test_a_forecast_without_newest_frames_takes_the_split_that_was_evaluated(trained: Outcome, capsys) -> None:
    task = trained.record.task.model_copy(update={"name": "moving_mnist"})  # sequences, not a record in time
    data = trained.record.data.model_copy(update={"split": "val"})
    said = _said(replace(trained, record=trained.record.model_copy(update={"task": task, "data": data})), capsys)
    (command,) = re.findall(r"earthbench forecast .*", said)
    assert " split=val " in command and "--latest" not in command


def test_scores_are_printed_beside_persistence(trained: Outcome, persistence: Outcome, capsys) -> None:
    said = _said(trained, capsys)
    (line,) = re.findall(r"^  MSE 1e-3 +([\d.]+) +([\d.]+) +(better|worse)$", said, re.MULTILINE)
    mine, other = trained.record.scores["mse"], persistence.record.scores["mse"]
    assert line[0] == f"{mine * 1e3:.4f}" and line[1] == f"{other * 1e3:.4f}"
    assert line[2] == ("better" if mine < other else "worse")
    root = trained.record_path.parents[3]
    assert f"earthbench table runs/sevir --results {root}" in said
    assert f"earthbench compare small persistence --task sevir --results {root}" in said
    weights = trained.folder / "checkpoints" / f"{trained.record.training.weights}.ckpt"
    following = rf"earthbench forecast task=sevir model=small .*checkpoint={weights} --latest$"
    assert re.search(following, said, re.MULTILINE)
    for fact in ("sequences/s", " GB", str(trained.record_path), str(trained.folder)):
        assert fact in said


def test_ensemble_scores_are_printed(trained: Outcome, capsys) -> None:
    assert "CRPS" not in _said(trained, capsys)
    scores = trained.record.scores | {"crps": 0.0213, "crps_fair": 0.0181, "spread_skill_ratio": 0.7}
    said = _said(replace(trained, record=trained.record.model_copy(update={"scores": scores})), capsys)
    for label, value in (("CRPS", "0.0213"), ("CRPS, fair", "0.0181"), ("spread / skill", "0.7000")):
        assert re.search(rf"^  {label} +{re.escape(value)} +-$", said, re.MULTILINE), label


def test_a_nearly_constant_forecast_warns(trained: Outcome, capsys) -> None:
    sample = {**trained.sample, "forecast": np.full_like(trained.sample["target"], 0.25)}
    model = trained.record.model.model_copy(update={"name": "unet"})
    record = trained.record.model_copy(update={"model": model})
    said = " ".join(_said(replace(trained, record=record, sample=sample), capsys).split())
    assert "almost constant: its standard deviation is 0.0% of the observed one" in said
    assert "model.norm_momentum=0.1" in said
    alive = {**trained.sample, "forecast": trained.sample["target"]}
    assert "almost constant" not in _said(replace(trained, sample=alive), capsys)
    unknown = {**trained.sample, "target": np.zeros_like(trained.sample["target"])}
    assert "almost constant" not in _said(replace(trained, sample=unknown), capsys)  # no rain was observed


def test_a_forecast_with_outliers_warns(trained: Outcome, capsys) -> None:
    sample = {**trained.sample, "forecast": 20 * trained.sample["target"]}
    record = trained.record.model_copy(update={"model": trained.record.model.model_copy(update={"name": "unet"})})
    said = " ".join(_said(replace(trained, record=record, sample=sample), capsys).split())
    assert "the forecast of the first sequence varies 20 times as much as what was observed" in said


def test_a_reference_gets_no_training_advice(persistence: Outcome, capsys) -> None:
    sample = {**persistence.sample, "forecast": np.zeros_like(persistence.sample["target"])}
    said = _said(replace(persistence, sample=sample), capsys)
    assert "WARNING" not in said and "training:" not in said and "compare" not in said


def test_a_run_worse_than_persistence_warns(trained: Outcome, capsys) -> None:
    scores = {**trained.record.scores, "csi_m": 0.0}
    worse = replace(trained, record=trained.record.model_copy(update={"scores": scores}))
    assert "CSI-M is worse than that of persistence" in " ".join(_said(worse, capsys).split())


def test_a_partial_run_is_not_pointed_to_a_table_that_excludes_it(storms: Path, tmp_path: Path, capsys) -> None:
    said = _said(run(tiny(storms, tmp_path, "model=persistence", "limit=2"), training=False), capsys)
    assert "partial" in said and "earthbench table" not in said
