"""The three networks against an independent implementation of the specification, their sizes and their names."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

from earthformer.prediff.alignment import NoisyEncoder
from earthformer.prediff.autoencoder import PAPER, make_autoencoder
from earthformer.prediff.denoiser import CuboidUNet
from earthformer.prediff.down_path import step_sinusoids

SMALL = {"base_units": 16, "num_heads": 4}


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_released_sizes() -> None:
    with torch.device("meta"):
        autoencoder, paper = make_autoencoder(), make_autoencoder(**PAPER)
    assert parameter_count(autoencoder) == 84_499_393
    assert parameter_count(autoencoder.encoder) == 34_714_368
    assert parameter_count(autoencoder.decoder) == 49_764_353
    assert paper.latent_shape((7, 128, 128, 1)) == (7, 16, 16, 4)
    assert round(parameter_count(paper) / 1e6, 2) == 83.65


def test_denoiser_and_alignment_have_the_released_sizes() -> None:
    with torch.device("meta"):
        denoiser, network = CuboidUNet((7, 16, 16, 64), (6, 16, 16, 64)), NoisyEncoder((6, 16, 16, 64))
    assert (parameter_count(denoiser), len(denoiser.state_dict())) == (136_817_538, 688)
    assert (parameter_count(network), len(network.state_dict())) == (8_937_033, 125)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize(("size", "depth"), [((8, 8), [2, 1]), ((7, 6), [1, 1]), ((8, 8), [1, 2, 1])])
def test_the_denoiser_follows_the_specification(
    oracle: ModuleType, randomise, size: tuple[int, int], depth: list[int], scale_shift: bool
) -> None:
    model = CuboidUNet((3, *size, 4), (2, *size, 4), depth=depth, time_embed_use_scale_shift_norm=scale_shift, **SMALL)
    randomise(model)
    x, cond, t = torch.randn(2, 2, *size, 4), torch.randn(2, 3, *size, 4), torch.tensor([3, 998])
    with torch.no_grad():
        expected = oracle.unet(model.state_dict(), x, t, cond, scale_shift=scale_shift)
        oracle.agree(model(x, t, cond), expected)
        with model.reference():
            oracle.agree(model(x, t, cond), expected)


def test_the_wide_denoiser_follows_the_specification(oracle: ModuleType, randomise) -> None:
    """Thirty-two groups per norm, as at full size, rather than one per channel."""
    model = randomise(CuboidUNet((3, 4, 4, 8), (2, 4, 4, 8), base_units=64, depth=[1, 1]))
    x, cond, t = torch.randn(1, 2, 4, 4, 8), torch.randn(1, 3, 4, 4, 8), torch.tensor([500])
    with torch.no_grad():
        oracle.agree(model(x, t, cond), oracle.unet(model.state_dict(), x, t, cond))


@pytest.mark.parametrize("scale_shift", [False, True])
def test_the_alignment_network_follows_the_specification(oracle: ModuleType, randomise, scale_shift: bool) -> None:
    model = NoisyEncoder((2, 8, 8, 4), out_channels=3, time_embed_use_scale_shift_norm=scale_shift, **SMALL)
    randomise(model)
    z, t = torch.randn(3, 2, 8, 8, 4), torch.tensor([0, 400, 999])
    with torch.no_grad():
        expected = oracle.alignment(model.state_dict(), z, t, scale_shift=scale_shift)
        oracle.agree(model(z, t), expected)


def test_the_context_of_the_alignment_network_is_ignored(randomise) -> None:
    model = randomise(NoisyEncoder((2, 8, 8, 4), **SMALL))
    z, t = torch.randn(1, 2, 8, 8, 4), torch.tensor([7])
    assert torch.equal(model(z, t), model(z, t, torch.rand(1, 3, 32, 32, 1), zc=torch.rand(1, 3, 8, 8, 4)))


def test_an_untrained_denoiser_predicts_zero() -> None:
    model = CuboidUNet((3, 4, 4, 4), (2, 4, 4, 4), depth=[1, 1], **SMALL)
    assert torch.equal(model(torch.randn(1, 2, 4, 4, 4), torch.tensor([5]), torch.randn(1, 3, 4, 4, 4)),
                       torch.zeros(1, 2, 4, 4, 4))  # fmt: skip


def test_sinusoids_have_cosines_first_and_a_zero_column_if_odd() -> None:
    table = step_sinusoids(torch.tensor([0, 10]), 5)
    assert table[0].tolist() == [1, 1, 0, 0, 0]
    expected = torch.tensor([10.0, 0.1])
    torch.testing.assert_close(table[1], torch.cat((expected.cos(), expected.sin(), torch.zeros(1))))


def test_autoencoder_takes_sequences_frame_by_frame(randomise) -> None:
    model = randomise(make_autoencoder(latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4))
    frames = torch.rand(2, 3, 8, 12, 1)
    with torch.no_grad():
        latents = model.to_latents(frames)
        assert latents.shape == (2, 3, 4, 6, 4)
        alone = model.encode(frames[1, 2].permute(2, 0, 1)[None]).latent_dist.mean
        torch.testing.assert_close(latents[1, 2], alone[0].permute(1, 2, 0), atol=1e-5, rtol=1e-5)
        back = model.to_frames(latents)
        torch.testing.assert_close(back[1, 2, :, :, 0], model.decode(alone).sample[0, 0], atol=1e-5, rtol=1e-5)
        noise = torch.randn(2, 3, 4, 6, 4)
        std = model.posterior(frames).std.unflatten(0, (2, 3)).permute(0, 1, 3, 4, 2)
        torch.testing.assert_close(model.to_latents(frames, noise), latents + std * noise, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: CuboidUNet((3, 8, 8, 4), (2, 8, 8, 5)), "expected H, W, C of input_shape"),
        (lambda: CuboidUNet((3, 8, 8), (2, 8, 8)), "four positive sizes"),
        (lambda: CuboidUNet((3, 8, 8, 4), (2, 8, 8, 4), depth=[]), "depth"),
        (lambda: CuboidUNet((3, 8, 8, 4), (2, 8, 8, 4), ffn2_linear_init_mode="9"), "ffn2_linear_init_mode"),
        (lambda: NoisyEncoder((3, 8, 8, 4), downsample=(3, 2, 2)), "expected to leave 3 frames"),
        (lambda: make_autoencoder(block_out_channels=(8, 12), norm_num_groups=8), "multiples of 8 groups"),
    ],
)
def test_invalid_arguments_are_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_tensors_of_another_shape_are_refused() -> None:
    unet = CuboidUNet((3, 4, 4, 4), (2, 4, 4, 4), depth=[1], **SMALL)
    with pytest.raises(ValueError, match=r"expected cond .*\(B, 3, 4, 4, 4\), found \(1, 2, 4, 4, 4\)"):
        unet(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1), torch.zeros(1, 2, 4, 4, 4))
    encoder = NoisyEncoder((2, 4, 4, 4), depth=[1], **SMALL)
    with pytest.raises(ValueError, match=r"found \(1, 2, 4, 4, 3\)"):
        encoder(torch.zeros(1, 2, 4, 4, 3), torch.zeros(1))
    autoencoder = make_autoencoder(latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4)
    with pytest.raises(ValueError, match="latents of 4 channels, found 64"):
        autoencoder.to_frames(torch.zeros(1, 1, 2, 2, 64))
    with pytest.raises(ValueError, match="multiples of 2, found 7 x 8"):
        autoencoder.to_latents(torch.zeros(1, 1, 7, 8, 1))
    with pytest.raises(ValueError, match="frames of 1 channels, found 3"):
        autoencoder.to_latents(torch.zeros(1, 1, 8, 8, 3))
