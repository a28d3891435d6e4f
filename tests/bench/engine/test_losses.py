"""Losses that are checked late: the right step, the right message, and no checkpoint of diverged weights."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from faults import tiny
from torch import nn

import bench
import bench.engine.losses
from bench import registry
from bench.config import Train
from bench.data.sequences import Example
from bench.engine.callbacks.divergence import DivergenceMonitor
from bench.engine.forecaster import Forecaster
from bench.engine.losses import Losses
from bench.engine.randomness import random_states, restore_random_states
from bench.engine.run import run
from bench.engine.trainer import trainer_device, translated_errors
from bench.errors import ConfigError, RunFailedError

_NO, _YES = torch.tensor(False), torch.tensor(True)


def _add(losses: Losses, step: int, value: float, *, norm: float | None = 1.0, missing: Any = (_NO, None)) -> None:
    parts = {"half": torch.tensor(value / 2)}
    losses.add(torch.tensor(value), parts, step=step, epoch=1, batch=step, missing=missing)
    losses.add_step(None if norm is None else torch.tensor(norm), step=step, epoch=1, lr=0.5)


def test_each_step_is_returned_once_with_its_losses() -> None:
    losses = Losses("sevir", "Net")
    for step in range(3):
        _add(losses, step, step + 1.0)
    found = list(losses.checked_steps())
    assert [(one.step, one.losses) for one in found] == [
        (step, {"train/loss": step + 1.0, "train/half": (step + 1) / 2}) for step in range(3)
    ]
    assert list(losses.checked_steps()) == [] and (losses.first, losses.last) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("values", "norms", "words", "given"),
    [
        (
            [2, 1, math.nan, 1],
            [1] * 4,
            r"the training loss is nan at step 2 \(epoch 1, batch 2\); last finite loss 1",
            2,
        ),
        ([2, 1, 1, 1], [1, math.inf, 1, 1], "a gradient is not finite at step 1 .*though the loss was 1", 1),
        ([2, 1, 1, 300], [1] * 4, "diverged: loss 300 at step 4 .*divergence_factor=100 times the first one, 2", 3),
        ([2, 1, 300, math.nan], [1] * 4, "diverged: loss 300 at step 3", 2),
        ([0, 2, math.inf, 1], [math.nan, 1, 1, 1], "a gradient is not finite at step 0", 0),
    ],
)
def test_the_first_divergence_is_reported(values: list[float], norms: list[float], words: str, given: int) -> None:
    losses, found = Losses("sevir", "Net", 100), []
    for step, (value, norm) in enumerate(zip(values, norms, strict=True)):
        _add(losses, step, value, norm=norm)
    with pytest.raises(RunFailedError, match=words):
        for one in losses.checked_steps():
            found.append(one.step)
    assert found == list(range(given)), "the steps before are logged"


def test_steps_without_a_gradient_norm_pass_and_missing_pixels_are_named() -> None:
    losses = Losses("sevir", "Net")
    _add(losses, 0, 1.0, norm=None)
    assert len(list(losses.checked_steps())) == 1
    for missing, words in (((_YES, None), "task 'sevir' must fill in"), ((_NO, _YES), "training_loss of Net must")):
        _add(losses, 1, math.nan, missing=missing)
        with pytest.raises(RunFailedError, match=words):
            list(losses.checked_steps())


def test_gpu_losses_are_read_every_fifty_batches_or_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bench.engine.losses.time, "monotonic", lambda: now[0])
    losses = Losses("sevir", "Net")
    assert not losses.is_due()
    there = torch.tensor(1.0, device="meta")  # any device but the CPU
    for number in range(50):
        losses.add(there, {}, step=number, epoch=0, batch=number, missing=(_NO, None))
        assert losses.is_due() == (number == 49)
    losses = Losses("sevir", "Net")
    losses.add(there, {}, step=0, epoch=0, batch=0, missing=(_NO, None))
    now[0] = 5.0
    assert losses.is_due()


def test_a_diverged_step_is_never_saved() -> None:
    losses, logged = Losses("sevir", "Net"), []
    logger = SimpleNamespace(log_metrics=lambda row, step: logged.append((step, row["train/loss"])))
    watching = DivergenceMonitor()
    watching._training = (
        SimpleNamespace(loggers=[logger], optimizers=[torch.optim.SGD([torch.zeros(1)])]),
        SimpleNamespace(losses=losses),
    )  # type: ignore[assignment]
    _add(losses, 0, 1.0)
    assert watching.state_dict() == {"first": 1.0} and logged == [(0, 1.0)]
    _add(losses, 1, 2.0)
    _add(losses, 2, math.inf)
    with pytest.raises(RunFailedError, match="inf at step 2"):
        watching.state_dict()
    assert logged == [(0, 1.0), (1, 2.0)]


@pytest.mark.usefixtures("small_model")
def test_a_late_check_ends_the_run_at_the_diverged_step(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: losses are not checked before the epoch ends."""
    monkeypatch.setattr(Losses, "is_due", lambda self: False)
    step = Forecaster.training_step

    def astray(self: Forecaster, batch: Any, batch_index: int) -> torch.Tensor:
        if self.global_step == 2:
            batch = batch._replace(target=batch.target.float() * math.inf)
        return step(self, batch, batch_index)

    monkeypatch.setattr(Forecaster, "training_step", astray)
    with pytest.raises(RunFailedError, match=r"the training loss is .* at step 2 \(epoch 0, batch 2\)"):
        run(tiny(storms, tmp_path, "train.save_every_minutes=null"), training=True)
    assert not list(tmp_path.glob("work/*/*/*/checkpoints/*.ckpt"))


