"""Logs for TensorBoard besides losses and scores: config, throughput, a forecast per validation."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import Small, tiny
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from torch import Tensor, nn

from bench.api import Palette
from bench.engine import loggers
from bench.engine.run import run
from bench.errors import ConfigError
from bench.tables.thumbnails import pixels_of


@pytest.mark.usefixtures("small_model")
def test_tensorboard_has_forecasts_hyperparameters_and_throughput(storms: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = tiny(storms, tmp_path, "train.loggers=[csv,tensorboard]", "train.max_epochs=2", "train.lr=2e-3")
    outcome = run(given, training=True)
    (folder,) = tmp_path.glob("work/*/*/*/logs/part_0")
    events = EventAccumulator(str(folder))
    events.Reload()
    pictures = events.Images("val/forecast")
    steps = outcome.record.training.steps
    validated = [steps // 2 - 1, steps - 1]
    assert [picture.step for picture in pictures] == validated
    assert all(picture.encoded_image_string.startswith(b"\x89PNG") for picture in pictures)
    assert [one.step for one in events.Scalars("perf/sequences_per_s")] == validated
    scalars = events.Tags()["scalars"]
    for name in ("val/loss", "val/csi_m", "val_details/csi_74", "val_details/pod_219"):
        assert [one.step for one in events.Scalars(name)] == validated, "once per validation"
    assert {name.partition("/")[0] for name in scalars} == {"perf", "train", "val", "val_details"}
    assert len([name for name in scalars if name.startswith("val/")]) < 20
    assert events.Scalars("val/best")[-1].value == pytest.approx(outcome.record.training.best_score)
    settings = (folder / "hparams.yaml").read_text()
    assert "lr: 0.002" in settings and "null" not in settings and "work" not in settings
    (hyperparameters,) = (one for one in events.summary_metadata if one == "_hparams_/experiment")
    declared = events.summary_metadata[hyperparameters].plugin_data.content
    assert b"train/lr" in declared and b"val/csi_m" in declared and b"csi_74" not in declared
    assert "perf/sequences_per_s" in (folder / "metrics.csv").read_text().splitlines()[0]


class _NotInstalled:
    def __init__(self, **_: Any) -> None:
        raise ModuleNotFoundError("Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U wandb`")


class _NotLoggedIn:
    def __init__(self, **_: Any) -> None:
        pass

    @property
    def experiment(self) -> None:
        raise RuntimeError("No API key configured.\nMore of it.")


@pytest.mark.parametrize(
    ("logger", "told"),
    [
        (_NotInstalled, "train.loggers has 'wandb': .* not met. Install it: pip install 'earthbench.wandb.'$"),
        (_NotLoggedIn, "train.loggers has 'wandb', which does not start: No API key configured. `wandb login` stores"),
    ],
)
def test_a_logger_that_does_not_start_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: type, told: str
) -> None:
    monkeypatch.setattr(loggers, "WandbLogger", logger)
    monkeypatch.setitem(loggers._CURES, logger, loggers._CURES[WandbLogger])
    with pytest.raises(ConfigError, match=told):
        loggers.make_loggers(["csv", "wandb"], "unet", tmp_path / "logs/part_0", tmp_path)


class _Drawn(Small):
    """Draws members: the last frame, brighter by a random number that grows with the number of calls."""

    members = 2

    def sample(self, context: Tensor, *, members: int, generator: torch.Generator) -> Tensor:
        assert not self.training
        torch.rand(3), np.random.rand(3)  # what the training draws next must not depend on it
        brighter = torch.rand(members, 1, 1, 1, 1, 1, generator=generator).to(context.device)
        return context[None, :, -1:].expand(-1, -1, len(self.weight), -1, -1, -1) * self.weight.mean() + brighter


class _Part(nn.Module):
    def __init__(self, whole: _Drawn) -> None:
        super().__init__()
        self.part = whole.drop  # without weights, but in training mode
        self.weight = whole.weight

    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> Tensor:
        return ((self.part(context[:, -1:]) * self.weight[None, :, None, None, None] - target) ** 2).mean()

    def validation_loss(self, context: Tensor, target: Tensor) -> Tensor:
        return self.training_loss(context, target, step=0, total_steps=1)


@dataclass
class _Stage:
    name: str
    module: nn.Module
    depends_on: dict[str, Any] = field(default_factory=dict)
    prepare: None = None


class _Staged(_Drawn):
    def stages(self) -> tuple[_Stage, ...]:
        return _Stage("first", _Part(self)), _Stage("second", _Part(self))


def _rows(folder: Path) -> list[int]:
    """Returns how many rows of frames each picture in some logs has."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    if "val/forecast" not in events.Tags()["images"]:
        return []
    pictures = [Image.open(io.BytesIO(one.encoded_image_string)) for one in events.Images("val/forecast")]
    return [picture.height // (picture.width // 6 + picture.width // 20) for picture in pictures]  # six square frames


def test_logged_pictures_show_a_member_or_the_forecast_of_the_last_stage(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[tuple[type, str], Any] = {}
    for made in (_Drawn, _Staged):
        monkeypatch.setattr("bench.engine.run.load_model", lambda _, task, made=made, **__: made(task.target_shape[0]))
        for logger in ("", "tensorboard"):
            usual = [f"train.loggers=[{logger}]", "train.max_epochs=2", "train.ema_decay=0.9", "evaluate.members=2"]
            given = tiny(storms, tmp_path / f"{made.__name__}_{logger}", *usual)
            found[made, logger] = run(given, training=True).record
        assert found[made, ""].scores == found[made, "tensorboard"].scores  # drawing changes no training
    (logs,) = tmp_path.glob("_Drawn_tensorboard/work/*/*/*/logs/part_0")
    assert _rows(logs)[0] == 4
    first, second = sorted(tmp_path.glob("_Staged_tensorboard/work/*/stages/*/logs/part_0"))
    assert _rows(first) == [] and len(_rows(second)) == 2 and set(_rows(second)) == {4}


def test_a_picture_has_a_row_per_kind_and_the_newest_frames_last() -> None:
    palette = Palette(("#000000", "#ff0000", "#00ff00"), (0.0, 1.0, 2.0), "lower")
    context, target = np.zeros((2, 64, 128)), np.full((3, 64, 128), 1.5)
    target[-1, 0] = 3.0  # the southernmost row of the last frame
    pixels = pixels_of({"context": context, "target": target}, palette)
    assert pixels.dtype == np.uint8 and pixels.shape == (2 * (19 + 66), 3 * 130, 3)  # a white pixel around each frame
    rows = pixels.reshape(2, 85, 390, 3)
    names, pixels = rows[:, :19], rows[:, 19:].reshape(132, 390, 3)
    assert (names.min((1, 2, 3)) < 100).all() and (names[0] != names[1]).any()  # written, each its own
    assert (pixels[:66, :130] == 255).all()  # the context has a frame less: they end together
    assert (pixels[1:65, 131:259] == 0).all() and (pixels[67:131, 1:129] == (255, 0, 0)).all()
    assert (pixels[130, 261:389] == (0, 255, 0)).all() and (pixels[67:130, 261:389] == (255, 0, 0)).all()
