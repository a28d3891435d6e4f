"""Feed-forward layers, norms, embeddings, merging, up-sampling, stages, initialisation and kernels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from earthformer.blocks import CrossAttentionBlock, SelfAttentionBlock
from earthformer.layers import (
    FeedForward,
    PositionEmbedding,
    RMSNorm,
    dropout,
    init_conv,
    init_linear,
    make_activation,
)
from earthformer.options import Options, as_scale
from earthformer.patterns import CrossPattern, SelfPattern
from earthformer.reference import plain_formulation
from earthformer.resampling import (
    FinalDecoder,
    FinalStackDecoder,
    InitialEncoder,
    InitialStackEncoder,
    PatchMerging,
    Upsample,
    upsample_weight,
)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("activation", ["leaky", "gelu", "relu", "tanh"])
def test_feed_forward_matches_its_definition(gated: bool, pre_norm: bool, activation: str) -> None:
    torch.manual_seed(0)
    layer = FeedForward(
        Options(ffn_drop=0.0, gated_ffn=gated, ffn_activation=activation), 8, hidden_size=12, pre_norm=pre_norm
    )
    x = torch.randn(2, 5, 8)
    act = {"leaky": lambda v: F.leaky_relu(v, 0.1), "gelu": F.gelu, "relu": F.relu, "tanh": torch.tanh}[activation]
    u = F.layer_norm(x, (8,)) if pre_norm else x
    hidden = act(layer.ffn_1_gate(u)) * layer.ffn_1(u) if gated else act(layer.ffn_1(u))
    expected = x + layer.ffn_2(hidden)
    if not pre_norm:
        expected = F.layer_norm(expected, (8,))
    torch.testing.assert_close(layer(x), expected)


def test_rms_norm_adds_epsilon_to_the_root() -> None:
    norm = RMSNorm(4, eps=0.5)
    with torch.no_grad():
        norm.scale.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.tensor([[3.0, 3.0, 3.0, 3.0]])
    torch.testing.assert_close(norm(x), torch.tensor([[1.0, 2.0, 3.0, 4.0]]) * 3 / 3.5)
    zero = torch.zeros(1, 4, requires_grad=True)
    norm(zero).sum().backward()
    assert zero.grad is not None and torch.isfinite(zero.grad).all()


def test_activations_are_known_by_the_names_of_configs() -> None:
    names = ("leaky", "gelu", "relu", "elu", "sigmoid", "tanh", "softrelu", "softsign")
    assert len({type(make_activation(name)) for name in names}) == len(names)
    with pytest.raises(ValueError, match="swish"):
        make_activation("swish")


def test_position_embeddings_add_the_rows_of_their_position() -> None:
    x = torch.zeros(1, 3, 4, 5, 2)
    for kind in ("t+h+w", "t+hw"):
        layer = PositionEmbedding(2, 5, 6, 7, kind)
        out = layer(x)[0, 2, 3, 4]
        if kind == "t+h+w":
            expected = layer.T_embed.weight[2] + layer.H_embed.weight[3] + layer.W_embed.weight[4]
        else:
            expected = layer.T_embed.weight[2] + layer.HW_embed.weight[3 * 7 + 4]
        torch.testing.assert_close(out, expected)
        with pytest.raises(ValueError, match="at most"):
            layer(torch.zeros(1, 6, 4, 5, 2))
    with pytest.raises(ValueError, match="pos_embed_type"):
        PositionEmbedding(2, 5, 6, 7, "thw")


@pytest.mark.parametrize("padding_type", ["zeros", "ignore", "nearest"])
def test_patch_merging_concatenates_neighbours(padding_type: str) -> None:
    torch.manual_seed(0)
    layer = PatchMerging(Options(padding_type=padding_type), 2, 3, (2, 2, 3))
    x = torch.randn(1, 3, 3, 5, 2)
    if padding_type == "nearest":
        padded = x[:, [0, 0, 1, 2]][:, :, [0, 0, 1, 2]][:, :, :, [0, 0, 1, 2, 3, 4]]
    else:
        padded = F.pad(x, (0, 0, 0, 1, 0, 1, 0, 1))
    out = layer(x)
    assert out.shape == (1, 2, 2, 2, 3) and layer.output_shape((3, 3, 5, 2)) == (2, 2, 2, 3)
    token = torch.cat([padded[0, 2 + a, 0 + b, 3 + c] for a in (0, 1) for b in (0, 1) for c in (0, 1, 2)])
    torch.testing.assert_close(out[0, 1, 0, 1], layer.reduction(layer.norm(token)))


def test_patch_merging_refuses_an_odd_number_of_frames() -> None:
    with pytest.raises(ValueError, match="multiple of 2 frames"):
        PatchMerging(Options(), 2, 2, (2, 2, 2))(torch.zeros(1, 3, 4, 4, 2))


@given(
    kernel=st.sampled_from([1, 3, 5]),
    scale=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
@settings(max_examples=40, deadline=None)
def test_fused_upsampling_equals_upsampling_then_convolution(
    kernel: int, scale: tuple[int, int], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = Upsample(2, 3, (2, size[0] * scale[0], size[1] * scale[1]), kernel).double()
    x = torch.randn(1, 2, *size, 2, dtype=torch.float64)
    weight = upsample_weight(layer.conv.weight, scale)
    fused = F.conv_transpose2d(x[0].permute(0, 3, 1, 2), weight, layer.conv.bias, scale, kernel // 2)
    with plain_formulation(layer):
        plain = layer(x)
    torch.testing.assert_close(fused.permute(0, 2, 3, 1), plain[0])
    torch.testing.assert_close(layer(x), plain)


@given(
    scale=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
@settings(max_examples=40, deadline=None)
def test_convolutions_composed_across_upsampling_are_exact_at_the_border(
    scale: tuple[int, int], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    target = (2, size[0] * scale[0], size[1] * scale[1])
    stage = FinalDecoder(Options(base_units=16), target).double()
    # With many channels in the middle, the composition is faster at every scale.
    stage.upsample = Upsample(2, 64, target).double()
    stage.conv_block[0] = nn.Conv2d(64, 16, 3, padding=1).double()
    x = torch.randn(1, 2, *size, 2, dtype=torch.float64, requires_grad=True)
    composed = stage.upsample.followed_by(x, stage.conv_block[0])
    assert (composed is None) == (min(target[1:]) < 3)
    weights = [x, *stage.parameters()]
    fast, plain = stage(x), None
    fast_gradients = torch.autograd.grad((fast * fast.detach().roll(1)).sum(), weights)
    with plain_formulation(stage):
        plain = stage(x)
    torch.testing.assert_close(fast, plain)
    plain_gradients = torch.autograd.grad((plain * plain.detach().roll(1)).sum(), weights)
    torch.testing.assert_close(fast_gradients, plain_gradients, rtol=1e-6, atol=1e-8)


def test_upsampling_to_a_non_multiple_repeats_the_nearest_pixel() -> None:
    layer = Upsample(1, 1, (1, 1, 5), 1)
    with torch.no_grad():
        layer.conv.weight.fill_(1.0)
        out = layer(torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3, 1))
    assert out.flatten().tolist() == [1.0, 1.0, 2.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="1 frames"):
        layer(torch.zeros(1, 2, 1, 3, 1))
    with pytest.raises(ValueError, match="odd"):
        Upsample(1, 1, (1, 1, 5), 2)


def test_scales_may_be_int_pair_or_triple() -> None:
    assert as_scale(3) == (1, 3, 3) and as_scale([2, 3]) == (1, 2, 3) and as_scale((1, 1, 2)) == (1, 1, 2)
    with pytest.raises(ValueError, match="two or three"):
        as_scale([1])


def options(**changes: Any) -> Options:
    return Options(base_units=16, **changes)


def stacked(layers: int, dims: list[int], scales: list[int], convs: list[int]) -> Options:
    return options(
        initial_downsample_stack_conv_num_layers=layers,
        initial_downsample_stack_conv_dim_list=dims,
        initial_downsample_stack_conv_downscale_list=scales,
        initial_downsample_stack_conv_num_conv_list=convs,
    )


def test_stages_change_shapes_and_agree_between_paths() -> None:
    torch.manual_seed(0)
    stages: list[tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = [
        (InitialEncoder(options(initial_downsample_scale=[1, 1, 2]), 3), (1, 2, 6, 7, 3), (1, 2, 6, 4, 16)),
        (InitialEncoder(options(initial_downsample_conv_layers=0), 16), (1, 2, 6, 8, 16), (1, 2, 3, 4, 16)),
        (FinalDecoder(options(), (2, 6, 8)), (1, 2, 3, 4, 16), (1, 2, 6, 8, 16)),
        (FinalDecoder(options(final_upsample_conv_layers=0), (2, 7, 9)), (1, 2, 3, 4, 16), (1, 2, 7, 9, 16)),
        (InitialStackEncoder(stacked(2, [4, 8], [3, 2], [2, 1]), 2), (1, 2, 11, 13, 2), (1, 2, 2, 3, 8)),
        (
            FinalStackDecoder(stacked(2, [4, 8], [3, 2], [2, 1]), [(2, 4, 5, 8), (2, 11, 13, 4)], 8),
            (1, 2, 2, 3, 8),
            (1, 2, 11, 13, 4),
        ),
    ]
    for stage, given_shape, expected in stages:
        x = torch.randn(given_shape)
        out = stage(x)
        assert out.shape == expected
        with plain_formulation(stage):
            torch.testing.assert_close(out, stage(x), rtol=1e-5, atol=1e-5)


def test_stages_refuse_mismatched_shapes() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        InitialEncoder(Options(base_units=24), 3)
    with pytest.raises(ValueError, match="without convolutions"):
        InitialEncoder(options(initial_downsample_conv_layers=0), 3)
    with pytest.raises(ValueError, match="num_layers=2"):
        InitialStackEncoder(stacked(2, [4], [3], [2]), 2)
    with pytest.raises(ValueError, match="numbers of convolutions"):
        FinalStackDecoder(stacked(1, [4], [3], []), [(2, 4, 5, 8)], 8)


def test_blocks_refuse_lists_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="lengths"):
        SelfAttentionBlock(Options(), 8, SelfPattern([(1, 1, 1)], [], []), use_inter_ffn=True)
    with pytest.raises(ValueError, match="lengths"):
        CrossAttentionBlock(Options(), 8, CrossPattern([(1, 1)], [], [], []), max_temporal_relative=9)


def test_residual_order_with_and_without_inner_feed_forward() -> None:
    torch.manual_seed(0)
    x, g = torch.randn(1, 2, 4, 4, 8), torch.randn(1, 3, 8)
    for inter in (False, True):
        shifted = SelfPattern([(4, 4, 4)] * 2, [("d", "d", "d"), ("l", "l", "l")], [(0, 0, 0), (2, 2, 2)])
        few = Options(num_heads=2, padding_type="ignore", use_global_vector_ffn=True)
        block = SelfAttentionBlock(few, 8, shifted, use_inter_ffn=inter, use_global_vector=True).eval()
        y, v = x, g
        for index, attention in enumerate(block.attn_l):
            dy, dv = attention(y, v)
            y, v = y + dy, v + dv
            if inter or index == 1:
                y, v = block.ffn_l[index if inter else 0](y), block.global_ffn_l[index if inter else 0](v)
        torch.testing.assert_close(block(x, g), (y, v))


def test_initialisation_modes() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(400, 100)
    init_linear(layer, "0")
    assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(400), rel=0.05) and not layer.bias.any()
    init_linear(layer, "1")
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 1.01 / 100), rel=0.05)
    conv = nn.Conv2d(16, 32, 3)
    init_conv(conv)
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / 1.01 / (32 * 9)), rel=0.05)
    for wrong in (lambda: init_linear(layer, "2"), lambda: init_conv(conv, "1")):
        with pytest.raises(ValueError, match="init_mode"):
            wrong()


def test_dropout_keeps_the_mean_and_the_mask_in_backward() -> None:
    torch.manual_seed(0)
    x = torch.ones(200_001, requires_grad=True)
    out = dropout(x, 0.1, training=True)
    kept = out != 0
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.005)
    assert out.mean().item() == pytest.approx(1.0, abs=0.005)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach())
    assert torch.equal(dropout(x, 0.0, training=True), x) and torch.equal(dropout(x, 0.5, training=False), x)
    assert not dropout(x, 1.0, training=True).any()
    torch.manual_seed(3)
    first = dropout(x, 0.5, training=True)
    torch.manual_seed(3)
    torch.testing.assert_close(dropout(x, 0.5, training=True), first)
