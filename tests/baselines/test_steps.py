"""STEPS on synthetic fields: members depend only on the seed, and failures of pySTEPS are counted."""

from __future__ import annotations

import pickle
import warnings
import zlib

import numpy as np
import pysteps.motion.lucaskanade
import pysteps.nowcasts.steps
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from baselines.optical_flow import quiet
from baselines.steps import Steps
from bench.cost import count_model
from bench.errors import NotCountableError

SHAPES = (3, 64, 64, 1), (4, 64, 64, 1)


def _rain(rows: int = 1, frames: int = 7, *, wind: int = 2) -> Tensor:
    """Changing showers that move `wind` pixels per frame: `(rows, frames, 64, 64, 1)`, a third of the pixels wet."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(rows):
        still = gaussian_filter(random.normal(size=(128, 128)), 4, mode="wrap")
        fields = []
        for frame in range(frames):
            still = 0.98 * still + 0.2 * still.std() * gaussian_filter(random.normal(size=(128, 128)), 2, mode="wrap")
            moved = np.roll(still, wind * frame, 1)[32:96, 32:96]
            fields.append((0.25 * (moved / still.std() - 0.4)).clip(0, 1))
        found.append(np.stack(fields))
    return torch.from_numpy(np.stack(found)[..., None]).float()


def _sample(context: Tensor, members: int = 4, seed: int = 0) -> Tensor:
    return Steps(*SHAPES).sample(context, members=members, generator=torch.Generator().manual_seed(seed))


def test_members_depend_on_the_seed_and_not_on_their_number() -> None:
    context = _rain(2)[:, :3]
    members = _sample(context)
    assert members.shape == (4, 2, *SHAPES[1])
    assert members.dtype == torch.float32
    assert torch.equal(_sample(context), members)
    assert torch.equal(_sample(context, members=2), members[:2])
    assert torch.equal(_sample(context[1:]), members[:, 1:]), "whatever else is in the batch"
    assert not torch.equal(_sample(context, seed=1), members)
    assert not torch.equal(members[0], members[1])
    assert not torch.equal(_sample(context[:1].flip(2))[0], members[0, :1].flip(2)), "another sequence, another seed"


def test_members_equal_a_direct_call_of_pysteps() -> None:
    """For VIL codes from 16: six scales, noise with their spectrum, a perturbed motion, values of the last field."""
    with quiet():
        codes = 255 * _rain()[0, :3, :, :, 0].double().numpy()
        rain = np.where(codes < 16, 0, codes)
        seed = int(np.random.SeedSequence([0, zlib.crc32(codes.tobytes())]).generate_state(1)[0] >> 1)
        drawn = pysteps.nowcasts.steps.forecast(
            rain, pysteps.motion.lucaskanade.dense_lucaskanade(rain), 4, n_ens_members=3, n_cascade_levels=6,
            precip_thr=16.0, kmperpixel=3.0, timestep=10.0, noise_method="nonparametric", vel_pert_method="bps",
            mask_method="incremental", probmatching_method="cdf", ar_order=2, seed=seed, num_workers=1,
        )  # fmt: skip
    drawn = np.nan_to_num(drawn)
    expected = torch.from_numpy(np.where(drawn < 16, 0, drawn).clip(0, 255) / 255).float()[..., None]
    torch.testing.assert_close(Steps(*SHAPES, members=3)(_rain()[:, :3])[0], expected.mean(0))


def test_the_forecast_is_the_mean_of_its_members() -> None:
    context = _rain()[:, :3]
    one, three = Steps(*SHAPES, members=1)(context), Steps(*SHAPES, members=3)(context)
    assert torch.equal(Steps(*SHAPES, members=3)(context), three)
    wet = one[one > 0]
    assert wet.min() >= 16 / 255
    assert 0 < three[three > 0].min() < 16 / 255, "where one of three members has rain"


def test_sampling_changes_no_global_state_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    np.random.seed(3)
    context, before = _rain()[:, :3], pickle.dumps(np.random.get_state())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _sample(context)
        _sample(torch.full_like(context, 0.5))
    assert pickle.dumps(np.random.get_state()) == before
    assert not caught
    assert capfd.readouterr() == ("", "")


def test_members_beat_persistence_and_preserve_rain_area_and_intensity() -> None:
    frames = _rain(3)
    context, target = frames[:, :3], frames[:, 3:]
    members = _sample(context, members=6)
    spread = sum((members - one).abs().mean() for one in members) / (2 * 5)
    assert (members - target).abs().mean() - spread < 0.8 * (context[:, -1:] - target).abs().mean()
    wet = [float((part >= 16 / 255).float().mean()) for part in (members[..., 16:, :], target[..., 16:, :])]
    assert wet[0] == pytest.approx(wet[1], rel=0.3), "but for where rain comes in over the border"
    assert members.max() <= context[:, -1].max() + 1e-6, "their values are those of the last frame"


def _one_pixel(*, wind: int) -> Tensor:
    context = torch.zeros(1, *SHAPES[0])
    for frame in range(3):
        context[:, frame, 30, 30 + wind * frame] = 0.5
    return context


def _with(frames: slice, value: float) -> Tensor:
    context = _rain()[:, :3].clone()
    context[:, frames] = value
    return context


CASES = {
    "dry": (_with(slice(0, 3), 0.0), "dry"),
    "drizzle": (_with(slice(0, 3), 15 / 255), "dry"),
    "last_dry": (_with(slice(2, 3), 0.0), "dry"),
    "missing": (_with(slice(0, 3), torch.nan), "dry"),
    "middle_dry": (_with(slice(1, 2), 0.0), "extrapolated"),
    "only_last_wet": (_with(slice(0, 2), 0.0), "extrapolated"),
    "oldest_dry": (_with(slice(0, 1), 0.0), None),
    "constant": (_with(slice(0, 3), 0.5), "persistence"),
    "saturated": (_with(slice(0, 3), 1.0), "persistence"),
    "frozen": (_rain()[:, 2:3].expand(-1, 3, -1, -1, -1), "first_order"),
    "one_pixel": (_one_pixel(wind=0), "persistence"),
    "noise": (torch.rand(1, *SHAPES[0], generator=torch.Generator().manual_seed(0)), None),
}


@pytest.mark.parametrize("case", CASES)
def test_unsupported_cases_use_a_simpler_forecast_and_are_counted(case: str) -> None:
    context, reason = CASES[case]
    model = Steps(*SHAPES)
    members = model.sample(context, members=2, generator=torch.Generator())
    assert dict(model.degraded) == ({reason: 1} if reason else {})
    assert torch.isfinite(members).all()
    last = torch.nan_to_num(context[:, -1:])
    if reason == "dry":
        assert not members.any()
    elif reason == "persistence":
        torch.testing.assert_close(members, last.expand(2, 1, 4, 64, 64, 1))
    else:
        assert members[:, :, 0].sum() > 0.5 * 2 * last[last >= 16 / 255].sum(), "the rain is not lost"


def test_rain_after_a_dry_frame_is_advected() -> None:
    """The motion is unknown then, so the last frame stays; pySTEPS alone would forecast no rain at all."""
    context = CASES["only_last_wet"][0]
    members = _sample(context)
    rain = context[:, -1:].where(context[:, -1:] >= 16 / 255, 0)
    torch.testing.assert_close(members, rain.expand(4, 1, 4, 64, 64, 1))


def test_missing_strips_odd_sizes_and_two_frames_work() -> None:
    context = _rain()[:, :3].clone()
    context[:, :, :20] = torch.nan
    assert torch.isfinite(_sample(context)).all()
    for height, width, frames in ((8, 8, 2), (24, 48, 3), (33, 64, 5)):
        grid = (height, width, 2)
        model = Steps((frames, *grid), (2, *grid))
        context = _rain(2, 5)[:, :frames, :height, :width].repeat(1, 1, 1, 1, 2)
        assert model(context).shape == (2, 2, *grid)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": 0}, "members must be positive"),
        ({"minutes": 0.0}, "minutes must be positive, got 0"),
        ({"kilometres": -1.0}, "kilometres must be positive, got -1"),
        ({"threshold": float("nan")}, "threshold must be positive, got nan"),
        ({"input_shape": (1, 64, 64, 1)}, "two frames or more, got t_in=1"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Steps(**{"input_shape": SHAPES[0], "target_shape": SHAPES[1], **options})


def test_a_scale_with_a_nonzero_dry_value_is_refused() -> None:
    context = _rain()[:, :3]
    with pytest.raises(ValueError, match=r"expected rain from 0 on, found -0\.5"):
        _sample(context - 0.5)
    assert torch.isfinite(_sample(context - 1e-6)).all()


def test_the_cost_is_unknown_rather_than_zero() -> None:
    with pytest.raises(NotCountableError, match="OpenCV"):
        count_model(Steps(*SHAPES), SHAPES[0])
