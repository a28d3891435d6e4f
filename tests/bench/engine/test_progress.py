"""Progress reports of a run: on a terminal, in a log, in its folder, and by `earthbench status`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.cli.main import main
from bench.engine.callbacks.progress import ProgressMeter, RunProgressBar, evaluation_meter, shown_progress
from bench.engine.runfolder import Progress, duration, read_progress, run_lock, write_progress

TINY = [
    "task=sevir", "model=unet", "model.channels=[4,8]", "model.center_channels=8", "device=cpu", "picture=false",
    "train.loggers=[]", "train.max_epochs=2",
]  # fmt: skip


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _trainer(**fields: Any) -> Any:
    defaults = {
        "global_step": 0, "current_epoch": 0, "max_epochs": 10, "max_steps": -1, "world_size": 1,
        "check_val_every_n_epoch": 1, "callback_metrics": {}, "num_test_batches": [0],
    }  # fmt: skip
    return SimpleNamespace(**(defaults | fields))


_MODULE: Any = SimpleNamespace(total_steps=40, losses=SimpleNamespace(last=0.5), device=torch.device("cpu"))
_BATCH = [torch.zeros(8, 1)]


def _trained(
    meter: ProgressMeter, clock: _Clock, trainer: Any, steps: int, *, wait: float = 1.0, work: float = 3.0
) -> None:
    for number in range(steps):
        clock.now += wait
        meter.on_train_batch_start(trainer, _MODULE, _BATCH, number)
        clock.now += work
        trainer.global_step += 1
        meter.on_train_batch_end(trainer, _MODULE, None, _BATCH, number)


def test_speed_waiting_and_time_left_match_the_closed_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = _Clock()
    meter, trainer = ProgressMeter(tmp_path, "val/csi_m", clock), _trainer(world_size=2)
    meter.on_train_start(trainer, _MODULE)
    meter.on_train_epoch_start(trainer, _MODULE)
    _trained(meter, clock, trainer, 4)
    now = meter.progress
    assert now is not None and (now.epoch, now.epochs, now.done, now.total, now.loss) == (1, 10, 4, 40, 0.5)
    assert now.sequences_per_s == pytest.approx(2 * 8 / 4) and now.waiting_share == pytest.approx(0.25)
    assert now.left_s == pytest.approx(36 * 4) and now.score is None and now.device_gb is None
    # a validation of 20 s: neither speed nor waiting, but nine more of them to come
    meter.on_validation_start(trainer, _MODULE)
    clock.now += 20
    trainer.callback_metrics["val/csi_m"] = torch.tensor(0.3)
    meter.on_validation_end(trainer, _MODULE)
    meter.on_train_epoch_end(trainer, _MODULE)
    assert meter.progress is not None and meter.progress.left_s == pytest.approx(36 * 4 + 9 * 20)
    assert caplog.messages == [
        "epoch 1 of 10, step 4 of 40, loss 0.5, val/csi_m 0.3, 4 sequences/s, 25% waiting for data, 5.4 min left"
    ]
    trainer.current_epoch = 1
    meter.on_train_epoch_start(trainer, _MODULE)
    _trained(meter, clock, trainer, 1)
    assert meter.progress.sequences_per_s == pytest.approx(4) and meter.progress.score == pytest.approx(0.3)
    assert meter.progress.waiting_share == pytest.approx(0.25)


def test_a_line_is_logged_every_minute_and_the_file_written_every_ten_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock, written = _Clock(), []
    monkeypatch.setattr("bench.engine.callbacks.progress.write_progress", lambda folder, now: written.append(now.done))
    meter, trainer = ProgressMeter(tmp_path, None, clock), _trainer()
    meter.on_train_start(trainer, _MODULE)
    meter.on_train_epoch_start(trainer, _MODULE)
    _trained(meter, clock, trainer, 31)  # of 4 s
    assert len(caplog.messages) == 2 and caplog.messages[0].startswith("epoch 1 of 10, step 15 of 40")
    assert written == [1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31]


def test_speed_is_averaged_over_the_last_minute() -> None:
    clock = _Clock()
    meter, trainer = ProgressMeter(None, None, clock, lines=False), _trainer()
    meter.on_train_start(trainer, _MODULE)
    meter.on_train_epoch_start(trainer, _MODULE)
    _trained(meter, clock, trainer, 3, work=99)
    _trained(meter, clock, trainer, 30)
    assert meter.progress is not None and meter.progress.sequences_per_s == pytest.approx(2)


def test_the_estimate_counts_the_validations_of_max_steps() -> None:
    clock = _Clock()
    meter, trainer = ProgressMeter(None, None, clock, lines=False), _trainer(max_epochs=100, max_steps=40)
    meter.on_train_start(trainer, _MODULE)
    meter.on_train_epoch_start(trainer, _MODULE)
    _trained(meter, clock, trainer, 10)
    meter.on_validation_start(trainer, _MODULE)
    clock.now += 20
    meter.on_validation_end(trainer, _MODULE)
    meter.on_train_epoch_end(trainer, _MODULE)
    assert meter.progress is not None and meter.progress.left_s == pytest.approx(30 * 4 + 3 * 20)


def test_an_evaluation_reports_progress(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = _Clock()
    meter, trainer = ProgressMeter(tmp_path, None, clock), _trainer(num_test_batches=[100])
    meter.on_test_start(trainer, _MODULE)
    for number in range(20):
        clock.now += 4
        meter.on_test_batch_end(trainer, _MODULE, None, _BATCH, number)
    assert caplog.messages == ["evaluation, batch 15 of 100, 2 sequences/s, 5.7 min left"]
    found = read_progress(tmp_path)
    assert found is not None and found.phase == "evaluation" and found.done == 19 and found.updated_utc


def test_the_progress_meter_never_waits_for_the_device() -> None:
    class _Loss:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} of the loss was asked for")

    clock = _Clock()
    meter, trainer = ProgressMeter(None, None, clock, lines=False), _trainer()
    meter.on_train_start(trainer, _MODULE)
    meter.on_train_epoch_start(trainer, _MODULE)
    meter.on_train_batch_start(trainer, _MODULE, _BATCH, 0)
    clock.now += 1
    meter.on_train_batch_end(trainer, _MODULE, {"loss": _Loss()}, _BATCH, 0)


def test_an_unwritable_disk_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    write_progress(tmp_path / "file" / "below", Progress(phase="training", done=1, total=2))
    (tmp_path / "progress.json").write_text("{torn")
    assert read_progress(tmp_path) is None and read_progress(tmp_path / "nowhere") is None


def test_a_terminal_gets_a_bar_and_a_log_gets_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    meter, bar = shown_progress(tmp_path, wanted=True, score=None)
    assert isinstance(meter, ProgressMeter) and not meter.lines and isinstance(bar, RunProgressBar)
    (meter,) = shown_progress(tmp_path, wanted=False, score=None)
    assert isinstance(meter, ProgressMeter) and not meter.lines and meter.folder == tmp_path
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    (meter,) = shown_progress(tmp_path, wanted=True, score=None)
    assert isinstance(meter, ProgressMeter) and meter.lines
    assert evaluation_meter(tmp_path, wanted=False).lines is False  # type: ignore[attr-defined]


def test_the_bar_shows_the_time_left_of_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = ProgressMeter(None, lines=False)
    meter.progress = Progress(
        phase="training", done=1, total=2, sequences_per_s=12.345, waiting_share=0.5, device_gb=3.21, left_s=7200
    )
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.ProgressBar.get_metrics", lambda *_: {"v_num": 3, "train/loss": 0.1}
    )
    shown = RunProgressBar(meter).get_metrics(None, None)
    assert shown == {"train/loss": 0.1, "seq/s": "12.3", "data": "50%", "GB": "3.2", "left": "2.0 h"}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.01234, "0.0123 s"), (5, "5 s"), (119, "119 s"), (600, "10.0 min"), (9000, "2.5 h"), (1e6, "11.6 days")],
)
def test_format_of_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_status_shows_epoch_loss_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work" / "sevir" / "unet" / "abc"
    progress = Progress(phase="training", epoch=3, epochs=9, done=5, total=10, loss=0.25, left_s=600)
    words = ["status", f"work={tmp_path / 'work'}"]
    with run_lock(folder, "f"):
        write_progress(folder, progress)
        capsys.readouterr()
        assert main(words) == 0
        out = capsys.readouterr().out
        assert "running" in out and "epoch 3 of 9, step 5 of 10, loss 0.25, 10.0 min left" in out
        assert main([*words, "--format", "json"]) == 0
        (line,) = json.loads(capsys.readouterr().out)["runs"]
        assert line["state"] == "running" and line["progress"]["left_s"] == 600
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                raise KeyboardInterrupt

        monkeypatch.setattr("bench.cli.status.time.sleep", sleep)
        assert main([*words, "--watch"]) == 0
        assert capsys.readouterr().out.count("epoch 3 of 9") == 3
    assert main([*words, "--watch"]) == 0  # ends by itself where nothing runs
    out = capsys.readouterr().out
    assert out.count("done") == 2 and "epoch 3" not in out
    assert main([*words, "--watch", "--format", "json"]) == 2


def test_without_a_terminal_each_epoch_is_one_line(
    storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"data.root={storms}", f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}"]
    assert main(["run", *TINY, *places]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.split(",")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert all("loss" in line and "val/loss" in line and "sequences/s" in line and "left" in line for line in lines)
    (folder,) = (tmp_path / "work").glob("*/*/*")
    found = read_progress(folder)
    assert found is not None and found.phase == "evaluation"
