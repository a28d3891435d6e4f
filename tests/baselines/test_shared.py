"""The small modules behind the baseline families: shapes, patches, sampling schedules and strict loading."""

import math
from argparse import Namespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from baselines.patches import PatchCodec, patchify, unpatchify
from baselines.sampling import (
    SamplingSchedule,
    mixed,
    reverse_scheduled_probabilities,
    scheduled_probability,
    truths_by_step,
)
from baselines.shapes import checked_shapes, checked_sizes
from baselines.weights import as_mapping, check_config, load_strictly

sizes = st.integers(1, 3)


@given(b=sizes, t=sizes, h=sizes, w=sizes, c=sizes, p=st.integers(1, 4))
@settings(deadline=None, max_examples=30)
def test_patchify_orders_pixels_and_channels_and_inverts(b: int, t: int, h: int, w: int, c: int, p: int) -> None:
    clip = torch.rand(b, t, h * p, w * p, c)
    patches = patchify(clip, p)
    assert patches.shape == (t, b, c * p * p, h, w)
    for dy in range(p):
        for dx in range(p):
            for channel in range(c):
                found = patches[:, :, (dy * p + dx) * c + channel]
                assert torch.equal(found, clip[:, :, dy::p, dx::p, channel].transpose(0, 1))
    assert torch.equal(unpatchify(patches, p), clip)


@pytest.mark.parametrize("stem_channels", [0, 5])
def test_codec_output_has_the_declared_grid_and_channels(stem_channels: int) -> None:
    codec = PatchCodec("Any", (16, 24, 2), patch_size=2, stem_channels=stem_channels)
    clip = torch.rand(3, 4, 16, 24, 2)
    opened = codec.open(clip)
    assert opened.shape[:2] == (4, 3)
    patches = codec.encode(opened[0])
    assert patches.shape == (3, codec.patch_channels, *codec.grid)
    assert codec.grid == ((2, 3) if stem_channels else (8, 12))
    emitted = codec.decode(patches)
    assert emitted.shape == opened[0].shape
    assert torch.equal(codec.close(opened), clip)


def test_stem_output_is_patchified_like_frames() -> None:
    codec = PatchCodec("Any", (16, 16, 1), patch_size=2, stem_channels=3)
    frames = torch.rand(2, 1, 16, 16)
    stem_output = codec.stem(frames)
    expected = patchify(stem_output.permute(0, 2, 3, 1)[:, None], 2)[0]
    assert torch.equal(codec.encode(frames), expected)


def test_an_indivisible_grid_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Any: width must be divisible by 8, got 20"):
        PatchCodec("Any", (16, 20, 1), patch_size=2, stem_channels=3)
    with pytest.raises(ValueError, match="patch_size must be positive"):
        PatchCodec("Any", (16, 16, 1), patch_size=0, stem_channels=0)


def test_shapes_are_four_positive_sizes_on_one_grid() -> None:
    assert checked_shapes("Any", [2, 4, 6, 1], [3, 4, 6, 2], feeds_back=False) == ((2, 4, 6, 1), (3, 4, 6, 2))
    with pytest.raises(ValueError, match="four positive sizes"):
        checked_shapes("Any", (2, 4, 6), (3, 4, 6, 2), feeds_back=False)
    with pytest.raises(ValueError, match="four positive sizes"):
        checked_shapes("Any", (0, 4, 6, 1), (3, 4, 6, 2), feeds_back=False)
    with pytest.raises(ValueError, match=r"one grid, got \(4, 6\) and \(4, 8\)"):
        checked_shapes("Any", (2, 4, 6, 1), (3, 4, 8, 1), feeds_back=False)
    with pytest.raises(ValueError, match="same channels, got 1 and 2"):
        checked_shapes("Any", (2, 4, 6, 1), (3, 4, 6, 2), feeds_back=True)
    with pytest.raises(ValueError, match="must be 3 positive sizes"):
        checked_sizes("Any", "strides", (1, 2), count=3)


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [(1, 1 - 2e-5), (25_000, 0.5), (49_999, 1 - 2e-5 * 49_999), (50_000, 0.0), (80_000, 0.0)],
)
def test_the_scheduled_probability_decays_linearly_to_zero(iteration: int, expected: float) -> None:
    assert scheduled_probability(iteration) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("iteration", "context", "forecast"),
    [
        (1, 0.5, 0.5),
        (24_999, 0.5, 0.5),
        (25_000, 0.5, 0.5),
        (27_500, 1 - 0.5 * math.exp(-1), 0.45),
        (37_500, 1 - 0.5 * math.exp(-5), 0.25),
        (50_000, 1.0, 0.0),
        (80_000, 1.0, 0.0),
    ],
)
def test_reverse_probabilities_start_at_one_half(iteration: int, context: float, forecast: float) -> None:
    assert reverse_scheduled_probabilities(iteration) == pytest.approx((context, forecast), abs=1e-12)


