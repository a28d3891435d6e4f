from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from servers import Faults, Server, serving

import bench
from bench.cli.main import main
from bench.data.mnist import MakeNBody

TIMES = ["2018-05-01 00:00:00", "2019-03-01 00:00:00", "2019-07-01 00:00:00"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    with serving(tmp_path / "www") as running:
        yield running


def _sevir_lr(folder: Path) -> np.ndarray:
    """Makes a tree in the authors' stored form: SEVIR's catalogue unchanged, no `id` in the files."""
    codes = np.random.default_rng(0).integers(0, 255, (3, 128, 128, 25), np.uint8)
    name = "vil/2018/SEVIR_VIL_RANDOMEVENTS_2018_0501_0831.h5"
    (folder / "data" / name).parent.mkdir(parents=True)
    with h5py.File(folder / "data" / name, "w") as file:
        file["vil"] = codes
    row = {"file_name": name, "img_type": "vil", "pct_missing": 0.0, "size_x": 384, "size_y": 384}
    rows = [{"id": f"R{n}", "file_index": n, "time_utc": time, **row} for n, time in enumerate(TIMES)]
    minutes = ":".join(str(minute) for minute in range(-120, 121, 5))
    pd.DataFrame(rows).assign(minute_offsets=minutes).to_csv(folder / "CATALOG.csv", index=False)
    return codes


def _zipped(folder: Path, path: Path, prefix: str) -> str:
    """Packs a folder; returns the SHA-256 of the archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._CATALOG", b"what some systems add")
        for file in sorted(folder.rglob("*")):
            archive.write(file, f"{prefix}{file.relative_to(folder)}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fetch(task: str, out: Path, url: str, faults: Faults | None = None) -> int:
    timeout = str((faults or Faults()).timeout_s)
    return main(["data", "fetch", task, "--out", str(out), "--url", url, "--tries", "2", "--timeout", timeout, "--yes"])


@pytest.mark.parametrize("prefix", ["", "sevir_lr/"])
@pytest.mark.parametrize("faults", [Faults(), Faults(cut_after=300_000, times=2), Faults(status=503, times=1)])
def test_sevir_lr_is_fetched_and_read(
    server: Server, tmp_path: Path, prefix: str, faults: Faults, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = _sevir_lr(tmp_path / "made")
    sha256 = _zipped(tmp_path / "made", server.root / "sevir_lr.zip", prefix)
    server.faults, out = faults, tmp_path / "out"
    assert _fetch("sevir_lr", out, f"{server.url}/sevir_lr.zip") == 0
    assert sorted(path.name for path in out.iterdir()) == ["CATALOG.csv", "MANIFEST.json", "data"]
    manifest = json.loads((out / "MANIFEST.json").read_text())
    assert manifest["archive_sha256"] == sha256 and len(manifest["files"]) == 2
    context, target = bench.load_task("sevir_lr", out).dataset("test").stored(1)
    assert np.array_equal(np.concatenate([context, target])[..., 0], codes[2].transpose(2, 0, 1)[6:19])
    assert main(["data", "check", "sevir_lr", "--root", str(out)]) == 0
    requests = len(server.requests)
    assert _fetch("sevir_lr", out, f"{server.url}/sevir_lr.zip") == 0 and len(server.requests) == requests
    assert "holds that already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (Faults(status=404), "answers 404"),
        (Faults(status=503), "given up after 2 tries"),
        (Faults(stall_after=1000, ranges=False), "no byte came for too long"),
        (Faults(announce_more=7, etag=None, ranges=False), "given up after 2 tries"),
        (Faults(flip=5000), "expected md5"),
        (Faults(flip=5000, etag=None), "not a whole zip or tar archive"),
    ],
)
def test_a_permanent_fault_gives_one_error_and_no_data_set(
    server: Server, tmp_path: Path, faults: Faults, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _sevir_lr(tmp_path / "made")
    _zipped(tmp_path / "made", server.root / "a.zip", "")
    server.faults, out = faults, tmp_path / "out"
    assert _fetch("sevir_lr", out, f"{server.url}/a.zip", faults) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [".fetch"]
    server.faults = Faults()
    assert _fetch("sevir_lr", out, f"{server.url}/a.zip") == 0, "the same command gets it once the fault is gone"
    assert (out / "CATALOG.csv").is_file() and not (out / ".fetch").exists()


@pytest.mark.parametrize("fault", ["no catalogue", "two catalogues", "no file", "other indices", "outside"])
def test_an_archive_that_is_not_the_data_set_is_refused(
    server: Server, tmp_path: Path, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    _sevir_lr(made)
    if fault == "no catalogue":
        (made / "CATALOG.csv").unlink()
    elif fault == "two catalogues":
        shutil.copy(made / "CATALOG.csv", made / "data/CATALOG.csv")
    elif fault == "no file":
        shutil.rmtree(made / "data/vil")
    elif fault == "other indices":
        pd.read_csv(made / "CATALOG.csv").assign(file_index=[0, 1, 7]).to_csv(made / "CATALOG.csv", index=False)
    _zipped(made, server.root / "a.zip", "")
    if fault == "outside":
        with zipfile.ZipFile(server.root / "a.zip", "a") as archive:
            archive.writestr("../../escaped", b"1")
    assert _fetch("sevir_lr", tmp_path / "out", f"{server.url}/a.zip") == 2
    assert len(capsys.readouterr().err.strip()) > 40
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == ["archive.zip.bad"]
    assert not list(tmp_path.rglob("escaped"))


def test_nbody_is_fetched_from_a_url_or_a_file_and_read(server: Server, tmp_path: Path) -> None:
    made = tmp_path / "made"
    MakeNBody(out=made, train=3, val=2, test=2, seed=4).run(lambda *_: None)
    _zipped(made, server.root / "nbody_paper.zip", "nbody_paper/")
    expected = bench.load_task("nbody_mnist", made).dataset("test").stored(1)
    for number, url in enumerate((f"{server.url}/nbody_paper.zip", str(server.root / "nbody_paper.zip"))):
        out = tmp_path / f"out{number}"
        assert _fetch("nbody_mnist", out, url) == 0
        names = ["MANIFEST.json", "mnist.npz", "nbody_test.npz", "nbody_train.npz", "nbody_val.npz"]
        assert sorted(path.name for path in out.iterdir()) == names
        found = bench.load_task("nbody_mnist", out).dataset("test").stored(1)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert (server.root / "nbody_paper.zip").is_file()


def test_nbody_without_its_digits_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    MakeNBody(out=made, train=3, val=2, test=2).run(lambda *_: None)
    (made / "mnist.npz").unlink()
    _zipped(made, tmp_path / "a.zip", "")
    assert _fetch("nbody_mnist", tmp_path / "out", str(tmp_path / "a.zip")) == 2
    assert "mnist.npz once each" in capsys.readouterr().err
    assert (tmp_path / "a.zip").is_file(), "the user's own file stays where it was"
    assert _fetch("nbody_mnist", tmp_path / "out", str(tmp_path / "b.zip")) == 2
    assert "no such file" in capsys.readouterr().err
