"""Training through the pipeline on tiny storms: records, resume, signals, failures."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from logged import logged
from torch import Tensor, nn

import bench
import bench.engine.callbacks.resume
from bench.config import Config, compose
from bench.engine.run import Outcome, run
from bench.errors import ConfigError, DataError, InterruptedRunError, RunFailedError
from bench.models import has_weights, load_weights
from bench.records.learning_curves import LearningCurve, read_learning_curve
from bench.records.store import read_records

TINY = [
    "task=sevir", "model=unet", "model.channels=[4]", "model.center_channels=8", "model.norm_momentum=0.1",
    "data.batch_size=4", "train.max_epochs=2", "train.loggers=[csv]", "progress=false", "picture=false", "device=cpu",
]  # fmt: skip


def _config(storms: Path, out: Path, *overrides: str) -> Config:
    return compose(
        [*TINY, f"data.root={storms}", f"results.root={out / 'results'}", f"work={out / 'work'}", *overrides]
    )


def _run(storms: Path, out: Path, *overrides: str) -> Outcome:
    return run(_config(storms, out, *overrides), training=True)


def _weights(out: Path, name: str = "last") -> dict[str, Tensor]:
    (path,) = out.glob(f"work/*/*/*/checkpoints/{name}.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def _curve(outcome: Outcome, out: Path) -> LearningCurve | None:
    return read_learning_curve(outcome.record, out / "results")


def _stop_after(monkeypatch: pytest.MonkeyPatch, step: int, *, crash: bool = False) -> None:
    """Ends a run after an optimiser step: by SIGTERM to its own handler, or by an unexpected error."""
    import signal

    after = bench.engine.callbacks.resume.Resume.on_train_batch_end

    def then_signal(self, trainer, module, outputs, batch, batch_idx) -> None:
        after(self, trainer, module, outputs, batch, batch_idx)
        if trainer.global_step == step:
            if crash:
                raise ZeroDivisionError("out of nowhere")
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(bench.engine.callbacks.resume.Resume, "on_train_batch_end", then_signal)


def test_a_run_writes_a_record_a_log_and_the_best_weights(storms: Path, tmp_path: Path) -> None:
    outcome = _run(storms, tmp_path, "picture=true", "train.early_stopping.monitor=val/mse")
    record = outcome.record
    assert record.scope == "full" and record.training is not None
    assert (record.training.epochs, record.training.steps, record.training.weights) == (2, 6, "best")
    assert record.training.monitor == "val/mse" and record.training.best_score is not None
    assert outcome.picture_path is not None and outcome.picture_path.stat().st_size > 10_000
    (log,) = tmp_path.glob("work/**/metrics.csv")
    with log.open() as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["train/lr"]) for row in rows if row.get("train/lr")]
    assert rates[0] == 0 and max(rates) == pytest.approx(1e-3) and rates[-1] < max(rates), "warm-up, then cosine"
    # the same checkpoint through `evaluate` gives the same scores
    (best,) = tmp_path.glob("work/*/*/*/checkpoints/best.ckpt")
    again = run(_config(storms, tmp_path, f"checkpoint={best}"), training=False).record
    assert again.counts == record.counts and again.checkpoint_sha256 == record.checkpoint_sha256
    assert again.training == record.training, "a checkpoint of ours knows how it came about"


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_one_cycle_equals_torchs_per_step(storms: Path, tmp_path: Path, optimizer: str) -> None:
    options = ["train.schedule=onecycle", f"train.optimizer={optimizer}", "train.lr=2e-3", "data.micro_batch=2"]
    outcome = _run(storms, tmp_path, *options)
    assert outcome.record.training is not None and outcome.record.training.settings["schedule"] == "onecycle"
    (log,) = tmp_path.glob("work/**/metrics.csv")
    with log.open() as file:
        rates = [float(row["train/lr"]) for row in csv.DictReader(file) if row["train/lr"]]
    theirs = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=2e-3, total_steps=outcome.record.training.steps)
    expected = []
    for _ in range(outcome.record.training.steps):
        expected.append(schedule.get_last_lr()[0])
        theirs.step()
        schedule.step()
    assert rates == pytest.approx(expected, rel=1e-6)
    assert rates[0] == pytest.approx(2e-3 / 25) and rates[-1] == pytest.approx(2e-3 / 25 / 1e4)


def test_a_run_shorter_than_an_epoch_keeps_the_last_weights(storms: Path, tmp_path: Path) -> None:
    with logged() as said:
        training = _run(storms, tmp_path, "train.max_steps=1").record.training
    assert any("no validation was due" in line and "the last weights are used" in line for line in said)
    assert training is not None and (training.steps, training.weights, training.stopped_because) == (
        1,
        "last",
        "max_steps",
    )
    assert _weights(tmp_path)


def test_repeating_a_finished_command_does_not_retrain(storms: Path, tmp_path: Path) -> None:
    first = _run(storms, tmp_path)
    with logged() as lines:
        second = run(_config(storms, tmp_path), training=True)
    assert any("training had ended" in line for line in lines)
    assert first.record.scores == second.record.scores and first.record_path != second.record_path
    assert _curve(first, tmp_path) == _curve(second, tmp_path) is not None


Unbroken = Callable[..., tuple[Outcome, Path]]


@pytest.fixture(scope="module")
def unbroken(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    """Returns the outcome and the folder of an uninterrupted run, which is made once for some settings."""

    @functools.cache
    def made(*overrides: str) -> tuple[Outcome, Path]:
        out = tmp_path_factory.mktemp("unbroken")
        return _run(storms, out, *overrides), out

    return made


_AVERAGED, _ONE_CYCLE = ["train.ema_decay=0.9"], ["train.schedule=onecycle"]


@pytest.mark.parametrize(("step", "overrides"), [(1, _AVERAGED), (2, []), (3, _AVERAGED), (5, []), (4, _ONE_CYCLE)])
def test_an_interrupted_run_resumes_bit_identically(
    storms: Path, tmp_path: Path, unbroken: Unbroken, monkeypatch, step: int, overrides: list[str]
) -> None:
    whole, folder = unbroken(*overrides)
    with monkeypatch.context() as patch:
        _stop_after(patch, step)
        with pytest.raises(InterruptedRunError, match=f"SIGTERM; saved after step {step} ") as caught:
            _run(storms, tmp_path / "broken", *overrides)
    assert caught.value.exit_code == 130
    resumed = _run(storms, tmp_path / "broken", *overrides)
    assert resumed.record.training is not None and resumed.record.training.resumed_count == 1
    expected, found = _weights(folder), _weights(tmp_path / "broken")
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    seen, all_of_it = _curve(resumed, tmp_path / "broken"), _curve(whole, folder)
    assert seen is not None and all_of_it is not None and seen.val == all_of_it.val
    missed = set(all_of_it.train) - set(seen.train)
    assert {at for at, _ in missed} <= {step}, "Lightning logs a step after the callbacks that may end it"


def test_a_run_stopped_in_validation_resumes_bit_identically(
    storms: Path, tmp_path: Path, unbroken: Unbroken, monkeypatch
) -> None:
    import signal

    from bench.engine.forecaster import Forecaster

    _, folder = unbroken()
    validate = Forecaster.validation_step

    def signal_first(self: Forecaster, batch, batch_index: int) -> None:
        if self.current_epoch == 0 and batch_index == 0:
            signal.raise_signal(signal.SIGINT)
        validate(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Forecaster, "validation_step", signal_first)
        with pytest.raises(InterruptedRunError):
            _run(storms, tmp_path / "broken")
    _run(storms, tmp_path / "broken")
    expected, found = _weights(folder), _weights(tmp_path / "broken")
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_crashed_run_resumes_bit_identically_from_the_last_epoch(
    storms: Path, tmp_path: Path, unbroken: Unbroken, monkeypatch
) -> None:
    whole, folder = unbroken()
    with monkeypatch.context() as patch:
        _stop_after(patch, 5, crash=True)
        with pytest.raises(ZeroDivisionError):
            _run(storms, tmp_path / "broken")
    resumed = _run(storms, tmp_path / "broken")
    expected, found = _weights(folder), _weights(tmp_path / "broken")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert _curve(resumed, tmp_path / "broken") == _curve(whole, folder), "steps taken twice count once"


def test_the_running_average_is_evaluated(storms: Path, tmp_path: Path) -> None:
    record = _run(storms, tmp_path, "train.ema_decay=0.5").record
    state = _weights(tmp_path, "best")
    task = bench.load_task("sevir", storms)
    model = bench.load_model("unet", task, channels=[4], center_channels=8, norm_momentum=0.1)
    (best,) = tmp_path.glob("work/*/*/*/checkpoints/best.ckpt")
    load_weights(model, best)
    assert record.training is not None and record.training.averaged
    assert torch.equal(model.state_dict()["head.weight"], state["average.module.head.weight"])
    assert not torch.equal(state["model.head.weight"], state["average.module.head.weight"])


class _Exploding(nn.Module):
    def __init__(self, input_shape, target_shape) -> None:
        super().__init__()
        self.weight, self.t_out, self.calls = nn.Parameter(torch.ones(1)), target_shape[0], 0

    def forward(self, context: Tensor) -> Tensor:
        self.calls += 1
        forecast = context[:, -1:].repeat(1, self.t_out, 1, 1, 1) * self.weight
        return forecast * float("nan") if self.calls > 2 else forecast


class _WrongShape(_Exploding):
    def forward(self, context: Tensor) -> Tensor:
        return context * self.weight


def _with_model(monkeypatch: pytest.MonkeyPatch, model_class: type) -> None:
    monkeypatch.setattr(
        "bench.engine.run.load_model", lambda name, task, **_: model_class(task.input_shape, task.target_shape)
    )


def test_a_nan_loss_ends_the_run_with_a_failure_record(storms: Path, tmp_path: Path, monkeypatch) -> None:
    _with_model(monkeypatch, _Exploding)
    with pytest.raises(RunFailedError, match="training loss is nan at step 2") as caught:
        _run(storms, tmp_path)
    assert caught.value.exit_code == 3
    (record,), _ = read_records(tmp_path / "results")
    assert (
        record.status == "failed"
        and record.failure is not None
        and record.failure.phase == "training"
        and not record.scores
    )


def test_a_forecast_of_the_wrong_shape_is_refused(storms: Path, tmp_path: Path, monkeypatch) -> None:
    from bench.errors import ContractError

    _with_model(monkeypatch, _WrongShape)
    with pytest.raises(ContractError, match=r"expected \(B, T, H, W, C\) = \(4, 12, 32, 32, 1\)"):
        _run(storms, tmp_path)
    assert read_records(tmp_path / "results")[0] == []


def test_out_of_memory_gives_advice(storms: Path, tmp_path: Path, monkeypatch) -> None:
    class Hungry(_Exploding):
        def forward(self, context: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB.")

    _with_model(monkeypatch, Hungry)
    with pytest.raises(RunFailedError, match=r"data\.micro_batch"):
        _run(storms, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.early_stopping.monitor=val/csi_n"], "Did you mean 'val/csi_m'"),
        (["task.t_in=40"], "32|49 frames"),
        (["model.channels=[]"], "channels"),
        (["data.root=null"], "data.root is not set"),
        (["work=/proc/not/here"], "work: folder"),
        (["data.root=/not/there"], "not a folder"),
        (["checkpoint=/not/there.ckpt"], "not a file"),
    ],
)
def test_wrong_input_is_refused_before_training(storms: Path, tmp_path: Path, overrides: list[str], words: str) -> None:
    training = not overrides[0].startswith("checkpoint")
    with pytest.raises((ConfigError, DataError), match=words):
        run(_config(storms, tmp_path, *overrides), training=training)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.ckpt"))


def test_a_run_never_trains_on_its_evaluation_split(storms: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="share"):
        _run(storms, tmp_path, f"data.test_root={storms}", "task.test_from=2018-01-01", "task.val_from=2020-01-01")


def test_checkpoints_with_code_or_of_another_model_are_refused(storms: Path, tmp_path: Path) -> None:
    task = bench.load_task("sevir", storms)
    model = bench.load_model("unet", task, channels=[4], center_channels=8)
    torch.save({"state_dict": {"model.x": torch.ones(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ConfigError, match="unexpected: x"):
        load_weights(model, tmp_path / "other.ckpt")
    name = next(iter(model.state_dict()))
    torch.save({"state_dict": {**model.state_dict(), name: 3}}, tmp_path / "number.ckpt")
    with pytest.raises(ConfigError, match=f"shape of {name}: none in the file"):
        bench.load_weights(model, tmp_path / "number.ckpt")

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    torch.save({"state_dict": Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(DataError, match="cannot be read safely"):
        load_weights(model, tmp_path / "evil.ckpt")
    assert not (tmp_path / "pwned").exists()


def test_persistence_is_not_trained(storms: Path, tmp_path: Path) -> None:
    record = run(
        _config(
            storms, tmp_path, "model=persistence", "~model.channels", "~model.center_channels", "~model.norm_momentum"
        ),
        training=True,
    ).record
    assert record.training is None and record.scope == "full"
    assert not has_weights(bench.load_model("persistence", bench.load_task("sevir")))


def test_scores_on_the_training_data_are_partial(storms: Path, tmp_path: Path) -> None:
    record = _run(storms, tmp_path, "split=all").record
    assert record.scope == "partial" and record.scope_because == "evaluated on 4 events that it was trained on"


def test_run_refuses_a_checkpoint(storms: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="earthbench evaluate"):
        _run(storms, tmp_path, "checkpoint=x.ckpt")


@pytest.mark.parametrize("phase", ["fit", "test"])
def test_ctrl_c_outside_a_training_step_interrupts_the_run(
    storms: Path, tmp_path: Path, monkeypatch, phase: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = {"fit": "on_train_start", "test": "on_test_start"}[phase]
    monkeypatch.setattr(f"bench.engine.forecaster.Forecaster.{hook}", interrupt, raising=False)
    with pytest.raises(InterruptedRunError):
        _run(storms, tmp_path)


def test_evaluating_untrained_weights_is_a_partial_run(storms: Path, tmp_path: Path) -> None:
    record = run(_config(storms, tmp_path), training=False).record
    assert record.scope == "partial" and record.scope_because == "untrained weights"
