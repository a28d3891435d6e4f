"""Rotated and mirrored training sequences: all symmetries of a frame, drawn only from seed, epoch and number."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bench
from bench import registry
from bench.data.augmentation import AugmentedSequences, drawn_symmetries, symmetries_of, transformed
from bench.data.loading import training_loader


def _frames(height: int, width: int) -> Tensor:
    return torch.arange(2 * height * width, dtype=torch.uint8).reshape(2, height, width, 1)


@pytest.mark.parametrize(("height", "width", "count"), [(3, 3, 8), (2, 3, 4)])
def test_turns_are_the_symmetries_of_a_frame(height: int, width: int, count: int) -> None:
    frames, symmetries = _frames(height, width), symmetries_of(height, width)
    found = [transformed(frames, symmetry) for symmetry in symmetries]
    assert len({tuple(one.flatten().tolist()) for one in found}) == len(symmetries) == count
    assert all(one.shape == frames.shape and one.is_contiguous() for one in found)
    assert torch.equal(found[0], frames)
    again = {tuple(transformed(one, symmetry).flatten().tolist()) for one in found for symmetry in symmetries}
    assert again == {tuple(one.flatten().tolist()) for one in found}, "one after the other is one of them: a group"


def test_turns_are_uniform_and_redrawn_each_epoch() -> None:
    drawn = [*drawn_symmetries(tuple(range(8)), 8000, seed=1, epoch=0)]
    assert all(900 < count < 1100 for count in Counter(drawn).values())
    assert drawn == [*drawn_symmetries(tuple(range(8)), 8000, seed=1, epoch=0)]
    for other in ({"seed": 1, "epoch": 1}, {"seed": 2, "epoch": 0}):
        assert drawn != [*drawn_symmetries(tuple(range(8)), 8000, **other)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_turns_context_and_target_alike(storms: Path, num_workers: int) -> None:
    task = bench.load_task("sevir", storms, augment=True)
    source = task.dataset("train").source
    how = {"batch_size": 4, "micro_batch": 2, "seed": 3, "limit": None, "num_workers": num_workers}
    loader = training_loader(source, **how, symmetries=symmetries_of(32, 32))
    symmetries = [*drawn_symmetries(symmetries_of(32, 32), len(source), seed=3, epoch=0)]
    seen = []
    for batch in loader:
        for context, target, index in zip(batch.context, batch.target, batch.index.tolist(), strict=True):
            plain = source[index]
            assert torch.equal(context, transformed(plain.context, symmetries[index]))
            assert torch.equal(target, transformed(plain.target, symmetries[index]))
            seen.append(index)
    order = [index for batch in training_loader(source, **how) for index in batch.index.tolist()]
    assert seen == order, "the order is the same"
    assert len({symmetries[index] for index in seen}) > 1
    assert torch.equal(AugmentedSequences(source)[0].target, source[0].target)


@pytest.mark.parametrize("name", ["sevir", "sevir_lr", "radar", "grid"])
def test_augmentation_is_off_by_default_and_then_not_recorded(name: str) -> None:
    off = registry.find("task", name).load()
    assert "augment" not in off().fields() and not off().augments
    assert off(augment=True).fields()["augment"] is True and off(augment=True).augments
    assert "augment" in off.selection_fields, "weights are evaluated without it"
