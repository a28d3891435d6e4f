"""SEVIR's selection rules against a second implementation, written from their description without pandas."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench

_COLUMNS = ("id", "file_name", "file_index", "img_type", "time_utc", "pct_missing", "minute_offsets")
_TIMES = (
    "2018-07-01 00:00:00",
    "2019-01-01 00:00:00",
    "2019-01-01 00:05:00",
    "2019-06-01 00:00:00",
    "2019-06-01 00:00:01",
)
_rows = st.lists(
    st.tuples(
        st.sampled_from(["S7200", "S72001", "S10", "S9", "R1", "R10"]),
        st.sampled_from(["vil", "vil", "vil", "ir069", "lght"]),
        st.sampled_from(_TIMES),
        st.sampled_from(["0", "0.0", "0.0", "1e-9", "", "nan", "12.5"]),
    ),
    min_size=1,
    max_size=14,
)


def _oracle(root: Path, split: str, frames: int, window: int, stride: int) -> tuple[list[str], list[np.ndarray]]:
    """Rules 1-6 of the authors' loader, one after the other, on dictionaries of strings."""
    start = {"val": "2019-01-01 00:00:00", "test": "2019-06-01 00:00:00"}.get(split)
    end = {"train": "2019-01-01 00:00:00", "val": "2019-06-01 00:00:00"}.get(split)
    with (root / "CATALOG.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # times are all written alike here, so that their texts compare as the times do
    rows = [row for row in rows if start is None or row["time_utc"] > start]
    rows = [row for row in rows if end is None or row["time_utc"] <= end]
    rows = [row for row in rows if row["pct_missing"] and float(row["pct_missing"]) == 0]
    rows = [row for row in rows if row["img_type"] == "vil"]
    once = [row for row in rows if sum(other["id"] == row["id"] for other in rows) == 1]
    once.sort(key=lambda row: row["id"])
    sequences = []
    for row in once:
        with h5py.File(root / "data" / row["file_name"]) as file:
            event = file["vil"][int(row["file_index"])]
        for number in range(1 + (frames - window) // stride):
            first = number * stride
            sequences.append(np.stack([event[:, :, t] for t in range(first, first + window)])[..., None])
    return [row["id"] for row in once], sequences


@pytest.mark.parametrize("name", ["sevir", "sevir_lr", "radar"])
@given(rows=_rows, frames=st.sampled_from([25, 49]), packed=st.booleans())
def test_awkward_trees_agree_with_a_second_implementation(
    name: str, rows: list[tuple[str, str, str, str]], frames: int, packed: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        files: dict[str, list[str]] = {}
        written = []
        for id_, kind, time, percent in rows:
            held = kind == "vil" and percent in ("0", "0.0")  # files that only dropped rows name are not there
            file_name = f"vil/{time[:4]}/x.h5" if held else f"{kind}/gone.h5"
            index = len(files.setdefault(file_name, []))
            files[file_name].append(id_)
            written.append([id_, file_name, index, kind, time, percent, ":".join(map(str, range(frames)))])
        with (root / "CATALOG.csv").open("w", newline="") as file:
            csv.writer(file).writerows([_COLUMNS, *written])
        draw = np.random.default_rng(len(rows))
        for file_name, ids in files.items():
            if "gone" not in file_name:
                (root / "data" / file_name).parent.mkdir(parents=True, exist_ok=True)
                codes = draw.integers(0, 256, (len(ids), 4, 5, frames), np.uint8)
                with h5py.File(root / "data" / file_name, "w") as stored:
                    stored.create_dataset("vil", data=codes, compression="gzip" if packed else None)
                    stored["id"] = np.array([id_.encode() for id_ in ids])
        task = bench.load_task(name, root)
        window = task.t_in + task.t_out  # type: ignore[attr-defined]
        for split in ("train", "val", "test", "all"):
            data = task.dataset(split)
            ids, sequences = _oracle(root, split, frames, window, task.stride)  # type: ignore[attr-defined]
            assert list(data.ids) == ids and len(data) == len(sequences)
            for index, expected in enumerate(sequences):
                context, target = data.stored(index)
                assert np.concatenate([context.numpy(), target.numpy()]).tobytes() == expected.tobytes()
                assert np.array_equal(data[index][0].numpy(), expected[: task.t_in] * np.float32(1 / 255))  # type: ignore[attr-defined]
