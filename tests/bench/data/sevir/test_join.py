"""Several folders in SEVIR's format as one."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

import bench
from bench.cli.main import main
from bench.data.sevir.join import block_means
from bench.data.sevir.synthetic import make_sevir
from bench.data.transfer.manifest import origin


@pytest.fixture
def others(storms: Path, tmp_path: Path) -> Path:
    """The storms under other ids, as if they were observed."""
    root = tmp_path / "others"
    shutil.copytree(storms, root)
    for name in ("DATASET.json", "MANIFEST.json"):
        (root / name).unlink(missing_ok=True)
    table = pd.read_csv(root / "CATALOG.csv")
    table["id"] = "Q" + table["id"].str[1:]
    table.to_csv(root / "CATALOG.csv", index=False)
    for path in root.glob("data/**/*.h5"):
        with h5py.File(path, "r+") as file:
            file["id"][:] = [b"Q" + name[1:] for name in file["id"][:]]
    return root


def _join(roots: list[Path], out: Path, *flags: str) -> int:
    roots_flag = ["--roots", ",".join(map(str, roots))]
    return main(["data", "convert", "sevir", "radar", *roots_flag, "--out", str(out), *flags])


def test_a_joined_folder_has_the_events_of_all(storms: Path, others: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    assert _join([storms, others], out) == 0
    for split in ("train", "val", "test"):
        parts = [bench.load_task("radar", root).dataset(split) for root in (storms, others)]  # type: ignore[arg-type]
        both = bench.load_task("radar", out).dataset(split)  # type: ignore[arg-type]
        assert sorted(both.ids) == sorted([*parts[0].ids, *parts[1].ids])
        windows = len(both) // len(both.ids)
        at = both.ids.index(parts[1].ids[-1]) * windows
        for mine, theirs in zip(both[at], parts[1][len(parts[1]) - windows], strict=True):
            assert torch.equal(mine, theirs)
    count = len(pd.read_csv(storms / "CATALOG.csv"))
    assert origin(out) == f"{origin(storms)} ({count} events) + files ({count} events)"
    assert main(["data", "check", "radar", "--root", str(out)]) == 0


def test_folders_with_the_same_name_keep_their_files_apart(storms: Path, others: Path, tmp_path: Path) -> None:
    twin = tmp_path / "elsewhere" / storms.name
    shutil.move(others, twin)
    assert _join([storms, twin], tmp_path / "both") == 0
    assert main(["data", "check", "radar", "--root", str(tmp_path / "both")]) == 0


def test_a_failed_join_gives_one_error_and_leaves_nothing(
    storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger = tmp_path / "larger"
    make_sevir(larger, events={"train": 1, "val": 1, "test": 1}, size=48, frames=49, minutes=5.0, seed=1)
    out = tmp_path / "out"
    assert _join([storms, larger], out) == 2
    message = capsys.readouterr().err
    assert "48x48x49 in " in message and "expected one size" in message and "is in " in message
    assert not out.exists()
    assert _join([storms], out) == 2 and "at least 2" in capsys.readouterr().err
    assert _join([storms, tmp_path / "nowhere"], out) == 2 and "is not a folder" in capsys.readouterr().err


def test_a_join_never_writes_into_a_folder_with_data(storms: Path, others: Path) -> None:
    before = (others / "CATALOG.csv").read_bytes()
    assert _join([storms, others], others) == 2
    assert (others / "CATALOG.csv").read_bytes() == before


def test_a_coarse_pixel_is_the_rounded_block_mean_or_missing() -> None:
    event = np.random.default_rng(0).integers(0, 255, (6, 9, 4), np.uint8)
    blocks = event.reshape(2, 3, 3, 3, 4).astype(np.float64).mean((1, 3))
    assert np.abs(block_means(event, 3) - blocks).max() <= 0.5
    assert block_means(np.array([[0, 1], [0, 1]], np.uint8)[..., None], 2).item() == 1, "halves go up"
    event[4, 8, 2] = 255
    missing = block_means(event, 3) == 255
    assert missing[1, 2, 2] and missing.sum() == 1
    assert np.array_equal(block_means(event, 1), event)


def test_a_coarsened_folder_has_block_means_and_an_updated_catalogue(storms: Path, tmp_path: Path) -> None:
    out = tmp_path / "coarse"
    assert _join([storms], out, "--pool", "4", "--every", "2") == 0
    fine, coarse = (bench.load_task("radar", root, t_in=5, t_out=5) for root in (storms, out))
    assert coarse.input_shape == (5, 8, 8, 1)
    assert coarse.cadence_minutes == 2 * fine.cadence_minutes
    assert coarse.pixel_kilometres == 4 * fine.pixel_kilometres
    assert coarse.dataset("train").ids == fine.dataset("train").ids
    rows = pd.read_csv(out / "CATALOG.csv").merge(pd.read_csv(storms / "CATALOG.csv"), on="id", suffixes=("", "_fine"))
    for row in rows.itertuples():
        with h5py.File(out / "data" / row.file_name) as file, h5py.File(storms / "data" / row.file_name_fine) as source:
            event = file["vil"][row.file_index]
            expected = block_means(source["vil"][row.file_index_fine][:, :, ::2], 4)
        assert np.array_equal(event, expected)
        assert (row.data_min, row.data_max, row.pct_missing) == (event.min(), event.max(), 0)
        assert row.minute_offsets.split(":") == row.minute_offsets_fine.split(":")[::2]
    assert origin(out).endswith("means of 4x4 pixels, every 2 frames")
    assert main(["data", "check", "radar", "--root", str(out)]) == 0


def test_frames_not_divisible_by_the_block_are_refused(
    storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _join([storms], tmp_path / "out", "--pool", "5") == 2
    assert "32x32 are not a multiple of --pool 5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_folders_can_be_splits(storms: Path, others: Path, tmp_path: Path) -> None:
    """Events of one date, split by where they were."""
    roots = [shutil.copytree(storms, tmp_path / "train"), shutil.copytree(others, tmp_path / "test")]
    assert _join(roots, tmp_path / "both") == 0
    task = bench.load_task("radar", tmp_path / "both", split_by="folder")  # type: ignore[arg-type]
    assert {split: {name[0] for name in task.dataset(split).ids} for split in ("train", "test")} == {
        "train": {"R"},
        "test": {"Q"},
    }
    assert len(task.dataset("all").ids) == len(pd.read_csv(tmp_path / "both" / "CATALOG.csv"))
    assert task.events("test").ids == task.dataset("test").ids
    assert not task.dataset("val").ids and "a file_name below val/" in task.dataset("val").why_empty
    assert task.fields()["split_by"] == "folder"
    by_date = bench.load_task("radar", tmp_path / "both")  # type: ignore[arg-type]
    assert "split_by" not in by_date.fields(), "records of before there was the option keep their identity"
    with pytest.raises(bench.errors.ConfigError, match="leave val_from and test_from out"):
        bench.load_task("radar", split_by="folder", val_from="2019-03-01")
