"""Cuboid attention against an independent implementation that loops over tokens, and the plain formulation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_oracles import (
    DIM,
    HEADS,
    cross_attention_oracle,
    make_cross,
    make_self,
    random,
    self_attention_oracle,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from earthformer.attention import CuboidSelfAttention
from earthformer.reference import plain_formulation
from earthformer.upstream import build_layer

SELF_CASES: list[dict[str, Any]] = [
    {"cuboid_size": (2, 2, 2)},
    {"cuboid_size": (2, 2, 2), "shift_size": (1, 1, 1)},
    {"cuboid_size": (2, 3, 2), "shift_size": (1, 1, 1), "padding_type": "zeros"},
    {"cuboid_size": (2, 3, 2), "shift_size": (1, 2, 1), "padding_type": "ignore"},
    {
        "cuboid_size": (2, 2, 3),
        "strategy": ("d", "d", "d"),
        "shift_size": (1, 1, 1),
        "padding_type": "ignore",
    },
    {
        "cuboid_size": (2, 2, 3),
        "strategy": ("l", "l", "d"),
        "shift_size": (1, 1, 1),
        "padding_type": "nearest",
    },
    {"cuboid_size": (2, 3, 3), "padding_type": "nearest"},
    {"cuboid_size": (4, 5, 6), "padding_type": "zeros"},
    {"cuboid_size": (2, 9, 3), "padding_type": "zeros"},
    {"cuboid_size": (2, 2, 3), "use_relative_pos": False, "qk_scale": 0.3, "qkv_bias": True},
    {"cuboid_size": (2, 3, 3), "qkv_bias": True, "padding_type": "zeros", "use_final_proj": False},
    {"cuboid_size": (3, 1, 1), "norm_layer": "rms_norm"},
]
GLOBAL_CASES: list[dict[str, Any]] = [
    {},
    {"use_global_self_attn": True},
    {"separate_global_qkv": True},
    {"separate_global_qkv": True, "use_global_self_attn": True, "global_dim_ratio": 2},
]


@pytest.mark.parametrize("globals_case", [None, *GLOBAL_CASES], ids=str)
@pytest.mark.parametrize("case", SELF_CASES, ids=str)
def test_self_attention_matches_its_definition(case: dict[str, Any], globals_case: dict[str, Any] | None) -> None:
    options = dict(case)
    if globals_case is not None:
        options.update(globals_case, use_global_vector=True)
    layer = make_self(options)
    x = random(2, 3, 4, 3, DIM)
    g = None if globals_case is None else random(2, 2, layer.global_head_size * HEADS, seed=2)
    with torch.no_grad():
        results = [layer(x) if g is None else layer(x, g)]
        with plain_formulation(layer):
            results.append(layer(x) if g is None else layer(x, g))
        for sample in range(1):
            expected, expected_g = self_attention_oracle(layer, x[sample], None if g is None else g[sample])
            for result in results:
                tokens, vectors = (result, None) if g is None else result
                torch.testing.assert_close(tokens[sample], expected, rtol=1e-9, atol=1e-9)
                if expected_g is not None:
                    torch.testing.assert_close(vectors[sample], expected_g, rtol=1e-9, atol=1e-9)


CROSS_CASES: list[dict[str, Any]] = [
    {"cuboid_hw": (1, 1)},
    {"cuboid_hw": (2, 2), "n_temporal": 2, "strategy": ("l", "l", "l")},
    {"cuboid_hw": (2, 2), "n_temporal": 3, "strategy": ("d", "d", "d"), "shift_hw": (1, 1)},
    {"cuboid_hw": (2, 2), "n_temporal": 2, "strategy": ("d", "l", "l"), "shift_hw": (1, 1)},
    {"cuboid_hw": (4, 4), "n_temporal": 3, "strategy": ("l", "l", "l"), "shift_hw": (2, 2)},
    {"cuboid_hw": (3, 2), "n_temporal": 1, "strategy": ("l", "l", "l"), "shift_hw": (1, 0), "qkv_bias": True},
    {
        "cuboid_hw": (2, 2),
        "n_temporal": 4,
        "strategy": ("l", "l", "l"),
        "cross_last_n_frames": 2,
        "qkv_bias": True,
    },
    {"cuboid_hw": (1, 1), "use_relative_pos": False, "padding_type": "zeros", "cross_last_n_frames": 2},
    {"cuboid_hw": (3, 1), "shift_hw": (1, 0), "strategy": ("l", "l", "l"), "padding_type": "nearest"},
]


@pytest.mark.parametrize("globals_case", [None, {}, {"separate_global_qkv": True, "global_dim_ratio": 2}], ids=str)
@pytest.mark.parametrize("case", CROSS_CASES, ids=str)
def test_cross_attention_matches_its_definition(case: dict[str, Any], globals_case: dict[str, Any] | None) -> None:
    options = {
        "max_temporal_relative": 8,
        **case,
        **(globals_case or {}),
        "use_global_vector": globals_case is not None,
    }
    layer = make_cross(options)
    x, mem = random(2, 4, 3, 5, DIM), random(2, 3, 3, 5, DIM, seed=2)
    if case.get("padding_type") == "nearest":
        x, mem = x[:, :, :, :4], mem[:, :, :, :4]
    g = None if globals_case is None else random(2, 2, layer.global_head_size * HEADS, seed=3)
    with torch.no_grad():
        results = [layer(x, mem, g)]
        with plain_formulation(layer):
            results.append(layer(x, mem, g))
        for sample in range(1):
            expected = cross_attention_oracle(layer, x[sample], mem[sample], None if g is None else g[sample])
            for result in results:
                torch.testing.assert_close(result[sample], expected, rtol=1e-9, atol=1e-9)


def gradients(layer: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """Returns the results of the layer and the gradients of all inputs and parameters, in float64."""
    inputs = [value.clone().requires_grad_() for value in inputs]
    layer.zero_grad()
    result = layer(*inputs)
    results = list(result) if isinstance(result, tuple) else [result]
    loss = sum((value * random(*value.shape, seed=5)).sum() for value in results)
    assert isinstance(loss, Tensor)
    loss.backward()
    found = [value.grad for value in [*inputs, *layer.parameters()]]
    return [value.detach() for value in results] + [g if g is not None else torch.zeros(()) for g in found]


@pytest.mark.parametrize("globals_case", [None, *GLOBAL_CASES], ids=str)
@pytest.mark.parametrize("case", SELF_CASES, ids=str)
def test_gradients_of_self_attention_agree_between_paths(
    case: dict[str, Any], globals_case: dict[str, Any] | None
) -> None:
    options = dict(case) if globals_case is None else {**case, **globals_case, "use_global_vector": True}
    layer = make_self(options)
    inputs = [random(2, 3, 4, 3, DIM)]
    if globals_case is not None:
        inputs.append(random(2, 2, layer.global_head_size * HEADS, seed=2))
    fast = gradients(layer, inputs)
    with plain_formulation(layer):
        plain = gradients(layer, inputs)
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("globals_case", [None, {}, {"separate_global_qkv": True, "global_dim_ratio": 2}], ids=str)
@pytest.mark.parametrize("case", CROSS_CASES[:7], ids=str)
def test_gradients_of_cross_attention_agree_between_paths(
    case: dict[str, Any], globals_case: dict[str, Any] | None
) -> None:
    options = {
        "max_temporal_relative": 8,
        **case,
        **(globals_case or {}),
        "use_global_vector": globals_case is not None,
    }
    layer = make_cross(options)
    inputs = [random(2, 4, 3, 5, DIM), random(2, 3, 3, 5, DIM, seed=2)]
    if globals_case is not None:
        inputs.append(random(2, 2, layer.global_head_size * HEADS, seed=3))
    fast = gradients(layer, inputs)
    with plain_formulation(layer):
        plain = gradients(layer, inputs)
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("globals_case", [None, *GLOBAL_CASES], ids=str)
@pytest.mark.parametrize("case", SELF_CASES[:6], ids=str)
def test_fused_kernel_agrees_with_the_plain_path(
    case: dict[str, Any], globals_case: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("earthformer.attention.has_fused_attention", lambda device: True)
    options = dict(case) if globals_case is None else {**case, **globals_case, "use_global_vector": True}
    layer = make_self(options)
    inputs = [random(2, 3, 4, 3, DIM)]
    if globals_case is not None:
        inputs.append(random(2, 2, layer.global_head_size * HEADS, seed=2))
    fast = gradients(layer, inputs)
    with plain_formulation(layer):
        plain = gradients(layer, inputs)
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8)


def test_a_full_cuboid_is_plain_multi_head_attention() -> None:
    layer = make_self({"cuboid_size": (3, 4, 3), "use_relative_pos": False})
    plain = nn.MultiheadAttention(DIM, HEADS, bias=True, batch_first=True).double()
    with torch.no_grad():
        plain.in_proj_weight.copy_(layer.qkv.weight)
        plain.in_proj_bias.zero_()
        plain.out_proj.weight.copy_(layer.proj.weight)
        plain.out_proj.bias.copy_(layer.proj.bias)
        x = random(2, 3, 4, 3, DIM)
        tokens = layer.norm(x).flatten(1, 3)
        expected, _ = plain(tokens, tokens, tokens)
        torch.testing.assert_close(layer(x).flatten(1, 3), expected)


def test_ignored_padding_does_not_affect_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_self({"cuboid_size": (2, 3, 2), "shift_size": (1, 1, 1), "padding_type": "ignore"})
    x = random(1, 3, 4, 3, DIM)
    from earthformer import cuboids

    with torch.no_grad(), plain_formulation(layer):
        expected = layer(x)
        zero_pad = cuboids.F.pad

        def noisy_pad(tensor: Tensor, amount: Any, **options: Any) -> Tensor:
            if tensor.dtype == torch.bool:
                return zero_pad(tensor, amount, **options)
            return zero_pad(tensor, amount, value=7.5)

        monkeypatch.setattr(cuboids.F, "pad", noisy_pad)
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("padding_type", ["zeros", "ignore"])
@pytest.mark.parametrize("separate", [None, False, True])
@pytest.mark.parametrize("relative", [True, False])
@given(
    shape=st.tuples(*(st.integers(1, 6) for _ in range(3))), cuboid=st.tuples(*(st.integers(1, 4) for _ in range(3)))
)
@settings(max_examples=6)
def test_padding_after_the_projection_changes_nothing(
    padding_type: str,
    separate: bool | None,
    relative: bool,
    shape: tuple[int, int, int],
    cuboid: tuple[int, int, int],
) -> None:
    globals_ = {} if separate is None else {"use_global_vector": True, "separate_global_qkv": separate}
    layer = make_self({"cuboid_size": cuboid, "padding_type": padding_type, "use_relative_pos": relative, **globals_})
    x, g = random(2, *shape, DIM).requires_grad_(), None if separate is None else random(2, 3, DIM, seed=2)

    def run(module: CuboidSelfAttention) -> tuple[Tensor, Tensor]:
        out = module(x, g, update_globals=False)
        out = out if separate is None else out[0]
        return out, torch.autograd.grad((out * random(*out.shape, seed=3)).sum(), x)[0]

    with plain_formulation(layer):
        expected = run(layer)
    torch.testing.assert_close(run(layer), expected)
    with torch.no_grad():
        out = layer(x, g, update_globals=False)
        torch.testing.assert_close(out if separate is None else out[0], expected[0])


@pytest.mark.parametrize("padding_type", ["zeros", "ignore"])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("cuboid", [(3, 1, 1), (4, 2, 3)])
@pytest.mark.parametrize("strategy", [("l", "l", "l"), ("l", "d", "d")])
@pytest.mark.parametrize("frames", [7, 10])
def test_partial_cuboids_equal_padded_ones(
    padding_type: str, relative: bool, cuboid: tuple[int, int, int], strategy: tuple[str, str, str], frames: int
) -> None:
    options = {"cuboid_size": cuboid, "strategy": strategy, "padding_type": padding_type, "use_relative_pos": relative}
    layer = make_self(options)
    inputs = [random(2, frames, 4, 3, DIM)]
    apart = gradients(layer, inputs)
    with plain_formulation(layer):
        torch.testing.assert_close(apart, gradients(layer, inputs), rtol=1e-8, atol=1e-8)


def test_zero_padding_takes_part_in_the_softmax() -> None:
    ignored = make_self({"cuboid_size": (2, 3, 2), "padding_type": "ignore"})
    padded = make_self({"cuboid_size": (2, 3, 2), "padding_type": "zeros"})
    x = random(1, 3, 4, 3, DIM)
    with torch.no_grad():
        assert not torch.allclose(ignored(x), padded(x))


def test_skipping_the_last_global_update_changes_nothing() -> None:
    layer = make_self({"cuboid_size": (3, 1, 1), "use_global_vector": True, "separate_global_qkv": True})
    x, g = random(1, 3, 4, 3, DIM), random(1, 2, DIM, seed=2)
    with torch.no_grad():
        tokens, vectors = layer(x, g, update_globals=False)
        torch.testing.assert_close(tokens, layer(x, g)[0])
        assert not vectors.any()


def official_cross(**arguments: Any) -> nn.Module:
    return build_layer("CuboidCrossAttentionLayer", {"dim": DIM, "num_heads": HEADS, **arguments})


def test_masks_depend_on_the_grid() -> None:
    layer = make_self({"cuboid_size": (2, 2, 2), "shift_size": (1, 1, 1), "padding_type": "ignore"})
    with torch.no_grad():
        for shape in ((3, 4, 3), (4, 4, 4), (3, 4, 3)):
            x = random(1, *shape, DIM)
            fast = layer(x)
            with plain_formulation(layer):
                torch.testing.assert_close(fast, layer(x))


def test_a_mask_made_in_inference_mode_works_in_training() -> None:
    layer = official_cross(cuboid_hw=(2, 2), n_temporal=2, use_global_vector=False)
    x, mem = torch.randn(1, 3, 3, 3, DIM), torch.randn(1, 3, 3, 3, DIM)
    with torch.inference_mode():
        layer(x, mem)
    layer(x, mem).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 9}, "multiple of num_heads"),
        ({"padding_type": "reflect"}, "padding_type"),
        ({"strategy": ("l", "x", "l")}, "strategy"),
        ({"global_dim_ratio": 2, "use_global_vector": True}, "global_dim_ratio"),
        ({"norm_layer": "batch_norm"}, "norm_layer"),
        ({"attn_linear_init_mode": "7"}, "linear_init_mode"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_layer("CuboidSelfAttentionLayer", {"dim": DIM, "num_heads": HEADS, **options})


def test_wrong_inputs_are_named() -> None:
    layer = build_layer("CuboidSelfAttentionLayer", {"dim": DIM, "num_heads": HEADS, "use_global_vector": True})
    with pytest.raises(ValueError, match="global vectors"):
        layer(torch.zeros(1, 2, 2, 2, DIM))
    with pytest.raises(ValueError, match="expected x"):
        layer(torch.zeros(1, 2, 2, 2, DIM + 1), torch.zeros(1, 2, DIM))
    cross = official_cross(cuboid_hw=(2, 2), max_temporal_relative=4, use_global_vector=False)
    x = torch.zeros(1, 2, 2, 2, DIM)
    with pytest.raises(ValueError, match="to agree"):
        cross(x, torch.zeros(1, 2, 3, 2, DIM))
    with pytest.raises(ValueError, match="max_temporal_relative"):
        cross(x, torch.zeros(1, 4, 2, 2, DIM))
    with pytest.raises(ValueError, match="n_temporal"):
        official_cross(n_temporal=0)


@pytest.mark.parametrize("padding_type", ["zeros", "nearest"])
def test_padded_cross_attention_is_refused_unless_padding_is_ignored(padding_type: str) -> None:
    layer = official_cross(cuboid_hw=(2, 2), padding_type=padding_type, use_global_vector=False)
    with pytest.raises(ValueError, match="ignore"):
        layer(torch.zeros(1, 2, 3, 2, DIM), torch.zeros(1, 2, 3, 2, DIM))
