from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bench
from bench.cli.main import main
from bench.data.leaks import SplitEvents, find_leaks
from bench.data.sevir.splits import RandomPart

_spans = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)).map(lambda t: (t[0], sum(t))), max_size=8)


@given(one=_spans, other=_spans, same=st.sets(st.integers(0, 7)))
def test_leaks_are_shared_ids_and_overlapping_pairs(one: list, other: list, same: set[int]) -> None:
    a = {f"x{n}" if n in same else f"a{n}": span for n, span in enumerate(one)}
    b = {f"x{n}" if n in same else f"b{n}": span for n, span in enumerate(other)}
    shared = set(a) & set(b)
    overlapping = {
        name
        for name, (first, last) in a.items()
        if name not in shared
        and any(first <= until and since <= last for id_, (since, until) in b.items() if id_ not in shared)
    }
    found = find_leaks({s: SplitEvents(tuple(e), tuple(e.values())) for s, e in (("train", a), ("test", b))})
    if not shared and not overlapping:
        assert found == []
    else:
        (leak,) = found
        assert set(leak.ids) == shared and set(leak.overlapping) == overlapping
        assert len(leak.lines()) == bool(shared) + bool(overlapping)


def test_without_times_only_ids_are_compared() -> None:
    splits = {"train": SplitEvents(("a", "b")), "val": SplitEvents(("c",), ((0, 1),)), "test": SplitEvents(("b",))}
    (leak,) = find_leaks(splits)
    assert leak.splits == ("train", "test") and leak.ids == ("b",) and leak.overlapping == ()