def test_a_nondeterministic_operation_gives_one_message() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    pooled, places = torch.nn.functional.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)
    torch.use_deterministic_algorithms(True)
    try:
        with (
            pytest.raises(ConfigError, match=r"(?s)net uses max_unpool\S* in training, .*train\.deterministic=warn"),
            translated_errors("training", model="net"),
        ):
            torch.nn.functional.max_unpool2d(pooled, places, 2)
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def test_a_gpu_process_group_accepts_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    for strategy in ("auto", "ddp", "fsdp"):
        where = trainer_device("cuda", 8, 1, strategy)
        assert where["strategy"].process_group_backend == "cpu:gloo,cuda:nccl"
        assert trainer_device("cpu", 8, 1, strategy)["strategy"].process_group_backend == "gloo"


@pytest.mark.parametrize("visible", [1, 2, 8])
def test_random_states_of_absent_devices_are_skipped_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, visible: int
) -> None:
    taken: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: visible - 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: taken.append((int(state[0]), device)))
    older = random_states() | {"cuda": [torch.tensor([number], dtype=torch.uint8) for number in range(8)]}
    told = restore_random_states(older)
    assert taken == [(visible - 1, visible - 1)], "its own, and no other"
    assert (told is None) == (visible == 8) and (visible == 8 or f"{visible} is visible" in told)
    own = random_states() | {"cuda": torch.tensor([7], dtype=torch.uint8)}
    assert restore_random_states(own, torch.device("cuda", 0)) is None and taken[-1] == (7, 0)
    assert "resumes on a CPU" in (restore_random_states(own, torch.device("cpu")) or "")
    assert "resumes on a GPU" in (restore_random_states(random_states(), torch.device("cuda", 0)) or "")
    assert restore_random_states(random_states(), torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "stage"),
    [("unet", ""), ("convlstm", ""), ("earthformer", ""), ("phydnet", "")]
    + [("prediff_ka", stage) for stage in ("autoencoder", "denoiser", "alignment")],
)
def test_bfloat16_trains_and_float32_evaluates(name: str, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under `bf16-mixed`, layers are in half precision; losses, latents, noise levels and scores are not."""
    task = bench.load_task("nbody_mnist")
    model = bench.load_model(name, task, **getattr(registry.find("model", name).load(), "presets", {}).get("tiny", {}))
    module = {one.name: one.module for one in model.stages()}[stage] if stage else model
    forecaster = Forecaster(module, task, Train(precision="bf16-mixed"), total_steps=5)
    generator = torch.Generator().manual_seed(0)
    frames = [torch.rand((2, *s), generator=generator) * 255 for s in (task.input_shape, task.target_shape)]
    labels = [torch.rand(2, 3, 28, 28) * 255, torch.rand(2, 2, 3, 2).double() * 40 + 20, torch.rand(2, 10).double()]
    batch = Example(*frames, labels, torch.arange(2))
    scored: list[torch.dtype] = []
    layers: list[tuple[bool, torch.dtype]] = []
    levels: list[torch.dtype] = []
    forecaster.scores.add = lambda seen, *_: scored.extend(part.dtype for part in seen["forecast"])  # type: ignore[method-assign]
    forecaster._log_validation = lambda loss, known: scored.append(loss.dtype)  # type: ignore[method-assign]
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
            layer.register_forward_hook(lambda own, _, found: layers.append((own.training, found.dtype)))
    if stage in ("denoiser", "alignment"):
        schedule_class = type(model.schedule)
        add_noise = schedule_class.add_noise

        def seen(self: Any, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            table = self.at("sqrt_alphas_cumprod", t, latents)
            found = add_noise(self, latents, noise, t)
            levels.extend(part.dtype for part in (latents, noise, table, found))
            return found

        monkeypatch.setattr(schedule_class, "add_noise", seen)
    with torch.autocast("cpu", torch.bfloat16):
        forecaster.train()
        loss = forecaster.training_step(batch, 0)
        trained = len(layers)
        with torch.no_grad():
            forecaster.validation_step(batch, 0)
    assert loss.dtype == torch.float32
    assert any(dtype == torch.bfloat16 for _, dtype in layers[:trained]), "autocast is on"
    assert {dtype for _, dtype in layers[trained:]} == {torch.float32}, "and off in validation"
    assert set(scored) == {torch.float32} and set(levels) <= {torch.float32}
    loss.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in module.parameters())
