"""Several processes with a simulated GPU group, which, unlike a CPU group, refuses CPU tensors and times out."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import TINY
from gpu_like_group import run_on_gpu_like_group, wait_for_lock

from bench.cli.main import main
from bench.config import compose
from bench.engine.processes import launch
from bench.engine.run import run

pytestmark = pytest.mark.scaleout

_QUIET = ["progress=false", "picture=false", "device=cpu", "data.batch_size=1"]
_PREDIFF = [
    "model=prediff", "model.autoencoder_channels=[8,8,8]", "model.autoencoder_groups=4", "model.autoencoder_layers=1",
    "model.base_units=8", "model.depth=[1]", "model.num_heads=2", "model.latent_channels=4",
    "model.sampler=dpm_solver++", "model.steps=2", "evaluate.members=2", "limit=4",
]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("sevir", ["model=persistence"]),
        ("nbody_mnist", ["model=persistence"]),
        ("moving_mnist", ["model=persistence"]),
        ("nbody_mnist", _PREDIFF),
    ],
)
def test_two_processes_score_as_one_on_a_gpu_like_group(tmp_path: Path, task: str, words: list[str]) -> None:
    sizes = {"sevir": ["--train", "2", "--val", "2", "--test", "4", "--size", "32"]}.get(
        task, ["--train", "2", "--val", "2", "--test", "4"] if task == "nbody_mnist" else []
    )
    assert main(["data", "make", task, *sizes, "--out", str(tmp_path / "data")]) == 0
    given = [f"task={task}", *words, *_QUIET, f"data.root={tmp_path / 'data'}"]
    given += ["limit=4"] if "limit=4" not in words else []
    places = {
        name: [f"results.root={tmp_path / name}/results", f"work={tmp_path / name}/work"] for name in ("one", "two")
    }
    one = run(compose([*given, *places["one"]]), training=False).record.model_dump(mode="json")
    two = launch(run_on_gpu_like_group, 2, overrides=[*given, *places["two"], "devices=2"], training=False)
    assert two["counts"] == one["counts"] and two["scores"].keys() == one["scores"].keys()
    near = 1e-9 if words == ["model=persistence"] else 1e-5  # a network rounds otherwise in another batch
    for name, score in one["scores"].items():
        assert two["scores"][name] == (score if score is None else pytest.approx(score, rel=near)), name


def test_two_processes_train_on_a_gpu_like_group(storms: Path, tmp_path: Path) -> None:
    places = [f"data.root={storms}", f"results.root={tmp_path}/results", f"work={tmp_path}/work"]
    record = launch(run_on_gpu_like_group, 2, overrides=[*TINY, *places, "devices=2"], training=True)
    assert record["status"] == "ok" and record["training"]["epochs"] > 0


def test_waiting_for_a_lock_outlasts_the_group_timeout(tmp_path: Path) -> None:
    took = launch(wait_for_lock, 2, folder=str(tmp_path / "run"), limit_s=4, held_s=12)
    assert took > 5, "it was held for longer than the group's limit, and both went on"
