"""`task.skip_missing=true`: skipped events are named, and a run without them is partial."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import pandas as pd
import pytest

import bench
from bench.cli.main import main
from bench.errors import DataError
from bench.records.store import read_records


@pytest.fixture
def damaged(storms: Path, tmp_path: Path) -> tuple[Path, list[str], list[str]]:
    """Test storms of which one has another id, one a wrong index and one no file: root, all ids, ids that are whole."""
    root = tmp_path / "damaged"
    shutil.copytree(storms, root)
    (root / "MANIFEST.json").unlink(missing_ok=True)
    ids = list(bench.load_task("sevir", root).dataset("all").ids)
    table = pd.read_csv(root / "CATALOG.csv")
    rows = {name: table.index[table["id"] == name][0] for name in ids}
    test = list(bench.load_task("sevir", root).dataset("test").ids)
    table.loc[rows[test[0]], "file_index"] = 999
    table.loc[rows[ids[0]], "file_name"] = "vil/2018/gone.h5"
    table.to_csv(root / "CATALOG.csv", index=False)
    with h5py.File(root / "data" / table.loc[rows[test[1]], "file_name"], "r+") as file:
        stored = file["id"][:]
        stored[table.loc[rows[test[1]], "file_index"]] = b"another"
        file["id"][:] = stored
    return root, ids, [name for name in ids if name not in (ids[0], test[0], test[1])]


def test_by_default_all_problems_are_listed_and_nothing_runs(damaged) -> None:
    root, _, _ = damaged
    with pytest.raises(DataError) as caught:
        bench.load_task("sevir", root).dataset("all")
    for words in ("gone.h5: file is missing", "file_index 999", "holds 'another'", "task.skip_missing=true"):
        assert words in str(caught.value)


def test_skipping_keeps_intact_events_unchanged(damaged, storms: Path) -> None:
    root, ids, whole = damaged
    data = bench.load_task("sevir", root, skip_missing=True).dataset("all")
    assert list(data.ids) == whole and data.identity()["skipped_ids"] == [i for i in ids if i not in whole]
    undamaged = bench.load_task("sevir", storms, skip_missing=True).dataset("all")
    assert undamaged.incomplete is None and "skipped_ids" not in undamaged.identity()
    for number, name in enumerate(whole):
        one, other = data.stored(3 * number + 1), undamaged.stored(3 * ids.index(name) + 1)
        assert all(bool((a == b).all()) for a, b in zip(one, other, strict=True))


def test_a_tree_of_two_frame_sizes_keeps_the_most_common_size(storms: Path, tmp_path: Path) -> None:
    root = tmp_path / "sizes"
    shutil.copytree(storms, root)
    table = pd.read_csv(root / "CATALOG.csv")
    with h5py.File(root / "data/other.h5", "w") as file:
        file["vil"] = h5py.File(root / "data" / table.loc[0, "file_name"])["vil"][:1, :16, :16]
        file["id"] = [table.loc[0, "id"].encode()]
    table.loc[0, ["file_name", "file_index"]] = "other.h5", 0
    table.to_csv(root / "CATALOG.csv", index=False)
    data = bench.load_task("sevir", root, skip_missing=True).dataset("all")
    assert data.incomplete == f"1 event skipped: {table.loc[0, 'id']}" and data.source.frame_size == (32, 32)  # type: ignore[attr-defined]


def test_a_run_without_some_events_is_partial_and_names_them(damaged, tmp_path: Path) -> None:
    root, _, whole = damaged
    words = ["task=sevir", "model=persistence", f"data.root={root}", f"results.root={tmp_path / 'results'}"]
    assert main(["run", *words]) == 2
    assert main(["run", *words, "task.skip_missing=true"]) == 0
    (record,) = read_records(tmp_path / "results", "sevir")[0]
    assert record.scope == "partial" and (record.scope_because or "").startswith("2 events skipped: ")
    assert record.data is not None and len(record.data.identity["skipped_ids"]) == 2
    assert not set(record.data.identity["skipped_ids"]) & set(whole)


def test_a_model_trained_without_some_events_is_partial(damaged, storms: Path, tmp_path: Path) -> None:
    root, _, _ = damaged
    words = ["task=sevir", "model=unet", "model.channels=[4]", "model.center_channels=4", "train.max_steps=1"]
    words += [f"data.root={root}", f"data.test_root={storms}", "task.skip_missing=true"]
    assert main(["run", *words, f"work={tmp_path / 'work'}", f"results.root={tmp_path / 'results'}"]) == 0
    (record,) = read_records(tmp_path / "results", "sevir")[0]
    assert record.scope == "partial" and (record.scope_because or "").startswith("trained with 1 event skipped: ")
