"""What a training is: its code, data, settings and weights belong together, or the run says what does not."""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from logged import logged
from torch import nn

import bench
from bench import plugins, registry
from bench.checkpoint_format import OURS, damage, read_checkpoint, seal_of
from bench.cli.main import main
from bench.config import compose
from bench.data import digests
from bench.data.sevir.synthetic import make_sevir
from bench.engine import identity as running_identity
from bench.engine.run import Outcome, run
from bench.errors import ConfigError, DataError
from bench.models import load_weights, trained
from bench.records.schema import SourcePart
from bench.records.sources import _closure, class_source, harness_source
from bench.records.store import read_records
from bench.tables.admission import latest_per_seed

TINY = [
    "task=sevir", "model=unet", "model.channels=[4]", "model.center_channels=8", "model.norm_momentum=0.1",
    "data.batch_size=4", "train.max_epochs=1", "train.loggers=[]", "progress=false", "picture=false", "device=cpu",
]  # fmt: skip

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


def _run(
    root: Path, out: Path, *overrides: str, training: bool = True, again: bool = True
) -> tuple[Outcome, list[str]]:
    where = [f"data.root={root}", f"results.root={out / 'results'}", f"work={out / 'work'}"]
    config = compose([*TINY, *where, *overrides])
    with logged() as said:
        return run(config, training=training, again=again), said


def _best(out: Path, name: str = "best") -> Path:
    (path,) = out.glob(f"work/*/*/*/checkpoints/{name}.ckpt")
    return path


