"""Whole runs on a GPU: a group of one, resuming after a signal, and the time profile of an evaluation."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
from bench.cli.main import main
from bench.config import compose
from bench.data.loading import evaluation_loader
from bench.engine.forecaster import Forecaster
from bench.engine.run import run
from bench.errors import InterruptedRunError

pytestmark = pytest.mark.gpu

_QUIET = ["progress=false", "picture=false", "train.loggers=[]"]


def _places(out: Path) -> list[str]:
    return [f"results.root={out}/results", f"work={out}/work"]


@pytest.mark.parametrize("task", ["sevir", "nbody_mnist"])
def test_a_group_of_one_scores_like_a_single_process(task: str, device: str, tmp_path: Path) -> None:
    size = ["--size", "32"] if task == "sevir" else []
    words = ["--train", "2", "--val", "2", "--test", "3", *size, "--out", str(tmp_path / "data")]
    assert main(["data", "make", task, *words]) == 0
    given = [f"task={task}", "model=persistence", f"device={device}", f"data.root={tmp_path}/data", *_QUIET]
    found = [
        run(compose([*given, f"strategy={strategy}", *_places(tmp_path / strategy)]), training=False).record
        for strategy in ("auto", "ddp")
    ]
    assert found[0].scores == found[1].scores and found[0].status == "ok"


def test_a_stopped_run_resumes(
    storms: Path, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., None]
) -> None:
    given = ["task=sevir", "model=unet", "model.channels=[8]", "model.center_channels=16", "data.batch_size=2"]
    given += [f"data.root={storms}", f"device={device}", "train.max_epochs=2", *_QUIET]
    run(compose([*given, *_places(tmp_path / "unbroken")]), training=True)
    step = Forecaster.training_step

    def signalled(self: Forecaster, batch: Any, batch_index: int) -> Any:
        if self.global_step == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, batch_index)

    with monkeypatch.context() as patch:
        patch.setattr(Forecaster, "training_step", signalled)
        with pytest.raises(InterruptedRunError, match="saved after step 3"):
            run(compose([*given, *_places(tmp_path / "broken")]), training=True)
    record = run(compose([*given, *_places(tmp_path / "broken")]), training=True).record
    assert record.training is not None and record.training.resumed_count == 1
    weights = []
    for name in ("unbroken", "broken"):
        (path,) = tmp_path.glob(f"{name}/work/*/*/*/checkpoints/last.ckpt")
        weights.append(torch.load(path, weights_only=True, map_location="cpu")["state_dict"])
    same = all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    report(device=device, the_bits_of_the_unbroken_training=same)
    for key, value in weights[0].items():
        assert torch.allclose(value.float(), weights[1][key].float(), rtol=1e-2, atol=1e-3), key


@pytest.mark.parametrize("workers", [0, 8])
def test_time_of_loader_forward_and_metrics_in_an_evaluation(
    workers: int, device: str, small: bool, tmp_path: Path, report: Callable[..., None]
) -> None:
    size, events = ("32", "2") if small else ("384", "22")
    words = ["--train", "1", "--val", "1", "--test", events, "--size", size, "--out", str(tmp_path / "data")]
    assert main(["data", "make", "sevir", *words]) == 0
    task = bench.load_task("sevir", tmp_path / "data")
    forecaster = Forecaster(bench.load_model("unet" if small else "earthformer", task), task).to(device).eval()
    spent, sequences, last = {"loader": 0.0, "forward": 0.0, "metrics": 0.0}, 0, time.perf_counter()

    def passed(part: str) -> None:
        nonlocal last
        if device == "cuda":
            torch.cuda.synchronize()
        spent[part] += time.perf_counter() - last
        last = time.perf_counter()

    loader = evaluation_loader(task.dataset("test"), batch_size=8, limit=None, num_workers=0 if small else workers)
    with torch.inference_mode():
        for batch in loader:
            context, target = (part.to(device, non_blocking=True) for part in batch[:2])
            passed("loader")
            physical = task.denormalise(forecaster.forecast(task.to_context(context)))
            passed("forward")
            forecaster.scores.add(
                {"forecast": [physical], "ensemble": [physical[None]]}, task.to_target(target), (), None
            )
            passed("metrics")
            sequences += len(physical)
    report(workers=workers, sequences=sequences, **{f"{key} ms": 1000 * s / sequences for key, s in spent.items()})
    assert sequences > 0
