from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from servers import Faults, Server, serving

import bench
from bench.cli.main import main
from bench.data.sevir.download import FetchSevir
from bench.errors import DataError, UsageError


@pytest.fixture
def bucket(storms: Path, tmp_path: Path) -> Iterator[Server]:
    shutil.copytree(storms, tmp_path / "bucket")
    with serving(tmp_path / "bucket") as server:
        yield server


def _fetch(server: Server, out: Path, **flags) -> FetchSevir:
    return FetchSevir(out=out, url=server.url, **{"tries": 2, "timeout": server.faults.timeout_s} | flags)


def _run(verb: FetchSevir) -> list[str]:
    return verb.run(lambda *_: None)


def _same_events(ours: Path, theirs: Path, split: str) -> int:
    """Compares what a task reads of two trees, by id; returns the number of events."""
    one, other = (bench.load_task("sevir", root).dataset(split) for root in (ours, theirs))
    per_event = len(one) // len(one.ids)
    for number, name in enumerate(one.ids):
        for window in range(per_event):
            mine = one.stored(number * per_event + window)
            there = other.stored(other.ids.index(name) * per_event + window)
            assert all(torch.equal(a, b) for a, b in zip(mine, there, strict=True))
    return len(one.ids)


def _left_over(out: Path) -> list[str]:
    return [
        p.name
        for p in out.rglob("*")
        if p.suffix in (".part", ".json", ".bad", ".lock", ".raw") and p.stem != "MANIFEST"
    ]


