"""Selection of the best weights: each score has a direction, and undefined scores are ignored."""

from __future__ import annotations

import json
import math
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from logged import logged
from torch import Tensor, nn

import bench
from bench import registry
from bench.config import EarlyStopping, compose, fingerprint, numbers_only
from bench.engine.callbacks.selection import KeepBest, Monitor, choose_monitor
from bench.engine.ensembles import Ensemble
from bench.engine.forecaster import Forecaster
from bench.engine.run import Outcome, run
from bench.errors import ConfigError
from bench.metrics.names import BIAS_UPSTREAM_PERFECT, Better, better_of
from bench.tables.definitions import Column

TINY = [
    "task=sevir", "model=unet", "model.channels=[4]", "model.center_channels=8", "data.batch_size=4",
    "train.loggers=[csv]", "progress=false", "picture=false", "device=cpu",
]  # fmt: skip


def _run(storms: Path, out: Path, *overrides: str) -> Outcome:
    chosen = [*TINY, f"data.root={storms}", f"results.root={out / 'results'}", f"work={out / 'work'}", *overrides]
    return run(compose(chosen), training=True)


# Directions


@pytest.mark.parametrize(
    ("score", "better"),
    [
        ("csi_m", "higher"), ("csi_219_pool16_lead_3", "higher"), ("csi_m_per_lead_mean_members", "higher"),
        ("csi_0.5_members_lead_2", "higher"), ("pod_16", "higher"), ("sucr_m", "higher"), ("hss_m", "higher"),
        ("fss_74_window5", "higher"), ("far_m", "lower"), ("bias_m_lead_12", 1.0),
        ("bias_upstream_16", BIAS_UPSTREAM_PERFECT), ("csi_undefined_count", None),
        ("mse", "lower"), ("mse_lead_1", "lower"), ("mae_frame_sum", "lower"), ("mse_pixel_count_members", None),
        ("psnr", "higher"), ("ssim_lead_2", "higher"), ("lpips", "lower"), ("ssim_frame_count", None),
        ("c_nino34_wm", "higher"), ("c_nino34_lead_4", "higher"), ("rmse_nino34", "lower"),
        ("c_nino34_undefined_count", None), ("nino34_label_difference", None),
        ("e_mse", "lower"), ("e_mae_lead_1", "lower"), ("e_mse_target", None), ("e_mse_target_members", None),
        ("crps_fair", "lower"), ("brier_debiased_16", "lower"), ("bss_m", "higher"), ("rmse_of_mean_lead_1", "lower"),
        ("spread", None), ("spread_skill_ratio", 1.0), ("fvd", "lower"), ("frechet_storm", "lower"),
        ("fvd_clip_count", None), ("nothing_known", None), ("csix", None),
    ],
)  # fmt: skip
def test_each_score_has_a_direction(score: str, better: Better | None) -> None:
    assert better_of(score) == better


class _Draws(nn.Module):
    def sample(self) -> None: ...


