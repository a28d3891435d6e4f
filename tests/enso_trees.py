"""Small trees in the layout of ICAR-ENSO, made from known series, which are cut into overlapping rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

import bench
from bench.tasks.task import Task

ROWS = {"cmip6_rows": 4, "cmip5_rows": 3}
LAT, LON = np.arange(-55, 61, 5.0), np.arange(0, 356, 5.0)
Change = Callable[[h5py.File], None]


def series(months: int, seed: int) -> np.ndarray:
    """Months of a field with a slow oscillation in the Nino3.4 box, `(months, 24, 72)` K."""
    random = np.random.default_rng(seed)
    field = random.normal(0, 0.3, (months, 24, 72)).astype(np.float32)
    field[:, 10:13, 38:49] += np.sin(np.arange(months) / 7 + seed)[:, None, None].astype(np.float32)
    return field


def labels_of(field: np.ndarray) -> np.ndarray:
    box = field[:, 10:13, 38:49].astype(np.float64).mean((1, 2))
    return np.array([box[m : m + 3].mean() for m in range(len(box) - 2)], np.float32)


def rows_of(series: np.ndarray, rows: int) -> np.ndarray:
    return np.stack([series[12 * row : 12 * row + 36] for row in range(rows)])


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def write_tree(root: Path, family: str, rows: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Writes a tree in the layout of ICAR-ENSO and returns each model's original months and labels."""
    root.mkdir(parents=True, exist_ok=True)
    fields, labels, models = [], [], []
    for seed, count in enumerate(rows):
        field = series(12 * count + 26, seed)  # two months more than the rows show: the last labels look ahead
        index = labels_of(field)
        models.append((field[:-2], index))
        fields.append(rows_of(field, count))
        labels.append(rows_of(index, count))
    write_arrays(root / f"{family}_train.nc", sst=np.concatenate(fields), lat=LAT.astype("f4"), lon=LON.astype("f4"))
    write_arrays(root / f"{family}_label.nc", nino=np.concatenate(labels))
    return models


def small_task(root: Path, **options) -> Task:
    return bench.load_task("icar_enso", root, **{**ROWS, **options})


def changed_copy(root: Path, to: Path, name: str, change: Change) -> Path:
    shutil.copytree(root, to)
    with h5py.File(to / name, "r+") as file:
        change(file)
    return to
