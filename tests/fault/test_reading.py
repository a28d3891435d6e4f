"""Files with damage that is only found in training, and loaders with every start method (D02, D09)."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import h5py
import pytest
import torch

import bench
from bench.cli.main import main
from bench.data.loading import evaluation_loader
from bench.data.sevir.synthetic import make_sevir


@pytest.fixture
def flipped(tmp_path: Path) -> Path:
    """Storms with a compressed training file, in which one byte of one event is changed."""
    root = make_sevir(tmp_path / "flipped", events={"train": 3, "val": 1, "test": 1}, size=16, seed=1)
    (path,) = (root / "data").rglob("vil/2018/*.h5")
    with h5py.File(path) as file:
        codes, ids = file["vil"][:], file["id"][:]
    with h5py.File(path, "w") as file:
        array = file.create_dataset("vil", data=codes, chunks=(1, *codes.shape[1:]), compression="gzip")
        file["id"] = ids
        where = array.id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[where.byte_offset + where.size // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    return root


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_flipped_byte_in_a_compressed_file_gives_one_message(
    flipped: Path, tmp_path: Path, monkeypatch, capsys, num_workers: int
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["task=sevir", "model=unet", "model.channels=[4]", "model.center_channels=4", f"data.root={flipped}"]
    words += [f"data.num_workers={num_workers}", "train.loggers=[]", "device=cpu", "progress=false"]
    assert main(["run", *words]) == 2
    error = capsys.readouterr().err
    assert ".h5: event " in error and "cannot be read" in error and "`earthbench data check`" in error
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1, error
    assert not list(Path("results").rglob("*.json"))


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("method", "num_workers"), [("fork", 2), ("fork", 4), ("spawn", 2), ("forkserver", 2)])
def test_loaders_read_the_same_with_every_start_method(
    storms: Path, monkeypatch: pytest.MonkeyPatch, method: str, num_workers: int
) -> None:
    data = bench.load_task("sevir", storms).dataset("all")
    alone = list(evaluation_loader(data, batch_size=4, num_workers=0, limit=None))  # opens the files
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        together = list(evaluation_loader(data, batch_size=4, num_workers=num_workers, limit=None))
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert len(alone) == len(together) == 7
    assert all(
        torch.equal(a, b) for x, y in zip(alone, together, strict=True) for a, b in zip(x[:2], y[:2], strict=True)
    )
