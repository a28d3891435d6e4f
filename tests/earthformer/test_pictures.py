"""Pictures of cuboid patterns: every pattern can be drawn, with one colour per group of cells that attend."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from earthformer import patterns, pictures
from earthformer.cuboids import CuboidPartition, self_attention_mask
from earthformer.pictures import CuboidPatterns

SIZE = st.tuples(*(st.integers(1, 6) for _ in range(3)))


@given(name=st.sampled_from(patterns.self_pattern_names()), size=SIZE)
def test_cells_of_one_colour_attend_to_each_other(name: str, size: tuple[int, int, int]) -> None:
    pattern = patterns.self_pattern(name, size)
    for (_, groups), cuboid, strategy, shift in zip(pictures._layers(name, size), *pattern, strict=True):
        used, step = patterns.clip_cuboid(size, cuboid, shift, strategy)
        partition = CuboidPartition(size, used, strategy, step, "ignore")
        allowed = self_attention_mask(partition)
        number = torch.arange(np.prod(size)).view(1, *size, 1) + 1
        cells = partition.decompose(number)[0, :, :, 0]  # 0 where padded
        attends = np.zeros((groups.size + 1,) * 2, dtype=bool)
        for row, mask in zip(cells.numpy(), allowed.numpy(), strict=True):
            attends[np.ix_(row, row)] |= mask
        assert (attends[1:, 1:] == (groups.reshape(-1, 1) == groups.reshape(1, -1))).all()


@pytest.mark.parametrize("name", CuboidPatterns.names())
def test_every_pattern_is_described_layer_by_layer(name: str) -> None:
    shown = CuboidPatterns.describe(name, (6, 4, 4))
    assert (
        len(shown["layers"]) == len(patterns.self_pattern(name, (6, 4, 4)).cuboid_size)
        if (name in patterns.self_pattern_names())
        else len(patterns.cross_pattern(name, (6, 4, 4)).cuboid_hw)
    )
    assert all("cuboid" in text for text in shown["layers"].values())


def test_each_cuboid_is_drawn_in_its_own_colour() -> None:
    picture = np.asarray(Image.open(io.BytesIO(CuboidPatterns.draw("axial", "png", (2, 3, 3)))).convert("RGB"))
    flat = {tuple(pixel) for pixel in picture.reshape(-1, 3)[::7]}
    wanted = [tuple(round(255 * part) for part in colour) for colour in pictures.colours(9)]
    assert all(
        min(max(abs(a - b) for a, b in zip(colour, seen, strict=True)) for seen in flat) <= 1 for colour in wanted
    )


def test_colours_are_distinct() -> None:
    assert len(set(pictures.colours(200))) == 200


def test_wrong_requests_are_named() -> None:
    with pytest.raises(ValueError, match=r"at most .* cells"):
        CuboidPatterns.draw("axial", "png", (100, 100, 100))
    with pytest.raises(ValueError, match="not supported"):
        CuboidPatterns.draw("axial", "nothing", (1, 1, 1))
    with pytest.raises(ValueError, match="unknown"):
        CuboidPatterns.describe("no_such_pattern")


def test_drawing_needs_no_torch() -> None:
    code = (
        "import sys; from earthformer.pictures import CuboidPatterns; CuboidPatterns.draw('axial', 'svg', (2, 2, 2)); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
