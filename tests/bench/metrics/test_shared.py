"""Two gloo processes that share the batches get the scores and the statistics per event of a single process."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics import Metric

import bench

EVENTS = [0, 0, 1, 1, 2, 2, 3]
BATCHES = [(0, 3), (3, 5), (5, 7)]
"""Uneven, and cut across events; the first process gets two of them."""
METRICS: dict[str, dict[str, Any]] = {
    "skill": {"convention": "correct", "pool": (1, 4), "fss_windows": (3,)},
    "mse": {"convention": "correct"},
    "mae": {},
    "frames": {"scale": 255.0},
    "enso": {},
    "probabilistic": {"thresholds": (74, 160)},
    "frechet": {},
}


def _batch(name: str, first: int, last: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(7)
    size = (24, 48) if name == "enso" else (16, 16)
    target = torch.rand((len(EVENTS), 4, *size, 1), generator=random) * 255
    members = torch.rand((3, *target.shape), generator=random) * 255
    if name in ("skill", "mse"):
        members[0, 1, 0, 0, 0], target[4, 2, 3, 3] = float("nan"), 255.0
    found = {"forecast": members if name in ("probabilistic", "frechet") else members[0], "target": target}
    found = {key: part[..., first:last, :, :, :, :] for key, part in found.items()}
    return found if name == "frechet" else {**found, "events": torch.tensor(EVENTS[first:last])}


def _found(name: str, metric: Metric, batches: list[tuple[int, int]]) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    if name != "frechet":
        metric.track_events(max(EVENTS) + 1)
    for first, last in batches:
        metric.update(**_batch(name, first, last))
    scores = metric.compute()
    with metric.sync_context():
        arrays = {} if name == "frechet" else metric.event_statistics()
    return scores, arrays


def _share(rank: int, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    found = {}
    for share in (BATCHES[rank::2], [] if rank else BATCHES):
        found[len(share)] = {name: _found(name, bench.load_metric(name, **how), share) for name, how in METRICS.items()}
    torch.distributed.destroy_process_group()
    results.put((rank, found))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[int, dict[str, Any]]]:
    """Returns the results of two processes, by rank and number of their batches."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    folder = tmp_path_factory.mktemp("gloo")
    started = [context.Process(target=_share, args=(rank, folder, results)) for rank in range(2)]
    for process in started:
        process.start()
    found = dict(results.get(timeout=120) for _ in started)
    for process in started:
        process.join(30)
    return found


@pytest.mark.parametrize("shares", [(2, 1), (3, 0)], ids=["both have batches", "one has none"])
@pytest.mark.parametrize("name", METRICS)
def test_two_processes_score_as_one(
    together: dict[int, dict[int, dict[str, Any]]], name: str, shares: tuple[int, int]
) -> None:
    scores, arrays = _found(name, bench.load_metric(name, **METRICS[name]), BATCHES)
    assert name == "frechet" or arrays
    for rank in (0, 1):
        theirs, their_arrays = together[rank][shares[rank]][name]
        # seven clips have a singular covariance, whose root is good to some 1e-8
        assert theirs == pytest.approx(scores, rel=1e-6 if name == "frechet" else 1e-9, nan_ok=True)
        assert their_arrays.keys() == arrays.keys()
        for key, values in arrays.items():
            exact = values.dtype.kind in "iu"
            np.testing.assert_allclose(their_arrays[key], values, rtol=0 if exact else 1e-12, atol=0, err_msg=key)
    assert all(
        np.array_equal(a, b) for a, b in zip(*(together[r][shares[r]][name][1].values() for r in (0, 1)), strict=True)
    )
