from __future__ import annotations

import pickle
import shutil
from datetime import datetime
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bench
from bench.data.sevir.catalogue import read_catalogue, select_events
from bench.data.sevir.synthetic import make_sevir, storm_event
from bench.errors import ConfigError, DataError


def _tree(root: Path, rows: list[dict], files: dict[str, np.ndarray], ids: dict[str, list[str]] | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    base = {"file_index": 0, "img_type": "vil", "time_utc": "2018-06-01 00:00:00", "pct_missing": 0.0}
    pd.DataFrame([base | row for row in rows]).to_csv(root / "CATALOG.csv", index=False)
    for name, codes in files.items():
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["vil"] = codes
            if ids and name in ids:
                file["id"] = np.array([i.encode() for i in ids[name]])
    return root


def _codes(events: int = 1, size: int = 6, frames: int = 49, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (events, size, size, frames), dtype=np.uint8)


def test_items_are_the_frames_of_the_file(tmp_path: Path) -> None:
    codes = _codes(events=2)
    rows = [{"id": "S10", "file_name": "vil/a.h5"}, {"id": "S9", "file_name": "vil/a.h5", "file_index": 1}]
    task = bench.load_task("sevir", _tree(tmp_path, rows, {"vil/a.h5": codes}))
    data = task.dataset("all")
    assert len(data) == 6 and data.ids == ("S10", "S9"), "ids sort as text"
    for index in range(6):
        event, window = divmod(index, 3)
        frames = codes[event].transpose(2, 0, 1)[window * 12 : window * 12 + 25, ..., None]
        context, target = data[index]
        assert context.dtype == target.dtype == torch.float32
        expected = frames.astype(np.float32) * np.float32(1 / 255)
        assert np.array_equal(context.numpy(), expected[:13]) and np.array_equal(target.numpy(), expected[13:])
        stored = data.stored(index)
        assert stored[0].dtype == torch.uint8 and np.array_equal(stored[1].numpy(), frames[13:])
    assert torch.equal(data[-1][0], data[5][0])
    with pytest.raises(IndexError):
        data[6]


@pytest.mark.parametrize(
    ("frames", "t_in", "t_out", "stride", "windows"),
    [(49, 13, 12, 12, 3), (25, 13, 12, 12, 1), (25, 7, 6, 6, 3), (30, 4, 3, 5, 5)],
)
def test_windows_per_event(tmp_path: Path, frames: int, t_in: int, t_out: int, stride: int, windows: int) -> None:
    root = _tree(tmp_path, [{"id": "R1", "file_name": "vil/a.h5"}], {"vil/a.h5": _codes(frames=frames)})
    task = bench.load_task("sevir", root, t_in=t_in, t_out=t_out, stride=stride)
    assert len(task.dataset("all")) == windows
    assert task.input_shape == (t_in, 6, 6, 1) and task.target_shape == (t_out, 6, 6, 1)


def test_unscaling_recovers_every_code_except_255() -> None:
    task = bench.load_task("sevir")
    codes = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    back = task.denormalise(task.normalise(codes)).flatten()
    assert torch.equal(back[:255], torch.arange(255.0))
    assert back[255] == pytest.approx(254.99998, abs=1e-5)
    assert torch.equal(task.normalise(codes), task.normalise(codes.float())), "both ways of scaling agree"


def test_splits_by_date_exclusive_and_inclusive(tmp_path: Path) -> None:
    times = {
        "a": "2018-12-31 23:59:00",
        "b": "2019-01-01 00:00:00",
        "c": "2019-01-01 00:05:00",
        "d": "2019-06-01 00:00:00",
        "e": "2019-06-01 00:05:00",
    }
    rows = [
        {"id": i, "file_name": "vil/a.h5", "file_index": n, "time_utc": t} for n, (i, t) in enumerate(times.items())
    ]
    task = bench.load_task("sevir", _tree(tmp_path, rows, {"vil/a.h5": _codes(events=5)}))
    assert {s: task.dataset(s).ids for s in ("train", "val", "test", "all")} == {
        "train": ("a", "b"), "val": ("c", "d"), "test": ("e",), "all": ("a", "b", "c", "d", "e"),
    }  # fmt: skip


def test_selection_follows_the_authors_rules(tmp_path: Path) -> None:
    rows = [
        {"id": "twice", "file_name": "vil/gone.h5"},
        {"id": "twice", "file_name": "vil/gone.h5"},
        {"id": "missing", "file_name": "vil/gone.h5", "pct_missing": 0.5},
        {"id": "unknown", "file_name": "vil/gone.h5", "pct_missing": None},
        {"id": "other", "file_name": "ir069/gone.h5", "img_type": "ir069"},
        {"id": "kept", "file_name": "vil/a.h5"},
        {"id": "kept", "file_name": "ir069/gone.h5", "img_type": "ir069"},
        # its other row is outside the dates, so within them it stands alone
        {"id": "across", "file_name": "vil/a.h5", "file_index": 1, "time_utc": "2018-06-01"},
        {"id": "across", "file_name": "vil/gone.h5", "time_utc": "2019-08-01"},
    ]
    root = _tree(tmp_path, rows, {"vil/a.h5": _codes(events=2)})
    task = bench.load_task("sevir", root)
    assert task.dataset("train").ids == ("across", "kept"), "files of dropped rows need not exist"
    admitted = select_events(read_catalogue(root), admit_missing=True, end=datetime(2019, 1, 1))
    assert [event.id for event in admitted] == ["across", "kept", "missing", "unknown"]


def test_missing_pixels_are_masked_if_the_task_says_so(tmp_path: Path) -> None:
    codes = np.full((1, 4, 4, 25), 255, np.uint8)
    root = _tree(tmp_path, [{"id": "R1", "file_name": "vil/a.h5", "pct_missing": 9}], {"vil/a.h5": codes})
    plain = bench.load_task("sevir", root, admit_missing=True).dataset("all")[0]
    assert plain[0].max() == 1 and plain[1].max() == 1
    context, target = bench.load_task("sevir", root, admit_missing=True, mask_missing=True).dataset("all")[0]
    assert (context == 0).all() and torch.isnan(target).all()


def test_all_problems_are_in_one_message(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "file_name": "vil/absent.h5"},
        {"id": "b", "file_name": "vil/short.h5", "file_index": 7},
        {"id": "c", "file_name": "vil/floats.h5"},
        {"id": "d", "file_name": "vil/ids.h5"},
        {"id": "e", "file_name": "vil/cut.h5"},
        {"id": "f", "file_name": "vil/size.h5"},
    ]
    files = {
        "vil/short.h5": _codes(),
        "vil/floats.h5": _codes().astype(np.float32),
        "vil/ids.h5": _codes(),
        "vil/cut.h5": _codes(),
        "vil/size.h5": _codes(size=8),
    }
    root = _tree(tmp_path, rows, files, ids={"vil/ids.h5": ["x"]})
    cut = root / "data/vil/cut.h5"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(DataError) as caught:
        bench.load_task("sevir", root).dataset("train")
    message = str(caught.value)
    for words in (
        "absent.h5: file is missing",
        "file_index 7",
        "float32",
        "holds 'x', the catalogue says 'd'",
        "cut.h5: not readable",
        "disagree about H x W x T",
    ):
        assert words in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_truncated_files_are_refused_before_reading(tmp_path: Path, keep: float) -> None:
    root = _tree(tmp_path, [{"id": "a", "file_name": "vil/a.h5"}], {"vil/a.h5": _codes()})
    path = root / "data/vil/a.h5"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(DataError, match="data check"):
        bench.load_task("sevir", root).dataset("all")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a readable CSV"),
        ("id,file_name\nx,y\n", "missing columns file_index, img_type"),
        (
            "id,file_name,file_index,img_type,time_utc,pct_missing\na,../../etc/passwd,0,vil,2018-01-01,0\n",
            "leaves the data folder",
        ),
        (
            "id,file_name,file_index,img_type,time_utc,pct_missing\n,f,0,vil,2018-01-01,0\nb,f,-1,vil,yesterday,0\n",
            "3 unreadable",
        ),
    ],
)
def test_a_bad_catalogue_gives_one_error(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "CATALOG.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_catalogue(tmp_path)


def test_a_catalogue_may_have_bom_crlf_extra_columns_and_mixed_dates(tmp_path: Path) -> None:
    lines = [
        "id,file_name,file_index,img_type,time_utc,pct_missing,extra",
        "a,f,0,vil,2018-01-01 10:00:00,0,x",
        "b,f,1,vil,2018-01-02,0,",
    ]
    (tmp_path / "CATALOG.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [event.id for event in select_events(read_catalogue(tmp_path))] == ["a", "b"]


def test_events_shorter_than_a_window_are_refused_with_advice(tmp_path: Path) -> None:
    root = _tree(tmp_path, [{"id": "a", "file_name": "vil/a.h5"}], {"vil/a.h5": _codes(frames=20)})
    with pytest.raises(ConfigError, match="20 frames; t_in=13 and t_out=12 need 25"):
        bench.load_task("sevir", root).dataset("all")


def test_workers_and_forks_read_the_same(storms: Path) -> None:
    from bench.data.loading import evaluation_loader

    data = bench.load_task("sevir", storms).dataset("all")
    data[0]  # opens the file before the fork
    alone = list(evaluation_loader(data, batch_size=4, num_workers=0, limit=None))
    together = list(evaluation_loader(data, batch_size=4, num_workers=2, limit=None))
    assert len(alone) == len(together) == 7
    assert all(
        torch.equal(a, b) for x, y in zip(alone, together, strict=True) for a, b in zip(x[:2], y[:2], strict=True)
    )


def test_a_data_set_pickles_without_its_open_files(storms: Path) -> None:
    data = bench.load_task("sevir", storms).dataset("test")
    first = data[0]
    again = pickle.loads(pickle.dumps(data.source))
    assert again._files == {} and torch.equal(data.task.to_context(again.stored(0)[0]), first[0])


def _compressed(storms: Path, out: Path) -> Path:
    shutil.copytree(storms, out)
    for path in out.rglob("*.h5"):
        with h5py.File(path) as file:
            codes, ids = file["vil"][:], file["id"][:]
        with h5py.File(path, "w") as file:
            file.create_dataset("vil", data=codes, chunks=(1, *codes.shape[1:]), compression="gzip")
            file["id"] = ids
    return out


def test_compressed_and_plain_files_read_the_same_and_an_event_is_decompressed_once(
    storms: Path, tmp_path: Path
) -> None:
    plain = bench.load_task("sevir", storms).dataset("all")
    packed = bench.load_task("sevir", _compressed(storms, tmp_path / "gzip")).dataset("all")
    for index in range(len(plain)):
        for ours, theirs in ((plain[index], packed[index]), (plain.stored(index), packed.stored(index))):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert len(packed.source._events_read) == min(index // 3 + 1, 4) and not plain.source._events_read
    assert list(packed.source._events_read) == list(range(len(packed) // 3))[-4:]


def test_a_file_that_shrinks_during_reading_is_an_error(storms: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(storms, root)
    data = bench.load_task("sevir", root).dataset("train")
    data[0]
    (path,) = root.glob("data/vil/2018/*.h5")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(DataError, match="ends before the event does"):
        data[len(data) - 1]


def test_the_data_fingerprint_depends_on_content_not_path(storms: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    for copy in (same, other):
        shutil.copytree(storms, copy)
    with h5py.File(next(other.glob("data/vil/2019/*0501_0831.h5")), "r+") as file:
        file["vil"][0, 0, 0, 0] ^= 1
    prints = [bench.load_task("sevir", root).data_fingerprint("test") for root in (storms, same, other)]
    assert prints[0] == prints[1] != prints[2]


class TestStorms:
    def test_generated_files_are_byte_identical_for_a_seed(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            make_sevir(tmp_path / name, events={"train": 2, "val": 0, "test": 1}, size=16, frames=25, seed=7)
        one, two = (sorted(p for p in (tmp_path / n).rglob("*") if p.is_file()) for n in ("one", "two"))
        assert [p.name for p in one] == [p.name for p in two]
        for a, b in zip(one, two, strict=True):
            if a.suffix == ".h5":
                with h5py.File(a) as x, h5py.File(b) as y:
                    assert np.array_equal(x["vil"][:], y["vil"][:]) and np.array_equal(x["id"][:], y["id"][:])
            else:
                assert a.read_bytes() == b.read_bytes()

    @given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([16, 32, 50]))
    def test_storms_move_grow_and_reach_the_highest_threshold(self, seed: int, size: int) -> None:
        event = storm_event(np.random.default_rng(seed), size=size, frames=49, minutes=5)
        assert event.shape == (size, size, 49) and event.dtype == np.uint8
        assert event.max() >= 219 and event.max() <= 254
        assert all((event[..., t] != event[..., t + 1]).any() for t in range(48))

    def test_generated_splits_are_readable(self, storms: Path) -> None:
        task = bench.load_task("sevir", storms)
        assert [len(task.dataset(s)) for s in ("train", "val", "test", "all")] == [12, 6, 9, 27]
        assert task.cadence_minutes == 5
        catalogue = pd.read_csv(storms / "CATALOG.csv")
        assert len(catalogue.columns) == 21
        with h5py.File(storms / "data" / catalogue["file_name"][0]) as file:
            assert file["vil"].chunks is None and file["vil"].compression is None

    def test_an_existing_data_set_is_never_overwritten(self, storms: Path) -> None:
        with pytest.raises(DataError, match="already holds"):
            make_sevir(storms, events={"train": 1, "val": 1, "test": 1}, size=16)

    def test_a_failed_generation_leaves_no_catalogue(self, tmp_path: Path) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("power cut")

        with pytest.raises(RuntimeError):
            make_sevir(tmp_path / "x", events={"train": 1, "val": 1, "test": 1}, size=16, advance=fail)
        assert [p.name for p in (tmp_path / "x").rglob("*") if p.is_file()] == []


def test_observed_radar_is_read_as_documented(radar: Path) -> None:
    counts = {"sevir49": (2, 6), "sevir25": (5, 5), "sevir25_mrms": (6, 6)}
    for tree, (events, sequences) in counts.items():
        data = bench.load_task("sevir", radar / tree).dataset("all")
        assert (len(data.ids), len(data)) == (events, sequences)
    low = bench.load_task("sevir_lr", radar / "sevir_lr")
    assert len(low.dataset("all")) == 6 and low.input_shape == (7, 128, 128, 1) and low.cadence_minutes == 10
    assert bench.load_task("sevir", radar / "sevir25_mrms").cadence_minutes == 2


def test_sevir_lr_is_every_second_frame_and_the_maximum_of_3x3_of_sevir(radar: Path) -> None:
    high = bench.load_task("sevir", radar / "sevir49", t_in=48, t_out=1, stride=1).dataset("all")
    low = bench.load_task("sevir_lr", radar / "sevir_lr", t_in=24, t_out=1, stride=1).dataset("all")
    for index in range(len(low)):
        frames = torch.cat(high.stored(index))[::2, ..., 0]
        pooled = torch.nn.functional.max_pool2d(frames.float(), 3).to(torch.uint8)
        assert torch.equal(pooled, torch.cat(low.stored(index))[..., 0])
