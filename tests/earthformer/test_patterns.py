"""Named patterns, user-defined ones and the pictures of their cuboids."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earthformer import patterns

LLL, DDD, NONE = ("l", "l", "l"), ("d", "d", "d"), (0, 0, 0)
SHAPE = st.tuples(*(st.integers(1, 12) for _ in range(3)))


def test_all_published_patterns_are_registered() -> None:
    assert len(patterns.self_pattern_names()) == 44
    assert len(patterns.cross_pattern_names()) == 12


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("full", (4, 5, 6), ([(4, 5, 6)], [LLL], [NONE])),
        ("axial", (4, 5, 6, 64), ([(4, 1, 1), (1, 5, 1), (1, 1, 6)], [LLL] * 3, [NONE] * 3)),
        ("divided_st", (4, 5, 6), ([(4, 1, 1), (1, 5, 6)], [LLL] * 2, [NONE] * 2)),
        ("video_swin_2x8", (10, 32, 16), ([(2, 8, 8)] * 2, [LLL] * 2, [NONE, (1, 4, 4)])),
        ("video_swin_10x8", (6, 32, 5), ([(6, 5, 5)] * 2, [LLL] * 2, [NONE, (3, 2, 2)])),
        ("video_swin", (6, 32, 32), ([(2, 4, 4)] * 2, [LLL] * 2, [NONE, (1, 2, 2)])),
        ("spatial_lg_v1", (6, 8, 4), ([(6, 1, 1), (1, 4, 4), (1, 4, 4)], [LLL, LLL, DDD], [NONE] * 3)),
        ("spatial_lg_8", (6, 8, 4), ([(6, 1, 1), (1, 8, 4)], [LLL] * 2, [NONE] * 2)),
        (
            "axial_space_dilate_4",
            (6, 16, 8),
            ([(6, 1, 1), (1, 4, 1), (1, 4, 1), (1, 1, 2), (1, 1, 2)], [LLL, DDD, LLL, DDD, LLL], [NONE] * 5),
        ),
    ],
)
def test_self_patterns_are_the_published_ones(name: str, shape: tuple[int, ...], expected: tuple[list, ...]) -> None:
    assert patterns.self_pattern(name, shape) == expected


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("cross_1x1", (4, 5, 6), ([(1, 1)], [(0, 0)], [LLL], [1])),
        ("cross_4x4_lg", (4, 3, 6), ([(3, 3)] * 2, [(0, 0)] * 2, [LLL, DDD], [1, 1])),
        ("cross_4x4_heter", (4, 8, 8), ([(4, 4)] * 3, [(0, 0), (0, 0), (2, 2)], [LLL, DDD, LLL], [1, 1, 1])),
    ],
)
def test_cross_patterns_are_the_published_ones(name: str, shape: tuple[int, ...], expected: tuple[list, ...]) -> None:
    assert patterns.cross_pattern(name, shape) == expected


def test_a_new_pattern_can_be_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_SELF", dict(patterns._SELF))
    monkeypatch.setattr(patterns, "_CROSS", dict(patterns._CROSS))
    patterns.register_self_pattern("mine", lambda shape: patterns.SelfPattern([shape], [LLL], [NONE]))
    patterns.register_cross_pattern("mine", lambda shape: patterns.CrossPattern([(1, 1)], [(0, 0)], [LLL], [1]))
    assert patterns.self_pattern("mine", (2, 3, 4)).cuboid_size == [(2, 3, 4)]
    assert patterns.cross_pattern("mine", (2, 3, 4)).n_temporal == [1]
    with pytest.raises(ValueError, match="already"):
        patterns.register_self_pattern("mine", patterns.axial)
    with pytest.raises(ValueError, match="already"):
        patterns.register_cross_pattern("mine", lambda shape: patterns.cross_local(shape, 1))


def test_unknown_patterns_and_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="did you mean axial"):
        patterns.self_pattern("axail", (2, 3, 4))
    with pytest.raises(ValueError, match="unknown cross-attention pattern 'last_frame_dst'"):
        patterns.cross_pattern("last_frame_dst", (2, 3, 4))
    with pytest.raises(ValueError, match="positive"):
        patterns.self_pattern("axial", (2, 0, 4))


@given(shape=SHAPE, name=st.sampled_from(patterns.self_pattern_names()))
@settings(max_examples=60, deadline=None)
def test_cuboids_of_every_self_pattern_cover_the_grid(shape: tuple[int, int, int], name: str) -> None:
    layers = patterns.self_pattern(name, shape)
    for labels, size in zip(patterns.self_pattern_labels(name, shape), layers.cuboid_size, strict=True):
        assert labels.shape == shape
        assert labels.min() >= 0
        assert np.bincount(labels.ravel()).max() <= np.prod(size)


def test_labels_show_neighbours_spread_and_shift() -> None:
    row = (1, 1, 6)
    assert patterns.cuboid_labels(row, (1, 1, 2)).tolist() == [[[0, 0, 1, 1, 2, 2]]]
    assert patterns.cuboid_labels(row, (1, 1, 2), DDD).tolist() == [[[0, 1, 2, 0, 1, 2]]]
    assert patterns.cuboid_labels(row, (1, 1, 2), LLL, (0, 0, 1)).tolist() == [[[2, 0, 0, 1, 1, 2]]]
    assert patterns.cuboid_labels((1, 1, 5), (1, 1, 3)).tolist() == [[[0, 0, 0, 1, 1]]]
    # Stretching five cells to six repeats the first: cells 1 to 4 are read at 1, 2, 3, 4 of six.
    assert patterns.cuboid_labels((1, 1, 5), (1, 1, 3), padding_type="nearest").tolist() == [[[0, 0, 0, 1, 1]]]


def test_labels_of_cross_patterns_span_all_frames() -> None:
    local, dilated = patterns.cross_pattern_labels("cross_2x2_lg", (3, 4, 4))
    assert local.shape == (3, 4, 4)
    assert (local == local[:1]).all()
    assert len(np.unique(local)) == len(np.unique(dilated)) == 4
    assert local[0, 0].tolist() == [0, 0, 1, 1]
    assert dilated[0, 0].tolist() == [0, 1, 0, 1]


def test_patterns_need_no_torch() -> None:
    code = "import sys, earthformer, earthformer.patterns; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
