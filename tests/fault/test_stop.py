"""Signals, full disks, folders that cannot be written to, and two runs in one place (F04-F09)."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import child, ended, tiny
from logged import logged

import bench
from bench.cli.main import main
from bench.config import Config
from bench.engine.callbacks.resume import Resume
from bench.engine.checkpoints import LAST, CheckpointFiles, newest_intact
from bench.engine.forecaster import Forecaster
from bench.engine.run import run
from bench.engine.runfolder import read_owner, run_lock, state
from bench.errors import ConfigError, InterruptedRunError, RunFailedError
from bench.records.schema import RunRecord
from bench.records.store import read_records, write_record

pytestmark = pytest.mark.usefixtures("small_model")


def _run(storms: Path, out: Path, *overrides: str) -> Any:
    return run(tiny(storms, out, *overrides), training=True)


def _last(out: Path) -> Path:
    (path,) = out.glob(f"work/*/*/*/checkpoints/{LAST}")
    return path


def _signal_in_batch(monkeypatch: pytest.MonkeyPatch, number: int, batch: int) -> None:
    """Sends the signal during a training step of the first epoch."""
    step = Forecaster.training_step

    def signalled(self: Forecaster, given: Any, batch_index: int) -> Any:
        if self.current_epoch == 0 and batch_index == batch:
            signal.raise_signal(number)
        return step(self, given, batch_index)

    monkeypatch.setattr(Forecaster, "training_step", signalled)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_ends_the_run_after_the_step_and_it_resumes_bit_identically(
    storms: Path, tmp_path: Path, monkeypatch, name: str
) -> None:
    """Sends the signal in the first of a step's two batches; accumulated gradients are not in checkpoints."""
    _run(storms, tmp_path / "unbroken", "data.batch_size=4", "data.micro_batch=2", "train.max_epochs=2")
    with monkeypatch.context() as patch:
        _signal_in_batch(patch, getattr(signal, name), 2)
        with pytest.raises(InterruptedRunError, match=f"{name}; saved after step 2") as caught:
            _run(storms, tmp_path / "broken", "data.batch_size=4", "data.micro_batch=2", "train.max_epochs=2")
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "the handlers are put back"
    assert read_owner(_last(tmp_path / "broken").parents[1]).ended == "stopped"
    _run(storms, tmp_path / "broken", "data.batch_size=4", "data.micro_batch=2", "train.max_epochs=2")
    states = [torch.load(_last(tmp_path / out))["state_dict"] for out in ("unbroken", "broken")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_stopped_between_epochs_resumes_in_the_next(
    storms: Path, tmp_path: Path, monkeypatch, num_workers: int
) -> None:
    """A loader's process reads ahead before the trainer sets the epoch."""
    overrides = ["train.max_epochs=2", f"data.num_workers={num_workers}"]
    _run(storms, tmp_path / "unbroken", *overrides)
    validate = Forecaster.validation_step

    def signalled(self: Forecaster, batch: Any, batch_index: int) -> None:
        if self.current_epoch == 0:
            signal.raise_signal(signal.SIGTERM)
        validate(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Forecaster, "validation_step", signalled)
        with pytest.raises(InterruptedRunError, match="saved after step 6"):
            _run(storms, tmp_path / "broken", *overrides)
    _run(storms, tmp_path / "broken", *overrides)
    states = [torch.load(_last(tmp_path / out))["state_dict"] for out in ("unbroken", "broken")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_signal_in_the_last_step_of_an_epoch_is_obeyed(storms: Path, tmp_path: Path, monkeypatch) -> None:
    overrides = ["train.val_every_epochs=2", "train.save_every_minutes=null", "train.max_epochs=2"]
    with monkeypatch.context() as patch:
        _signal_in_batch(patch, signal.SIGTERM, 5)
        with pytest.raises(InterruptedRunError, match="SIGTERM; saved after step 6"):
            _run(storms, tmp_path, *overrides)
    assert torch.load(_last(tmp_path))["global_step"] == 6
    assert _run(storms, tmp_path, *overrides).record.training.resumed_count == 1


def test_a_signal_in_the_last_validation_is_obeyed_before_the_evaluation(
    storms: Path, tmp_path: Path, monkeypatch
) -> None:
    validate = Forecaster.validation_step

    def signalled(self: Forecaster, batch: Any, batch_index: int) -> None:
        if batch_index == 0:
            signal.raise_signal(signal.SIGTERM)
        validate(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Forecaster, "validation_step", signalled)
        patch.setattr(Forecaster, "test_step", lambda *_: pytest.fail("evaluation began"))
        with pytest.raises(InterruptedRunError, match="training had ended and is saved"):
            _run(storms, tmp_path, "train.max_epochs=1")
    with logged() as lines:
        run(tiny(storms, tmp_path, "train.max_epochs=1"), training=True)
    assert any("training had ended" in line for line in lines)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_during_evaluation_records_nothing(storms: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    test_step = Forecaster.test_step

    def signalled(self: Forecaster, batch: Any, batch_index: int) -> None:
        signal.raise_signal(getattr(signal, name))
        test_step(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Forecaster, "test_step", signalled)
        with pytest.raises(InterruptedRunError, match=f"{name}; nothing was recorded"):
            _run(storms, tmp_path, "train.max_epochs=1")
    assert read_records(tmp_path / "results") == ([], [])
    assert _run(storms, tmp_path, "train.max_epochs=1").record.scope == "full", "the same command again (E02)"


def test_previous_signal_handlers_run_after_saving(storms: Path, tmp_path: Path, monkeypatch) -> None:
    """submitit requeues a job in its handler of SIGUSR2, and ignores SIGTERM."""
    told: list[bool] = []
    before = signal.signal(signal.SIGUSR2, lambda *_: told.append(_last(tmp_path).exists()))
    ignored = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        _signal_in_batch(monkeypatch, signal.SIGTERM, 0)
        _signal_in_batch(monkeypatch, signal.SIGUSR2, 1)
        with pytest.raises(InterruptedRunError, match="SIGUSR2; saved after step 2"):
            _run(storms, tmp_path)
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGTERM, ignored)
    assert told == [True]


def _command(config: Config, slow_s: float = 0.0) -> int:
    end = Resume.on_train_batch_end

    def slowly(*arguments: Any) -> None:
        end(*arguments)
        time.sleep(slow_s)

    Resume.on_train_batch_end = slowly
    try:
        run(config, training=True)
    except InterruptedRunError as error:
        return error.exit_code
    return 0


def _until(condition: Any, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def _children(pid: int) -> list[str]:
    return subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()


@pytest.mark.fault
@pytest.mark.parametrize("twice", [False, True])
def test_an_external_signal_ends_the_process_and_its_loaders(storms: Path, tmp_path: Path, twice: bool) -> None:
    """A second signal ends it immediately, although its step would take a minute."""
    config = tiny(storms, tmp_path, "data.num_workers=2")
    process = child(_command, config, 60.0 if twice else 0.2, log=tmp_path / "log")
    _until(lambda: len(_children(process.pid)) >= 2)
    workers = _children(process.pid)
    time.sleep(1)
    os.kill(process.pid, signal.SIGTERM)
    if twice:
        time.sleep(1.5)
        os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 130
    _until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), timeout=15)


# A full disk


def _save_limited(folder: Path, limit: int) -> int:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        CheckpointFiles().save_checkpoint({"weights": torch.ones(100_000), "step": 2}, str(folder / LAST))
    except RunFailedError as error:
        return error.exit_code
    return 0


@pytest.mark.parametrize("limit", [0, 1, 1000, 200_000])
def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path, limit: int) -> None:
    CheckpointFiles().save_checkpoint({"step": 1}, str(tmp_path / LAST))
    assert ended(child(_save_limited, tmp_path, limit, log=tmp_path / "log")) == 3
    assert torch.load(newest_intact(tmp_path, tmp_path)) == {"step": 1}
    assert not list(tmp_path.glob(".*.part"))


