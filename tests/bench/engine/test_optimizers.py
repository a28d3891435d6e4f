"""Models with parameter groups: learning rates, schedule, alternation, resuming, and settings that do not apply."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from simulated_gpu import simulated_gpu
from torch import Tensor, nn

import bench
import bench.engine.callbacks.resume
import bench.engine.train
from bench.config import Config, Train, compose
from bench.engine.forecaster import Forecaster
from bench.engine.optimizers import parameter_groups, refuse_settings
from bench.engine.run import run
from bench.errors import ConfigError, ContractError, InterruptedRunError
from bench.testing import check_model

TINY = [
    "task=sevir", "task.t_in=4", "task.t_out=3", "task.stride=20",
    "model=dgmr", "model.channels=[8,16]", "model.context_channels=[4,8]", "model.latent_widths=[8,16]",
    "model.discriminator_channels=[8,16]", "model.grid_samples=2", "model.members=2", "model.generator_lr=1e-3",
    "model.discriminator_lr=2e-3", "data.batch_size=4", "train.max_epochs=2", "train.warmup_fraction=0.5",
    "train.warmup_start_ratio=0.1", "train.loggers=[csv]", "progress=false", "picture=false", "device=cpu",
]  # fmt: skip


class _TwoParts(nn.Module):
    """Two factors of the last frame; the second is trained in every other step."""

    def __init__(self, input_shape, target_shape) -> None:
        super().__init__()
        self.t_out = target_shape[0]
        self.one, self.other = nn.Linear(1, 1), nn.Linear(1, 1)

    def optimizers(self) -> list:
        return [(self.one.parameters(), 0.1, (0.0, 0.9)), (self.other.parameters(), 0.2, (0.5, 0.9))]

    def forward(self, context: Tensor) -> Tensor:
        return self.other(self.one(context[:, -1:].repeat(1, self.t_out, 1, 1, 1)))

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> Tensor:
        last = context[:, -1:]
        made = self.other(self.one(last).detach()) if step % 2 else self.one(last)
        return (made - target).square().mean()


def test_alternating_optimizers_keep_the_contract() -> None:
    check_model(_TwoParts)


def test_an_optimizer_that_never_steps_is_found() -> None:
    class Idle(_TwoParts):
        def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> Tensor:
            return super().training_loss(context, target, step=0, total_steps=total_steps)

    with pytest.raises(ContractError, match=r"other\.weight gets no gradient"):
        check_model(Idle)


@pytest.mark.parametrize("named", [["one"], ["one", "one", "other"]])
def test_each_parameter_is_named_once(named: list[str]) -> None:
    class Wrong(_TwoParts):
        def optimizers(self) -> list:
            return [(getattr(self, name).parameters(), 0.1, (0.9, 0.99)) for name in named]

    wrong = "other.weight" if named == ["one"] else "one.weight"
    with pytest.raises(ContractError, match=f"must name every trained parameter once, which is not so for {wrong}"):
        check_model(Wrong)


def test_parameter_groups_keep_rates_and_norms_have_no_decay() -> None:
    model = _TwoParts((4, 8, 8, 1), (3, 8, 8, 1))
    groups, lr = parameter_groups(model, Train(weight_decay=0.01))
    assert lr == 1.0
    found = [(g["lr_scale"], g["betas"], g["weight_decay"], [p.ndim for p in g["params"]]) for g in groups]
    assert found == [
        (0.1, (0.0, 0.9), 0.01, [2]), (0.1, (0.0, 0.9), 0.0, [1]),
        (0.2, (0.5, 0.9), 0.01, [2]), (0.2, (0.5, 0.9), 0.0, [1]),
    ]  # fmt: skip
    plain = nn.Linear(1, 1)
    assert parameter_groups(plain, Train(lr=0.3)) == (plain, 0.3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"lr": 1e-4}, "train.lr=0.0001"), ({"betas": (0.5, 0.9)}, r"train.betas=\[0.5, 0.9\]"),
     ({"optimizer": "sgd"}, "train.optimizer=sgd")],
)  # fmt: skip
def test_shared_optimizer_settings_are_refused_for_models_with_their_own(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=f"{words}: _TwoParts has its own learning rates and betas"):
        refuse_settings(_TwoParts((4, 8, 8, 1), (3, 8, 8, 1)), Train(**settings))
    refuse_settings(nn.Linear(1, 1), Train(**settings))


def _task(shape: tuple[int, int, int, int]) -> SimpleNamespace:
    own = {"metrics": {}, "presets_of": None, "further_channels": ()}
    return SimpleNamespace(name="any", input_shape=shape, target_shape=(3, *shape[1:]), **own)


def test_one_cycle_scales_each_rate_and_keeps_betas() -> None:
    shape = (4, 8, 8, 1)
    task = SimpleNamespace(
        name="any", input_shape=shape, target_shape=(3, 8, 8, 1), metrics={}, presets_of=None, further_channels={},
        cell_weights=dict,
    )  # fmt: skip
    model = _TwoParts(shape, (3, 8, 8, 1))
    made = Forecaster(model, task, Train(schedule="onecycle"), total_steps=10).configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    found = []
    for _ in range(9):
        optimizer.step()
        schedule.step()
        found.append([group["lr"] for group in optimizer.param_groups[::2]])
    assert max(found) == pytest.approx([0.1, 0.2])
    assert all(other == pytest.approx(2 * one) for one, other in found)
    assert [group["betas"] for group in optimizer.param_groups[::2]] == [(0.0, 0.9), (0.5, 0.9)]


def _config(root: Path, out: Path, *overrides: str) -> Config:
    return compose([*TINY, f"data.root={root}", f"results.root={out / 'results'}", f"work={out / 'work'}", *overrides])


def _run(root: Path, out: Path, *overrides: str):
    return run(_config(root, out, *overrides), training=True, say=lambda line: None)


def _checkpoint(out: Path) -> dict:
    (path,) = out.glob("work/*/*/*/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)


class _Watches(Callback):
    """Keeps the learning rates of each optimiser step, and which networks it changed."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.moved: list[list[bool]] = []
        self._before: list[Tensor] = []

    @staticmethod
    def _weights(module) -> list[Tensor]:
        parts = (module.model.generator, module.model.discriminators)
        return [torch.cat([weight.detach().flatten() for weight in part.parameters()]) for part in parts]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self._before = self._weights(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if len(self.moved) < trainer.global_step:
            now = self._weights(pl_module)
            self.moved.append([not torch.equal(a, b) for a, b in zip(self._before, now, strict=True)])


@pytest.mark.parametrize("micro_batch", [4, 2])
def test_alternating_networks_have_scheduled_rates(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_batch: int
) -> None:
    watch, add = _Watches(), bench.engine.train.shown_progress
    monkeypatch.setattr(bench.engine.train, "shown_progress", lambda *args, **options: [*add(*args, **options), watch])
    outcome = _run(storms, tmp_path, f"data.micro_batch={micro_batch}", "train.ema_decay=0.9", "train.clip_norm=1.0")
    training = outcome.record.training
    assert training is not None and training.averaged
    steps = training.steps
    assert steps >= 6
    assert watch.moved == [[step % 3 == 2, step % 3 != 2] for step in range(steps)]
    warm = steps // 2
    for step, (generator, discriminators) in enumerate(rates[::2] for rates in watch.rates):  # each without decay, too
        assert discriminators == pytest.approx(2 * generator)
        if step <= warm:
            assert generator == pytest.approx(1e-3 * (0.1 + 0.9 * step / warm))
    state = _checkpoint(tmp_path)["optimizer_states"][0]
    assert {tuple(group["betas"]) for group in state["param_groups"]} == {(0.0, 0.999)}


def test_a_stopped_run_of_two_networks_resumes_bit_identically(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    _run(storms, tmp_path / "unbroken")
    resume = bench.engine.callbacks.resume.Resume
    after = resume.on_train_batch_end

    def then_signal(self, trainer, module, outputs, batch, batch_idx) -> None:
        after(self, trainer, module, outputs, batch, batch_idx)
        if trainer.global_step == 2:  # before the generator's turn
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(resume, "on_train_batch_end", then_signal)
        with pytest.raises(InterruptedRunError):
            _run(storms, tmp_path / "broken")
    _run(storms, tmp_path / "broken")
    whole, resumed = _checkpoint(tmp_path / "unbroken"), _checkpoint(tmp_path / "broken")
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    assert all(torch.equal(value, resumed["state_dict"][name]) for name, value in whole["state_dict"].items())
    for number, state in whole["optimizer_states"][0]["state"].items():
        other = resumed["optimizer_states"][0]["state"][number]
        assert all(torch.equal(value, other[name]) for name, value in state.items())


def test_learning_rates_of_a_model_are_part_of_the_identity(storms: Path, tmp_path: Path) -> None:
    outcome = _run(storms, tmp_path, "train.max_epochs=1")
    training = outcome.record.training
    assert training is not None
    hyperparameters = training.identity.hyperparameters
    assert (hyperparameters["generator_lr"], hyperparameters["discriminator_lr"]) == (1e-3, 2e-3)
    assert "members" not in hyperparameters


def test_a_shared_learning_rate_is_refused_before_training(storms: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.lr=0\.01: DGMR has its own learning rates and betas"):
        _run(storms, tmp_path, "train.lr=0.01")


def test_plateau_divides_the_rate_by_ten() -> None:
    shape = (4, 8, 8, 1)
    task = SimpleNamespace(
        name="any", input_shape=shape, target_shape=(3, 8, 8, 1), metrics={}, presets_of=None, further_channels={},
        cell_weights=dict,
    )  # fmt: skip
    settings = Train(schedule="plateau", plateau_patience=1, lr=1e-2)
    forecaster = Forecaster(nn.Linear(1, 1), task, settings, total_steps=10)
    made = forecaster.configure_optimizers()
    how = made["lr_scheduler"]
    assert how["monitor"] == "val/loss"
    rates = []
    for loss in (1.0, 0.5, 0.6, 0.7, 0.4, 0.4, 0.4):
        forecaster.lr_scheduler_step(how["scheduler"], loss)
        rates.append(made["optimizer"].param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, 1e-3, 1e-3, 1e-3, 1e-4])


@pytest.mark.parametrize(
    ("settings", "fused"),
    [
        ({}, True),
        ({"precision": "bf16-mixed"}, False),  # Lightning refuses to clip for it
        ({"precision": "bf16-mixed", "clip_norm": None}, True),
        ({"precision": "16-mixed", "clip_norm": None}, False),
    ],
)
def test_the_optimizer_is_fused_on_a_gpu_if_lightning_allows_it(settings: dict[str, Any], fused: bool) -> None:
    task = bench.load_task("nbody_mnist")
    model = bench.load_model("convlstm", task, hidden=[4], strides=[1], conv_kernels=[3], deconv_kernels=[3])
    forecaster = Forecaster(model, task, Train(**settings), total_steps=5)
    assert not forecaster.configure_optimizers()["optimizer"].defaults["fused"], "on a CPU"
    with simulated_gpu():
        forecaster.to("cuda")
        assert bool(forecaster.configure_optimizers()["optimizer"].defaults["fused"]) is fused
