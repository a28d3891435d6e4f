"""kill -9 at any point: files are valid afterwards, and the same command finishes the run (F01-F03)."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import child, ended, kill_self, tiny

import bench
from bench.engine.checkpoints import LAST, PREVIOUS, CheckpointFiles, damage, newest_intact
from bench.engine.run import run
from bench.records.schema import RunRecord
from bench.records.store import read_records, write_record


def _train(storms: Path, out: Path, num_workers: int) -> int:
    run(tiny(storms, out, f"data.num_workers={num_workers}"), training=True)
    return 0


def _checkpoints(out: Path) -> Path:
    (folder,) = out.glob("work/*/*/*/checkpoints")
    return folder


@pytest.mark.fault
@pytest.mark.usefixtures("small_model")
def test_a_run_killed_20_times_is_bit_identical(storms: Path, tmp_path: Path):
    started = time.perf_counter()
    assert ended(child(_train, storms, tmp_path / "unbroken", 0, log=tmp_path / "log")) == 0
    took = time.perf_counter() - started
    expected = {
        name: torch.load(_checkpoints(tmp_path / "unbroken") / name)["state_dict"] for name in (LAST, "best.ckpt")
    }
    (unbroken,), _ = read_records(tmp_path / "unbroken/results")
    rng, kills, resumed = np.random.default_rng(7), 0, 0
    number = 0
    while kills < 20:
        number += 1
        out = tmp_path / f"broken{number}"
        for _ in range(4):
            process = child(_train, storms, out, number % 2, log=tmp_path / "log")
            process.join(rng.uniform(0.05, 0.9) * took)
            if process.exitcode is not None:
                break  # this one was quicker
            process.kill()
            process.join()
            kills += 1
            for folder in out.glob("work/*/*/*/checkpoints"):
                found = newest_intact(folder, out)
                resumed += found is not None
            assert not read_records(out / "results")[1], "no half-written record"
        assert ended(child(_train, storms, out, number % 2, log=tmp_path / "log")) == 0, (tmp_path / "log").read_text()[
            -2000:
        ]
        for name, state in expected.items():
            again = torch.load(_checkpoints(out) / name)["state_dict"]
            assert all(torch.equal(state[key], again[key]) for key in state), f"{name} of run {number}"
        record = read_records(out / "results")[0][-1]
        assert record.counts == unbroken.counts and record.scores == unbroken.scores
        assert not list(out.rglob("*.part")), "nothing unfinished is left"
    assert resumed > 0, "no kill came after a checkpoint: the test shows nothing"


def _save_and_die(folder: Path, where: str) -> None:
    """Saves step 2 over step 1 and dies after a number of bytes, or around a rename."""
    if where.startswith("rename"):
        replace = Path.replace
        calls = []

        def dying(self: Path, target: Path) -> Path:
            calls.append(target)
            if where == f"rename {len(calls)} before":
                kill_self()
            done = replace(self, target)
            if where == f"rename {len(calls)} after":
                kill_self()
            return done

        Path.replace = dying
    else:
        buffer = io.BytesIO()
        torch.save({"step": 2}, buffer)
        content = buffer.getvalue()
        many = {"none": 0, "one": 1, "half": len(content) // 2, "all but one": len(content) - 1, "all": len(content)}

        def torn(_: object, file: io.BufferedWriter) -> None:
            file.write(content[: many[where]])
            file.flush()
            kill_self()

        torch.save = torn
    CheckpointFiles().save_checkpoint({"step": 2}, str(folder / LAST))


@pytest.mark.parametrize("where", ["none", "one", "half", "all but one", "all"])
def test_a_kill_while_saving_falls_back_to_the_previous_checkpoint(tmp_path: Path, where: str) -> None:
    CheckpointFiles().save_checkpoint({"step": 1}, str(tmp_path / LAST))
    assert ended(child(_save_and_die, tmp_path, where, log=tmp_path / "log")) == -9
    assert torch.load(newest_intact(tmp_path, tmp_path)) == {"step": 1}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("rename", [1, 2])
def test_a_kill_around_a_rename_leaves_a_valid_checkpoint(tmp_path: Path, rename: int, when: str) -> None:
    CheckpointFiles().save_checkpoint({"step": 1}, str(tmp_path / LAST))
    assert ended(child(_save_and_die, tmp_path, f"rename {rename} {when}", log=tmp_path / "log")) == -9
    complete = (rename, when) == (2, "after")
    assert torch.load(newest_intact(tmp_path, tmp_path)) == {"step": 1 + complete}


def test_the_previous_checkpoint_is_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        CheckpointFiles().save_checkpoint({"step": step}, str(tmp_path / LAST))
    assert torch.load(tmp_path / LAST) == {"step": 3} and torch.load(tmp_path / PREVIOUS) == {"step": 2}
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]


def test_a_truncated_checkpoint_is_named_and_an_older_one_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        CheckpointFiles().save_checkpoint({"step": step}, str(tmp_path / LAST))
    content = (tmp_path / LAST).read_bytes()
    for keep in (0, 1, len(content) // 2, len(content) - 1):
        (tmp_path / LAST).write_bytes(content[:keep])
        assert damage(tmp_path / LAST) is not None
        assert newest_intact(tmp_path, tmp_path) == tmp_path / PREVIOUS
    lines = caplog.messages
    assert len(lines) == 4 and all("WARNING" in line and str(tmp_path / LAST) in line for line in lines)
    assert (tmp_path / LAST).exists(), "what is damaged is not silently deleted"


@pytest.fixture(scope="module")
def record(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


def _write_and_die(text: str, root: Path, where: str) -> None:
    record = RunRecord.model_validate_json(text)
    share = where.removeprefix("write ")
    if share != where:
        opened = Path.open

        def torn(self: Path, *mode: str, **more: str) -> object:
            if self.suffix == ".part":
                with opened(self, "wb") as file:
                    file.write(text.encode()[: int(len(text) * float(share))])
                    file.flush()
                    os.fsync(file.fileno())
                kill_self()
            return opened(self, *mode, **more)

        Path.open = torn
    else:
        name, when = where.split()
        function = getattr(os, name)

        def dying(*arguments: object) -> object:
            if when == "before":
                kill_self()
            done = function(*arguments)
            kill_self()
            return done

        setattr(os, name, dying)
    write_record(record, root)


_PLACES = [
    *(f"write {share / 35:.2f}" for share in range(36)),
    "fsync before",
    "fsync after",
    "link before",
    "link after",
]


@pytest.mark.slow
def test_a_kill_while_recording_leaves_a_whole_record_or_none(record: RunRecord, tmp_path: Path) -> None:
    kept = write_record(record.model_copy(update={"run_id": "kept"}), tmp_path)
    there = 0
    for number, where in enumerate(_PLACES):
        text = record.model_copy(update={"run_id": f"r{number}"}).model_dump_json()
        assert ended(child(_write_and_die, text, tmp_path, where, log=tmp_path / "log")) == -9
        records, problems = read_records(tmp_path)
        there += where == "link after"
        assert not problems and len(records) == 1 + there, where
    assert kept.exists() and there == 1
