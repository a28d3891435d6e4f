"""Shared weights: saved weights can be loaded and scored elsewhere, and carry their description."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import bench
from bench.cli.main import main
from bench.config import compose
from bench.engine.run import Outcome, run
from bench.errors import ConfigError, DataError

SMALL = ["model.channels=[4,8]", "model.center_channels=8"]


@dataclass(frozen=True)
class Shared:
    checkpoint: Path
    outcome: Outcome
    folder: Path
    storms: Path


@pytest.fixture(scope="module")
def shared(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """A small UNet trained for two steps, and the folder that it was shared as."""
    out = tmp_path_factory.mktemp("shared")
    words = ["task=sevir", "model=unet", *SMALL, f"data.root={storms}", "train.max_epochs=1", "train.max_steps=2"]
    quiet = ["progress=false", "picture=false", "device=cpu", "train.loggers=[]"]
    outcome = run(compose([*words, *quiet, f"work={out / 'work'}", f"results.root={out / 'results'}"]), training=True)
    (checkpoint,) = (out / "work").rglob(f"{outcome.record.training.weights}.ckpt")  # type: ignore[union-attr]
    model = bench.load_model("unet", bench.load_task("sevir", storms), weights=checkpoint)
    bench.as_pretrained(model, outcome.record, license="cc-by-4.0").save_pretrained(out / "folder")
    return Shared(checkpoint, outcome, out / "folder", storms)


def test_shared_weights_restore_hyperparameters_and_forecasts(shared: Shared) -> None:
    task = bench.load_task("sevir", shared.storms)
    context = task.dataset("test")[0][0][None]
    with torch.inference_mode():
        forecasts = [
            bench.load_model("unet", task, weights=where).eval()(context)
            for where in (shared.checkpoint, str(shared.folder), shared.folder / "model.safetensors")
        ]
        forecasts.append(bench.PretrainedModel.from_pretrained(shared.folder)(context))
    assert all(torch.equal(forecasts[0], other) for other in forecasts[1:])
    with pytest.raises(ConfigError, match="center_channels"):
        bench.load_model("unet", task, weights=shared.folder, center_channels=16)
    with pytest.raises(ConfigError, match="of model 'unet', not of 'convlstm'"):
        bench.load_model("convlstm", task, weights=shared.folder)


def test_the_card_describes_the_weights_and_how_to_score_them(shared: Shared) -> None:
    card = (shared.folder / "README.md").read_text()
    assert "license: cc-by-4.0" in card and "library_name: earthbench" in card
    assert "earthbench evaluate task=sevir model=unet" in card and "model.center_channels=8" in card
    assert f"| csi_m | {shared.outcome.record.scores['csi_m']:.6g} |" in card
    assert card.count("\n| ") < 12 and "bias_upstream" not in card, "the scores that a run prints, not all"


def test_a_rewritten_folder_has_the_card_of_its_weights(shared: Shared, tmp_path: Path) -> None:
    model = bench.load_model("unet", bench.load_task("sevir", shared.storms), weights=shared.checkpoint)
    for license in ("mit", "cc-by-4.0"):
        bench.as_pretrained(model, license=license).save_pretrained(tmp_path)
        assert f"license: {license}" in (tmp_path / "README.md").read_text()


def test_one_command_scores_shared_weights_with_their_identity(shared: Shared, tmp_path: Path) -> None:
    words = ["task=sevir", "model=unet", *SMALL, f"checkpoint={shared.folder}", f"data.root={shared.storms}"]
    places = [f"work={tmp_path / 'work'}", f"results.root={tmp_path / 'results'}"]
    assert main(["evaluate", *words, *places, "progress=false", "picture=false", "device=cpu"]) == 0
    (path,) = (tmp_path / "results/runs/sevir/unet").glob("*.json")
    record, own = json.loads(path.read_text()), shared.outcome.record
    assert record["scores"] == own.scores and own.training is not None
    assert record["training"]["steps"] == own.training.steps == 2
    assert record["training"]["identity"] == own.training.identity.model_dump(mode="json")  # type: ignore[union-attr]


def test_changed_weights_are_refused(shared: Shared, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((shared.folder / name).read_bytes())
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        bench.load_model("unet", bench.load_task("sevir", shared.storms), weights=tmp_path)


def test_weights_of_unknown_training_are_not_shared(shared: Shared) -> None:
    task = bench.load_task("sevir", shared.storms)
    with pytest.raises(ConfigError, match="only weights whose training is known"):
        bench.as_pretrained(bench.load_model("unet", task, channels=[4, 8], center_channels=8))
    other = shared.outcome.record.model_copy(update={"checkpoint_sha256": "0" * 64})
    with pytest.raises(ConfigError, match="of other weights"):
        bench.as_pretrained(bench.load_model("unet", task, weights=shared.checkpoint), other)
