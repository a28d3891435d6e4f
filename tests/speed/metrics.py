"""Speed and memory of the metrics against the plain formulations, in one run and on one thread.

    python tests/speed/metrics.py

Prints ratios: the machine's own speed and its neighbours' noise are on both sides.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

import bench
from bench.metrics.ensemble.sums import ensemble_sums
from bench.metrics.pairs import shared_work

torch.set_num_threads(1)


def rounds_of(functions: dict[str, Callable[[], object]], rounds: int = 9) -> dict[str, list[float]]:
    """Returns processor seconds of each function per round; they alternate within a round."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.process_time()
            function()
            times[name].append(time.process_time() - start)
    return times


def added_memory(which: str) -> float:
    """Returns the MiB by which one call raises the peak resident memory of a separate process."""
    code = f"import tests.speed.metrics as b; print(b.memory_of({which!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def memory_of(which: str) -> float:
    """Returns the same for this process, in which everything has been called once on a single frame."""
    functions = {name: crps_functions(frames=1)[name] for name in ("pairwise", "ours")}
    for function in functions.values():
        function()
    function = crps_functions(frames=6)[which]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def crps_functions(frames: int) -> dict[str, Callable[[], float]]:
    """Returns the CRPS of 8 members at frames x 128 x 128, by the tensor of all pairs of members and by ours."""
    generator = torch.Generator().manual_seed(0)
    members = torch.rand((8, 1, frames, 128, 128, 1), generator=generator) * 255
    target = torch.rand((1, frames, 128, 128, 1), generator=generator) * 255

    def pairwise() -> float:
        distance = (members - target).abs().mean(0)
        pairs = (members[:, None] - members[None]).abs().mean((0, 1))
        return float((distance - pairs / 2).double().mean())

    def ours() -> float:
        sums = ensemble_sums(members, target, (), integer_rule=False).errors
        distance, pairs = sums["distance"].sum(), sums["pair_distance"].sum()
        return float((distance / 8 - pairs / 64) / sums["pixel_count"].sum())

    return {"pairwise": pairwise, "ours": ours}


def crps() -> None:
    """CRPS of 8 members at 6x128x128 against the tensor of all pairs of members."""
    functions = crps_functions(frames=6)
    assert abs(functions["pairwise"]() - functions["ours"]()) < 1e-4
    times = rounds_of(functions)
    ratio = statistics.median(p / o for p, o in zip(times["pairwise"], times["ours"], strict=True))
    print(
        f"CRPS (with spread, error and ranks) of 8 members at 6x128x128: pairwise {_ms(times['pairwise'])}, "
        f"ours {_ms(times['ours'])}, {ratio:.1f}x (aim 1x)"
    )
    print(
        f"  memory added: pairwise {added_memory('pairwise'):.1f} MiB, ours {added_memory('ours'):.1f} MiB "
        f"(the (M,M) tensor alone is {8 * 8 * 6 * 128 * 128 * 4 / 2**20:.0f} MiB; aim a quarter)"
    )


def together(convention: str) -> None:
    """All deterministic metrics of one evaluation of SEVIR (skill, MSE, MAE) together against the slowest of them."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 255, (1, 12, 384, 384, 1), generator=generator, dtype=torch.uint8)
    forecast = target.float() + torch.randn(target.shape, generator=generator) * 30
    metrics = {
        "skill": bench.load_metric("skill", t_out=12, convention=convention),
        "mse": bench.load_metric("mse", t_out=12, convention=convention),
        "mae": bench.load_metric("mae", t_out=12, convention=convention),
    }

    def alone(name: str) -> Callable[[], None]:
        return lambda: metrics[name].update(forecast, target)

    def all_of_them() -> None:
        with shared_work():
            for metric in metrics.values():
                metric.update(forecast, target)

    pooled = bench.load_metric("skill", t_out=12, pool=(1, 4, 16), convention=convention)
    functions: dict[str, Callable[[], object]] = {name: alone(name) for name in metrics}
    functions |= {"all": all_of_them, "pooled": lambda: pooled.update(forecast, target)}
    times = rounds_of(functions, rounds=15)
    slowest = max(metrics, key=lambda name: statistics.median(times[name]))
    ratio = statistics.median(a / s for a, s in zip(times["all"], times[slowest], strict=True))
    parts = ", ".join(f"{name} {_ms(times[name])}" for name in metrics)
    print(
        f"metrics of SEVIR on a 12x384x384 pair, {convention}: {parts}; "
        f"together {_ms(times['all'])}, {ratio:.2f}x (aim < 1.5x)"
    )
    extra = statistics.median(p / s for p, s in zip(times["pooled"], times["skill"], strict=True))
    print(f"  skill at pools 1, 4 and 16 {_ms(times['pooled'])}, {extra:.2f}x of pool 1 alone")


def _ms(times: list[float]) -> str:
    return f"{statistics.median(times) * 1e3:.1f} ms"


if __name__ == "__main__":
    crps()
    together("upstream")
    together("correct")
