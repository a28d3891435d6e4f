"""Distribution of batches over processes: evaluation sees every sequence once, training has equal shares."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.data.loading import EpochOrder, MicroBatches, SharedBatches, evaluation_loader, training_loader
from bench.engine.callbacks.resume import _rescale
from bench.engine.processes import Processes, has_to_launch, process_rank
from bench.errors import ConfigError

counts, sizes, worlds = st.integers(1, 60), st.integers(1, 7), st.integers(1, 6)


class _Numbers:
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def stored(self, index: int) -> tuple[torch.Tensor, ...]:
        return torch.tensor(index), torch.tensor(index)


@given(counts, sizes, worlds)
def test_evaluation_keeps_the_batches_of_one_process(count: int, size: int, world: int):
    alone = list(SharedBatches(count, size, 0, 1))
    shares = [SharedBatches(count, size, rank, world) for rank in range(world)]
    got = [list(share) for share in shares]
    assert [len(share) for share in shares] == [len(batches) for batches in got]
    assert sorted(index for batches in got for batch in batches for index in batch) == list(range(count))
    assert all(got[number % world][number // world] == batch for number, batch in enumerate(alone))


@given(counts, st.integers(1, 12), sizes, worlds, st.integers(0, 3))
def test_each_step_has_the_sequences_of_one_process(count: int, size: int, micro: int, world: int, seed: int) -> None:
    order = list(EpochOrder(count, seed))
    shares = [MicroBatches(EpochOrder(count, seed), size, micro, rank, world) for rank in range(world)]
    got = [list(share) for share in shares]
    assert {len(batches) for batches in got} == {len(shares[0])} and shares[0].steps == -(-count // size)
    per_step = shares[0].per_step
    for step in range(shares[0].steps):
        of_step = order[step * size : (step + 1) * size]
        seen = []
        for number in range(step * per_step, min((step + 1) * per_step, len(got[0]))):
            for rank in range(world):
                own, whole = shares[rank].share(number)
                assert whole == len(of_step) and own <= micro
                assert own == len(got[rank][number]) or (own == 0 and got[rank][number] == of_step[:1])
                seen += got[rank][number][:own]
        assert seen == of_step


@given(counts, st.integers(1, 12), st.lists(st.tuples(sizes, worlds), min_size=2, max_size=2), st.data())
def test_a_changed_number_of_processes_resumes_mid_epoch(count: int, size: int, change, data) -> None:
    (micro, before), (other, after) = change
    total = MicroBatches(EpochOrder(count, 5), size, micro).steps
    steps = data.draw(st.integers(0, total))
    order = list(EpochOrder(count, 5))
    feed = {"batch_size": size, "seed": 5, "limit": None, "num_workers": 0}
    resumed = []
    for rank in range(after):
        first = training_loader(_Numbers(count), micro_batch=micro, world=before, **feed)
        first.batches_done = min(steps * first.batches.per_step, len(first.batches))
        loader = training_loader(_Numbers(count), micro_batch=other, rank=rank, world=after, **feed)
        loader.load_state_dict(first.state_dict())
        assert loader.order.epoch == (steps == total)
        assert loader.batches_done == (0 if steps == total else steps * loader.batches.per_step)
        done = loader.batches_done
        own = [loader.batches.share(done + number).own for number in range(len(loader.batches) - done)]
        resumed.append([batch[0].tolist()[:n] for batch, n in zip(loader, own, strict=True)])
    if steps < total:
        seen = [index for together in zip(*resumed, strict=True) for batch in together for index in batch]
        assert seen == order[steps * size :]


def test_lightning_counts_the_micro_batches_of_a_step() -> None:
    counts = {"ready": 6, "started": 6, "processed": 6, "completed": 6}
    progress = {"total": dict(counts), "current": dict(counts), "is_last_batch": False}
    checkpoint = {"loops": {"fit_loop": {"epoch_loop.batch_progress": progress}}}
    _rescale(checkpoint, 2, 1)
    assert set(progress["total"].values()) == set(progress["current"].values()) == {3}
    _rescale(checkpoint, 1, 4)
    assert set(progress["current"].values()) == {12}


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
def test_a_process_knows_its_rank(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected) -> None:
    for key in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    place, launches = expected
    assert has_to_launch(4, 1) == launches
    if place is not None:
        assert process_rank(4, 1) == place
    else:
        with pytest.raises(ConfigError, match="make them agree"):
            process_rank(4, 1)


def test_several_nodes_need_a_cluster_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    with pytest.raises(ConfigError, match="srun"):
        has_to_launch(8, 2)