def test_whole_files_equal_those_of_the_bucket(bucket: Server, tmp_path: Path, storms: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["data", "fetch", "sevir", "--out", str(out), "--url", bucket.url]) == 0
    assert f"3 files, 0.5 MB, from {bucket.url}" in capsys.readouterr().out, "the estimate comes first"
    for path in storms.rglob("*.h5"):
        assert (out / path.relative_to(storms)).read_bytes() == path.read_bytes()
    assert (out / "CATALOG.csv").read_bytes() == (storms / "CATALOG.csv").read_bytes()
    assert _left_over(out) == [] and not (out / ".fetch").exists()
    assert main(["data", "check", "sevir", "--root", str(out)]) == 0
    sent = bucket.sent
    assert main(["data", "fetch", "sevir", "--out", str(out), "--url", bucket.url]) == 0
    assert "holds that already" in capsys.readouterr().out and bucket.sent == sent
    victim = next(out.rglob("*.h5"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    assert main(["data", "check", "sevir", "--root", str(out)]) == 2
    assert "MANIFEST.json" in capsys.readouterr().err


@pytest.mark.parametrize("compressed", [False, True])
def test_single_events_are_fetched_by_ranges_into_a_valid_tree(
    bucket: Server, tmp_path: Path, storms: Path, compressed: bool
) -> None:
    if compressed:
        for path in bucket.root.rglob("*.h5"):
            with h5py.File(path) as file:
                codes, ids = file["vil"][:], file["id"][:]
            with h5py.File(path, "w") as file:
                file.create_dataset("vil", data=codes, chunks=(1, *codes.shape[1:]), compression="gzip")
                file["id"] = ids
    whole = sum(path.stat().st_size for path in bucket.root.rglob("*.h5"))
    out = tmp_path / "out"
    verb = _fetch(bucket, out, split="test", limit=2)
    assert verb.plan(lambda *_: None).lines[0].startswith("2 events of 1 files, 0.1 MB")
    _run(verb)
    assert _same_events(out, storms, "test") == 2
    rows, original = (pd.read_csv(root / "CATALOG.csv", dtype=str) for root in (out, storms))
    assert list(rows["file_index"]) == ["0", "1"] and rows["file_name"].str.endswith("_SUBSET.h5").all()
    rest = [column for column in rows if column not in ("file_name", "file_index")]
    assert rows[rest].equals(original[original["id"].isin(rows["id"])][rest].reset_index(drop=True))
    assert _left_over(out) == [] and not (out / ".fetch").exists()
    assert compressed or bucket.sent < whole / 2
    assert main(["data", "check", "sevir", "--root", str(out)]) == 0


def test_events_are_fetched_by_id_from_several_files(bucket: Server, tmp_path: Path, storms: Path) -> None:
    ids = [bench.load_task("sevir", storms).dataset(split).ids[-1] for split in ("train", "val")]
    _run(_fetch(bucket, tmp_path / "out", events=tuple(ids)))
    assert set(bench.load_task("sevir", tmp_path / "out").dataset("all").ids) == set(ids)
    assert _same_events(tmp_path / "out", storms, "all") == 2
    with pytest.raises(UsageError, match="of these ids"):
        _run(_fetch(bucket, tmp_path / "other", events=("R0", *ids)))
    with pytest.raises(UsageError, match="split test has not"):
        _run(_fetch(bucket, tmp_path / "other", events=tuple(ids), split="test"))
    with pytest.raises(DataError, match="another selection"):
        _run(_fetch(bucket, tmp_path / "out", events=tuple(ids[:1])))


@pytest.mark.parametrize("selection", [{}, {"split": "train"}])
def test_an_interrupted_fetch_resumes(bucket: Server, tmp_path: Path, storms: Path, selection: dict) -> None:
    out = tmp_path / "out"
    if selection:
        # the third event's range is refused for good
        calls = iter(range(100))
        original = FetchSevir._event

        def failing(self, *arguments):
            if next(calls) == 2:
                raise DataError("cut here")
            return original(self, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FetchSevir, "_event", failing)
            with pytest.raises(DataError, match="cut here"):
                _run(_fetch(bucket, out, workers=1, **selection))
    else:
        bucket.faults = Faults(cut_after=60_000, only="/data/", times=1)
        with pytest.raises(DataError, match="broke off"):
            _run(_fetch(bucket, out, workers=1, tries=1))
    assert not (out / "CATALOG.csv").exists()
    assert not list(out.glob("data/**/*.h5")), "nothing was begun after the failure"
    bucket.faults, before = Faults(), bucket.sent
    _run(_fetch(bucket, out, **selection))
    assert _same_events(out, storms, "train") == 4
    size = sum(path.stat().st_size for path in out.rglob("*.h5"))
    assert bucket.sent - before < size - 50_000 + (storms / "CATALOG.csv").stat().st_size * (not selection) + 20_000


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(status=404, only="/data/"), "404"),
        (Faults(status=503, only="/data/"), "503"),
        (Faults(cut_after=100, only="/data/", ranges=False), "broke off"),
        (Faults(stall_after=100, only="/data/", ranges=False), "no byte came"),
        (Faults(flip=5000, only="/data/"), "expected md5"),
        (Faults(announce_more=9, only="/data/", etag=None, ranges=False), "broke off"),
        (Faults(status=404), "CATALOG.csv"),
    ],
)
def test_faults_leave_no_file_under_its_final_name(
    bucket: Server, tmp_path: Path, faults: Faults, message: str, capsys
) -> None:
    bucket.faults = faults
    out = tmp_path / "out"
    words = ["data", "fetch", "sevir", "--out", str(out), "--url", bucket.url, "--tries", "2", "--workers", "1"]
    assert main([*words, "--timeout", str(faults.timeout_s)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and "Traceback" not in error
    assert not (out / "CATALOG.csv").exists() and not list(out.glob("data/**/*.h5"))
    bucket.faults = Faults()
    assert main(words) == 0


def test_files_that_contradict_the_catalogue_are_refused(bucket: Server, tmp_path: Path) -> None:
    path = next(bucket.root.rglob("*0101_0430.h5"))
    with h5py.File(path, "r+") as file:
        file["id"][0] = b"another"
    for flags in ({}, {"split": "val"}):
        with pytest.raises(DataError, match="holds 'another'"):
            _run(_fetch(bucket, tmp_path / "out", **flags))
        assert not (tmp_path / "out/CATALOG.csv").exists()
    path.write_bytes(b"<html>busy</html>")
    for flags in ({}, {"split": "val"}):
        with pytest.raises(DataError, match="not readable as HDF5"):
            _run(_fetch(bucket, tmp_path / "html", **flags))
    assert not list((tmp_path / "html").glob("data/**/*0101_0430.h5"))


def test_large_downloads_need_confirmation(bucket: Server, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("bench.data.sevir.download._ASK_ABOVE_BYTES", 1000)
    monkeypatch.setattr("sys.stdin", (tmp_path / "nobody").open("a+"))
    words = ["data", "fetch", "sevir", "--out", str(tmp_path / "out"), "--url", bucket.url]
    assert main(words) == 2
    assert "add --yes" in capsys.readouterr().err
    assert main([*words, "--yes"]) == 0


def test_a_file_that_changes_on_the_server_is_not_mixed(bucket: Server, tmp_path: Path) -> None:
    verb = _fetch(bucket, tmp_path / "out", split="train")
    verb.plan(lambda *_: None)
    path = next(bucket.root.rglob("2018/*.h5"))
    with h5py.File(path, "r+") as file:
        file["vil"][0, 0, 0] = np.arange(49)
    with pytest.raises(DataError, match="changed on the server"):
        _run(verb)


@pytest.mark.parametrize("scheme", ["memory", "http", "s3"])
def test_a_data_root_may_be_a_url(bucket: Server, storms: Path, scheme: str, monkeypatch) -> None:
    import fsspec

    root = bucket.url
    if scheme == "s3":
        pytest.importorskip("s3fs")
        (bucket.root / "store").symlink_to(bucket.root)
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": bucket.url})
        root = "s3://store"
    if scheme == "memory":
        root = "memory://storms"
        fsspec.filesystem("memory").put(str(storms), "/storms", recursive=True)
    task = bench.load_task("sevir", root)
    assert task.input_shape == (13, 32, 32, 1) and task.cadence_minutes == 5
    ours, local = task.dataset("test"), bench.load_task("sevir", storms).dataset("test")
    assert ours.ids == local.ids
    for index in range(len(local)):
        assert all(torch.equal(a, b) for a, b in zip(ours[index], local[index], strict=True))
    assert task.data_fingerprint("test") == bench.load_task("sevir", storms).data_fingerprint("test")
    assert main(["data", "check", "sevir", "--root", root]) == 0
    bucket.faults = Faults(status=404)
    with pytest.raises(DataError, match=r"is missing|not readable"):
        bench.load_task("sevir", root + "/nothing").dataset("test")


def test_other_tasks_refuse_urls() -> None:
    with pytest.raises(bench.ConfigError if hasattr(bench, "ConfigError") else UsageError, match="reads folders only"):
        bench.load_task("icar_enso", "s3://bucket/enso")
    with pytest.raises(UsageError, match="nosuch"):
        bench.load_task("sevir", "nosuch://x")