def _no_space(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_fails_the_run_naming_path_and_free_space(storms: Path, tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("bench.engine.checkpoints.os.fsync", _no_space)
        with pytest.raises(
            RunFailedError, match=r"last\.ckpt cannot be written.*No space left.*bytes are free"
        ) as caught:
            _run(storms, tmp_path)
    assert "The failure record could not be written either" in str(caught.value), "it is the same disk"
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.suffix in (".json", ".ckpt", ".part") and path.name not in ("owner.json", "progress.json")
    ]
    assert _run(storms, tmp_path).record.scope == "full", "with space again, the same command runs"


def test_a_record_that_does_not_fit_leaves_no_file(record: RunRecord, tmp_path: Path, monkeypatch) -> None:
    from bench.records import store

    publish = store.publish

    def full(content: bytes, path: Path) -> None:
        if path.suffix == ".json":
            _no_space()
        publish(content, path)

    monkeypatch.setattr(store, "publish", full)
    with pytest.raises(RunFailedError, match="No space left"):
        write_record(record, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.fault
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_real_full_disk(storms: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this machine mounts nothing: {mounted.stderr.strip()}")
    try:
        CheckpointFiles().save_checkpoint({"step": 1}, str(disk / LAST))
        with pytest.raises(RunFailedError, match="cannot be written"):
            CheckpointFiles().save_checkpoint({"weights": torch.ones(100_000)}, str(disk / LAST))
        assert torch.load(newest_intact(disk, disk)) == {"step": 1}
        (disk / "filler").write_bytes(bytes(50_000))
        with pytest.raises(RunFailedError, match=r"best\.ckpt cannot be written|last\.ckpt cannot be written"):
            _run(storms, tmp_path / "out", f"train.checkpoints={disk}")
        (failed,), _ = read_records(tmp_path / "out/results")
        assert failed.status == "failed" and "cannot be written" in failed.failure.message
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("key", ["results.root", "work", "train.checkpoints"])
def test_an_unwritable_folder_is_refused_before_the_first_step(storms: Path, tmp_path: Path, capsys, key: str) -> None:
    arguments = ["run", f"data.root={storms}", f"work={tmp_path}/w", f"results.root={tmp_path}/r", "device=cpu"]
    assert main([*arguments, f"{key}=/proc/not/here"]) == 2
    error = capsys.readouterr().err
    assert f"{key}: folder '/proc/not/here' cannot be written to" in error and "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """An existing folder that is not writable, not even by root."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("root may write anywhere, and this machine mounts nothing")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("key", ["results.root", "work", "train.checkpoints"])
def test_a_read_only_folder_is_refused_before_the_first_step(
    storms: Path, tmp_path: Path, read_only: Path, capsys, key: str
) -> None:
    arguments = ["run", f"data.root={storms}", f"work={tmp_path}/w", f"results.root={tmp_path}/r", "device=cpu"]
    assert main([*arguments, f"{key}={read_only}"]) == 2
    error = capsys.readouterr().err
    assert f"{key}: folder '{read_only}' cannot be written to" in error and "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_work_folder_must_be_local(storms: Path, tmp_path: Path, capsys) -> None:
    assert main(["run", f"data.root={storms}", "work=memory://x", f"results.root={tmp_path}", "device=cpu"]) == 2
    assert "must be a local folder" in capsys.readouterr().err


# Two at a time


def _hold(folder: Path) -> None:
    with run_lock(folder, "f"):
        time.sleep(60)


def test_a_second_run_of_a_config_is_refused_and_a_stale_lock_is_taken_over(tmp_path: Path) -> None:
    process = child(_hold, tmp_path, log=tmp_path / "log")
    _until(lambda: read_owner(tmp_path) is not None)
    assert state(tmp_path, read_owner(tmp_path)) == "running"
    with pytest.raises(ConfigError, match=f"in use by process {process.pid} on "), run_lock(tmp_path, "f"):
        pass
    process.kill()
    process.join()
    assert state(tmp_path, read_owner(tmp_path)) == "killed"
    with logged() as lines, run_lock(tmp_path, "f"):
        pass
    assert f"taking over from process {process.pid}" in lines[0] and state(tmp_path, read_owner(tmp_path)) == "done"


def _hold_with_a_loader(folder: Path) -> None:
    with run_lock(folder, "f"):
        if os.fork() == 0:
            time.sleep(4)
            os._exit(0)
        time.sleep(60)


def test_loaders_of_a_killed_run_release_its_folder(tmp_path: Path) -> None:
    process = child(_hold_with_a_loader, tmp_path, log=tmp_path / "log")
    _until(lambda: read_owner(tmp_path) is not None and _children(process.pid))
    process.kill()
    process.join()
    with logged() as lines, run_lock(tmp_path, "f"):
        pass
    assert f"taking over from process {process.pid}" in lines[0]


@pytest.fixture(scope="module")
def record(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


def _publish(record: RunRecord, root: Path, worker: int) -> None:
    for number in range(25):
        write_record(record.model_copy(update={"run_id": f"w{worker}-{number}"}), root)


def test_eight_concurrent_writers_lose_nothing_and_readers_see_whole_records(record: RunRecord, tmp_path: Path) -> None:
    writers = [child(_publish, record, tmp_path, worker, log=tmp_path / "log") for worker in range(8)]
    seen, reads = 0, 0
    while any(writer.is_alive() for writer in writers):
        records, problems = read_records(tmp_path)
        assert not problems and len(records) >= seen
        seen, reads = len(records), reads + 1
    assert [ended(writer) for writer in writers] == [0] * 8 and reads > 0
    records, problems = read_records(tmp_path)
    assert len(records) == 200 and not problems and not list(tmp_path.rglob("*.part"))
