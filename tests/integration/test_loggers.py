"""The optional loggers, without mocks and without a network: their files contain the losses of the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import tiny

from bench.engine.run import run

pytestmark = [pytest.mark.scaleout, pytest.mark.usefixtures("small_model")]


def test_weights_and_biases_offline(storms: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run(tiny(storms, tmp_path, "train.loggers=[wandb]", "train.max_epochs=1"), training=True)
    (written,) = tmp_path.glob("work/*/*/*/logs/part_0/wandb/offline-run-*/*.wandb")
    content = written.read_bytes()
    for name in (b"train/loss", b"val/csi_m", b"perf/sequences_per_s", b"max_epochs"):
        assert name in content
    assert list(written.parent.glob("files/media/images/val/forecast_*.png"))


def test_mlflow_in_a_local_store(storms: Path, tmp_path: Path) -> None:
    outcome = run(tiny(storms, tmp_path, "train.loggers=[mlflow]", "train.max_epochs=1"), training=True)
    (losses,) = tmp_path.glob("work/mlruns/*/*/metrics/train/loss")
    lines = losses.read_text().splitlines()
    assert len(lines) == outcome.record.training.steps
    assert float(lines[-1].split()[1]) == pytest.approx(outcome.record.training.final_loss)
    run_folder = losses.parents[2]
    assert (run_folder / "metrics/perf/sequences_per_s").is_file() and (run_folder / "params/train").is_dir()
    (picture,) = run_folder.glob("artifacts/images/*forecast*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
