"""Two processes (gloo, CPU) against one: the same counts to the bit, the same training to rounding."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from engines import COMMAND
from faults import TINY, tiny

from bench.data.sevir.synthetic import make_sevir
from bench.engine.run import run
from bench.errors import ConfigError, InterruptedRunError, RunFailedError
from bench.records.store import read_records

pytestmark = pytest.mark.scaleout


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Storms of a size that ConvLSTM supports."""
    out = tmp_path_factory.mktemp("storms24") / "sevir"
    return make_sevir(out, events={"train": 4, "val": 2, "test": 3}, size=24, seed=1)


# Without batch normalisation, whose running statistics are of the batches a process sees.
_MODEL = ["model=convlstm", "model.hidden=[4,4,4]"]
# Gradients are so large that all are clipped.
_TRAIN = ["data.batch_size=4", "train.max_epochs=2", "train.lr=1e-3", "train.clip_norm=1e-3", "train.weight_decay=0.1"]


def _weights(out: Path) -> dict[str, torch.Tensor]:
    (path,) = out.glob("work/*/*/*/checkpoints/last.ckpt")
    return torch.load(path)["state_dict"]


def test_two_processes_count_as_one(storms: Path, tmp_path: Path) -> None:
    """9 sequences in batches of 2: shares of 3 and 2 batches, the last batch short."""
    one = run(tiny(storms, tmp_path / "one", *_MODEL), training=False)
    two = run(tiny(storms, tmp_path / "two", *_MODEL, "devices=2"), training=False)
    assert two.record.counts == one.record.counts
    assert two.record.scores.keys() == one.record.scores.keys()
    for name, score in one.record.scores.items():
        assert two.record.scores[name] == (score if score is None else pytest.approx(score, rel=1e-12)), name
    assert two.record.data == one.record.data and two.record.config_fingerprint == one.record.config_fingerprint
    assert all((two.sample[name] == one.sample[name]).all() for name in one.sample)
    assert len(read_records(tmp_path / "two/results")[0]) == 1, "one record, not one per process"


@pytest.fixture(scope="module")
def unbroken(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights after a training by one process."""
    out = tmp_path_factory.mktemp("one")
    run(tiny(storms, out, *_MODEL, *_TRAIN), training=True)
    return _weights(out)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("stopped", [False, True])
def test_training_does_not_depend_on_the_number_of_processes(
    unbroken: dict[str, torch.Tensor], storms: Path, tmp_path: Path, monkeypatch, strategy: str, stopped: bool
) -> None:
    from bench.engine.forecaster import Forecaster

    step = Forecaster.training_step

    def signalled(self: Forecaster, batch: object, batch_index: int) -> object:
        if self.global_step == 1:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_index)

    if stopped:
        with monkeypatch.context() as patch:
            patch.setattr(Forecaster, "training_step", signalled)
            with pytest.raises(InterruptedRunError, match="saved after step 2"):
                run(tiny(storms, tmp_path, *_MODEL, *_TRAIN), training=True)
    two = ["devices=2", f"strategy={strategy}"]
    record = run(tiny(storms, tmp_path, *_MODEL, *_TRAIN, *two), training=True).record
    assert record.training.resumed_count == stopped
    found = _weights(tmp_path)
    assert found.keys() == unbroken.keys()
    for key, value in found.items():
        assert torch.allclose(value, unbroken[key], rtol=1e-4, atol=1e-6), key


@pytest.mark.parametrize(("strategy", "then"), [("ddp", 1), ("fsdp", 2)])
def test_a_stopped_run_of_two_processes_is_resumed_by_one_or_two(
    storms: Path, tmp_path: Path, strategy: str, then: int
) -> None:
    """The signal is sent to the command, which forwards it."""
    long = [*_MODEL, *_TRAIN, "train.max_epochs=4"]
    run(tiny(storms, tmp_path / "unbroken", *long), training=True)
    places = [f"data.root={storms}", f"work={tmp_path}/broken/work", f"results.root={tmp_path}/broken/results"]
    given = [
        word
        for word in TINY
        if word.partition("=")[0] not in ("model", "data.batch_size", "train.max_epochs", "train.lr")
    ]
    words = [*given, *_MODEL, *(word for word in _TRAIN if "max_epochs" not in word), "train.max_epochs=4", *places]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [COMMAND, "run", *words, "devices=2", f"strategy={strategy}"], stdout=log, stderr=log, cwd=tmp_path
        )
        while not list(tmp_path.glob("broken/work/*/*/*/checkpoints/last.ckpt")):
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        code = process.wait(120)
    told = (tmp_path / "log").read_text()
    assert code == 130 and "stopped by SIGTERM; saved after step" in told and "Traceback" not in told, told[-3000:]
    again = [f"devices={then}", *([f"strategy={strategy}"] if then > 1 else [])]
    record = run(tiny(storms, tmp_path / "broken", *long, *again), training=True).record
    assert record.training is not None and record.training.resumed_count == 1
    found, expected = _weights(tmp_path / "broken"), _weights(tmp_path / "unbroken")
    assert all(torch.allclose(found[key], expected[key], rtol=1e-3, atol=1e-5) for key in expected)


def test_a_failure_of_one_process_fails_the_run(storms: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match=r"diverged|not finite|is nan|is inf"):
        run(
            tiny(storms, tmp_path, *_MODEL, "data.batch_size=4", "devices=2", "train.lr=1e30", "train.clip_norm=null"),
            training=True,
        )
    assert {record.status for record in read_records(tmp_path / "results")[0]} == {"failed"}


def test_batches_that_cannot_be_shared_are_refused(storms: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be shared by 2 processes.*at least 2"):
        run(tiny(storms, tmp_path, *_MODEL, "data.batch_size=1", "devices=2"), training=True)


def test_an_unequally_shared_batch_trains_as_on_one_process(storms: Path, tmp_path: Path) -> None:
    """Steps of 5 in micro-batches of 2: three for two processes; the last step of an epoch of 12 is smaller."""
    rest = [word for word in _TRAIN if "batch_size" not in word]
    run(tiny(storms, tmp_path / "one", *_MODEL, *rest, "data.batch_size=5"), training=True)
    shared = ["data.batch_size=5", "data.micro_batch=2", "devices=2"]
    record = run(tiny(storms, tmp_path / "two", *_MODEL, *rest, *shared), training=True).record
    assert record.training is not None and record.training.micro_batch == 2
    assert record.hardware["devices"] == ["cpu", "cpu"]
    found, expected = _weights(tmp_path / "two"), _weights(tmp_path / "one")
    assert all(torch.allclose(found[key], expected[key], rtol=1e-4, atol=1e-6) for key in expected)
