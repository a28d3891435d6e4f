"""What references get from the harness: a split to fit on, the task's numbers, a count of fallbacks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch
from old_records import RECORD_OF_SCHEMA_2
from torch import Tensor, nn

import bench
from bench.config import compose
from bench.engine.run import run
from bench.errors import ConfigError
from bench.models import made_from
from bench.records.schema import SCHEMA_VERSION, RunRecord, migrated


class _Fitted(nn.Module):
    """Keeps the mean and the number of the targets that it was fitted to."""

    fitted_on: ClassVar[str] = "val"
    found: Tensor

    def __init__(self, input_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = target_shape
        self.register_buffer("found", torch.zeros(2, dtype=torch.float64))

    def fit(self, batches: Any) -> None:
        targets = torch.cat([target for _, target in batches]).double()
        self.found.copy_(torch.stack([targets.mean(), torch.tensor(float(len(targets)))]))

    def forward(self, context: Tensor) -> Tensor:
        return torch.full((len(context), *self.shape), float(self.found[0]))


def _run(root: Path, out: Path, *overrides: str) -> RunRecord:
    options = [f"data.root={root}", f"results.root={out}", f"work={out / 'work'}", "device=cpu", "progress=false"]
    return run(compose([*options, "picture=false", *overrides]), training=True).record


@pytest.mark.parametrize(("val_from", "split"), [("2019-01-01", "val"), ("2019-06-01", "train")])
def test_a_model_fitted_on_validation_uses_that_split_if_present(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, val_from: str, split: str
) -> None:
    monkeypatch.setattr("bench.engine.run.load_model", lambda _, task, **__: made.append(_fitted(task)) or made[0])
    made: list[_Fitted] = []
    record = _run(storms, tmp_path, "task=sevir", "model=climatology", f"task.val_from={val_from}")
    task = bench.load_task("sevir", storms, val_from=val_from)
    data = task.dataset(split)  # type: ignore[arg-type]
    targets = torch.stack([data[index][1] for index in range(len(data))])
    assert made[0].found.tolist() == pytest.approx([float(targets.double().mean()), len(data)], rel=1e-6)
    assert record.training is not None and record.scope == "full"
    counts = record.training.sequence_count, record.training.validation_sequence_count
    assert counts == ((0, len(data)) if split == "val" else (len(data), 0))
    assert ("on the validation split" in record.training.stopped_because) == (split == "val")


def _fitted(task: Any) -> _Fitted:
    return _Fitted(task.input_shape, task.target_shape)


def test_values_taken_from_the_task_are_preset_hyperparameters(storms: Path) -> None:
    kelvin = bench.load_task("enso_ersst", scale="kelvin")
    for task, zero in ((kelvin, 0.0), (bench.load_task("icar_enso"), 16.7049747467 / 27)):
        made = made_from(bench.load_model("blank", task))
        assert made.preset and made.hyperparameters == {"zero": pytest.approx(zero)}
    given = bench.load_model("blank", kelvin, zero=1.5)
    assert given.zero == 1.5 and not made_from(given).preset


def test_the_pixel_width_is_the_median_of_the_catalogue_or_nominal(storms: Path, tmp_path: Path) -> None:
    assert [bench.load_task(name).pixel_kilometres for name in ("sevir", "sevir_lr", "radar")] == [1.0, 3.0, 1.0]
    assert bench.load_task("radar", storms).pixel_kilometres == 12.0, "384 km in 32 pixels"
    (tmp_path / "data").symlink_to(storms / "data")
    table = pd.read_csv(storms / "CATALOG.csv", dtype=str)
    for width, expected in (("96000", 3.0), ("", 1.0), ("none", 1.0), ("0", 1.0)):
        table.assign(width_m=width).to_csv(tmp_path / "CATALOG.csv", index=False)
        assert bench.load_task("radar", tmp_path).pixel_kilometres == expected
    table.drop(columns=["width_m"]).to_csv(tmp_path / "CATALOG.csv", index=False)
    assert bench.load_task("radar", tmp_path).pixel_kilometres == 1.0


def test_steps_uses_the_cadence_of_the_forecast_data(storms: Path, tmp_path: Path) -> None:
    pytest.importorskip("pysteps")
    every_two = tmp_path / "two"
    every_two.mkdir()
    (every_two / "data").symlink_to(storms / "data")
    table = pd.read_csv(storms / "CATALOG.csv", dtype=str)
    offsets = ":".join(str(2 * step) for step in range(-24, 25))
    table.assign(minute_offsets=offsets).to_csv(every_two / "CATALOG.csv", index=False)
    options = ["task=radar", "model=steps", f"data.test_root={every_two}", "limit=1"]
    record = _run(storms, tmp_path / "results", *options)
    expected = {"minutes": 2.0, "kilometres": 12.0, "threshold": 16 / 255}
    assert record.model.hyperparameters == expected and record.model.is_preset


def test_a_task_without_pixel_size_is_refused_and_others_are_named() -> None:
    pytest.importorskip("pysteps")
    task = bench.load_task("nbody_mnist")
    with pytest.raises(ConfigError, match=r"no pixel_kilometres\. Tasks with one: grid, radar, sevir, sevir_lr"):
        bench.load_model("steps", task)
    with pytest.raises(ConfigError, match=r"no least_rain\. Tasks with one: grid, radar, sevir, sevir_lr"):
        bench.load_model("steps", task, kilometres=1.0)
    model = bench.load_model("steps", task, kilometres=1.0, threshold=0.1)
    assert (model.kilometres, model.threshold) == (1.0, 0.1)


class _FallsBack(nn.Module):
    """Falls back on every sequence, however often it is asked."""

    def __init__(self, input_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = target_shape
        self.degraded: Counter[str] = Counter(dry=100)

    def forward(self, context: Tensor) -> Tensor:
        wet = int((context.amax((1, 2, 3, 4)) > 0).sum())
        self.degraded.update({"dry": len(context) - wet, "lost": wet} if wet < len(context) else {"lost": wet})
        return torch.zeros(len(context), *self.shape)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_each_degraded_forecast_is_counted_and_warned_about_once(storms: Path, batch_size: int) -> None:
    task = bench.load_task("sevir", storms)
    model = _FallsBack(task.input_shape, task.target_shape)
    with pytest.warns(UserWarning, match=r"fell back on a simpler forecast for 9 of 9 sequences: 9 lost") as caught:
        record = bench.evaluate(model, task, batch_size=batch_size, device="cpu")
    assert record.degraded == {"lost": 9}
    assert sum("fell back" in str(one.message) for one in caught) == 1
    assert bench.evaluate("persistence", task, device="cpu").degraded == {}


def test_records_of_schema_3_have_no_degraded_forecasts() -> None:
    content = json.loads(RECORD_OF_SCHEMA_2.read_text())
    content["schema_version"] = 3
    now = migrated(content)
    assert now == content | {"schema_version": SCHEMA_VERSION, "degraded": {}}
    assert "degraded" not in content
