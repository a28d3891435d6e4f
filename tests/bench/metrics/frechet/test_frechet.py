"""The Frechet distance: closed forms, names by features, and the wiring of the video network."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import bench
from bench.errors import ConfigError
from bench.metrics.frechet.i3d import I3D
from bench.metrics.frechet.metric import frechet_distance, i3d_input, storm_features


def _clips(count: int, seed: int, top: float = 255.0) -> torch.Tensor:
    return torch.rand((count, 3, 16, 20, 1), generator=torch.Generator().manual_seed(seed)) * top


def test_distance_of_gaussians_in_closed_form() -> None:
    mean, cov = np.array([1.0, 2.0]), np.diag([4.0, 9.0])
    assert frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(mean, cov, mean + np.array([3, 4]), cov) == pytest.approx(25, rel=1e-12)
    # of diagonal covariances: the squared differences of standard deviations
    assert frechet_distance(mean, cov, mean, np.diag([1.0, 1.0])) == pytest.approx(1 + 4, rel=1e-12)
    singular = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert frechet_distance(mean, singular, mean, singular) == pytest.approx(0, abs=1e-7)
    assert math.isnan(frechet_distance(mean, cov * np.nan, mean, cov))


def test_agrees_with_numpy_over_uneven_batches_and_members() -> None:
    target, members = _clips(40, 0), torch.stack([_clips(40, 1), _clips(40, 2, top=200)])
    metric = bench.load_metric("frechet")
    for part in (slice(0, 7), slice(7, 40)):
        metric.update(members[:, part], target[part])
    found = metric.compute()
    ours, theirs = (storm_features(clips[..., 0] / 255).numpy() for clips in (members.flatten(0, 1), target))
    expected = frechet_distance(ours.mean(0), np.cov(ours, rowvar=False), theirs.mean(0), np.cov(theirs, rowvar=False))
    assert found["frechet_storm"] == pytest.approx(expected, rel=1e-6)
    assert (found["frechet_storm_clip_count"], found["frechet_storm_feature_count"]) == (80, 31)
    assert not any("fvd" in name for name in found)


def test_worse_clips_have_a_larger_distance() -> None:
    target = _clips(40, 0).cumsum(2) / 16
    distances = []
    for noise in (0.0, 5.0, 40.0):
        metric = bench.load_metric("frechet")
        metric.update(
            (target + noise * torch.randn(target.shape, generator=torch.Generator().manual_seed(1)))[None], target
        )
        distances.append(metric.compute()["frechet_storm"])
    assert distances[0] == pytest.approx(0, abs=1e-5) and distances[0] < distances[1] < distances[2]


def test_too_few_clips_and_wrong_options_are_refused() -> None:
    metric = bench.load_metric("frechet")
    metric.update(_clips(1, 0)[None], _clips(1, 1))
    assert math.isnan(metric.compute()["frechet_storm"])
    for options in ({"features": "i3d"}, {"weights": "x.pt"}, {"features": "vgg"}, {"scale": 0}):
        with pytest.raises(ConfigError):
            bench.load_metric("frechet", **options)


def test_the_score_is_called_fvd_only_with_i3d_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        bench.load_metric("frechet", features="i3d", weights=tmp_path / "i3d.pt")
    torch.save({"logits.conv3d.weight": torch.zeros(4, 2)}, tmp_path / "other.pt")
    with pytest.raises(ConfigError, match="not a state dict of I3D"):
        bench.load_metric("frechet", features="i3d", weights=tmp_path / "other.pt")
    torch.save(I3D(6).state_dict(), tmp_path / "i3d.pt")
    metric = bench.load_metric("frechet", features="i3d", weights=tmp_path / "i3d.pt")
    # the network takes seconds per clip, so only its input and the use of its logits are tested
    monkeypatch.setattr(metric, "_features", lambda clips: i3d_input(clips).mean((2, 3, 4)).double().repeat(1, 2))
    metric.update(_clips(3, 0)[None], _clips(3, 1))
    assert {"fvd", "fvd_clip_count", "fvd_feature_count"} == set(metric.compute())


def test_the_network_has_the_published_layout() -> None:
    with torch.device("meta"):
        network = I3D(400)
        assert network(torch.empty(2, 3, 12, 224, 224)).shape == (2, 400)
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == 12_697_264
    for name, shape in {
        "Conv3d_1a_7x7.conv3d.weight": (64, 3, 7, 7, 7),
        "Mixed_4f.b1b.conv3d.weight": (320, 160, 3, 3, 3),
        "Mixed_5c.b3b.bn.running_var": (128,),
        "logits.conv3d.bias": (400,),
    }.items():
        assert tuple(state[name].shape) == shape
    pools = [name for name, _ in network.named_children() if name.startswith("MaxPool")]
    assert len(pools) == 4


def test_input_of_i3d() -> None:
    clip = torch.rand(2, 6, 30, 40)
    given = i3d_input(clip)
    assert given.shape == (2, 3, 12, 224, 224) and given.min() >= -1 and given.max() <= 1
    assert torch.equal(given[:, :, 0], given[:, :, 1]) and torch.equal(given[:, 0], given[:, 2])
    assert i3d_input(torch.rand(1, 9, 224, 224)).shape[2] == 9