def _tree(root: Path, rows: list[tuple[str, str]], frames: int = 25) -> Path:
    (root / "data").mkdir(parents=True)
    offsets = ":".join(str(5 * (n - frames // 2)) for n in range(frames))
    pd.DataFrame(
        {"id": [r[0] for r in rows], "file_name": "a.h5", "file_index": range(len(rows)), "img_type": "vil",
         "time_utc": [r[1] for r in rows], "minute_offsets": offsets, "pct_missing": 0.0}
    ).to_csv(root / "CATALOG.csv", index=False)  # fmt: skip
    with h5py.File(root / "data/a.h5", "w") as file:
        file["vil"] = np.random.default_rng(0).integers(0, 255, (len(rows), 8, 8, frames), np.uint8)
        file["id"] = np.array([r[0].encode() for r in rows])
    return root


def test_info_and_record_report_leaks_by_id_and_time(tmp_path: Path, capsys) -> None:
    rows = [
        ("S1", "2018-06-01 00:00"),
        ("S2", "2018-12-31 23:30"),  # its last hour is that of S3
        ("S3", "2019-01-01 00:30"),
        ("S4", "2019-07-01"),
        ("S1", "2019-08-01"),  # twice, on both sides of the date: the authors' rules keep both
    ]
    task = bench.load_task("sevir", _tree(tmp_path / "t", rows))
    expected = [
        {"splits": splits, "id_count": len(ids), "ids": ids, "overlap_count": len(late), "overlapping_in_time": late}
        for splits, ids, late in ((["train", "val"], [], ["S2"]), (["train", "test"], ["S1"], []))
    ]
    assert task.dataset("train").identity()["leaks"] == expected
    assert task.dataset("test").identity()["leaks"] == expected[1:]
    assert "leaks" not in task.dataset("all").identity()
    assert main(["data", "info", "sevir", "--root", str(tmp_path / "t"), "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["facts"]["leaks"] == expected
    assert report["problems"] == ["splits train and test share 1 id: S1"]
    assert any("1 events of train overlap in time with events of val: S2" in line for line in report["remarks"])
    # a run that would train on what it is evaluated on refuses before it starts
    words = ["run", "task=sevir", "model=unet", "model.channels=[4,4]", "model.center_channels=4"]
    words += [f"data.root={tmp_path / 't'}", f"work={tmp_path / 'w'}"]
    assert main([*words, f"results.root={tmp_path / 'r'}"]) == 2
    assert "train and the evaluated test share 1 event: S1" in capsys.readouterr().err


def test_data_without_leaks_keep_their_identity(storms: Path) -> None:
    assert "leaks" not in bench.load_task("sevir", storms).dataset("test").identity()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.early_stopping.monitor=test/mse", "no such score"),
        ("task.val_from=2019-07-01", "train and the evaluated test share 3 events"),
    ],
)
def test_nothing_is_selected_on_the_test_split(
    storms: Path, tmp_path: Path, setting: str, message: str, capsys
) -> None:
    words = ["run", "task=sevir", "model=unet", "model.channels=[4,4]", "model.center_channels=4", setting]
    words += [f"data.root={storms}", f"work={tmp_path}"]
    assert main([*words, f"results.root={tmp_path / 'r'}", "progress=false"]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "r").rglob("*.json")), "nothing is recorded"


class TestRandomSplit:
    @pytest.fixture
    def task(self, tmp_path: Path) -> bench.tasks.Task:
        rows = [(f"S{n}", f"2018-06-{n:02d}") for n in range(10, 20)] + [("S9", "2019-07-01")]
        return bench.load_task("sevir_lr", _tree(tmp_path / "t", rows), split_by="random")

    def test_the_random_split_is_that_of_the_authors(self, task) -> None:
        """90/10 of the windows up to the test date; torch's permutation of seed 0, cut in two."""
        plain = bench.load_task("sevir_lr", task.data_root).dataset("train")
        order = torch.randperm(30, generator=torch.Generator().manual_seed(0)).tolist()
        for split, chosen in (("train", order[:27]), ("val", order[27:])):
            with pytest.warns(UserWarning, match="optimistic"):
                data = task.dataset(split)
            assert len(data) == len(chosen)
            for index, number in enumerate(chosen):
                assert all(torch.equal(a, b) for a, b in zip(data[index], plain[number], strict=True))
                assert torch.equal(data.stored(index)[0], plain.stored(number)[0])
            assert set(data.ids) == {plain.ids[number // 3] for number in chosen}
        assert task.dataset("test").ids == ("S9",)
        assert task.dataset("train").identity() != task.dataset("val").identity() != plain.identity()

    def test_the_random_split_has_the_published_counts(self) -> None:
        """44,778 windows up to the test date become 40,301 and 4,477."""

        class Source:
            ids, times, windows_per_event = (), (), 3

            def __len__(self) -> int:
                return 44_778

        assert [len(RandomPart(Source(), side).indices) for side in ("train", "val")] == [40_301, 4_477]  # type: ignore[arg-type]

    @pytest.mark.filterwarnings("ignore:.*optimistic")
    def test_a_leak_is_reported_without_stopping_the_run(self, task, tmp_path: Path, capsys) -> None:
        report = task.inspect_data()
        assert report.problems == []
        assert any("splits train and val share 3 ids" in line for line in report.remarks)
        assert report.facts["splits"]["val"]["sequences"] == 3
        words = ["run", "task=sevir_lr", "task.split_by=random", "model=unet", "model.channels=[4,4]"]
        words += ["model.center_channels=4", f"data.root={task.data_root}", "train.max_epochs=1", "progress=false"]
        assert main([*words, f"work={tmp_path / 'w'}", f"results.root={tmp_path / 'r'}", "picture=false"]) == 0
        (path,) = (tmp_path / "r").rglob("*.json")
        assert json.loads(path.read_text())["task"]["fields"]["split_by"] == "random"
        # windows of the chosen test split are not part of either
        assert "leaks" not in json.loads(path.read_text())["data"]["identity"]


def test_radar_has_the_shapes_and_cadence_of_its_files(radar: Path) -> None:
    for tree, (cadence, size, sequences) in {
        "sevir25": (5, 384, 5),
        "sevir25_mrms": (2, 384, 6),
        "sevir49": (5, 384, 6),
        "sevir_lr": (10, 128, 2),
    }.items():
        task = bench.load_task("radar", radar / tree)
        assert task.cadence_minutes == cadence and task.input_shape == (13, size, size, 1)
        data = task.dataset("all")
        assert len(data) == sequences
        with h5py.File(next((radar / tree).rglob("*.h5"))) as file:
            frames = file["vil"][0].transpose(2, 0, 1)[:25, ..., None]
        assert np.array_equal(torch.cat(data.stored(0)).numpy(), frames)
