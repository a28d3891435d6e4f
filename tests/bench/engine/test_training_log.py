"""What TensorBoard gets besides losses and scores: config, throughput, a forecast per validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from faults import tiny

from bench.api import Palette
from bench.engine.run import run
from bench.tables.pictures import pixels_of


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
    assert [picture.step for picture in pictures] == [steps // 2 - 1, steps - 1]
    assert all(picture.encoded_image_string.startswith(b"\x89PNG") for picture in pictures)
    assert [one.step for one in events.Scalars("perf/sequences_per_s")] == [steps // 2 - 1, steps - 1]
    assert events.Scalars("hp_metric")[-1].value == pytest.approx(outcome.record.training.best_score)
    assert "lr: 0.002" in (folder / "hparams.yaml").read_text()
    assert "perf/sequences_per_s" in (folder / "metrics.csv").read_text().splitlines()[0]


def test_a_picture_has_a_row_per_kind_and_the_newest_frames_last() -> None:
    palette = Palette(("#000000", "#ff0000", "#00ff00"), (0.0, 1.0, 2.0), "lower")
    context, target = np.zeros((2, 64, 128)), np.full((3, 64, 128), 1.5)
    target[-1, 0] = 3.0  # the southernmost row of the last frame
    pixels = pixels_of([context, target], palette)
    assert pixels.dtype == np.uint8 and pixels.shape == (2 * 66, 3 * 130, 3)  # a white pixel around each frame
    assert (pixels[:66, :130] == 255).all()  # the context has a frame less: they end together
    assert (pixels[1:65, 131:259] == 0).all() and (pixels[67:131, 1:129] == (255, 0, 0)).all()
    assert (pixels[130, 261:389] == (0, 255, 0)).all() and (pixels[67:130, 261:389] == (255, 0, 0)).all()