@given(length=st.integers(1, 1000), data=st.data())
def test_the_schedule_scales_to_any_run_length(length: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, length - 1))
    stretched = SamplingSchedule(iterations=80_000).iteration(step, length)
    assert 0 < stretched <= 80_000
    assert SamplingSchedule(iterations=80_000).iteration(length - 1, length) == pytest.approx(80_000)
    assert SamplingSchedule(iterations=length).iteration(step, length) == pytest.approx(step + 1)
    assert SamplingSchedule(iterations=None).iteration(step, length) == step + 1


def test_flags_are_drawn_from_the_global_generator() -> None:
    schedule = SamplingSchedule("scheduled", iterations=None)
    torch.manual_seed(3)
    flags = schedule.draw(500, 4, 41, step=24_999, total_steps=1)
    torch.manual_seed(3)
    again = schedule.draw(500, 4, 41, step=24_999, total_steps=1)
    assert flags is not None and again is not None
    assert flags.shape == (500, 40)
    assert torch.equal(flags, again)
    assert flags.unique().tolist() == [0.0, 1.0]
    # Five standard deviations of a mean of 20000 fair coins.
    assert flags.mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(flags.numel()))
    late = schedule.draw(5, 4, 4, step=49_999, total_steps=1)
    assert late is not None
    assert late.sum() == 0
    assert SamplingSchedule("none").draw(5, 4, 4, step=0, total_steps=1) is None


def test_reverse_flags_converge_to_truth_in_the_context_and_forecasts_after() -> None:
    schedule = SamplingSchedule("reverse_scheduled", iterations=None)
    flags = schedule.draw(3, 4, 5, step=50_000, total_steps=1)
    assert flags is not None
    assert torch.equal(flags, torch.tensor([1.0] * 3 + [0.0] * 4).expand(3, 7))
    torch.manual_seed(0)
    flags = schedule.draw(2000, 4, 5, step=27_499, total_steps=1)
    assert flags is not None
    assert flags[:, :3].mean().item() == pytest.approx(1 - 0.5 * math.exp(-1), abs=0.03)
    assert flags[:, 3:].mean().item() == pytest.approx(0.45, abs=0.03)


def test_invalid_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="sampling must be one of"):
        SamplingSchedule("backwards")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two rising iterations"):
        SamplingSchedule(reverse_steps=(2, 1))


def test_the_number_of_flags_selects_the_kind_of_mask() -> None:
    assert truths_by_step(torch.ones(2, 3), t_in=5, t_out=4)[0] == 5
    assert truths_by_step(torch.ones(2, 7), t_in=5, t_out=4)[0] == 1
    with pytest.raises(ValueError, match=r"\(B, 3\) for scheduled or \(B, 7\)"):
        truths_by_step(torch.ones(2, 4), t_in=5, t_out=4)


def test_each_sample_is_either_truth_or_prediction() -> None:
    truth, prediction = torch.rand(2, 1, 3, 3), torch.rand(2, 1, 3, 3)
    out = mixed(torch.tensor([True, False]), truth, prediction)
    assert torch.equal(out, torch.stack((truth[0], prediction[1])))


def test_failed_strict_loading_lists_every_mismatch_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wrong = {
        "0.weight": torch.ones(3, 2),
        "0.bias": torch.ones(4),
        "1.bias": torch.ones(1),
        "2.bias": torch.ones(1),
    }
    with pytest.raises(ValueError) as caught:
        load_strictly(model, wrong)
    message = str(caught.value)
    assert "3 weights do not fit Sequential" in message
    assert "missing: 1.weight (1, 3)" in message
    assert "left over: 2.bias (1,)" in message
    assert "shape: 0.bias is (4,), expected (3,)" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_configurations_are_checked_for_missing_and_contradicting_keys() -> None:
    check_config({"a": 1, "b": 2}, required=("a",), implied={"b": 2, "c": 3})
    with pytest.raises(ValueError, match="a is missing; b is 2, expected 5"):
        check_config({"b": 2}, required=("a",), implied={"b": 5, "c": 3})


def test_configurations_may_be_an_argparse_namespace() -> None:
    given = {"a": 1, "b": [2]}
    assert dict(as_mapping(given)) == dict(as_mapping(Namespace(**given))) == given
