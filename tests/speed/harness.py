"""Speed of the harness against the plain way of doing the same, in one run and on one thread.

    python tests/speed/harness.py

Prints ratios: the machine's own speed and its neighbours' noise are on both sides.  The reader and the metric are
compared with what the field's loaders and metric classes do; both sides are checked to give the same numbers.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

import bench
from bench.data.sevir.synthetic import make_sevir
from bench.metrics.skill.metric import VIL_THRESHOLDS

torch.set_num_threads(1)


def ratio(plain: Callable[[], object], ours: Callable[[], object], *, rounds: int = 15) -> tuple[float, float, float]:
    """Median seconds of each, and the median over rounds of their ratio; the two take turns within a round."""
    plain(), ours()
    pairs = []
    for _ in range(rounds):
        times = []
        for function in (plain, ours):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        pairs.append(times)
    return (
        statistics.median(p for p, _ in pairs),
        statistics.median(o for _, o in pairs),
        statistics.median(p / o for p, o in pairs),
    )


def report(what: str, measured: tuple[float, float, float], aim: float) -> None:
    plain, ours, times = measured
    print(f"{what}: plain {plain * 1e3:.2f} ms, ours {ours * 1e3:.2f} ms, {times:.1f}x (aim {aim}x)")


def random_sequence(folder: Path) -> None:
    """A random SEVIR sequence as float32 against casting the whole event and slicing it per sequence."""
    root = make_sevir(folder / "big", events={"train": 24, "val": 0, "test": 0}, size=384)
    data = bench.load_task("sevir", root).dataset("train")
    events = data.source.events
    order = np.random.default_rng(0)
    with h5py.File(root / "data" / events[0].file_name) as file:

        def plain(index: int) -> tuple[torch.Tensor, torch.Tensor]:
            event, window = divmod(index, 3)
            frames = file["vil"][events[event].file_index].astype(np.float32) * np.float32(1 / 255)
            cut = torch.from_numpy(frames[..., window * 12 : window * 12 + 25]).permute(2, 0, 1)[..., None]
            return cut[:13].contiguous(), cut[13:].contiguous()

        for index in (0, 5, 71):
            assert all(torch.equal(a, b) for a, b in zip(plain(index), data[index], strict=True))
        # A stride of five events keeps our cache of four events from ever helping.
        draws = iter([3 * (5 * k % 24) + int(order.integers(3)) for k in range(10_000)])
        measured = ratio(lambda: plain(next(draws)), lambda: data[next(draws)], rounds=40)
    report("random 25x384x384 sequence as float32", measured, 5)


def skill_update() -> None:
    """One update on a 12x384x384 pair at six thresholds against float masks and products per threshold."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 255, (1, 12, 384, 384, 1), generator=generator).float()
    forecast = target + torch.randn(target.shape, generator=generator) * 30
    counts = torch.zeros(3, len(VIL_THRESHOLDS))

    def plain() -> None:
        known = ~(torch.isnan(forecast) | torch.isnan(target))
        for k, threshold in enumerate(VIL_THRESHOLDS):
            f, t = (forecast >= threshold).float() * known, (target >= threshold).float() * known
            counts[0, k], counts[1, k], counts[2, k] = (f * t).sum(), ((1 - f) * t).sum(), (f * (1 - t)).sum()

    metric = bench.load_metric("skill", t_out=12)

    def ours() -> None:
        metric.reset()
        metric.update(forecast, target)

    measured = ratio(plain, ours)
    for k, name in enumerate(("hits", "misses", "false_alarms")):
        assert torch.equal(counts[k].long(), getattr(metric, name).sum(0))
    report("skill update on a 12x384x384 pair", measured, 12)


def evaluation_memory(folder: Path) -> None:
    """Peak memory of evaluating 500 sequences against that of 50, each in a process of its own."""
    root = make_sevir(folder / "many", events={"train": 0, "val": 0, "test": 167}, size=128)
    peaks = {}
    for limit in (50, 500):
        code = (
            "import sys, resource, bench; from pathlib import Path; "
            f"bench.evaluate('persistence', bench.load_task('sevir', {str(root)!r}), limit={limit}, device='cpu'); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks[limit] = int(done.stdout.splitlines()[-1]) / 1024
    print(
        f"peak memory of an evaluation: 50 sequences {peaks[50]:.0f} MiB, 500 sequences {peaks[500]:.0f} MiB, "
        f"{peaks[500] / peaks[50]:.3f}x (aim 1)"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        random_sequence(Path(name))
        skill_update()
        evaluation_memory(Path(name))
