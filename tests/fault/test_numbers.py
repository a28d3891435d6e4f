"""Invalid numbers, loaders that die, changed files, changed code (D08, M01-M10, X01-X03)."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import Small, tiny
from torch import Tensor, nn

import bench
import bench.engine.identity
from bench.data.loading import evaluation_loader
from bench.engine.checkpoints import LAST, CheckpointFiles, damage
from bench.engine.forecaster import Forecaster
from bench.engine.run import run
from bench.engine.trainer import translated_errors
from bench.errors import ConfigError, ContractError, DataError, InterruptedRunError, RunFailedError
from bench.models import load_weights
from bench.records.schema import RunRecord
from bench.records.store import read_records, write_record


def _run(storms: Path, out: Path, *overrides: str) -> Any:
    return run(tiny(storms, out, *overrides), training=True)


def _with_model(monkeypatch: pytest.MonkeyPatch, model: type[nn.Module]) -> None:
    monkeypatch.setattr("bench.engine.run.load_model", lambda name, task, **_: model(task.target_shape[0]))


class _Broken(Small):
    """Finite for three steps, then not."""

    calls = 0

    def forward(self, context: Tensor) -> Tensor:
        self.calls += self.training
        forecast = super().forward(context)
        return self.broken(forecast) if self.calls > 3 else forecast

    def broken(self, forecast: Tensor) -> Tensor:
        raise NotImplementedError


class _InfiniteGradient(_Broken):
    def broken(self, forecast: Tensor) -> Tensor:
        return forecast + 0 * torch.sqrt(self.weight.sum() * 0)  # the loss is finite, its derivative is not


class _InfiniteLoss(_Broken):
    def broken(self, forecast: Tensor) -> Tensor:
        return forecast + float("inf")


class _Hungry(_Broken):
    def broken(self, forecast: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB.")


class _Exploding(_Broken):
    def broken(self, forecast: Tensor) -> Tensor:
        return forecast * 1e6


class _NanWhenEvaluated(_Broken):
    def broken(self, forecast: Tensor) -> Tensor:
        return forecast if self.training else forecast * float("nan")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_InfiniteLoss, "the training loss is inf at step 3 .*last finite loss 0"),
        (_Hungry, r"out of memory in training at micro-batch 2 of 2 sequences: .*data\.micro_batch"),
        (_InfiniteGradient, "a gradient is not finite at step 3"),
        (_Exploding, "the training diverged: loss .* at step 4 .*divergence_factor"),
        (_NanWhenEvaluated, "the validation loss is nan after step 6"),
    ],
)
def test_divergence_ends_the_run_with_a_failure_record(
    storms: Path, tmp_path: Path, monkeypatch, model: type[nn.Module], words: str
) -> None:
    _with_model(monkeypatch, model)
    with pytest.raises(RunFailedError, match=words) as caught:
        _run(storms, tmp_path)
    assert caught.value.exit_code == 3
    (record,), _ = read_records(tmp_path / "results")
    assert record.status == "failed" and record.failure.phase == "training" and not record.scores
    assert record.seed == 0 and record.config["train"]["lr"] == 1e-2
    assert record.config["data"]["batch_size"] == 2, "it was not changed"


def test_divergence_can_be_allowed(storms: Path, tmp_path: Path, monkeypatch) -> None:
    _with_model(monkeypatch, _Exploding)
    assert _run(storms, tmp_path, "train.divergence_factor=null", "train.max_epochs=1").record.status == "ok"


@pytest.mark.usefixtures("small_model")
def test_out_of_memory_in_the_evaluation_is_a_failed_run(storms: Path, tmp_path: Path, monkeypatch) -> None:
    def hungry(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB.")

    monkeypatch.setattr(Forecaster, "test_step", hungry)
    with pytest.raises(RunFailedError, match=r"out of memory in evaluation at micro-batch 8.*data\.micro_batch"):
        _run(storms, tmp_path, "train.max_epochs=1")
    (record,), _ = read_records(tmp_path / "results")
    assert record.failure.phase == "evaluation" and record.config["data"]["batch_size"] == 2, "it was not changed"


class _Endless:
    """Sequences of which the third ends or stops the process that reads it."""

    def __init__(self, end: bool) -> None:
        self.end = end

    def __len__(self) -> int:
        return 4

    def stored(self, index: int) -> tuple[Tensor, ...]:
        if index == 2:
            if self.end:
                time.sleep(1)  # what it gave before has arrived
                os._exit(1)
            time.sleep(600)
        return torch.zeros(1), torch.zeros(1)


@pytest.mark.parametrize("end", [True, False])
def test_a_dead_or_hanging_loader_is_a_failed_run(end: bool) -> None:
    loader = evaluation_loader(_Endless(end), batch_size=1, num_workers=1, limit=None, timeout_s=2)
    started = time.monotonic()
    with pytest.raises(RunFailedError, match=r"reading: .*data\.timeout_s"), translated_errors("reading"):
        list(loader)
    assert time.monotonic() - started < 30


class _Short(Small):
    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context)[:, :3]


class _Whole(Small):
    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context).round().to(torch.int32)


class _Elsewhere(Small):
    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context).to("meta")


class _Several(Small):
    def forward(self, context: Tensor) -> tuple[Tensor, ...]:
        return (super().forward(context),)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_Short, r"_Short returned shape \(2, 3, 32, 32, 1\); expected \(B, T, H, W, C\) = \(2, 12, 32, 32, 1\)"),
        (_Whole, "_Whole returned torch.int32 on cpu; expected floats on cpu"),
        (_Elsewhere, "_Elsewhere returned torch.float32 on meta; expected floats on cpu"),
        (_Several, "_Several returned tuple; expected a tensor"),
    ],
)
def test_an_invalid_forecast_is_refused(
    storms: Path, tmp_path: Path, monkeypatch, model: type[nn.Module], words: str
) -> None:
    _with_model(monkeypatch, model)
    with pytest.raises(ContractError, match=words) as caught:
        _run(storms, tmp_path)
    assert caught.value.exit_code == 2 and read_records(tmp_path / "results") == ([], [])


# Checkpoints that were changed


def test_every_flipped_byte_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / LAST
    whole = {"weights": torch.linspace(0, 1, 64), "name": "a", "steps": [1, 2]}
    CheckpointFiles().save_checkpoint(whole, str(path))
    content = path.read_bytes()
    assert torch.equal(CheckpointFiles().load_checkpoint(str(path))["weights"], whole["weights"])
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        path.write_bytes(bytes(changed))
        with pytest.raises(DataError, match="is damaged"):
            CheckpointFiles().load_checkpoint(str(path))


class _Payload:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("where", ["state_dict", "optimizer_states", "nested"])
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, where: str) -> None:
    payload: Any = _Payload(tmp_path / "pwned")
    content = {"state_dict": {}, "optimizer_states": []}
    content[where] = {"a": [payload]} if where == "nested" else payload
    CheckpointFiles().save_checkpoint(content, str(tmp_path / LAST))
    with pytest.raises(DataError, match="cannot be read safely"):
        CheckpointFiles().load_checkpoint(str(tmp_path / LAST))
    with pytest.raises(DataError):
        load_weights(Small(3), tmp_path / LAST)
    (tmp_path / "bare.ckpt").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(DataError):
        load_weights(Small(3), tmp_path / "bare.ckpt")
    assert not (tmp_path / "pwned").exists() and damage(tmp_path / "bare.ckpt") is not None


# Resuming after something changed


@pytest.mark.usefixtures("small_model")
def test_changed_code_resumes_a_run_only_on_request(storms: Path, tmp_path: Path, monkeypatch) -> None:
    import signal

    step = Forecaster.training_step

    def signalled(self: Forecaster, batch: Any, batch_index: int) -> Any:
        if self.global_step == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Forecaster, "training_step", signalled)
        with pytest.raises(InterruptedRunError):
            _run(storms, tmp_path)
    known = bench.engine.identity.libraries()
    monkeypatch.setattr(bench.engine.identity, "libraries", lambda: known | {"torch": "99.0"})
    with pytest.raises(
        ConfigError, match=r"(?s)trained by other code.*train\.resume=anyway.*torch: trained with .*, now 99\.0"
    ) as caught:
        _run(storms, tmp_path)
    assert caught.value.exit_code == 2
    record = _run(storms, tmp_path, "train.resume=anyway").record
    assert record.training.resumed_count == 1 and record.config["train"]["resume"] == "anyway"


@pytest.mark.usefixtures("small_model")
def test_another_config_or_other_data_is_a_new_run(storms: Path, tmp_path: Path) -> None:
    from bench.data.sevir.synthetic import make_sevir

    other = make_sevir(tmp_path / "other", events={"train": 4, "val": 2, "test": 3}, size=32, seed=2)
    for overrides in ([], ["train.lr=2e-2"], [f"data.root={other}"]):
        _run(storms, tmp_path, "train.max_epochs=1", *overrides)
    assert len(list(tmp_path.glob("work/*/*/*"))) == 3


# Many records


@pytest.mark.fault
def test_a_table_of_500_records_takes_at_most_two_seconds(storms: Path, tmp_path: Path, capsys) -> None:
    from bench.cli.main import main

    record: RunRecord = bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")
    for number in range(500):
        write_record(record.model_copy(update={"run_id": f"r{number}", "seed": number}), tmp_path)
    (tmp_path / "runs/sevir/persistence/torn.json").write_text(json.dumps({"schema_version": 1}))
    started = time.process_time()
    assert main(["table", "runs/sevir", "--results", str(tmp_path)]) == 0
    took = time.process_time() - started
    told = capsys.readouterr()
    assert told.err.count("torn.json") == 1 and "persistence" in told.out
    started = time.process_time()
    for path in tmp_path.rglob("r*.json"):  # reading and hashing, which are unavoidable
        hashlib.sha256(json.dumps(json.loads(path.read_text()), sort_keys=True).encode()).hexdigest()
    least = time.process_time() - started
    assert took < max(2, 2 * least), "a busy machine's seconds of processor time are up to twice as long"
