"""Any shape works, or is refused with one message: which axis, what was expected of it, what was found."""

import importlib
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

# Per case: module, class, arguments, and what height and width must be divisible by.
CASES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "persistence": ("persistence", "Persistence", {}, 1),
    "blank": ("blank", "Blank", {}, 1),
    "blurred_persistence": ("blurred", "BlurredPersistence", {}, 1),
    "climatology": ("climatology", "Climatology", {}, 1),
    "damped_persistence": ("damped_persistence", "DampedPersistence", {}, 1),
    "linear_inverse": ("linear_inverse", "LinearInverse", {"modes": 1}, 1),
    "seasonal_regression": ("seasonal_regression", "SeasonalRegression", {"modes": 1, "seasons": 1}, 1),
    "unet": ("unet", "UNet", {"channels": (2, 3), "center_channels": 4}, 4),
    "unet_deep": ("unet", "UNet", {"channels": (2, 2, 2, 2), "center_channels": 4}, 16),
    "convlstm": ("convlstm", "ConvLSTM", {"hidden": (2, 3, 4), "head_channels": 2}, 8),
    "convlstm_of_sevir": (
        "convlstm",
        "ConvLSTM",
        {"hidden": (2, 2, 2), "head_channels": 2, "strides": (3, 2, 4)},
        24,
    ),
    "predrnn": ("predrnn", "PredRNN", {"hidden": (3, 3), "patch_size": 4}, 4),
    "predrnn_unfolded": ("predrnn", "PredRNN", {"hidden": (3,), "patch_size": 1, "layer_norm": True}, 1),
    "predrnn_stem": ("predrnn", "PredRNN", {"hidden": (3,), "patch_size": 3, "stem_channels": 2}, 12),
    "phydnet": ("phydnet", "PhyDNet", {"phy_hidden": (14,), "conv_hidden": (2, 64)}, 4),
    "phydnet_of_sevir": (
        "phydnet",
        "PhyDNet",
        {"phy_hidden": (14,), "conv_hidden": (64,), "strides": (2, 2, 2)},
        8,
    ),
    "e3d_lstm": ("e3d_lstm", "E3DLSTM", {"hidden": (2, 2), "kernel_size": 3, "patch_size": 3}, 3),
    "e3d_lstm_stem": ("e3d_lstm", "E3DLSTM", {"hidden": (2,), "patch_size": 2, "stem_channels": 2}, 8),
    "simvp": ("simvp", "SimVP", {"hid_s": 4, "hid_t": 3, "n_t": 2}, 4),
    "tau_deep": ("simvp", "TAU", {"hid_s": 4, "hid_t": 3, "n_s": 6, "n_t": 2}, 8),
    "rainformer": ("rainformer", "Rainformer", {"hidden": 4, "heads": (1, 1, 1, 1), "head_dim": 2, "window": 1}, 16),
    "rainformer_of_enso": (
        "rainformer",
        "Rainformer",
        {"hidden": 4, "heads": (1, 2, 1, 2), "head_dim": 2, "window": 3, "downscale": (1, 2, 2, 1)},
        12,
    ),
}


def build(case: str, input_shape: tuple[int, ...], target_shape: tuple[int, ...]) -> nn.Module:
    module, cls, arguments, _ = CASES[case]
    return getattr(importlib.import_module(f"baselines.{module}"), cls)(input_shape, target_shape, **arguments)


@pytest.mark.parametrize("case", CASES)
@given(
    cells=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    frames=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    channels=st.integers(1, 3),
    batch=st.integers(1, 2),
)
@settings(deadline=None, max_examples=5, derandomize=True)
def test_any_divisible_grid_works_for_all_lengths_and_channels(
    case: str, cells: tuple[int, int], frames: tuple[int, int], channels: int, batch: int
) -> None:
    divisor = CASES[case][-1]
    grid = (divisor * cells[0], divisor * cells[1], channels)
    torch.manual_seed(0)
    model = build(case, (frames[0], *grid), (frames[1], *grid)).eval()
    context = torch.rand(batch, frames[0], *grid)
    with torch.no_grad():
        forecast = model(context)
    assert forecast.shape == (batch, frames[1], *grid)
    assert forecast.isfinite().all()


@pytest.mark.parametrize("case", [case for case, (*_, divisor) in CASES.items() if divisor > 1])
@given(sizes=st.tuples(st.integers(1, 100), st.integers(1, 100)))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_an_indivisible_grid_is_refused_with_axis_divisor_and_size(case: str, sizes: tuple[int, int]) -> None:
    divisor = CASES[case][-1]
    wrong = {axis: size for axis, size in zip(("height", "width"), sizes, strict=True) if size % divisor}
    shape = (1, *sizes, 1)
    if not wrong:
        build(case, shape, shape)
        return
    with pytest.raises(ValueError) as caught:
        build(case, shape, shape)
    cls, axis, expected, found = re.fullmatch(
        r"(\w+): (height|width)[^:]* must be divisible by (\d+), got (\d+)", str(caught.value)
    ).groups()
    assert cls == CASES[case][1]
    assert int(found) == wrong[axis]
    # Rainformer names the first of its stages that does not fit.
    assert divisor % int(expected) == 0
    assert int(found) % int(expected)


@pytest.mark.parametrize("case", [case for case in CASES if case != "persistence"])
@given(shape=st.lists(st.integers(0, 24), min_size=3, max_size=5))
@settings(deadline=None, max_examples=20, derandomize=True)
def test_bad_shapes_and_mismatched_grids_are_refused(case: str, shape: list[int]) -> None:
    divisor = CASES[case][-1]
    good = (2, divisor, 2 * divisor, 1)
    if len(shape) == 4 and math.prod(shape) and tuple(shape[1:3]) == good[1:3]:
        return
    with pytest.raises(ValueError, match=r"four positive sizes|need one grid"):
        build(case, good, tuple(shape))
    with pytest.raises(ValueError, match=r"four positive sizes|need one grid"):
        build(case, tuple(shape), good)
