"""`task.mask_missing=true`: missing pixels are left out of losses and scores, whatever the batches."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import h5py
import lightning
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.config import compose
from bench.data.loading import evaluation_loader
from bench.engine.forecaster import Forecaster
from bench.engine.losses import masked_mse
from bench.engine.run import run
from bench.errors import RunFailedError
from bench.models import load_model
from bench.records.schema import RunRecord

MISSING = 255
SHORT = ["task.t_in=4", "task.t_out=3", "task.stride=7"]


@pytest.fixture(scope="module")
def gaps(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storms with a blind corner, a gap of some frames, and a sequence missing as a whole, in each split."""
    root = tmp_path_factory.mktemp("gaps") / "sevir"
    shutil.copytree(storms, root)
    for path in root.glob("data/vil/*/*.h5"):
        with h5py.File(path, "a") as file:
            codes = file["vil"][...]  # (N, H, W, T)
            codes[:, :9, :5] = MISSING
            codes[0, ..., 3:6] = MISSING
            codes[0, ..., 14:21] = MISSING
            file["vil"][...] = codes
    return root


def _run(root: Path, out: Path, *overrides: str, training: bool = True) -> RunRecord:
    fixed = ["task=sevir", "task.mask_missing=true", "train.max_epochs=1", "train.loggers=[]", "progress=false"]
    fixed += ["picture=false", "device=cpu", f"data.root={root}", f"results.root={out / 'results'}", f"work={out}"]
    return run(compose([*fixed, *SHORT, *overrides]), training=training).record


def test_the_loss_is_the_mean_over_known_pixels() -> None:
    forecast, target = torch.rand(3, 2, 4, 4, 1, requires_grad=True), torch.rand(3, 2, 4, 4, 1)
    torch.testing.assert_close(masked_mse(forecast, target), nn.functional.mse_loss(forecast, target), rtol=0, atol=0)
    target[0], target[1, 0, :2] = math.nan, math.nan
    known = ~torch.isnan(target)
    loss = masked_mse(forecast, target)
    assert loss.item() == pytest.approx(((forecast - target)[known] ** 2).mean().item())
    loss.backward()
    assert torch.isfinite(forecast.grad).all() and not forecast.grad[~known].any() and forecast.grad[known].all()
    assert masked_mse(forecast, target * math.nan) == 0


@pytest.mark.parametrize("name", ["sevir", "radar"])
def test_scores_are_means_over_known_pixels_for_any_batch_size(gaps: Path, tmp_path: Path, name: str) -> None:
    options = [f"task={name}", "task.val_from=2018-01-01", "task.test_from=2018-02-01"]
    found = [
        _run(gaps, tmp_path / str(size), "model=persistence", f"data.batch_size={size}", *options, training=False)
        for size in (1, 3, 32)
    ]
    scores = found[0].scores
    assert all(record.scores == pytest.approx(scores, rel=1e-12) and not record.undefined for record in found[1:])
    task = bench.load_task(name, gaps, mask_missing=True, t_in=4, t_out=3, stride=7, val_from="2018-01-01",
                           test_from="2018-02-01")  # fmt: skip
    data = task.dataset("test")
    pairs = [data.stored(index) for index in range(len(data))]
    targets = np.stack([target.numpy() for _, target in pairs]).astype(float)
    last = np.stack([context.numpy()[-1:] for context, _ in pairs]).astype(float)
    last[last == MISSING] = 0  # no echo
    known = targets != MISSING
    error = ((targets - last) / 255)[known]
    assert (~known).sum() > 0 and scores["mse"] == pytest.approx((error**2).mean())
    assert scores["mae"] == pytest.approx(np.abs(error).mean()) and scores["mse_pixel_count"] == known.sum()
    hits = ((targets >= 16) & (last >= 16))[known].sum()
    union = ((targets >= 16) | (last >= 16))[known].sum()
    assert scores["csi_16"] == pytest.approx(hits / (union + 1e-4))


class _Halved(nn.Module):
    """Own loss in validation, as stages have."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.5))
        if own:
            self.validation_loss = lambda context, target: masked_mse(self(context), target)

    def forward(self, context: Tensor) -> Tensor:
        return context[:, -1:].repeat(1, 3, 1, 1, 1) * self.share


@pytest.mark.parametrize("own", [False, True])
def test_the_validation_loss_does_not_depend_on_the_batch_size(gaps: Path, own: bool) -> None:
    task = bench.load_task("sevir", gaps, mask_missing=True, t_in=4, t_out=3, stride=7)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    losses = []
    for size in (1, 2, 5, 64):
        loader = evaluation_loader(task.dataset("val"), batch_size=size, num_workers=0, limit=None)
        trainer.validate(Forecaster(_Halved(own), task), loader, verbose=False)
        losses.append(float(trainer.callback_metrics["val/loss"]))
    pairs = [task.dataset("val")[index] for index in range(len(task.dataset("val")))]
    squares = torch.cat([(_Halved(False)(c[None])[0] - t)[~torch.isnan(t)].detach() ** 2 for c, t in pairs])
    assert losses == pytest.approx([float(squares.double().mean())] * 4, rel=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=unet", "model.channels=[4]", "model.center_channels=8", "model.norm_momentum=0.1"],
        ["model=e3d_lstm", "model.hidden=[4]", "model.patch_size=8", "model.stem_channels=0", "train.lr=1e-4"],
        ["model=phydnet", "model.conv_hidden=[64]", "model.strides=[2,2,2]"],
        ["model=predrnn", "model.hidden=[4,4]", "model.patch_size=8", "model.stem_channels=0"],
        ["model=damped_persistence"],
        ["model=climatology"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_models_train_with_a_wholly_missing_sequence(gaps: Path, tmp_path: Path, overrides: Any) -> None:
    record = _run(gaps, tmp_path, "data.batch_size=2", "data.micro_batch=1", "train.limit=12", *overrides)
    assert record.status == "ok" and not record.undefined.keys() & {"mse", "mae", "csi_m"}
    assert record.training is not None and (record.training.final_loss is None or record.training.final_loss > 0)


class _OwnLoss(nn.Module):
    """A plugin's, which leaves nothing out."""

    def __init__(self, input_shape, target_shape) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(0.5))

    def forward(self, context: Tensor) -> Tensor:
        return context[:, -1:].repeat(1, 3, 1, 1, 1) * self.share

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> Tensor:
        return (self(context) - target).abs().mean()


def test_a_loss_that_uses_missing_pixels_is_refused_with_advice(gaps: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("bench.engine.run.load_model", lambda *_, **__: _OwnLoss((), ()))
    with pytest.raises(RunFailedError, match=r"missing values \(NaN\), which training_loss of _OwnLoss must leave out"):
        _run(gaps, tmp_path, "model=unet")


def test_tasks_without_masking_are_unchanged(gaps: Path) -> None:
    plain = bench.load_task("sevir", gaps)
    assert {how["convention"] for how in plain.metrics.values()} == {"upstream"}
    assert plain.context_known(torch.full((1, 2, 3, 3, 1), MISSING, dtype=torch.uint8)).all()
    for name in ("sevir", "sevir_lr", "radar"):
        task = bench.load_task(name, gaps, mask_missing=True)
        assert {key: how["convention"] for key, how in task.metrics.items()} == {
            "skill": "upstream", "mse": "correct", "mae": "correct"
        }  # fmt: skip
    assert load_model("persistence", plain) is not None
