"""Parameter counts of whole models: published ones, released ones and those of the pattern ablation."""

from __future__ import annotations

import pytest
import torch
from official import SHAPES
from torch import nn

from earthformer import Earthformer, EarthformerAux, EarthformerNoGlobal, EarthformerReleased


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("model", "task", "expected"),
    [
        (EarthformerNoGlobal, "sevir", 13_075_029),
        (Earthformer, "sevir", 15_082_069),
        (EarthformerNoGlobal, "icar_enso", 6_601_293),
        (Earthformer, "icar_enso", 7_600_077),
        (EarthformerNoGlobal, "moving_mnist", 6_611_997),
        (Earthformer, "nbody_mnist", 7_610_781),
        (EarthformerReleased, "sevir", 8_659_677),
        (EarthformerReleased, "icar_enso", 1_394_325),
        (EarthformerReleased, "sevir_lr", 1_505_069),
        (EarthformerReleased, "nbody_mnist", 6_702_109),
    ],
)
def test_sizes_are_the_published_ones(model: type[Earthformer], task: str, expected: int) -> None:
    with torch.device("meta"):
        assert parameter_count(model(*SHAPES[task], **model.presets[task])) == expected


def test_size_of_the_released_earthnet_model() -> None:
    with torch.device("meta"):
        model = EarthformerAux((10, 128, 128, 4), (20, 128, 128, 4), **EarthformerAux.presets["earthnet"])
    assert parameter_count(model) == 60_618_380


@pytest.mark.parametrize(
    ("pattern", "without", "with_vectors"),
    [
        ("axial", 6.612, 7.611),
        ("divided_st", 5.697, 6.366),
        ("video_swin_2x8", 5.661, 6.330),
        ("video_swin_10x8", 5.891, 6.560),
        ("spatial_lg_2", 6.610, None),
        ("spatial_lg_4", 6.612, None),
        ("spatial_lg_8", 6.623, None),
        ("axial_space_dilate_2", 8.593, None),
        ("axial_space_dilate_4", 8.592, None),
        ("axial_space_dilate_8", 8.591, None),
    ],
)
def test_sizes_of_the_pattern_ablation(pattern: str, without: float, with_vectors: float | None) -> None:
    with torch.device("meta"):
        for model, expected in ((EarthformerNoGlobal, without), (Earthformer, with_vectors)):
            if expected is not None:
                count = parameter_count(model(*SHAPES["moving_mnist"], enc_attn_patterns=pattern))
                assert round(count / 1e6, 3) == expected
