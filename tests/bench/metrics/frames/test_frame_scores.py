"""Errors per frame, SSIM and PSNR against torchmetrics, scikit-image and the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchmetrics

import bench
from bench.errors import ConfigError, ContractError
from bench.metrics.frames.similarity import ssim


def _pair(batch: int = 3, size: int = 20, channels: int = 1, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand((batch, 2, size, size + 3, channels), generator=generator) * top for top in (1.3, 0.9)]


def _scores(forecast: torch.Tensor, target: torch.Tensor, sizes: list[int] | None = None, **options) -> dict:
    metric = bench.load_metric("frames", **options)
    for part in zip(forecast.split(sizes or len(forecast)), target.split(sizes or len(target)), strict=True):
        metric.update(*part)
    return metric.compute()


@pytest.mark.parametrize("channels", [1, 3])
def test_sums_per_frame_are_the_mean_times_the_pixel_count(channels: int) -> None:
    forecast, target = _pair(channels=channels)
    found = _scores(forecast, target)
    error = forecast.double() - target.double()
    assert found["mse_frame_sum"] == pytest.approx(float(error.square().sum((2, 3, 4)).mean()), rel=1e-12)
    assert found["mae_frame_sum"] == pytest.approx(float(error.abs().sum((2, 3, 4)).mean()), rel=1e-12)
    assert found["mse_frame_sum"] == pytest.approx(found["mse"] * 20 * 23 * channels, rel=1e-12)
    assert found["mae_frame_sum_lead_2"] == pytest.approx(float(error[:, 1].abs().sum((1, 2, 3)).mean()), rel=1e-12)


@pytest.mark.parametrize("channels", [1, 2])
def test_ssim_agrees_with_scikit_image(channels: int) -> None:
    metrics = pytest.importorskip("skimage.metrics", reason="the `test` extra brings it")
    forecast, target = _pair(channels=channels)
    theirs = [
        metrics.structural_similarity(
            f[..., c], t[..., c], data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for f, t in zip(forecast.flatten(0, 1).double().numpy(), target.flatten(0, 1).double().numpy(), strict=True)
        for c in range(channels)
    ]
    assert _scores(forecast, target, convention="correct")["ssim"] == pytest.approx(np.mean(theirs), rel=1e-10)


def test_ssim_of_2022_uses_the_range_of_the_whole_set_and_crops() -> None:
    """The current torchmetrics neither crops the border nor uses the range of the whole set; given both, it agrees."""
    forecast, target = _pair(batch=5)
    frames = [side.flatten(0, 1).movedim(3, 1).double() for side in (forecast, target)]
    spread = max(float(side.max() - side.min()) for side in frames)
    ours = torchmetrics.functional.image.structural_similarity_index_measure
    _, maps = ours(*frames, data_range=spread, return_full_image=True)
    expected = float(maps[..., 5:-5, 5:-5].mean())
    for sizes in ([5], [2, 2, 1], [1, 4]):
        assert _scores(forecast, target, sizes)["ssim"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("spread", [0.005, 0.11, 1.0, 1.7, 30.0, 250.0])
def test_ssim_of_2022_is_exact_for_any_range_without_storing_frames(spread: float) -> None:
    """Frames with few bright pixels, constant frames and equal frames, like digits; the last batch has the range."""
    generator = torch.Generator().manual_seed(1)
    forecast, target = _pair(batch=4, size=24)
    forecast[:2] *= torch.rand(forecast[:2].shape, generator=generator) > 0.9
    forecast[0, 0], target[0, 0], target[0, 1] = 0, 0.001, forecast[0, 1]
    forecast, target = (side.clamp(0, 1) * min(spread, 1) for side in (forecast, target))
    forecast[3, 1, 0, 0], forecast[3, 1, 0, 1] = spread, 0
    frames = [side.flatten(0, 1)[..., 0].double() for side in (forecast, target)]
    whole = max(float(side.max() - side.min()) for side in frames)
    each = ssim(*frames, whole)
    metric = bench.load_metric("frames", t_out=2)
    metric.track_events(3)
    for part in range(4):
        metric.update(forecast[part : part + 1], target[part : part + 1], torch.tensor([part % 3]))
    assert metric.compute()["ssim"] == pytest.approx(float(each.mean()), rel=1e-12)
    of_event = metric.event_statistics()["ssim_sum"][0]
    assert of_event == pytest.approx((each[:2] + each[6:]).numpy(), rel=1e-11)
    states = metric.metric_state.values()
    assert not any(isinstance(state, list) for state in states)
    assert sum(state.nbytes for state in states) < 8 * 4 * 2 * 110, (
        "sums of two lead times, over all and of three events"
    )


def test_ssim_of_2022_is_undefined_for_a_range_beyond_the_scale() -> None:
    forecast, target = _pair(batch=1, size=12)
    assert math.isnan(_scores(forecast * 1000, target)["ssim"]) and math.isfinite(
        _scores(forecast * 1000, target)["mse"]
    )


def test_an_all_black_pair_distinguishes_the_conventions() -> None:
    black = torch.zeros(1, 1, 12, 12, 1)
    assert math.isnan(_scores(black, black)["ssim"])
    found = _scores(black, black, convention="correct")
    assert found["ssim"] == 1.0 and found["psnr"] == math.inf and found["mse_frame_sum"] == 0


@pytest.mark.parametrize("sizes", [[1, 3], [2, 1, 1]])
@pytest.mark.parametrize("convention", ["upstream", "correct"])
def test_batches_do_not_matter(convention: str, sizes: list[int]) -> None:
    forecast, target = _pair(batch=4, size=12)
    whole = _scores(forecast, target, convention=convention)
    found = _scores(forecast, target, sizes, convention=convention)
    assert all(found[name] == pytest.approx(value, rel=1e-12) for name, value in whole.items())


def test_psnr_is_the_mean_over_clipped_frames() -> None:
    forecast, target = _pair()
    error = (forecast.double().clamp(0, 1) - target.double().clamp(0, 1)).square().mean((2, 3, 4))
    expected = float((10 * (1 / error).log10()).mean())
    assert _scores(forecast, target)["psnr"] == pytest.approx(expected, rel=1e-12)
    theirs = torchmetrics.functional.image.peak_signal_noise_ratio
    frames = [side.clamp(0, 1).double().flatten(0, 1) for side in (forecast, target)]
    each = [float(theirs(f, t, data_range=1.0)) for f, t in zip(*frames, strict=True)]
    assert expected == pytest.approx(np.mean(each), rel=1e-6)


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_missing_values_by_convention(hole: float) -> None:
    forecast, target = _pair(batch=1, size=12)
    clean = _scores(forecast[:, 1:], target[:, 1:], convention="correct")
    forecast[0, 0, 3, 3, 0] = hole
    correct = _scores(forecast, target, convention="correct")
    assert correct["ssim_frame_count"] == 1 and correct["mse_pixel_count"] == 2 * 12 * 15 - 1
    assert (
        correct["ssim"] == pytest.approx(clean["ssim"], rel=1e-12)
        and math.isfinite(correct["psnr"])
        and math.isfinite(correct["mse"])
    )
    assert not math.isfinite(_scores(forecast, target)["mse"]) and math.isnan(_scores(forecast, target)["ssim"])


def test_frame_scores_use_the_scale_of_the_task() -> None:
    forecast, target = _pair()
    for convention in ("upstream", "correct"):
        ones = _scores(forecast, target, convention=convention)
        codes = _scores(forecast * 255, target * 255, convention=convention, scale=255.0)
        assert all(codes[name] == pytest.approx(value, rel=1e-5) for name, value in ones.items())


def test_frames_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ContractError, match="11x11"):
        _scores(torch.zeros(1, 1, 10, 30, 1), torch.zeros(1, 1, 10, 30, 1), convention="correct")
    for options in ({"scale": 0}, {"convention": "paper"}):
        with pytest.raises(ConfigError):
            bench.load_metric("frames", **options)


def test_lpips_repeats_grey_frames_to_three_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights instead of AlexNet's: checks the wiring against the class of torchmetrics."""
    import torchvision
    from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

    alexnet, seed = torchvision.models.alexnet, 0

    def untrained(*_: object, **__: object) -> torch.nn.Module:
        torch.manual_seed(seed)
        return alexnet(weights=None)

    monkeypatch.setattr(torchvision.models, "alexnet", untrained)
    forecast, target = (side[:1, :, :, :, :] for side in _pair(size=64))
    found = _scores(forecast, target, lpips=True)
    theirs = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
    frames = [side.clamp(0, 1).flatten(0, 1).movedim(3, 1).expand(-1, 3, -1, -1) for side in (forecast, target)]
    assert found["lpips"] == pytest.approx(float(theirs(*frames)), rel=1e-5)

    def offline(*_: object, **__: object) -> torch.nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "alexnet", offline)
    with pytest.raises(ConfigError, match="TORCH_HOME"):
        bench.load_metric("frames", lpips=True)
