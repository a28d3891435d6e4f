"""Decomposing and merging cuboids, for any shape, size, strategy, shift and padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earthformer.cuboids import (
    CuboidPartition,
    cross_attention_mask,
    relative_position_index,
    resize_nearest,
    self_attention_mask,
)
from earthformer.patterns import clip_cuboid, cuboid_labels

LENGTH = st.integers(1, 7)
SIZE3 = st.tuples(LENGTH, LENGTH, LENGTH)
STRATEGY = st.tuples(*(st.sampled_from("ld") for _ in range(3)))
SHIFT = st.tuples(*(st.integers(0, 3) for _ in range(3)))
PADDING = st.sampled_from(["zeros", "ignore", "nearest"])


@st.composite
def partitions(draw: st.DrawFn) -> CuboidPartition:
    shape, strategy = draw(SIZE3), draw(STRATEGY)
    size, shift = clip_cuboid(shape, draw(SIZE3), draw(SHIFT), strategy)
    return CuboidPartition(shape, size, strategy, shift, draw(PADDING))


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    """Cells numbered from 1, so that padding (0) differs from every cell."""
    count = int(torch.tensor(shape).prod())
    return torch.arange(1.0, count + 1).reshape(1, *shape, 1)


@given(partition=partitions())
@settings(max_examples=200, deadline=None)
def test_merge_undoes_decompose(partition: CuboidPartition) -> None:
    x = numbered(partition.shape)
    expected = x
    if partition.padding_type == "nearest" and partition.is_padded:
        # Stretching is not the inverse of shrinking: the result is that of the two resizes alone.
        expected = resize_nearest(resize_nearest(x, partition.padded_shape), partition.shape)
    torch.testing.assert_close(partition.merge(partition.decompose(x)), expected, rtol=0, atol=0)


@given(partition=partitions())
@settings(max_examples=100, deadline=None)
def test_every_cell_is_in_exactly_one_cuboid(partition: CuboidPartition) -> None:
    tokens = partition.decompose(numbered(partition.shape))
    assert tokens.shape == (1, partition.count, partition.volume, 1)
    found = tokens.flatten().sort().values
    cells = numbered(partition.shape).flatten()
    if partition.padding_type == "nearest":
        assert set(found.tolist()) <= set(cells.tolist())
    else:
        torch.testing.assert_close(found[found > 0], cells, rtol=0, atol=0)


@given(partition=partitions())
@settings(max_examples=100, deadline=None)
def test_labels_name_the_cuboid_of_each_cell(partition: CuboidPartition) -> None:
    labels = torch.from_numpy(
        cuboid_labels(partition.shape, partition.cuboid, partition.strategy, partition.shift, partition.padding_type)
    )
    cuboids = torch.arange(partition.count).reshape(1, -1, 1, 1).expand(1, -1, partition.volume, 1)
    torch.testing.assert_close(partition.merge(cuboids.double())[0, ..., 0].long(), labels, rtol=0, atol=0)


@given(partition=partitions())
@settings(max_examples=50, deadline=None)
def test_heads_are_partitioned_like_tokens(partition: CuboidPartition) -> None:
    x = torch.randn(2, *partition.shape, 12)
    ready = partition.roll(partition.pad(x))
    heads = partition.split_heads(ready, 2, 3)
    tokens = partition.split(ready)
    assert heads.shape == (2, 2, 2, partition.count, partition.volume, 3)
    torch.testing.assert_close(heads.permute(1, 3, 4, 0, 2, 5).reshape(tokens.shape), tokens, rtol=0, atol=0)
    torch.testing.assert_close(partition.join_heads(heads[1]), ready[..., 6:], rtol=0, atol=0)


@given(partition=partitions())
@settings(max_examples=100, deadline=None)
def test_masks_are_symmetric_and_every_token_attends_to_itself(partition: CuboidPartition) -> None:
    mask = self_attention_mask(partition)
    assert mask.shape == (partition.count, partition.volume, partition.volume)
    assert torch.equal(mask, mask.transpose(1, 2))
    seen = mask.diagonal(dim1=1, dim2=2)
    expected = partition.valid_tokens() if partition.padding_type == "ignore" else torch.ones_like(seen)
    assert torch.equal(seen, expected)
    if not partition.is_shifted and not (partition.padding_type == "ignore" and partition.is_padded):
        assert mask.all()


def test_the_deprecated_partition_name_warns() -> None:
    with pytest.warns(DeprecationWarning, match="CuboidPartition"):
        from earthformer.cuboids import Cut
    assert Cut is CuboidPartition


def test_shifted_border_cuboids_separate_both_ends_of_an_axis() -> None:
    mask = self_attention_mask(CuboidPartition((1, 1, 4), (1, 1, 2), ("l", "l", "l"), (0, 0, 1)))
    assert mask[0].all()
    assert mask[1].tolist() == [[True, False], [False, True]]


def test_memory_is_padded_in_front_and_queries_at_the_end() -> None:
    queries = CuboidPartition((3, 1, 1), (2, 1, 1), ("l", "l", "l"), padding_type="ignore")
    memory = CuboidPartition((3, 1, 1), (2, 1, 1), ("l", "l", "l"), padding_type="ignore", t_pad_left=True)
    mask = cross_attention_mask(queries, memory)
    assert mask[0].tolist() == [[False, True], [False, True]]
    assert mask[1].tolist() == [[True, True], [False, False]]


@given(size=st.tuples(*(st.integers(1, 4) for _ in range(3))))
@settings(max_examples=30, deadline=None)
def test_the_relative_index_depends_on_the_offset_only(size: tuple[int, int, int]) -> None:
    index = relative_position_index(size)
    places = torch.cartesian_prod(*(torch.arange(n) for n in size)).reshape(-1, 3)
    offsets = (places[:, None] - places[None]).reshape(-1, 3)
    rows = {}
    for offset, row in zip(map(tuple, offsets.tolist()), index.flatten().tolist(), strict=True):
        assert rows.setdefault(offset, row) == row
    assert len(set(rows.values())) == len(rows)
    assert index.min() >= 0 and index.max() < (2 * size[0] - 1) * (2 * size[1] - 1) * (2 * size[2] - 1)
