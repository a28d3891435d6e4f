"""Weights carry their identity: model, settings, task and training, and whether they are complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_unet import TINY, checkpoint_of, run_tiny
from torch import nn

import bench
from bench import registry
from bench.checkpoint_format import OURS, damage, read_checkpoint, seal_of
from bench.cli.main import main
from bench.errors import ConfigError, DataError
from bench.models import load_weights

# Weights


def test_a_checkpoint_has_its_identity_and_seal(unet: Path) -> None:
    content = read_checkpoint(checkpoint_of(unet), sealed=True)
    said = content[OURS]
    assert said["identity"]["model"] == "unet" and said["identity"]["hyperparameters"]["channels"] == [4]
    assert len(said["events"]["train"]["ids"]) == len(said["events"]["train"]["contents"]) == 4
    summary = json.loads((checkpoint_of(unet).parent / "training.json").read_text())
    assert summary["checkpoints"] == {name: seal_of(checkpoint_of(unet, name)) for name in ("best", "last")}
    assert summary["identity"] == said["identity"]


@pytest.mark.parametrize("verb", ["run", "evaluate", "forecast"])
def test_a_flipped_bit_is_refused_by_every_reader(storms: Path, unet: Path, tmp_path: Path, verb: str, capsys) -> None:
    shutil.copytree(unet / "work", tmp_path / "work")
    path = checkpoint_of(tmp_path)
    raw = bytearray(path.read_bytes())
    weights = read_checkpoint(path)["state_dict"]["model.head.weight"].numpy().tobytes()
    raw[bytes(raw).find(weights) + 3] ^= 1
    path.write_bytes(raw)
    where = [f"data.root={storms}", f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}"]
    given = [] if verb == "run" else [f"checkpoint={path}"]
    assert main([verb, *TINY, *where, *given]) == 2
    assert "is damaged: its content does not have the checksum it carries" in capsys.readouterr().err


def test_a_checkpoint_without_its_seal_is_damaged(unet: Path, tmp_path: Path) -> None:
    torch.save(read_checkpoint(checkpoint_of(unet)), tmp_path / "again.ckpt")
    with pytest.raises(DataError, match="its checksum is missing"):
        read_checkpoint(tmp_path / "again.ckpt")
    torch.save(read_checkpoint(checkpoint_of(unet))["state_dict"], tmp_path / "bare.pt")
    assert damage(tmp_path / "bare.pt") is not None and read_checkpoint(tmp_path / "bare.pt")


def _identified(name: str, task: Any, path: Path, **hyperparameters: Any) -> nn.Module:
    """Saves fresh weights as a training of this model would."""
    from bench.engine.checkpoints import CheckpointFiles
    from bench.records.schema import SplitPart, TrainingIdentity
    from bench.records.sources import registered_source

    model = bench.load_model(name, task, **hyperparameters)
    said = TrainingIdentity(
        model=name, hyperparameters=bench.models.trained_hyperparameters(model), task=task.name,
        task_version=task.version, task_fields=task.fields(), settings={"train": {"stages": {}}}, seed=0,
        train=SplitPart(fingerprint="f", event_count=1, sequence_count=1), val=None,
        sources={"model": registered_source("model", type(model))}, libraries={},
    )  # fmt: skip
    stored = {OURS: {"identity": said.model_dump(mode="json"), "events": {"train": {"ids": [], "contents": []}}}}
    CheckpointFiles().save_checkpoint({"state_dict": model.state_dict(), **stored}, path)
    return model


@pytest.mark.parametrize(
    ("name", "task", "base", "other"),
    [
        ("unet", "sevir_lr", {"channels": [4, 8], "center_channels": 8}, {"norm_momentum": 0.2}),
        ("earthformer", "nbody_mnist", "tiny", {"ffn_activation": "leaky"}),
        ("earthformer", "nbody_mnist", "tiny", {"padding_type": "nearest"}),
        ("earthformer", "nbody_mnist", "tiny", {"attn_drop": 0.3}),
        ("prediff", "nbody_mnist", "tiny", {"parameterization": "x0"}),
        ("prediff", "nbody_mnist", "tiny", {"scale_factor": 0.5}),
        ("prediff_ka", "nbody_mnist", "tiny", {"constraint": "mean_intensity"}),
    ],
)
def test_hyperparameters_with_equal_shapes_are_distinguished(
    name: str, task: str, base: Any, other: dict[str, Any], tmp_path: Path
) -> None:
    task = bench.load_task(task)
    made = registry.find("model", name).load()
    base = made.presets[base] if isinstance(base, str) else base
    if name == "prediff_ka":
        base = {**base, "constraint": "energy"}
    _identified(name, task, tmp_path / "w.ckpt", **base)
    load_weights(bench.load_model(name, task, **base), tmp_path / "w.ckpt")
    (key,) = other
    with pytest.raises(ConfigError, match=rf"(?s)was trained with other settings;.*model\.{key}: trained with"):
        load_weights(bench.load_model(name, task, **{**base, **other}), tmp_path / "w.ckpt")


def test_evaluation_only_hyperparameters_may_differ(tmp_path: Path) -> None:
    task = bench.load_task("nbody_mnist")
    tiny = registry.find("model", "prediff").load().presets["tiny"]
    _identified("prediff", task, tmp_path / "w.ckpt", **tiny)
    load_weights(bench.load_model("prediff", task, **{**tiny, "steps": 3, "members": 1}), tmp_path / "w.ckpt")


@pytest.mark.parametrize(
    ("task", "fields", "others", "fits"),
    [
        ("nbody_mnist", {}, {"rescale_01": False}, False),
        ("enso_ersst", {}, {"scale": "kelvin"}, False),
        ("enso_ersst", {}, {"base_from": 1971}, False),
        ("enso_ersst", {}, {"test_from": "2001-01-01", "nino34_box": "papers"}, True),
        ("sevir", {}, {"test_from": "2019-07-01", "stride": 6, "admit_missing": True}, True),
    ],
)
def test_weights_are_bound_to_their_task(
    task: str, fields: dict[str, Any], others: dict[str, Any], fits: bool, tmp_path: Path
) -> None:
    small: dict[str, Any] = {"channels": [2, 4], "center_channels": 4}
    _identified("unet", bench.load_task(task, **fields), tmp_path / "w.ckpt", **small)
    model = bench.load_model("unet", bench.load_task(task, **{**fields, **others}), **small)
    if fits:
        load_weights(model, tmp_path / "w.ckpt")
        return
    (key,) = others
    with pytest.raises(ConfigError, match=rf"task\.{key}: trained with"):
        load_weights(model, tmp_path / "w.ckpt")


def test_weights_of_another_model_or_task_are_named(tmp_path: Path) -> None:
    small: dict[str, Any] = {"channels": [2, 4], "center_channels": 4}
    _identified("unet", bench.load_task("icar_enso"), tmp_path / "w.ckpt", **small)
    load_weights(bench.load_model("unet", bench.load_task("enso_ersst"), **small), tmp_path / "w.ckpt")
    with pytest.raises(ConfigError, match="task: trained for icar_enso, asked for sevir_lr"):
        load_weights(bench.load_model("unet", bench.load_task("sevir_lr"), **small), tmp_path / "w.ckpt")
    with pytest.raises(ConfigError, match="model: trained unet, asked for climatology"):
        load_weights(bench.load_model("climatology", bench.load_task("icar_enso")), tmp_path / "w.ckpt")


# Summaries


def test_a_summary_of_other_weights_is_not_trusted(storms: Path, tmp_path: Path) -> None:
    first, _ = run_tiny(storms, tmp_path, "train.max_epochs=2")
    path = checkpoint_of(tmp_path, "last")
    summary = path.with_name("training.json").read_bytes()
    run_tiny(storms, tmp_path / "other", "train.max_epochs=2", "seed=1")
    for name in ("best", "last"):
        checkpoint_of(tmp_path, name).write_bytes(checkpoint_of(tmp_path / "other", name).read_bytes())
    with pytest.raises(ConfigError, match=r"(?s)is of another training.*seed: trained with 1, asked for 0"):
        run_tiny(storms, tmp_path, "train.max_epochs=2")
    path.with_name("training.json").write_bytes(summary)
    record = run_tiny(storms, tmp_path, f"checkpoint={path}", training=False)[0].record
    assert record.training is None, "the summary beside them is not theirs"
    again, _ = run_tiny(storms, tmp_path, "train.max_epochs=2", "train.resume=false")
    assert again.record.scores == first.record.scores


def test_the_summary_is_deleted_before_its_weights(storms: Path, tmp_path: Path, monkeypatch) -> None:
    run_tiny(storms, tmp_path)
    seen: list[bool] = []
    monkeypatch.setattr(
        "bench.engine.train.remove_all", lambda folder: seen.append((folder / "training.json").exists())
    )
    run_tiny(storms, tmp_path, "train.resume=false")
    assert seen == [False]
