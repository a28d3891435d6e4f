"""Changed data make another training, however they are stored and whatever their events are called."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import h5py
import pytest
from tiny_unet import checkpoint_of, run_tiny

import bench
from bench.data import digests
from bench.data.sevir.synthetic import make_sevir
from bench.errors import ConfigError
from bench.models import load_weights

# Data


def _reverse(root: Path, wanted: int) -> None:
    """Reverses the frames of one event, the `wanted`-th of the tree, in time."""
    gc.collect()  # whoever had the tree open has gone
    paths = sorted((root / "data").rglob("*.h5"))
    for path in paths:
        with h5py.File(path, "r+") as file:
            if wanted < len(file["vil"]):
                file["vil"][wanted] = file["vil"][wanted][:, :, ::-1]
                return
            wanted -= len(file["vil"])


def test_any_changed_event_changes_the_fingerprint(tmp_path: Path) -> None:
    root = make_sevir(tmp_path / "tree", events={"train": 4, "val": 2, "test": 3}, size=32, seed=1)

    def prints() -> list[str]:
        task = bench.load_task("sevir", root)
        return [task.data_fingerprint(split) for split in ("train", "val", "test", "all")]

    before = prints()
    for event in range(9):
        _reverse(root, event)
        after = prints()
        changed = [a != b for a, b in zip(before, after, strict=True)]
        assert changed[3] and sum(changed[:3]) == 1, event
        before = after


def test_digests_are_cached_until_the_file_changes(tmp_path: Path, monkeypatch) -> None:
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


def test_an_unwritable_cache_only_costs_time(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    (tmp_path / "events.bin").write_bytes(b"abcd")
    assert digests.event_digests(tmp_path / "events.bin", [0], lambda _: [b"a"]) == {
        0: "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    }


def test_the_storage_format_of_events_does_not_matter(tmp_path: Path) -> None:
    root = make_sevir(tmp_path / "tree", events={"train": 2, "val": 1, "test": 2}, size=32, seed=1)
    before = bench.load_task("sevir", root).data_fingerprint("all")
    gc.collect()
    for path in (root / "data").rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            content = file["vil"][:]
            del file["vil"]
            file.create_dataset("vil", data=content, chunks=(1, 8, 32, 49), compression="gzip")
    assert bench.load_task("sevir", root).data_fingerprint("all") == before


def test_changed_data_are_trained_on_again(storms: Path, tmp_path: Path) -> None:
    root = make_sevir(tmp_path / "tree", events={"train": 4, "val": 2, "test": 3}, size=32, seed=1)
    first, _ = run_tiny(root, tmp_path)
    _reverse(root, 1)
    second, said = run_tiny(root, tmp_path, again=False)
    assert first.record.training.data_fingerprint != second.record.training.data_fingerprint
    assert not any("training had ended" in line or "already recorded" in line for line in said)


# Events


def test_weights_are_not_evaluated_on_their_training_events(storms: Path, tmp_path: Path) -> None:
    everything = ["task.val_from=2019-06-20", "task.test_from=2019-08-01"]
    run_tiny(storms, tmp_path, *everything, "split=train")
    for split in ("val", "test"):
        with pytest.raises(ConfigError, match=rf"trained on \d+ of the \d+ events of split '{split}'"):
            run_tiny(
                storms, tmp_path, f"checkpoint={checkpoint_of(tmp_path, 'last')}", f"split={split}", training=False
            )
    model = bench.load_model(
        "unet", bench.load_task("sevir", storms), channels=[4], center_channels=8, norm_momentum=0.1
    )
    load_weights(model, checkpoint_of(tmp_path, "last"))
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
        run_tiny(root, tmp_path)
    model = bench.load_model("unet", task, channels=[4], center_channels=8, norm_momentum=0.1)
    load_weights(model, checkpoint_of(unet))
    with pytest.raises(ConfigError, match="the weights were trained on 4 of the 4 events"):
        bench.evaluate(model, bench.load_task("sevir", root))