@pytest.fixture(scope="module")
def unet(storms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished training; tests leave it as it is."""
    out = tmp_path_factory.mktemp("unet")
    _run(storms, out)
    return out


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a plugin file with a module beside it; each test has names of its own, for modules stay imported."""
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
def test_edited_code_of_a_plugin_is_another_run_for_run_and_sweep(
    plugin: Any, storms: Path, tmp_path: Path, edit: dict[str, str]
) -> None:
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
    assert same.record.run_id == first.record.run_id and any("done before" in line for line in said)
    plugin(name, **edit)
    second, said = go(False)
    assert second.record.run_id != first.record.run_id and not any("done before" in line for line in said)
    assert not any("training had ended" in line for line in said)
    assert second.record.training.identity.name != first.record.training.identity.name
    source = second.record.training.identity.sources["model"]
    assert source.origin.endswith(f"(file {name}.py)") and source.sha256 == second.record.code.sources["model"].sha256
    assert len(list(tmp_path.glob(f"work/sevir/{name}/*"))) == 2


def test_weights_of_edited_code_are_refused_and_with_anyway_partial(plugin: Any, storms: Path, tmp_path: Path) -> None:
    plugin("mine_evaluated")
    words = [word for word in TINY if not word.startswith("model")] + ["model=mine_evaluated"]
    where = [f"data.root={storms}", f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}"]
    run(compose([*words, *where]), training=True)
    plugin("mine_evaluated", LOSS + "# edited\n")
    evaluate = compose([*words, *where, f"checkpoint={_best(tmp_path)}"])
    with pytest.raises(ConfigError, match=r"trained by other code.*train\.resume=anyway"):
        run(evaluate, training=False)
    assert main(["forecast", *words, *where, f"checkpoint={_best(tmp_path)}", "--out", str(tmp_path / "f.nc")]) == 2
    anyway = compose([*words, *where, f"checkpoint={_best(tmp_path)}", "train.resume=anyway"])
    record = run(anyway, training=False).record
    assert record.scope == "partial" and "other code" in record.scope_because


def test_an_edited_harness_does_not_use_finished_weights_unless_told_to(
    unet: Path, storms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = harness_source().model_copy(update={"sha256": "0" * 64, "dirty": True})
    monkeypatch.setattr("bench.records.sources.harness_source", lambda: edited)
    for again in (True, False):
        with pytest.raises(ConfigError, match=r"(?s)trained by other code.*train\.resume=false.*harness"):
            _run(storms, unet, again=again)
    before = len(read_records(unet / "results")[0])
    outcome, said = _run(storms, unet, "train.resume=anyway", again=False)
    assert any("done before" in line for line in said) and len(read_records(unet / "results")[0]) == before
    assert outcome.record.training.identity.sources["harness"].sha256 != "0" * 64


def test_the_source_of_a_model_is_what_it_imports_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
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
            file.write("# edited\n")
        class_source.cache_clear()
        seen.append(class_source(net, "net").sha256)
        assert (seen[-1] != seen[-2]) is counts, name


@pytest.mark.parametrize("name", registry.names("model"))
def test_the_source_of_a_built_in_model_is_of_its_own_files(name: str) -> None:
    made = registry.find("model", name).load()
    source = class_source(made, "ours")
    assert source.module == made.__module__ and len(source.sha256) == 64
    assert source.sha256 == class_source(made, "ours").sha256


# Data


def _reverse(root: Path, wanted: int) -> None:
    """Turns one event's frames round in time, the `wanted`-th of the tree."""
    gc.collect()  # whoever had the tree open has gone
    paths = sorted((root / "data").rglob("*.h5"))
    for path in paths:
        with h5py.File(path, "r+") as file:
            if wanted < len(file["vil"]):
                file["vil"][wanted] = file["vil"][wanted][:, :, ::-1]
                return
            wanted -= len(file["vil"])


@pytest.mark.parametrize("event", range(9))
def test_any_changed_event_is_another_fingerprint(tmp_path: Path, event: int) -> None:
    root = make_sevir(tmp_path / "tree", events={"train": 4, "val": 2, "test": 3}, size=32, seed=1)

    def prints() -> list[str]:
        task = bench.load_task("sevir", root)
        return [task.data_fingerprint(split) for split in ("train", "val", "test", "all")]

    before = prints()
    _reverse(root, event)
    changed = [a != b for a, b in zip(before, prints(), strict=True)]
    assert changed[3] and sum(changed[:3]) == 1


def test_digests_are_read_once_and_again_when_the_file_changes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    path = tmp_path / "events.bin"
    path.write_bytes(b"abcd")
    reads: list[int] = []

    def read(number: int) -> list[bytes]:
        reads.append(number)
        return [path.read_bytes()[number : number + 1]]

    first = digests.event_digests(path, [0, 1], read)
    assert digests.event_digests(path, [1, 2], read)[1] == first[1] and reads == [0, 1, 2]
    times = path.stat()
    path.write_bytes(b"aXcd")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps the times would
    assert digests.event_digests(path, [0, 1], read)[1] != first[1]
    for cached in (tmp_path / "cache").rglob("*.json"):
        cached.write_text("[" * 10_000)
    assert digests.event_digests(path, [0], read)[0] == first[0], "a damaged cache costs time only"


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    (tmp_path / "events.bin").write_bytes(b"abcd")
    assert digests.event_digests(tmp_path / "events.bin", [0], lambda _: [b"a"]) == {
        0: "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    }


def test_how_events_are_stored_is_no_matter(tmp_path: Path) -> None:
    root = make_sevir(tmp_path / "tree", events={"train": 2, "val": 1, "test": 2}, size=32, seed=1)
    before = bench.load_task("sevir", root).data_fingerprint("all")
    gc.collect()
    for path in (root / "data").rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            content = file["vil"][:]
            del file["vil"]
            file.create_dataset("vil", data=content, chunks=(1, 8, 32, 49), compression="gzip")
    assert bench.load_task("sevir", root).data_fingerprint("all") == before


def test_changed_data_train_anew(storms: Path, tmp_path: Path) -> None:
    root = make_sevir(tmp_path / "tree", events={"train": 4, "val": 2, "test": 3}, size=32, seed=1)
    first, _ = _run(root, tmp_path)
    _reverse(root, 1)
    second, said = _run(root, tmp_path, again=False)
    assert first.record.training.data_fingerprint != second.record.training.data_fingerprint
    assert not any("training had ended" in line or "done before" in line for line in said)


# Events


def test_weights_are_not_evaluated_on_what_they_saw_whatever_the_dates_say(storms: Path, tmp_path: Path) -> None:
    everything = ["task.val_from=2019-06-20", "task.test_from=2019-08-01"]
    _run(storms, tmp_path, *everything, "split=train")
    for split in ("val", "test"):
        with pytest.raises(ConfigError, match=rf"trained on \d+ of the \d+ events of split '{split}'"):
            _run(storms, tmp_path, f"checkpoint={_best(tmp_path, 'last')}", f"split={split}", training=False)
    model = bench.load_model(
        "unet", bench.load_task("sevir", storms), channels=[4], center_channels=8, norm_momentum=0.1
    )
    load_weights(model, _best(tmp_path, "last"))
    with pytest.raises(ConfigError, match="the weights were trained on"):
        bench.evaluate(model, bench.load_task("sevir", storms))
    for split in ("train", "all"):
        record = bench.evaluate(model, bench.load_task("sevir", storms), split=split)
        assert record.scope == "partial" and "that it was trained on" in record.scope_because


def test_the_same_event_under_another_id_is_the_same_event(storms: Path, unet: Path, tmp_path: Path) -> None:
    """A tree whose test events are the training events' pixels under their own ids."""
    root = make_sevir(tmp_path / "tree", events={"train": 4, "val": 2, "test": 4}, size=32, seed=1)
    task = bench.load_task("sevir", root)
    source, target = task.dataset("train").source, task.dataset("test").source
    for a, b in zip(source.events, target.events, strict=True):
        with h5py.File(root / "data" / a.file_name) as file:
            pixels = file["vil"][a.file_index]
        with h5py.File(root / "data" / b.file_name, "r+") as file:
            file["vil"][b.file_index] = pixels
    with pytest.raises(ConfigError, match="train and the evaluated test share 4 events"):
        _run(root, tmp_path)
    model = bench.load_model("unet", task, channels=[4], center_channels=8, norm_momentum=0.1)
    load_weights(model, _best(unet))
    with pytest.raises(ConfigError, match="the weights were trained on 4 of the 4 events"):
        bench.evaluate(model, bench.load_task("sevir", root))


# Weights


def test_a_checkpoint_says_what_it_is_and_carries_its_seal(unet: Path) -> None:
    content = read_checkpoint(_best(unet), sealed=True)
    said = content[OURS]
    assert said["identity"]["model"] == "unet" and said["identity"]["hyperparameters"]["channels"] == [4]
    assert len(said["events"]["train"]["ids"]) == len(said["events"]["train"]["contents"]) == 4
    summary = json.loads((_best(unet).parent / "training.json").read_text())
    assert summary["checkpoints"] == {name: seal_of(_best(unet, name)) for name in ("best", "last")}
    assert summary["identity"] == said["identity"]


@pytest.mark.parametrize("verb", ["run", "evaluate", "forecast"])
def test_a_flipped_bit_is_refused_by_every_reader(storms: Path, unet: Path, tmp_path: Path, verb: str, capsys) -> None:
    shutil.copytree(unet / "work", tmp_path / "work")
    path = _best(tmp_path)
    raw = bytearray(path.read_bytes())
    weights = read_checkpoint(path)["state_dict"]["model.head.weight"].numpy().tobytes()
    raw[bytes(raw).find(weights) + 3] ^= 1
    path.write_bytes(raw)
    where = [f"data.root={storms}", f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}"]
    given = [] if verb == "run" else [f"checkpoint={path}"]
    assert main([verb, *TINY, *where, *given]) == 2
    assert "is damaged: its content does not have the checksum it carries" in capsys.readouterr().err


def test_a_checkpoint_that_lost_its_seal_is_damaged(unet: Path, tmp_path: Path) -> None:
    torch.save(read_checkpoint(_best(unet)), tmp_path / "again.ckpt")
    with pytest.raises(DataError, match="has lost its checksum"):
        read_checkpoint(tmp_path / "again.ckpt")
    torch.save(read_checkpoint(_best(unet))["state_dict"], tmp_path / "bare.pt")
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
def test_hyperparameters_of_equal_shapes_are_told_apart(
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
    with pytest.raises(ConfigError, match=rf"(?s)was trained as something else:.*model\.{key}: trained with"):
        load_weights(bench.load_model(name, task, **{**base, **other}), tmp_path / "w.ckpt")


def test_what_only_an_evaluation_uses_may_differ(tmp_path: Path) -> None:
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
def test_weights_fit_the_task_they_were_trained_for(
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


def test_a_summary_of_other_weights_is_not_believed(storms: Path, tmp_path: Path) -> None:
    first, _ = _run(storms, tmp_path, "train.max_epochs=2")
    path = _best(tmp_path, "last")
    summary = path.with_name("training.json").read_bytes()
    _run(storms, tmp_path / "other", "train.max_epochs=2", "seed=1")
    for name in ("best", "last"):
        _best(tmp_path, name).write_bytes(_best(tmp_path / "other", name).read_bytes())
    with pytest.raises(ConfigError, match=r"(?s)is of another training.*seed: trained with 1, asked for 0"):
        _run(storms, tmp_path, "train.max_epochs=2")
    path.with_name("training.json").write_bytes(summary)
    record = _run(storms, tmp_path, f"checkpoint={path}", training=False)[0].record
    assert record.training is None, "the summary beside them is not theirs"
    again, _ = _run(storms, tmp_path, "train.max_epochs=2", "train.resume=false")
    assert again.record.scores == first.record.scores


def test_the_summary_goes_before_the_weights_it_speaks_of(storms: Path, tmp_path: Path, monkeypatch) -> None:
    _run(storms, tmp_path)
    seen: list[bool] = []
    monkeypatch.setattr(
        "bench.engine.train.remove_all", lambda folder: seen.append((folder / "training.json").exists())
    )
    _run(storms, tmp_path, "train.resume=false")
    assert seen == [False]


# Scores that count


def test_untrained_weights_are_partial_from_python_too(storms: Path, unet: Path) -> None:
    task = bench.load_task("sevir", storms)
    record = bench.evaluate("unet", task)
    assert (record.scope, record.scope_because) == ("partial", "untrained weights")
    assert bench.evaluate("persistence", task).scope == "full"
    by_hand = type(bench.load_model("unet", task, channels=[4], center_channels=8))
    model = by_hand(input_shape=task.input_shape, target_shape=task.target_shape, channels=[4], center_channels=8)
    assert bench.evaluate(model, task).scope_because == "weights of unknown training"
    model = bench.load_model("unet", task, channels=[4], center_channels=8, norm_momentum=0.1)
    sha256 = load_weights(model, _best(unet))
    record = bench.evaluate(model, task)
    assert record.scope == "full" and record.checkpoint_sha256 == sha256 and trained(model).identity is not None
    assert record.training.identity.seed == 0 and record.training.weights == "best"


def test_a_checkpoint_counts_once_and_a_model_without_weights_once(storms: Path, tmp_path: Path) -> None:
    _run(storms, tmp_path)
    for seed in (1, 2):
        _run(storms, tmp_path, f"checkpoint={_best(tmp_path)}", f"seed={seed}", training=False)
    _run(storms, tmp_path, "seed=1", "work=" + str(tmp_path / "second"))
    records = read_records(tmp_path / "results")[0]
    assert len(records) == 4
    assert [record.training.identity.seed for record in latest_per_seed(records)] == [0, 1]
    task = bench.load_task("sevir", storms)
    deterministic = [bench.evaluate("persistence", task, seed=seed) for seed in range(3)]
    assert len(latest_per_seed(deterministic)) == 1


def test_a_plugin_metric_that_changed_is_another_run(unet: Path, storms: Path, tmp_path: Path, monkeypatch) -> None:
    known = running_identity.sources_of

    def edited(*arguments: Any) -> dict[str, SourcePart]:
        found = known(*arguments)
        return {**found, "metric mine": found["harness"]}

    shutil.copytree(unet / "results", tmp_path / "results")
    assert any("done before" in line for line in _run(storms, tmp_path, again=False)[1])
    monkeypatch.setattr(running_identity, "sources_of", edited)
    assert not any("done before" in line for line in _run(storms, tmp_path, again=False)[1])


def test_numbers_of_the_environment_are_kept(unet: Path) -> None:
    record = read_records(unet / "results")[0][0]
    assert set(record.training.identity.libraries) == {"torch", "lightning", "timm", "numpy"}
    assert record.training.identity.train.event_count == 4 and np.isfinite(record.training.wall_s)


def test_remote_checkpoints_are_checked_alike(storms: Path, tmp_path: Path) -> None:
    import fsspec

    remote = f"memory://{tmp_path.name}/checkpoints"
    _, said = _run(storms, tmp_path, f"train.checkpoints={remote}")
    _, said = _run(storms, tmp_path, f"train.checkpoints={remote}")
    assert any("training had ended" in line for line in said)
    files = fsspec.filesystem("memory")
    (best,) = (name for name in files.find(f"/{tmp_path.name}") if name.endswith("best.ckpt"))
    record = _run(storms, tmp_path, f"checkpoint=memory:/{best}", training=False)[0].record
    assert record.scope == "full" and record.training is not None and record.training.identity is not None
    content = bytearray(files.cat_file(best))
    content[len(content) // 2] ^= 1
    files.pipe_file(best, bytes(content))
    for overrides, training in (([f"train.checkpoints={remote}"], True), ([f"checkpoint=memory:/{best}"], False)):
        with pytest.raises(DataError, match="is damaged"):
            _run(storms, tmp_path, *overrides, training=training)


@pytest.mark.slow
def test_stages_are_checked_alike(storms: Path, tmp_path: Path, monkeypatch) -> None:
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
    with pytest.raises(ConfigError, match=r"was trained as something else|is not of this model"):
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
    # started anew and killed: what the first training's summary said is gone
    summary = stage.with_name("training.json")
    assert summary.is_file()
    assert sum("training had ended" in line for line in go("train.resume=false")) == 0
