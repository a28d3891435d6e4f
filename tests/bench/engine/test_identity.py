"""The identity of a training, its code and settings, and which of its scores count."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logged import logged
from tiny_unet import TINY, checkpoint_of, run_tiny

import bench
from bench import plugins, registry
from bench.cli.main import main
from bench.config import compose
from bench.engine import identity as running_identity
from bench.engine.run import Outcome, run
from bench.errors import ConfigError, DataError
from bench.models import load_weights, trained
from bench.records.schema import SourcePart
from bench.records.sources import _closure, class_source, harness_source
from bench.records.store import read_records
from bench.tables.admission import latest_per_seed

PLUGIN = """
from torch import nn
from NAME_loss import loss
EARTHBENCH = {"api": 1, "models": {"NAME": "Mine"}}

class Mine(nn.Module):
    def __init__(self, *, input_shape, target_shape, gain=1.0):
        super().__init__()
        self.gain, self.conv = gain, nn.Conv2d(input_shape[0], target_shape[0], 3, padding=1)
    def forward(self, context):
        return self.gain * self.conv(context[..., 0])[..., None]
    def training_loss(self, context, target, *, step, total_steps):
        return loss(self(context), target)
"""
LOSS = "def loss(forecast, target):\n    return ((forecast - target) ** 2).mean()\n"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a plugin file with a module beside it; each test uses its own names, because modules stay imported."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name: str, loss: str = LOSS, text: str = PLUGIN) -> Path:
        (tmp_path / f"{name}_loss.py").write_text(loss)
        (tmp_path / f"{name}.py").write_text(text.replace("NAME", name))
        for module in (name, f"{name}_loss"):
            sys.modules.pop(module, None)
        importlib.invalidate_caches()
        plugins.use_plugin_files(["--plugin", str(tmp_path / f"{name}.py")])
        return tmp_path / f"{name}.py"

    return write


# Code


@pytest.mark.parametrize(
    "edit", [{"loss": LOSS.replace("** 2", "** 4")}, {"text": PLUGIN.replace("self.gain * self", "-self.gain * self")}]
)
def test_edited_plugin_code_is_a_new_run(plugin: Any, storms: Path, tmp_path: Path, edit: dict[str, str]) -> None:
    name = f"mine_{'_'.join(edit)}"
    plugin(name)
    base = ["task=sevir", f"model={name}", "model.gain=2.0"]
    config = [word for word in TINY if not word.startswith(("task=", "model"))]

    def go(again: bool) -> tuple[Outcome, list[str]]:
        where = [f"data.root={storms}", f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}"]
        with logged() as said:
            return run(compose([*base, *config, *where]), training=True, again=again), said

    first, _ = go(True)
    same, said = go(False)
    assert same.record.run_id == first.record.run_id and any("already recorded" in line for line in said)
    plugin(name, **edit)
    second, said = go(False)
    assert second.record.run_id != first.record.run_id and not any("already recorded" in line for line in said)
    assert not any("training had ended" in line for line in said)
    assert second.record.training.identity.name != first.record.training.identity.name
    source = second.record.training.identity.sources["model"]
    assert source.origin.endswith(f"(file {name}.py)") and source.sha256 == second.record.code.sources["model"].sha256
    assert len(list(tmp_path.glob(f"work/sevir/{name}/*"))) == 2


def test_weights_of_edited_code_are_refused_or_partial(plugin: Any, storms: Path, tmp_path: Path) -> None:
    plugin("mine_evaluated")
    words = [word for word in TINY if not word.startswith("model")] + ["model=mine_evaluated"]
    where = [f"data.root={storms}", f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}"]
    run(compose([*words, *where]), training=True)
    plugin("mine_evaluated", LOSS + "EDITED = True\n")
    evaluate = compose([*words, *where, f"checkpoint={checkpoint_of(tmp_path)}"])
    with pytest.raises(ConfigError, match=r"trained by other code.*train\.resume=anyway"):
        run(evaluate, training=False)
    assert (
        main(["forecast", *words, *where, f"checkpoint={checkpoint_of(tmp_path)}", "--out", str(tmp_path / "f.nc")])
        == 2
    )
    anyway = compose([*words, *where, f"checkpoint={checkpoint_of(tmp_path)}", "train.resume=anyway"])
    record = run(anyway, training=False).record
    assert record.scope == "partial" and "other code" in record.scope_because


def test_an_edited_harness_retrains_unless_told_otherwise(
    unet: Path, storms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = harness_source().model_copy(update={"sha256": "0" * 64, "dirty": True})
    monkeypatch.setattr("bench.records.sources.harness_source", lambda: edited)
    for again in (True, False):
        with pytest.raises(ConfigError, match=r"(?s)trained by other code.*train\.resume=false.*harness"):
            run_tiny(storms, unet, again=again)
    before = len(read_records(unet / "results")[0])
    outcome, said = run_tiny(storms, unet, "train.resume=anyway", again=False)
    assert any("already recorded" in line for line in said) and len(read_records(unet / "results")[0]) == before
    assert outcome.record.training.identity.sources["harness"].sha256 != "0" * 64


def test_the_source_of_a_model_covers_its_imports_only(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "net.py").write_text(
        "from torch import nn\nimport bench.models\nfrom . import (\n    layers,  # ours\n)\n"
        "class Net(nn.Module):\n    pass\n"
    )
    (package / "layers.py").write_text("WIDTH = 1\n")
    (package / "settings.yaml").write_text("width: 1\n")
    (tmp_path / "elsewhere.py").write_text("")
    net = importlib.import_module("of_mine.net").Net
    seen = [class_source(net, "net").sha256]
    assert not [name for name in _closure("of_mine.net") if name.startswith("bench")], "the harness has a digest"
    for name, counts in (("elsewhere.py", False), ("of_mine/layers.py", True), ("of_mine/settings.yaml", True)):
        with (tmp_path / name).open("a") as file:
            file.write("edited = 1\n")
        class_source.cache_clear()
        seen.append(class_source(net, "net").sha256)
        assert (seen[-1] != seen[-2]) is counts, name


@pytest.mark.parametrize("name", registry.names("model"))
def test_the_source_of_a_built_in_model_covers_its_own_files(name: str) -> None:
    made = registry.find("model", name).load()
    source = class_source(made, "ours")
    assert source.module == made.__module__ and len(source.sha256) == 64
    assert source.sha256 == class_source(made, "ours").sha256


# Scores that count


def test_untrained_weights_are_partial_in_the_python_api(storms: Path, unet: Path) -> None:
    task = bench.load_task("sevir", storms)
    record = bench.evaluate("unet", task)
    assert (record.scope, record.scope_because) == ("partial", "untrained weights")
    assert bench.evaluate("persistence", task).scope == "full"
    by_hand = type(bench.load_model("unet", task, channels=[4], center_channels=8))
    model = by_hand(input_shape=task.input_shape, target_shape=task.target_shape, channels=[4], center_channels=8)
    assert bench.evaluate(model, task).scope_because == "weights of unknown training"
    model = bench.load_model("unet", task, channels=[4], center_channels=8, norm_momentum=0.1)
    sha256 = load_weights(model, checkpoint_of(unet))
    record = bench.evaluate(model, task)
    assert record.scope == "full" and record.checkpoint_sha256 == sha256 and trained(model).identity is not None
    assert record.training.identity.seed == 0 and record.training.weights == "best"


def test_a_checkpoint_counts_once_and_a_model_without_weights_once(storms: Path, tmp_path: Path) -> None:
    run_tiny(storms, tmp_path)
    for seed in (1, 2):
        run_tiny(storms, tmp_path, f"checkpoint={checkpoint_of(tmp_path)}", f"seed={seed}", training=False)
    run_tiny(storms, tmp_path, "seed=1", "work=" + str(tmp_path / "second"))
    records = read_records(tmp_path / "results")[0]
    assert len(records) == 4
    assert [record.training.identity.seed for record in latest_per_seed(records)] == [0, 1]
    task = bench.load_task("sevir", storms)
    deterministic = [bench.evaluate("persistence", task, seed=seed) for seed in range(3)]
    assert len(latest_per_seed(deterministic)) == 1


def test_an_edited_plugin_metric_is_a_new_run(unet: Path, storms: Path, tmp_path: Path, monkeypatch) -> None:
    known = running_identity.sources_of

    def edited(*arguments: Any) -> dict[str, SourcePart]:
        found = known(*arguments)
        return {**found, "metric mine": found["harness"]}

    shutil.copytree(unet / "results", tmp_path / "results")
    assert any("already recorded" in line for line in run_tiny(storms, tmp_path, again=False)[1])
    monkeypatch.setattr(running_identity, "sources_of", edited)
    assert not any("already recorded" in line for line in run_tiny(storms, tmp_path, again=False)[1])


def test_the_record_has_library_versions_and_event_counts(unet: Path) -> None:
    record = read_records(unet / "results")[0][0]
    assert set(record.training.identity.libraries) == {"torch", "lightning", "timm", "numpy"}
    assert record.training.identity.train.event_count == 4 and np.isfinite(record.training.wall_s)


def test_remote_checkpoints_are_checked(storms: Path, tmp_path: Path) -> None:
    import fsspec

    remote = f"memory://{tmp_path.name}/checkpoints"
    _, said = run_tiny(storms, tmp_path, f"train.checkpoints={remote}")
    _, said = run_tiny(storms, tmp_path, f"train.checkpoints={remote}")
    assert any("training had ended" in line for line in said)
    files = fsspec.filesystem("memory")
    (best,) = (name for name in files.find(f"/{tmp_path.name}") if name.endswith("best.ckpt"))
    record = run_tiny(storms, tmp_path, f"checkpoint=memory:/{best}", training=False)[0].record
    assert record.scope == "full" and record.training is not None and record.training.identity is not None
    content = bytearray(files.cat_file(best))
    content[len(content) // 2] ^= 1
    files.pipe_file(best, bytes(content))
    for overrides, training in (([f"train.checkpoints={remote}"], True), ([f"checkpoint=memory:/{best}"], False)):
        with pytest.raises(DataError, match="is damaged"):
            run_tiny(storms, tmp_path, *overrides, training=training)


@pytest.mark.slow
def test_stage_checkpoints_are_checked(storms: Path, tmp_path: Path, monkeypatch) -> None:
    tiny = [
        "task=sevir_lr", "task.t_in=3", "task.t_out=2", "task.stride=12", "model=prediff",
        "model.latent_channels=2", "model.autoencoder_channels=[8,8,8]", "model.autoencoder_layers=1",
        "model.autoencoder_groups=4", "model.base_units=8", "model.depth=[1]", "model.num_heads=2",
        "model.sampler=dpm_solver++", "model.steps=2", "model.members=1", "limit=2",
    ]  # fmt: skip
    words = [word for word in TINY if not word.startswith(("task=", "model"))] + tiny
    where = [f"data.root={storms}", f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}"]

    def go(*overrides: str) -> list[str]:
        with logged() as said:
            run(compose([*words, *where, *overrides]), training=True)
        return said

    go()
    (stage,) = tmp_path.glob("work/sevir_lr/stages/autoencoder-*/checkpoints/best.ckpt")
    given = tmp_path / "given.ckpt"
    shutil.copy(stage, given)
    assert sum("training had ended" in line for line in go(f"train.stages.autoencoder.checkpoint={given}")) == 0
    # trained with other hyperparameters of the stage
    with pytest.raises(ConfigError, match=r"was trained with other settings|is not of this model"):
        go(f"train.stages.autoencoder.checkpoint={given}", "model.autoencoder_layers=2")

    def edited(made: type, origin: str) -> SourcePart:
        return known(made, origin).model_copy(update={"sha256": "0" * 64})

    known = running_identity.class_source
    with monkeypatch.context() as patch:
        patch.setattr(running_identity, "class_source", edited)
        with pytest.raises(ConfigError, match=r"was trained by other code; train\.resume=anyway"):
            go(f"train.stages.autoencoder.checkpoint={given}")
    raw = bytearray(stage.read_bytes())
    raw[len(raw) // 2] ^= 1
    stage.write_bytes(raw)
    with pytest.raises(DataError, match="is damaged"):
        go()
    given.write_bytes(raw)
    with pytest.raises(DataError, match="is damaged"):
        go(f"train.stages.autoencoder.checkpoint={given}")
    # restarted and killed: the summary of the first training is gone
    summary = stage.with_name("training.json")
    assert summary.is_file()
    assert sum("training had ended" in line for line in go("train.resume=false")) == 0
