"""A compute budget is converted to a number of steps once: what it changes, and what it must not change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from faults import tiny
from logged import logged
from torch import Tensor

import bench.engine.budget
from bench import registry
from bench.config import compose
from bench.engine.budget import seconds_per_step, steps_within
from bench.engine.forecaster import Forecaster
from bench.engine.run import run
from bench.errors import ConfigError, InterruptedRunError
from bench.records.schema import TrainingSummary


def _run(storms: Path, out: Path, *overrides: str) -> TrainingSummary:
    training = run(tiny(storms, out, *overrides), training=True).record.training
    assert training is not None
    return training


def _weights(out: Path, name: str = "last") -> dict[str, Tensor]:
    (path,) = out.glob(f"work/*/*/*/checkpoints/{name}.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def _stop_in_step(monkeypatch: pytest.MonkeyPatch, step: int, hook: str = "training_step") -> None:
    """Sends a signal in the training step, or the validation, after the given number of the run's optimiser steps."""
    import signal

    original = getattr(Forecaster, hook)

    def signalled(self: Forecaster, batch: Any, number: int) -> Any:
        if self.global_step == step and self.trainer.checkpoint_callbacks:
            signal.raise_signal(signal.SIGTERM)
        return original(self, batch, number)

    monkeypatch.setattr(Forecaster, hook, signalled)


def test_the_step_time_is_the_median_after_warmup() -> None:
    assert seconds_per_step([9, 9, 9, 1, 2, 1, 1, 30]) == 1
    assert seconds_per_step([9, 9, 9, 1, 3, 2, 4, 1, 3, 7], period=2) == 2, "means over turns; the rest is left out"
    assert steps_within(120, 0.31) == 387 and steps_within(1, 3) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.max_cpu_s=5", "train.max_steps=3"], r"train\.max_cpu_s = 5: .*found max_steps=3 beside it"),
        (["train.max_cpu_s=5", "train.max_device_s=3"], r"train\.max_device_s = 3: .*found max_cpu_s=5 beside it"),
        (["train.max_cpu_s=0"], r"train\.max_cpu_s = 0"),
        (["train.val_every_steps=5", "train.val_every_epochs=2"], r"found val_every_epochs=2 beside it"),
    ],
)
def test_settings_that_contradict_a_budget_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        compose(overrides)
    assert str(caught.value).count("train.") == 1, "one message"


def test_unset_keys_are_not_recorded() -> None:
    plain = compose([]).train.model_dump()
    assert not {"max_cpu_s", "max_device_s", "val_every_steps"} & plain.keys()
    assert compose(["train.max_cpu_s=5"]).train.model_dump()["max_cpu_s"] == 5


@pytest.mark.usefixtures("small_model")
@pytest.mark.parametrize("key", ["max_cpu_s", "max_device_s"])
def test_a_budget_is_bit_identical_to_the_same_number_of_steps(storms: Path, tmp_path: Path, key: str) -> None:
    """`Small` draws random numbers of every kind in each step: the timed ones must not move them."""
    same = [
        "data.micro_batch=1",
        "train.ema_decay=0.9",
        "train.val_every_steps=30",
        "train.early_stopping.patience=999",
    ]
    with logged() as said:
        found = _run(storms, tmp_path / "budget", *same, f"train.{key}=0.3")
    steps = found.budget_steps
    assert steps is not None and found.steps == steps and found.stopped_because == key
    assert any(f"train.{key}=0.3: " in line and f"per step, {steps:,} steps" in line for line in said)
    given = _run(storms, tmp_path / "steps", *same, f"train.max_steps={steps}", "train.max_epochs=100000")
    assert given.budget_steps is None and given.steps == steps and given.best_score == found.best_score
    for name in ("last", "best"):
        assert _equal(_weights(tmp_path / "budget", name), _weights(tmp_path / "steps", name))


@pytest.mark.usefixtures("small_model")
def test_a_resumed_run_keeps_its_steps(storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.engine.budget, "steps_within", lambda *_: 11)
    words = ["train.max_cpu_s=0.01", "train.max_epochs=1"]
    whole = _run(storms, tmp_path / "unbroken", *words)
    assert (whole.steps, whole.budget_steps, whole.epochs) == (11, 11, 2), "epochs of 6 steps"
    with monkeypatch.context() as patch:
        _stop_in_step(patch, 3)
        with pytest.raises(InterruptedRunError, match="saved after step 4"):
            _run(storms, tmp_path / "broken", *words)
    monkeypatch.setattr(bench.engine.budget, "steps_within", lambda *_: pytest.fail("timed again"))
    resumed = _run(storms, tmp_path / "broken", *words)
    assert (resumed.steps, resumed.budget_steps, resumed.resumed_count) == (11, 11, 1)
    assert _equal(_weights(tmp_path / "broken"), _weights(tmp_path / "unbroken"))