@pytest.mark.parametrize("name", registry.names("task"))
@pytest.mark.parametrize("ensemble", [None, Ensemble(4)], ids=["forecast", "ensemble"])
def test_every_score_of_every_task_has_a_direction(name: str, ensemble: Ensemble | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns of compute() before update()
        found = Forecaster(_Draws(), bench.load_task(name), ensemble=ensemble).directions()
    without = {re.sub(r"_lead_\d+$", "", score) for score, better in found.items() if better is None}
    assert all(
        re.match(r".*_(count|target)(_ocean|_members)*$|spread$|nino34_label_difference", score) for score in without
    )
    counts = [score for score in found if re.search(r"_count(_members)?$", score)]
    assert all(found[score] is None for score in counts)


def test_the_upstream_bias_has_its_own_perfect_value() -> None:
    for convention, perfect in (("upstream", BIAS_UPSTREAM_PERFECT), ("correct", 1.0)):
        counts = bench.load_metric("skill", convention=convention, t_out=1)
        counts.update(torch.full((1, 1, 8, 8, 1), 230.0), torch.full((1, 1, 8, 8, 1), 230.0))
        assert better_of("bias_m", counts.better) == pytest.approx(perfect)
        assert counts.compute()["bias_m"] == pytest.approx(perfect, rel=1e-3)


def test_a_column_has_the_direction_of_its_score() -> None:
    assert Column(key="csi_m", label="CSI").better == "higher" and Column(key="mae", label="MAE").better == "lower"
    assert Column(key="bias_m", label="BIAS").better is None and Column(key="gmacs", label="GMACs").better is None
    assert Column(key="mae", label="MAE", better=None).better is None


# What is monitored


def _choose(monitor: str, mode: Any = "auto", task: str = "sevir", model: nn.Module | None = None) -> Monitor:
    settings = EarlyStopping(monitor=monitor, mode=mode)
    with logged() as said:
        chosen = choose_monitor(model or nn.Identity(), bench.load_task(task), settings)
    assert not said
    return chosen


@pytest.mark.parametrize(
    ("monitor", "task", "better"),
    [
        ("val/loss", "sevir", "lower"), ("val/csi_m", "sevir", "higher"), ("val/far_16", "sevir", "lower"),
        ("val/bias_m", "radar", 1.0), ("val/mse", "icar_enso", "lower"), ("val/c_nino34_m", "icar_enso", "higher"),
        ("val/rmse_nino34", "enso_ersst", "lower"), ("val/psnr", "moving_mnist", "higher"),
        ("val/ssim", "nbody_mnist", "higher"), ("val/e_mse", "nbody_mnist", "lower"),
    ],
)  # fmt: skip
def test_the_monitor_uses_the_direction_of_its_score(monitor: str, task: str, better: Better) -> None:
    convention = dict(bench.load_task(task).metrics).get("skill", {}).get("convention")
    expected = BIAS_UPSTREAM_PERFECT if better == 1.0 and convention == "upstream" else better
    assert _choose(monitor, task=task).better == expected


def test_a_contrary_mode_overrides_with_a_message() -> None:
    assert _choose("val/csi_m", "max").better == "higher" and _choose("val/mse", "min").better == "lower"
    for monitor, mode, better, words in (
        ("val/csi_m", "min", "lower", "better when it is higher"),
        ("val/bias_m", "max", "higher", "is best at 2.08"),
    ):
        settings = EarlyStopping(monitor=monitor, mode=mode)
        with logged() as said:
            assert choose_monitor(nn.Identity(), bench.load_task("sevir"), settings).better == better
        assert len(said) == 1 and words in said[0] and f"mode={mode}" in said[0]


def test_a_score_without_a_direction_needs_a_mode() -> None:
    with pytest.raises(ConfigError, match="mode=min or max"):
        _choose("val/mse_pixel_count", task="enso_ersst")
    assert _choose("val/mse_pixel_count", "max", task="enso_ersst").better == "higher"


def test_a_model_with_its_own_validation_loss_has_no_other_score() -> None:
    class Own(nn.Module):
        def validation_loss(self, context: Tensor, target: Tensor) -> Tensor:
            return context.mean()

    assert _choose("val/loss", model=Own()).better == "lower"
    with pytest.raises(ConfigError, match="no such score"):
        _choose("val/csi_m", model=Own())


@pytest.mark.parametrize(
    ("said_by_the_class", "expected"),
    [
        ({"higher_is_better": True}, "higher"),
        ({"higher_is_better": False}, "lower"),
        ({"better": {"own_ratio": 1.0}}, 1.0),
        ({"better": {"own": "lower"}, "higher_is_better": True}, "lower"),
        ({"better": {"other": "lower"}}, None),
        ({}, None),
    ],
)
def test_a_plugin_metric_declares_its_direction(monkeypatch, said_by_the_class: dict, expected: Better | None) -> None:
    from torchmetrics import Metric

    class Own(Metric):
        def __init__(self, **options: Any) -> None:
            super().__init__()

        def update(self, forecast: Tensor, target: Tensor) -> None: ...

        def compute(self) -> dict[str, float]:
            return {"own_ratio": math.nan, "own_ratio_lead_1": math.nan}

    for key, value in said_by_the_class.items():
        setattr(Own, key, value)
    monkeypatch.setattr("bench.engine.forecaster.load_metric", lambda name, **options: Own())
    forecaster = Forecaster(nn.Identity(), bench.load_task("radar"))
    assert forecaster.directions() == {"own_ratio": expected, "own_ratio_lead_1": expected}


def test_a_redundant_mode_is_the_same_training() -> None:
    def names(*chosen: str) -> str:
        return fingerprint(numbers_only(compose([*TINY, *chosen]), training=True))

    assert names() == names("train.early_stopping.mode=min") != names("train.early_stopping.mode=max")


# Keeping the best


class _Trainer(SimpleNamespace):
    """The part of Lightning's trainer that `KeepBest` uses."""

    def __init__(self) -> None:
        super().__init__(callback_metrics={}, should_stop=False, global_step=0, saved=[], is_last_batch=True)

    def save_checkpoint(self, path: str) -> None:
        self.saved.append(self.global_step)


def _validated(better: Better, scores: list[float], patience: int = 2) -> tuple[KeepBest, _Trainer, list[str]]:
    trainer, keep = _Trainer(), KeepBest(Monitor("val/own", better), "best.ckpt", patience)
    with logged() as said:
        for step, score in enumerate(scores):
            trainer.global_step, trainer.callback_metrics = step, {"val/own": torch.tensor(score)}
            keep.on_validation_end(trainer, None)
            keep.on_train_epoch_end(trainer, None)
    return keep, trainer, said


_NAN, _INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("better", "scores", "best", "saved", "stops"),
    [
        ("lower", [3, 1, 2], 1, [0, 1], False),
        ("lower", [3, 1, 2, 1], 1, [0, 1], True),
        ("higher", [1, 3, 2], 3, [0, 1], False),
        ("higher", [3, 2, 1], 3, [0], True),
        (1.0, [0.5, 1.6, 1.4, 1.1, 0.95], 0.95, [0, 2, 3, 4], False),
        (1.0, [2.0, 0.0, 2.5], 2.0, [0], True),
        ("higher", [_NAN, _NAN, _NAN, 0.1], 0.1, [3], False),
        ("higher", [_NAN] * 9, None, [], False),
        ("higher", [_INF, 20.0, 30.0], 30.0, [1, 2], False),
        ("higher", [-_INF, 0.1], 0.1, [1], False),
        ("lower", [-_INF, 0.1], 0.1, [1], False),
        ("higher", [0.5, _NAN, _INF], 0.5, [0], True),
    ],
)
def test_a_score_that_is_not_finite_is_never_the_best(better, scores, best, saved, stops) -> None:
    keep, trainer, said = _validated(better, scores)
    assert (keep.best is None) == (best is None) and (best is None or keep.best == pytest.approx(best))
    assert (trainer.saved, trainer.should_stop) == (saved, stops)
    assert len(said) == sum(not math.isfinite(score) for score in scores)


