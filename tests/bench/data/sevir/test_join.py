"""Several folders in SEVIR's format as one."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import pandas as pd
import pytest
import torch

import bench
from bench.cli.main import main
from bench.data.sevir.synthetic import make_sevir
from bench.data.transfer.manifest import origin


@pytest.fixture
def others(storms: Path, tmp_path: Path) -> Path:
    """The storms under other ids, as if somebody had observed them."""
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


def _join(roots: list[Path], out: Path) -> int:
    return main(["data", "convert", "sevir", "radar", "--roots", ",".join(map(str, roots)), "--out", str(out)])


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


def test_folders_of_one_name_keep_their_files_apart(storms: Path, others: Path, tmp_path: Path) -> None:
    twin = tmp_path / "elsewhere" / storms.name
    shutil.move(others, twin)
    assert _join([storms, twin], tmp_path / "both") == 0
    assert main(["data", "check", "radar", "--root", str(tmp_path / "both")]) == 0


def test_what_cannot_be_joined_is_one_error_and_leaves_nothing(
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


def test_a_folder_with_data_is_never_joined_into(storms: Path, others: Path) -> None:
    before = (others / "CATALOG.csv").read_bytes()
    assert _join([storms, others], others) == 2
    assert (others / "CATALOG.csv").read_bytes() == before
