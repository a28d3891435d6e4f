"""Four events in SEVIR's format, with a file written by the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

IDS = [b"R0", b"R1", b"R2", b"R3"]
SHAPE = (4, 8, 10, 49)
NAME = "vil/2019/a.h5"
Write = Callable[[h5py.File, np.ndarray], None]


def made_codes(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, shape, np.uint8)


def write_events(
    root: Path, write: Write, *, codes: np.ndarray | None = None, columns: dict | None = None, **file
) -> Path:
    """Writes a tree of four test events, the file by `write(file, codes)`."""
    codes = made_codes() if codes is None else codes
    path = root / "data" / NAME
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w", **file) as stored:
        write(stored, codes)
        if "id" not in stored:
            stored["id"] = IDS[: len(codes)]
    rows = {
        "id": [name.decode() for name in IDS[: len(codes)]], "file_name": NAME, "file_index": range(len(codes)),
        "img_type": "vil", "time_utc": "2019-07-01 03:00:00", "pct_missing": 0.0, "data_max": 254.0,
        "minute_offsets": ":".join(str(5 * n) for n in range(49)), "size_y": 8, "size_x": 10,
    }  # fmt: skip
    pd.DataFrame(rows | (columns or {})).to_csv(root / "CATALOG.csv", index=False)
    return root


def create(**options) -> Write:
    return lambda file, codes: file.create_dataset("vil", data=codes, **options)