@pytest.mark.usefixtures("small_model")
def test_training_records_its_time(storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train.max_epochs=2", "train.save_every_minutes=null"]
    whole = _run(storms, tmp_path / "unbroken", *words)
    assert whole.cpu_s is not None and whole.cpu_s > 0 and whole.device_s is None
    assert whole.validation_s is not None and 0 < whole.validation_s < whole.wall_s
    with monkeypatch.context() as patch:
        _stop_in_step(patch, 7)
        with pytest.raises(InterruptedRunError):
            _run(storms, tmp_path / "broken", *words)
    (last,) = (tmp_path / "broken").glob("work/*/*/*/checkpoints/last.ckpt")
    before = torch.load(last)["callbacks"]["Spent"]
    resumed = _run(storms, tmp_path / "broken", *words)
    assert resumed.cpu_s is not None and resumed.cpu_s > before["cpu_s"] > 0
    assert resumed.validation_s is not None and resumed.validation_s > before["validation_s"] > 0


def test_stages_have_budgets_of_their_own(storms: Path, tmp_path: Path) -> None:
    tiny_sizes = registry.find("model", "videogpt").load().presets["tiny"]
    words = [
        "task=sevir_lr", "task.t_in=3", "task.t_out=2", "task.stride=12", "limit=1", "data.batch_size=2",
        "train.lr=1e-3",
        "model=videogpt", *(f"model.{key}={value}" for key, value in tiny_sizes.items()), "evaluate.members=1",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"train\.max_cpu_s=5: videogpt .* train\.stages\.vqvae\.max_cpu_s=S"):
        run(tiny(storms, tmp_path, *words, "train.max_cpu_s=5"), training=True)
    budgets = [f"train.stages.{stage}.max_cpu_s=0.1" for stage in ("vqvae", "gpt")]
    with logged() as said:
        training = _run(storms, tmp_path, *words, *budgets)
    assert sum("train.max_cpu_s=0.1" in line for line in said) == 2
    assert training.stopped_because == "vqvae: max_cpu_s; gpt: max_cpu_s" and training.budget_steps is None
    assert training.cpu_s is not None and training.cpu_s > 0 and training.steps >= 2


# Validations by steps


@pytest.mark.usefixtures("small_model")
@pytest.mark.parametrize(
    ("every", "schedule", "hook", "step"),
    [
        (2, "cosine", "training_step", 2),  # the last of an epoch of three
        (2, "plateau", "training_step", 5),  # and before a validation
        (4, "plateau", "training_step", 7),  # within an epoch, before a validation
        (4, "cosine", "validation_step", 4),
        (4, "plateau", "validation_step", 12),  # at the end of an epoch
        (7, "plateau", "training_step", 9),
    ],
)
def test_a_run_resumed_at_any_step_validates_and_selects_the_same(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, schedule: str, hook: str, step: int
) -> None:
    """The last of the three steps of an epoch has fewer sequences and micro-batches than the others."""
    words = [
        f"train.val_every_steps={every}", f"train.schedule={schedule}", "train.max_steps=15", "train.max_epochs=9",
        "data.batch_size=5", "data.micro_batch=2", "train.early_stopping.patience=99",
        "train.plateau_patience=0" if schedule == "plateau" else "train.warmup_fraction=0.2",
    ]  # fmt: skip
    validated: list[int] = []
    ends = Forecaster.on_validation_epoch_end

    def ended(self: Forecaster) -> None:
        validated.append(self.global_step)
        ends(self)

    monkeypatch.setattr(Forecaster, "on_validation_epoch_end", ended)
    whole = _run(storms, tmp_path / "unbroken", *words)
    assert validated == [*range(every, 15, every), 15]
    validated.clear()
    with monkeypatch.context() as patch:
        _stop_in_step(patch, step, hook)
        with pytest.raises(InterruptedRunError):
            _run(storms, tmp_path / "broken", *words)
    resumed = _run(storms, tmp_path / "broken", *words)
    assert validated == [*range(every, 15, every), 15], "each validation once"
    assert resumed.resumed_count == 1 and resumed.best_score == whole.best_score
    for name in ("last", "best"):
        assert _equal(_weights(tmp_path / "broken", name), _weights(tmp_path / "unbroken", name))


@pytest.mark.usefixtures("small_model")
def test_an_augmented_run_resumes_bit_identically(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["task.augment=true", "train.max_epochs=2"]
    _run(storms, tmp_path / "unbroken", *words)
    with monkeypatch.context() as patch:
        _stop_in_step(patch, 7)
        with pytest.raises(InterruptedRunError):
            _run(storms, tmp_path / "broken", *words)
    _run(storms, tmp_path / "broken", *words)
    assert _equal(_weights(tmp_path / "broken"), _weights(tmp_path / "unbroken"))
    _run(storms, tmp_path / "plain", words[1])
    assert not _equal(_weights(tmp_path / "plain"), _weights(tmp_path / "unbroken"))
