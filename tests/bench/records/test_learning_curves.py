"""Learning curves: from Lightning's logs to the file beside the records, and their picture."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench
from bench.cli.main import main
from bench.config import compose
from bench.engine.loggers import logged_curve
from bench.engine.run import Outcome, run
from bench.errors import DataError
from bench.records.learning_curves import (
    LearningCurve,
    learning_curve_path,
    read_learning_curve,
    write_learning_curve,
)
from bench.records.schema import RunRecord


@pytest.fixture(scope="module")
def measured(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


def _log(folder: Path, part: int, rows: list[dict[str, float]]) -> None:
    path = folder / f"part_{part}" / "metrics.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        lines = csv.DictWriter(file, ["epoch", "step", "train/loss", "val/loss"])
        lines.writeheader()
        lines.writerows(rows)


def test_repeated_steps_of_a_resumed_run_replace_the_earlier_ones(tmp_path: Path) -> None:
    _log(tmp_path, 0, [{"step": step, "train/loss": 8.0} for step in range(5)] + [{"step": 4, "val/loss": 9.0}])
    for part in range(1, 11):  # the tenth comes after the ninth, not after the first
        rows = [{"step": step, "train/loss": float(part)} for step in range(3, 6)]
        _log(tmp_path, part, [*rows, {"step": 5, "val/loss": float(part)}])
    (tmp_path / "part_11").mkdir()
    _log(tmp_path, 12, [])
    with (tmp_path / "part_10/metrics.csv").open("a") as file:
        file.write(",6")  # killed while writing
    curve = logged_curve(tmp_path)
    assert curve is not None
    assert curve.train == ((1, 8.0), (2, 8.0), (3, 8.0), (4, 10.0), (5, 10.0), (6, 10.0))
    assert curve.val == ((6, 10.0),)


@given(count=st.integers(1, 1000))
def test_a_long_curve_is_thinned_without_changing_its_mean(
    count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    _log(folder, 0, [{"step": step, "train/loss": float(step % 7)} for step in range(count)])
    curve = logged_curve(folder)
    assert curve is not None and curve.val == () and len(curve.train) <= 100
    ends = [0, *(steps for steps, _ in curve.train)]
    assert ends == sorted(set(ends)) and ends[-1] == count
    total = sum(loss * (end - start) for (end, loss), start in zip(curve.train, ends, strict=False))
    assert math.isclose(total, sum(step % 7 for step in range(count)), abs_tol=1e-6)


def test_a_run_without_logged_losses_has_no_curve(tmp_path: Path) -> None:
    assert logged_curve(tmp_path / "none") is None
    _log(tmp_path, 0, [{"step": 0}])
    assert logged_curve(tmp_path) is None


def test_a_curve_round_trips(measured: RunRecord, tmp_path: Path) -> None:
    curve = LearningCurve(train=((1, 0.5), (2, 3e-7)), val=((2, 12345.5),))
    assert read_learning_curve(measured, tmp_path) is None
    path = write_learning_curve(curve, measured, tmp_path)
    assert path == learning_curve_path(measured, tmp_path) and read_learning_curve(measured, tmp_path) == curve
    with pytest.raises(DataError, match="cannot be written"):
        write_learning_curve(curve, measured, tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "steps,loss\n1,2\n", "steps,split,loss\n", "steps,split,loss\n1,tr", "steps,split,loss\n1,test,2\n", "\0"],
)
def test_a_truncated_curve_gives_one_error_with_its_name(measured: RunRecord, tmp_path: Path, text: str) -> None:
    path = learning_curve_path(measured, tmp_path)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(DataError, match=f"{measured.run_id}.csv: not a learning curve"):
        read_learning_curve(measured, tmp_path)


def _trained(storms: Path, out: Path, *settings: str) -> Outcome:
    words = ["task=sevir", "model=unet", "model.channels=[4]", "model.center_channels=8", "model.norm_momentum=0.1"]
    words += ["data.batch_size=4", "train.max_epochs=2", "progress=false", "picture=false", "device=cpu"]
    words += [f"data.root={storms}", f"results.root={out / 'results'}", f"work={out / 'work'}", *settings]
    return run(compose(words), training=True)


def test_the_curve_of_a_run_is_stored_and_drawn_by_a_table(storms: Path, tmp_path: Path) -> None:
    record = _trained(storms, tmp_path, "train.loggers=[csv]").record
    curve = read_learning_curve(record, tmp_path / "results")
    assert curve is not None and record.training is not None
    assert curve.train[-1][0] == curve.val[-1][0] == record.training.steps
    assert len(curve.val) == record.training.epochs
    assert min(loss for _, loss in curve.val) == pytest.approx(record.training.best_score, rel=1e-5)
    picture = tmp_path / "curves.png"
    assert main(["table", "runs/sevir", "--results", str(tmp_path / "results"), "--curves", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_table_without_curves_draws_nothing(storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _trained(storms, tmp_path, "train.loggers=[]")
    picture = tmp_path / "curves.png"
    assert main(["table", "runs/sevir", "--results", str(tmp_path / "results"), "--curves", str(picture)]) == 2
    assert "no complete run with a learning curve" in capsys.readouterr().err and not picture.exists()
