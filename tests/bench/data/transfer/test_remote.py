"""Results and checkpoints behind a URL: the same guarantees as on a disk."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import torch
from faults import tiny

import bench
from bench.engine.checkpoints import LAST, PREVIOUS, CheckpointFiles, newest_intact, remove_all
from bench.engine.run import run
from bench.errors import ConfigError, DataError, InterruptedRunError, RunFailedError
from bench.files import check_writable
from bench.paths import as_path
from bench.records.schema import RunRecord
from bench.records.store import read_records, write_record


@pytest.fixture(scope="module")
def record(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


def test_records_at_a_url_are_written_once_and_read_back(record: RunRecord, url: str) -> None:
    assert read_records(url) == ([], [])
    path = write_record(record, url)
    assert str(path) == f"{url}/runs/sevir/persistence/{record.run_id}.json"
    with pytest.raises(RunFailedError, match="cannot be written"):
        write_record(record, url)
    path.with_name("torn.json").write_text("{")
    records, problems = read_records(url, "sevir")
    assert records == [record.sealed()] and len(problems) == 1 and "torn.json" in problems[0]


def test_a_backend_without_conditional_writes_replaces_nothing(record: RunRecord, url: str, monkeypatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    pipe = MemoryFileSystem.pipe_file

    def unconditional(self: MemoryFileSystem, path: str, value: bytes, **more: object) -> None:
        if more:
            raise NotImplementedError
        pipe(self, path, value)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", unconditional)
    write_record(record, url)
    with pytest.raises(RunFailedError, match="exists"):
        write_record(record, url)


def test_checkpoints_at_a_url_fall_back_to_the_previous_one(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = as_path(url, "train.checkpoints")
    assert newest_intact(folder, tmp_path) is None and not caplog.messages
    for step in (1, 2):
        CheckpointFiles().save_checkpoint({"step": step}, f"{url}/{LAST}")
    assert torch.load(newest_intact(folder, tmp_path)) == {"step": 2}
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:-1])
    assert torch.load(newest_intact(folder, tmp_path)) == {"step": 1} and "damaged" in caplog.messages[0]
    (folder / PREVIOUS).write_bytes(b"")
    with pytest.raises(DataError, match="every checkpoint is damaged"):
        newest_intact(folder, tmp_path)
    remove_all(folder)
    assert newest_intact(folder, tmp_path) is None


@pytest.mark.usefixtures("small_model")
def test_a_remote_run_resumes_bit_identically(storms: Path, tmp_path: Path, url: str, monkeypatch) -> None:
    import signal

    from bench.engine.forecaster import Forecaster

    def remote(name: str) -> list[str]:
        return [
            f"results.root={url}/{name}/results",
            f"train.checkpoints={url}/{name}/checkpoints",
            "train.max_epochs=2",
        ]

    step = Forecaster.training_step

    def signalled(self: Forecaster, batch: object, batch_index: int) -> object:
        if self.global_step == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_index)

    unbroken = run(tiny(storms, tmp_path / "a", *remote("unbroken")), training=True).record
    with monkeypatch.context() as patch:
        patch.setattr(Forecaster, "training_step", signalled)
        with pytest.raises(InterruptedRunError, match="saved after step 4"):
            run(tiny(storms, tmp_path / "b", *remote("broken")), training=True)
    # on another machine: nothing local is left
    again = run(tiny(storms, tmp_path / "c", *remote("broken")), training=True)
    assert again.record.counts == unbroken.counts and again.record.scores == unbroken.scores
    assert read_records(f"{url}/broken/results")[0] == [again.record]
    (best,) = as_path(f"{url}/broken/checkpoints", "x").rglob("best.ckpt")
    given = tiny(storms, tmp_path / "d", f"checkpoint={best}")
    assert run(given, training=False).record.training == again.record.training


@pytest.mark.parametrize(
    ("text", "words"),
    [("nosuch://x", "protocol 'nosuch' cannot be used"), ("gs://x", r"earthbench\[gcs\]"), ("://x", "cannot be used")],
)
def test_a_missing_protocol_names_the_package_to_install(text: str, words: str) -> None:
    if text.startswith("gs"):
        try:
            import gcsfs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("gcsfs is installed here")
    with pytest.raises(ConfigError, match=words):
        as_path(text, "results.root")


def test_an_unwritable_url_is_refused_before_the_run(url: str, monkeypatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no access")

    monkeypatch.setattr(MemoryFileSystem, "_open", refuse)
    with pytest.raises(DataError, match=r"results\.root: folder .* cannot be written to: no access"):
        check_writable(as_path(url, "results.root"), "results.root")
