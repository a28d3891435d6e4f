from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import block_reduce

import bench
from bench.cli.main import main
from bench.data.sevir import convert as sevir_convert
from bench.data.sevir.convert import ConvertToLowResolution, low_resolution
from bench.errors import DataError


def _convert(root: Path, out: Path, workers: int = 1) -> list[str]:
    return ConvertToLowResolution(root=root, out=out, workers=workers).run(lambda *_: None)


@given(shape=st.tuples(*[st.integers(1, 13)] * 3), seed=st.integers(0, 2**32 - 1))
def test_low_resolution_is_the_block_maximum_of_the_authors(shape: tuple[int, int, int], seed: int) -> None:
    event = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    kept = event.copy()
    assert np.array_equal(low_resolution(event), block_reduce(event[:, :, ::2], (3, 3, 1), np.max))
    assert np.array_equal(event, kept)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_converted_tree_is_read_by_sevir_lr(storms: Path, tmp_path: Path, workers: int, capsys) -> None:
    out = tmp_path / "lr"
    words = [
        "data",
        "convert",
        "sevir",
        "sevir_lr",
        "--root",
        str(storms),
        "--out",
        str(out),
        "--workers",
        str(workers),
    ]
    assert main(words) == 0
    assert "3 files" in capsys.readouterr().out
    task, high = bench.load_task("sevir_lr", out), bench.load_task("sevir", storms)
    assert task.input_shape == (7, 11, 11, 1) and task.cadence_minutes == 10
    for split in ("train", "val", "test"):
        low, source = task.dataset(split), high.dataset(split)
        assert low.ids == source.ids and len(low) == len(source)
        for index in range(len(low)):
            event, window = divmod(index, 3)
            first = source.source.events[event]
            with h5py.File(storms / "data" / first.file_name) as file:
                frames = block_reduce(file["vil"][first.file_index][:, :, ::2], (3, 3, 1), np.max)
            expected = frames.transpose(2, 0, 1)[window * 6 : window * 6 + 13, ..., None]
            assert np.array_equal(np.concatenate([part.numpy() for part in low.stored(index)]), expected)
    assert main(["data", "check", "sevir_lr", "--root", str(out)]) == 0
    rows = pd.read_csv(out / "CATALOG.csv")
    assert set(rows["size_x"]) == {11} and rows["minute_offsets"].str.count(":").eq(24).all()


def test_observed_radar_converts_as_with_the_authors_code(radar: Path, tmp_path: Path) -> None:
    _convert(radar / "sevir49", tmp_path / "lr")
    for theirs in (radar / "sevir_lr").rglob("*.h5"):
        with h5py.File(theirs) as one, h5py.File(tmp_path / "lr" / theirs.relative_to(radar / "sevir_lr")) as other:
            assert np.array_equal(one["vil"][:], other["vil"][:])
    assert bench.load_task("sevir_lr", tmp_path / "lr").cadence_minutes == 10


def test_the_authors_files_without_ids_are_read(storms: Path, tmp_path: Path) -> None:
    _convert(storms, tmp_path / "ours")
    theirs = tmp_path / "theirs"
    shutil.copytree(tmp_path / "ours", theirs)
    shutil.copy(storms / "CATALOG.csv", theirs)
    for path in theirs.rglob("*.h5"):
        with h5py.File(path, "r+") as file:
            del file["id"]
    (theirs / "MANIFEST.json").unlink()
    one, other = (bench.load_task("sevir_lr", root) for root in (tmp_path / "ours", theirs))
    assert one.cadence_minutes == other.cadence_minutes == 10, "49 offsets for 25 frames: every second one counts"
    for index in range(len(one.dataset("all"))):
        pairs = zip(one.dataset("all")[index], other.dataset("all")[index], strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    assert main(["data", "check", "sevir_lr", "--root", str(theirs)]) == 0


def test_a_stopped_conversion_resumes_per_file(storms: Path, tmp_path: Path, monkeypatch) -> None:
    done = []
    original = sevir_convert.low_resolution

    def fails_later(event: np.ndarray) -> np.ndarray:
        done.append(1)
        if len(done) == 7:  # in the second file
            raise OSError("power cut")
        return original(event)

    with monkeypatch.context() as patch:
        patch.setattr(sevir_convert, "low_resolution", fails_later)
        with pytest.raises(DataError, match="power cut"):
            _convert(storms, tmp_path / "lr")
    (finished,) = [path for path in (tmp_path / "lr").rglob("*") if path.is_file()]
    stamp = finished.stat().st_mtime_ns
    _convert(storms, tmp_path / "lr")
    assert finished.stat().st_mtime_ns == stamp, "a finished file is not made again"
    assert len(bench.load_task("sevir_lr", tmp_path / "lr").dataset("all")) == 27
    # what was made of another source is not mixed with this one's
    shutil.copytree(storms, tmp_path / "changed")
    os.utime(next((tmp_path / "changed").rglob("*.h5")), ns=(0, 0))
    with pytest.raises(DataError, match="another data set"):
        _convert(tmp_path / "changed", tmp_path / "lr")


def test_broken_sources_are_refused_before_writing(storms: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(storms, root)
    path = next(root.rglob("2018/*.h5"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match="not readable as HDF5"):
        _convert(root, tmp_path / "lr")
    path.unlink()
    with pytest.raises(DataError, match="file is missing"):
        _convert(root, tmp_path / "lr")
    assert not (tmp_path / "lr").exists()
    with pytest.raises(DataError, match="choose another"):
        _convert(storms, storms)
