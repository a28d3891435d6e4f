"""Signals and kill -9 to the real command in each of its phases: how it ends, and how the same command resumes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from engines import COMMAND, until

from bench import plugins
from bench.cli.main import main
from bench.records.schema import RunRecord
from bench.records.store import read_records

pytestmark = pytest.mark.fault

# Reports each step, and waits while a file asks for it.
_MODEL = '''
"""A few weights."""
import time
from pathlib import Path

import torch
from torch import nn

EARTHBENCH = {"models": {"slow": "Slow"}}


class Slow(nn.Module):
    """A few weights and a random number in each step."""

    def __init__(self, input_shape, target_shape):
        super().__init__()
        self.weight, self.drop = nn.Parameter(torch.linspace(0.5, 1, target_shape[0])), nn.Dropout(0.3)

    def forward(self, context):
        if Path("slow").exists():
            with Path("calls").open("a") as file:
                file.write("training\\n" if self.training else "evaluating\\n")
            time.sleep(0.7)
        return self.drop(context[:, -1:]) * self.weight[None, :, None, None, None]
'''


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.chdir(tmp_path)


Words = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def words_of(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> Words:
    """The command line of a verb."""
    path = tmp_path_factory.mktemp("plugin") / "slow_to_forecast.py"
    path.write_text(_MODEL)

    def words(verb: str) -> list[str]:
        given = ["task=sevir", "model=slow", f"data.root={storms}", "data.batch_size=2", "device=cpu"]
        if verb != "evaluate":
            given += ["train.max_epochs=2", "train.lr=1e-2", "train.loggers=[]", "data.num_workers=1"]
        seeds = ["seed=0,1"] if "-m" in verb else []
        return ["--plugin", str(path), *verb.split(), *given, *seeds, "progress=false", "picture=false"]

    return words


@contextmanager
def _slow_command(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Runs the command in a separate process, slowed down, and ends it afterwards."""
    Path("slow").touch()
    with Path("log").open("w") as log:
        process = subprocess.Popen([COMMAND, *words], stdout=log, stderr=log, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        Path("slow").unlink()


def _calls(kind: str) -> int:
    return Path("calls").read_text().split().count(kind) if Path("calls").exists() else 0


def _wait_for(phase: str, process: subprocess.Popen[str]) -> None:
    """Waits until the command is within a phase of its first run."""

    def alive(condition: Callable[[], object]) -> Callable[[], object]:
        def still() -> object:
            assert process.poll() is None, Path("log").read_text()[-3000:]
            return condition()

        return still

    if phase == "evaluation":
        until(alive(lambda: list(Path().glob("outputs/*/*/*/checkpoints/training.json"))), "the end of training", 120)
    kind = "training" if phase == "training" else "evaluating"
    before = _calls(kind)
    until(alive(lambda: _calls(kind) > before), phase, 120)


def _children(pid: int) -> list[str]:
    return subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()


def _weights() -> dict[str, torch.Tensor]:
    path = min(Path().glob("outputs/*/*/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_ctime)
    return torch.load(path)["state_dict"]


@pytest.fixture(scope="module")
def unbroken(words_of: Words, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, dict[str, torch.Tensor]]:
    """The record and the weights of seed 0, by an uninterrupted command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.VARIABLE, "")
        patch.chdir(tmp_path_factory.mktemp("unbroken"))
        assert main(words_of("run")) == 0
        ((record,), _), weights = read_records("results"), _weights()
    return record, weights


_CASES = [
    ("run", "training", "SIGUSR1", "saved after step"),
    ("run", "validation", "SIGTERM", "saved after step"),
    ("run", "evaluation", "SIGINT", "nothing was recorded"),
    ("run -m", "training", "SIGINT", "saved after step"),
    ("run -m", "validation", "SIGUSR1", "saved after step"),
    ("run -m", "evaluation", "SIGTERM", "nothing was recorded"),
    ("run", "evaluation", "SIGKILL", ""),
    ("run -m", "validation", "SIGKILL", ""),
]


@pytest.mark.parametrize(("verb", "phase", "name", "said"), _CASES, ids=[" ".join(case[:3]) for case in _CASES])
def test_a_signalled_run_exits_as_documented_and_resumes_bit_identically(
    unbroken: tuple[RunRecord, dict[str, torch.Tensor]], words_of: Words, verb: str, phase: str, name: str, said: str
) -> None:
    words = words_of(verb)
    with _slow_command(words) as process:
        _wait_for(phase, process)
        loaders = _children(process.pid)
        process.send_signal(getattr(signal, name))
        code, log = process.wait(60), Path("log").read_text()
        assert code == (-9 if name == "SIGKILL" else 130), log
    assert said in log and "Traceback" not in log and (name == "SIGKILL" or f"stopped by {name}" in log)
    # after a kill, loaders look for their parent every five seconds
    until(lambda: not any(Path(f"/proc/{loader}").exists() for loader in loaders), "its loaders to end", 20)
    assert read_records("results") == ([], []), "half of an evaluation is not a record"
    assert len(list(Path().glob("outputs/*/*/*/owner.json"))) == 1, "the next job of the sweep was not started"
    assert main(words) == 0
    records = {record.seed: record for record in read_records("results")[0]}
    assert records.keys() == ({0, 1} if "-m" in verb else {0})
    expected, weights = unbroken
    assert records[0].counts == expected.counts and records[0].scores == expected.scores
    found = _weights()
    assert all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize("name", ["SIGUSR2", "SIGKILL"])
def test_an_interrupted_evaluation_counts_nothing_twice(words_of: Words, name: str) -> None:
    words = words_of("evaluate")
    with _slow_command(words) as process:
        until(lambda: _calls("evaluating") > 1, "the second batch", 120)
        process.send_signal(getattr(signal, name))
        assert process.wait(60) == (-9 if name == "SIGKILL" else 130), Path("log").read_text()
    assert read_records("results") == ([], [])
    for _ in range(2):
        assert main(words) == 0
    (again, whole), _ = read_records("results")
    assert again.counts == whole.counts and again.scores == whole.scores
    assert again.data is not None and again.data.sequence_count == 9


def test_a_concurrent_run_is_refused_and_a_killed_one_is_resumed(words_of: Words, capsys) -> None:
    words = words_of("run")
    with _slow_command(words) as process:
        _wait_for("validation", process)
        assert main(words) == 2
        assert f"in use by process {process.pid} on {os.uname().nodename}" in capsys.readouterr().err
    assert main(words) == 0
    told = capsys.readouterr().out
    assert f"taking over from process {process.pid}" in told
    assert len(read_records("results")[0]) == 1