def test_selection_resumes_from_a_checkpoint() -> None:
    before, _, _ = _validated("higher", [3, 2])
    after, trainer, _ = _validated("higher", [])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    after.on_train_start(trainer, None)
    assert not trainer.should_stop
    trainer.callback_metrics = {"val/own": torch.tensor(1.0)}
    after.on_validation_end(trainer, None)
    assert trainer.should_stop and after.stopped


# The whole of it, by the command's own function


def test_an_early_stopped_run_ends_the_same_without_its_summary(storms: Path, tmp_path: Path) -> None:
    # No step changes anything: no validation is better than the first.
    options = ["train.lr=1e-30", "train.max_epochs=8", "train.early_stopping.patience=2"]
    first = _run(storms, tmp_path, *options).record.training
    assert first is not None and first.stopped_because == "no better val/loss for 2 validations"
    assert (first.epochs, first.steps, first.weights) == (3, 9, "best")
    (summary,) = tmp_path.glob("work/**/training.json")
    weights = {path: path.read_bytes() for path in summary.parent.glob("*.ckpt")}
    summary.unlink()
    again = _run(storms, tmp_path, *options).record.training
    assert again is not None and again.resumed_count == 1
    same = {"resumed_count", "wall_s"}
    assert again.model_dump(exclude=same) == first.model_dump(exclude=same)
    assert {path: path.read_bytes() for path in weights} == weights


def test_a_score_that_is_never_defined_keeps_the_last_weights(storms: Path, tmp_path: Path) -> None:
    compute = Forecaster.computed

    def undefined(self: Forecaster) -> dict[str, float]:
        return {name: math.nan if name == "csi_m" else value for name, value in compute(self).items()}

    with pytest.MonkeyPatch.context() as patch, logged() as said:
        patch.setattr(Forecaster, "computed", undefined)
        options = ["train.max_epochs=3", "train.early_stopping.patience=1", "train.early_stopping.monitor=val/csi_m"]
        training = _run(storms, tmp_path, *options).record.training
    assert training is not None and (training.epochs, training.weights, training.best_score) == (3, "last", None)
    assert training.stopped_because == "max_epochs" and not list(tmp_path.rglob("best.ckpt"))
    assert sum("val/csi_m is nan" in line for line in said) == 3
    assert any("no validation gave a finite val/csi_m: the last weights are used" in line for line in said)


def test_selection_by_bias_takes_the_one_nearest_to_perfect(storms: Path, tmp_path: Path) -> None:
    training = _run(storms, tmp_path, "train.max_epochs=3", "train.early_stopping.monitor=val/bias_16").record.training
    (log,) = tmp_path.glob("work/**/metrics.csv")
    rows = [line.split(",") for line in log.read_text().splitlines()]
    column = rows[0].index("val/bias_16")
    seen = [float(row[column]) for row in rows[1:] if row[column]]
    assert training is not None and len(seen) == 3
    assert training.best_score == pytest.approx(min(seen, key=lambda value: abs(value - BIAS_UPSTREAM_PERFECT)))
