"""Trees in SEVIR's format: one event file and its catalogue, which is written last."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bench.data.sevir.catalogue import COLUMNS, MISSING, SENSOR
from bench.files import replacing

_CHUNK_PIXELS = 96


def catalogue_row(codes: np.ndarray, **known: Any) -> dict[str, Any]:
    """Returns a row of the catalogue: statistics of the codes, and further columns.

    Args:
        codes: uint8 `(H,W,T)`.
        **known: Further columns.
    """
    found = codes[codes != MISSING]
    return dict.fromkeys(COLUMNS, "") | {
        "img_type": SENSOR, "size_x": codes.shape[1], "size_y": codes.shape[0],
        "data_min": float(found.min(initial=MISSING)), "data_max": float(found.max(initial=0)),
        "pct_missing": float(100 * (codes == MISSING).mean()), **known,
    }  # fmt: skip


def write_tree(root: Path, rows: Sequence[dict[str, Any]], events: Iterable[np.ndarray]) -> Path:
    """Writes the event file of the rows, and their catalogue; returns the file.

    Args:
        root: Folder of the tree.
        rows: Rows of the catalogue, all of one file, in the order of the events.
        events: uint8 `(H,W,T)` each, of one shape.

    Raises:
        DataError: they cannot be written.
    """
    path = root / "data" / rows[0]["file_name"]
    with replacing(path) as part, h5py.File(part, "w") as file:
        for index, codes in enumerate(events):
            if index == 0:
                chunks = (1, min(_CHUNK_PIXELS, codes.shape[0]), min(_CHUNK_PIXELS, codes.shape[1]), codes.shape[2])
                file.create_dataset("id", data=np.array([row["id"].encode() for row in rows]))
                array = file.create_dataset(
                    SENSOR, (len(rows), *codes.shape), np.uint8, chunks=chunks, compression="gzip", compression_opts=9
                )
            array[index] = codes
    with replacing(root / "CATALOG.csv") as part, part.open("w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
