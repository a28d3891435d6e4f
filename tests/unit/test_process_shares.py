"""Which process gets which batch: evaluation sees every sequence once, training has as many batches everywhere."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.data.loading import EpochOrder, SharedBatches, evaluation_loader, training_loader
from bench.errors import ConfigError
from bench.running.processes import Processes, has_to_launch, here
from bench.running.resuming import _rescale
from bench.running.training import total_steps

counts, sizes, worlds = st.integers(1, 60), st.integers(1, 7), st.integers(1, 6)


class _Numbers:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def stored(self, index: int) -> tuple[torch.Tensor, ...]:
        return (torch.tensor(index),)


@given(counts, sizes, worlds)
def test_evaluation_neither_pads_nor_drops_and_keeps_the_batches_of_one_process(count: int, size: int, world: int):
    alone = list(SharedBatches(range(count), size, 0, 1, fill=False))
    shares = [SharedBatches(range(count), size, rank, world, fill=False) for rank in range(world)]
    got = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(batches) for batches in got]
    assert sorted(index for batches in got for batch in batches for index in batch) == list(range(count))
    assert all(got[number % world][number // world] == batch for number, batch in enumerate(alone))


@given(counts, sizes, worlds, st.integers(0, 3))
def test_training_has_equal_shares_and_each_step_the_sequences_of_one_process(count: int, size: int, world: int, seed):
    alone = list(SharedBatches(EpochOrder(count, seed), size, 0, 1, fill=True))
    got = [list(SharedBatches(EpochOrder(count, seed), size, rank, world, fill=True)) for rank in range(world)]
    assert len({len(batches) for batches in got}) == 1
    joined = [batch for together in zip(*got, strict=True) for batch in together]
    assert joined[: len(alone)] == alone and len(joined) - len(alone) < world
    assert all(batch in alone for batch in joined[len(alone) :]), "filled up with batches of the same epoch"


@given(counts, sizes, st.sampled_from([(1, 2), (2, 1), (2, 4), (4, 2), (3, 3)]), st.data())
def test_another_number_of_processes_continues_where_the_epoch_stood(count: int, size: int, change, data) -> None:
    before, after = change
    total = SharedBatches(range(count), size, 0, 1, fill=True).total
    accumulate = 4 if 3 not in change else 3
    steps = data.draw(st.integers(0, total // accumulate))
    order = list(SharedBatches(EpochOrder(count, 5), size, 0, 1, fill=True))
    resumed = []
    for rank in range(after):
        first = training_loader(_Numbers(count), batch_size=size, seed=5, limit=None, num_workers=0, world=before)
        first.batches_done = steps * accumulate // before
        loader = training_loader(
            _Numbers(count), batch_size=size, seed=5, limit=None, num_workers=0, rank=rank, world=after
        )
        loader.load_state_dict(first.state_dict())
        resumed.append([batch[0].tolist() for batch in loader])
        assert loader.order.epoch == (1 if steps * accumulate >= total else 0)
    if steps * accumulate < total:
        joined = [batch for together in zip(*resumed, strict=True) for batch in together]
        left = order[steps * accumulate :]
        assert joined[: len(left)] == left


@given(counts, sizes, st.sampled_from([(4, 1), (4, 2), (4, 4), (6, 3), (1, 1)]))
def test_the_number_of_optimiser_steps_does_not_depend_on_the_processes(count: int, size: int, shared) -> None:
    from bench.config import Train

    accumulate, world = shared
    share = SharedBatches(range(count), size, 0, world, fill=True)
    per_process = -(-len(share) // (accumulate // world))
    assert per_process == total_steps(Train(accumulate=accumulate, max_epochs=1), share.total)


def test_lightnings_counts_follow_the_number_of_processes() -> None:
    counts = {"ready": 6, "started": 6, "processed": 6, "completed": 6}
    progress = {"total": dict(counts), "current": dict(counts), "is_last_batch": False}
    checkpoint = {"loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}
    _rescale(checkpoint, 1, 2)
    assert set(progress["total"].values()) == set(progress["current"].values()) == {3}
    _rescale(checkpoint, 2, 1)
    assert set(progress["current"].values()) == {6}


def test_fewer_batches_than_processes_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 batches, too few for 3 processes"):
        evaluation_loader(_Numbers(4), batch_size=2, num_workers=0, limit=None, world=3)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (Processes(0, 4), True)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (Processes(3, 4), False)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (Processes(2, 4), False)),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (None, True)),  # a job of one task starts its own processes
        ({"RANK": "0", "WORLD_SIZE": "2"}, (None, False)),
    ],
)
def test_a_process_knows_its_place(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected) -> None:
    for key in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    place, launches = expected
    assert has_to_launch(4, 1) == launches
    if place is not None:
        assert here(4, 1) == place
    else:
        with pytest.raises(ConfigError, match="make them agree"):
            here(4, 1)


def test_several_nodes_need_a_launcher_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.raises(ConfigError, match="srun"):
        has_to_launch(8, 2)
