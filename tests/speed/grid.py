"""Speed and memory of reading windows of a cube by `task=grid` against bare reads of the same windows, in one run.

    python tests/speed/grid.py [GIGABYTES]

A made Zarr store of rain rates, 512x512 float32 in chunks of 16 frames, is read in windows of 20 frames in a shuffled
order: by zarr alone, by xarray alone, and by the task, in one process and with two loader processes.  Windows are
checked to be equal.  Both sides alternate and share the system's file cache.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import xarray
import zarr

import bench
from bench.data.loading import training_loader
from bench.data.sequences import PlainSequences

torch.set_num_threads(1)
SIZE, CHUNK, T_IN, T_OUT, WINDOWS, ROUNDS, WORKERS = 512, 16, 10, 10, 24, 7, 2


def make_store(path: Path, gigabytes: float) -> Path:
    """Smooth rain that drifts, in steps of 0.1 mm/h, NaN in two corners; 1 MiB a frame."""
    frames = int(gigabytes * 1e9 / (SIZE * SIZE * 4) / CHUNK) * CHUNK
    times = np.datetime64("2024-01-01", "ns") + np.arange(frames) * np.timedelta64(300, "s")
    axis = 1000.0 * np.arange(SIZE)
    header = xarray.Dataset(coords={"time": times, "y": ("y", axis[::-1], {"units": "m"}), "x": ("x", axis)})
    header.to_zarr(path, mode="w", consolidated=False)
    array = zarr.open_group(path, mode="a").create_array(
        "rain_rate", shape=(frames, SIZE, SIZE), chunks=(CHUNK, SIZE, SIZE), dtype="float32",
        fill_value=float("nan"), dimension_names=("time", "y", "x"),
    )  # fmt: skip
    array.attrs.update({"units": "mm/h", "_FillValue": "AAAAAAAA+H8="})
    noise = torch.rand(1, 1, 2 * SIZE // 16, 2 * SIZE // 16, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, size=2 * SIZE, mode="bicubic")[0, 0].numpy()
    rain = np.round(np.maximum(smooth - 0.6, 0) * 60, 1).astype(np.float32)
    corners = np.add.outer(np.arange(SIZE), np.arange(SIZE))
    outside = (corners < SIZE // 4) | (corners > 2 * SIZE - SIZE // 4)
    for first in range(0, frames, CHUNK):
        drift = [np.roll(rain, (t, 2 * t), (0, 1))[:SIZE, :SIZE] for t in range(first, first + CHUNK)]
        array[first : first + CHUNK] = np.where(outside, np.float32("nan"), np.stack(drift))
    return path


class Bare:
    """A minimal loader: a slice of the array as tensors."""

    def __init__(self, path: Path, starts: np.ndarray) -> None:
        self.path, self.starts, self.array = path, starts, None

    def __len__(self) -> int:
        return len(self.starts)

    def stored(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.array is None:
            self.array = zarr.open_group(self.path, mode="r")["rain_rate"]
        start = int(self.starts[index])
        frames = torch.from_numpy(self.array[start : start + T_IN + T_OUT])[..., None]
        return frames[:T_IN], frames[T_IN:]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "array": None}


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def peak_mib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


def compare(path: Path, gigabytes: float) -> None:
    windows = bench.load_task("grid", path, t_in=T_IN, t_out=T_OUT).sequences("all")
    order = np.random.default_rng(0).permutation(len(windows))[: WINDOWS * ROUNDS].reshape(ROUNDS, WINDOWS).tolist()
    bare = Bare(path, windows.starts)
    lazy = xarray.open_zarr(path, consolidated=False, chunks=None)["rain_rate"]
    for index in order[0][:3]:
        start = int(windows.starts[index])
        ours, theirs = torch.cat(windows.stored(index)), torch.cat(bare.stored(index))
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
        np.testing.assert_array_equal(ours[..., 0].numpy(), lazy[start : start + T_IN + T_OUT].values)
    times: dict[str, list[float]] = {"zarr": [], "xarray": [], "task": []}
    for indices in order:
        times["zarr"].append(timed(lambda: [bare.stored(i) for i in indices]))  # noqa: B023
        times["xarray"].append(
            timed(lambda: [lazy[(s := int(windows.starts[i])) : s + T_IN + T_OUT].values for i in indices])  # noqa: B023
        )
        times["task"].append(timed(lambda: [windows.stored(i) for i in indices]))  # noqa: B023
    for name in ("zarr", "xarray"):
        ratio = statistics.median(a / b for a, b in zip(times[name], times["task"], strict=True))
        print(
            f"windows of 20 frames, one process: {name} {statistics.median(times[name]) / WINDOWS * 1e3:.0f} ms, task "
            f"{statistics.median(times['task']) / WINDOWS * 1e3:.0f} ms, speed of the task {ratio:.2f} of it (aim 0.8)"
        )
    alone = peak_mib(resource.RUSAGE_SELF)
    ratios = []
    for _ in range(3):
        found = []
        for source in (PlainSequences(bare), windows):
            loader = training_loader(
                source, batch_size=2, micro_batch=2, seed=0, limit=None, num_workers=WORKERS, timeout_s=120
            )
            batches = iter(loader)
            next(batches)  # the processes are up
            found.append(timed(lambda: list(islice(batches, 30))))  # noqa: B023
        ratios.append(found[0] / found[1])
    print(
        f"the same with {WORKERS} loader processes: speed of the task {statistics.median(ratios):.2f} of zarr's "
        f"({min(ratios):.2f}..{max(ratios):.2f}, aim 0.8)"
    )
    workers = peak_mib(resource.RUSAGE_CHILDREN)
    print(f"peak memory on {gigabytes:g} GB: {alone:.0f} MiB in one process, {workers:.0f} MiB in the largest worker")


if __name__ == "__main__":
    size = float(sys.argv[1]) if len(sys.argv) > 1 else 0.5
    with tempfile.TemporaryDirectory() as name:
        compare(make_store(Path(name) / "rain.zarr", size), size)
