"""Whole models: options, both paths, gradients, initialisation and errors."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from earthformer import Earthformer, EarthformerAux, EarthformerNoGlobal, EarthformerReleased

SMALL: dict[str, Any] = {
    "base_units": 16,
    "num_heads": 2,
    "enc_depth": [1, 1],
    "dec_depth": [1, 1],
    "num_global_vectors": 0,
    "initial_downsample_scale": 1,
    "initial_downsample_conv_layers": 1,
    "attn_drop": 0.0,
    "proj_drop": 0.0,
    "ffn_drop": 0.0,
}
GLOBALS: dict[str, Any] = {"num_global_vectors": 3, "use_dec_self_global": True, "use_dec_cross_global": True}
EXPLICIT: dict[str, Any] = {
    "enc_attn_patterns": None,
    "dec_self_attn_patterns": None,
    "dec_cross_attn_patterns": None,
    "dec_cross_cuboid_hw": [(2, 2), (2, 2)],
    "dec_cross_shift_hw": [(0, 0), (1, 1)],
    "enc_cuboid_size": [(2, 4, 4), (2, 4, 4)],
    "enc_shift_size": [(1, 2, 2), (0, 0, 0)],
    "dec_self_cuboid_size": [(2, 4, 4), (2, 4, 4)],
    "padding_type": "ignore",
}
NESTED: dict[str, Any] = {
    **EXPLICIT,
    "enc_cuboid_size": [[(2, 4, 4)], [(1, 4, 4)]],
    "enc_cuboid_strategy": [[("l", "l", "l")], [("d", "d", "d")]],
    "enc_shift_size": [[(1, 2, 2)], [(0, 0, 0)]],
    "dec_cross_cuboid_hw": [[(2, 2)], [(1, 1)]],
    "dec_cross_cuboid_strategy": [[("l", "l", "l")], [("d", "l", "l")]],
    "dec_cross_shift_hw": [[(1, 1)], [(0, 0)]],
    "dec_cross_n_temporal": [[1], [2]],
}
STACK: dict[str, Any] = {
    "initial_downsample_type": "stack_conv",
    "initial_downsample_stack_conv_num_layers": 2,
    "initial_downsample_stack_conv_dim_list": [4, 16],
    "initial_downsample_stack_conv_downscale_list": [2, 1],
    "initial_downsample_stack_conv_num_conv_list": [2, 1],
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "shared_globals": {**GLOBALS, "use_global_vector_ffn": True},
    "frozen_globals": {
        **GLOBALS,
        "dec_self_update_global": False,
        "use_global_self_attn": True,
        "dec_depth": [2, 2],
    },
    "separate_globals": {
        **GLOBALS,
        "separate_global_qkv": True,
        "use_global_self_attn": True,
        "global_dim_ratio": 2,
        "use_global_vector_ffn": True,
    },
    "encoder_globals_only": {
        "num_global_vectors": 2,
        "separate_global_qkv": True,
        "use_global_self_attn": True,
    },
    "explicit": EXPLICIT,
    "nested": NESTED,
    "divided": {
        "enc_attn_patterns": ["divided_st", "full"],
        "dec_self_attn_patterns": "axial_space_dilate_2",
    },
    "swin_ignore": {**GLOBALS, "enc_attn_patterns": "video_swin_2x4", "padding_type": "ignore"},
    "cross_heter": {"dec_cross_attn_patterns": "cross_4x4_heter", "padding_type": "ignore"},
    "nearest": {"padding_type": "nearest", "enc_attn_patterns": "video_swin_2x4"},
    "no_inter_ffn": {
        **GLOBALS,
        "enc_use_inter_ffn": False,
        "dec_use_inter_ffn": False,
        "use_global_vector_ffn": True,
    },
    "gated_rms": {"gated_ffn": True, "norm_layer": "rms_norm", "ffn_activation": "leaky"},
    "no_bias_no_proj": {"use_relative_pos": False, "self_attn_use_final_proj": False},
    "hierarchical": {"dec_hierarchical_pos_embed": True, "pos_embed_type": "t+hw", "upsample_kernel_size": 1},
    "first_self": {"dec_use_first_self_attn": True, "dec_cross_start": 1, "dec_cross_last_n_frames": 2},
    "stack": STACK,
    "one_level": {"enc_depth": [1], "dec_depth": [2]},
    "three_levels": {"enc_depth": [1, 1, 1], "dec_depth": [1, 1, 1], "scale_alpha": 0.6},
    "block_units": {"block_units": [16, 24], "initial_downsample_scale": [1, 1, 2], "z_init_method": "mean"},
    "interp": {"z_init_method": "nearest_interp", "downsample": (1, 2, 2), "initial_downsample_scale": 2},
    "last": {"z_init_method": "last", "final_upsample_conv_layers": 0, "initial_downsample_scale": [2, 2, 2]},
}


def loss_and_gradients(model: nn.Module, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = model(*inputs)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return out.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_paths_agree_in_values_and_gradients(case: str) -> None:
    torch.manual_seed(0)
    model = Earthformer((4, 12, 12, 1), (5, 12, 12, 2), **{**SMALL, **CASES[case]}).double().eval()
    context = torch.randn(2, 4, 12, 12, 1, dtype=torch.float64)
    fast, fast_gradients = loss_and_gradients(model, context)
    with model.reference():
        plain, plain_gradients = loss_and_gradients(model, context)
    assert fast.shape == (2, 5, 12, 12, 2)
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fast_gradients, plain_gradients, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(model(context), fast, rtol=1e-10, atol=1e-10)


AUX_CASES: dict[str, dict[str, Any]] = {
    "plain": {"unet_dec_cross_mode": "both"},
    "up": {**GLOBALS, "use_global_vector_ffn": True},
    "down": {**STACK, "unet_dec_cross_mode": "down", "dec_depth": [2, 1]},
    "separate": {
        **GLOBALS,
        "separate_global_qkv": True,
        "use_global_self_attn": True,
        "unet_dec_cross_mode": "both",
    },
    "equal_width": {**GLOBALS, "block_units": [16, 16], "dec_depth": [2, 1], "unet_dec_cross_mode": "both"},
}


@pytest.mark.parametrize("case", AUX_CASES, ids=str)
def test_auxiliary_model_agrees_between_paths(case: str) -> None:
    torch.manual_seed(0)
    options = {**SMALL, "auxiliary_channels": 3, **AUX_CASES[case]}
    model = EarthformerAux((4, 8, 8, 2), (6, 8, 8, 2), **options).double().eval()
    shapes = ((2, 4, 8, 8, 2), (2, 4, 5, 6, 3), (2, 3, 5, 6, 3))
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    fast, fast_gradients = loss_and_gradients(model, *inputs)
    with model.reference():
        plain, plain_gradients = loss_and_gradients(model, *inputs)
    assert fast.shape == (2, 6, 8, 8, 2)
    torch.testing.assert_close(fast, plain, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(fast_gradients, plain_gradients, rtol=1e-8, atol=1e-8)


def test_auxiliary_model_refuses_invalid_options() -> None:
    shapes = ((4, 8, 8, 2), (6, 8, 8, 2))
    for options, message in (
        ({"unet_dec_cross_mode": "side"}, "unet_dec_cross_mode"),
        ({"dec_hierarchical_pos_embed": True}, "hierarchical"),
    ):
        with pytest.raises(ValueError, match=message):
            EarthformerAux(*shapes, **{**SMALL, **options})
    inputs = [torch.zeros(1, *shapes[0]), torch.zeros(1, 4, 8, 8, 1), torch.zeros(1, 6, 8, 8, 1)]
    deep = EarthformerAux(*shapes, **{**SMALL, **GLOBALS, "dec_depth": [2, 2]})
    with pytest.raises(ValueError, match="dec_depth"):
        deep(*inputs)
    with pytest.raises(ValueError, match="aux_target"):
        deep(inputs[0], inputs[1], inputs[0])


def test_global_vectors_by_level_come_from_the_earlier_block() -> None:
    options = {**SMALL, **AUX_CASES["equal_width"]}
    model = EarthformerAux((4, 8, 8, 2), (6, 8, 8, 2), **options)
    left = [torch.full((1, 3, 16), float(index)) for index in range(3)]
    vectors = [torch.zeros(1, 3, 16)] * 2
    assert [model.decoder._upward_globals(left, vectors, level)[0, 0, 0].item() for level in (0, 1)] == [
        0.0,
        1.0,
    ]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 7, 2), (2, 16, 8, 1)])
def test_defaults_work_for_any_shape(shape: tuple[int, int, int, int]) -> None:
    target = (2, *shape[1:3], 3)
    for model in (Earthformer, EarthformerNoGlobal, EarthformerReleased):
        small = model(list(shape), list(target), base_units=16, enc_depth=[1, 1], dec_depth=[1, 1]).eval()
        assert small(torch.zeros(2, *shape)).shape == (2, *target)


def test_zero_global_vectors_equal_a_model_without() -> None:
    torch.manual_seed(0)
    none = EarthformerNoGlobal((4, 8, 8, 1), (3, 8, 8, 1), **{**SMALL}).eval()
    some = Earthformer((4, 8, 8, 1), (3, 8, 8, 1), **{**SMALL, "num_global_vectors": 0}).eval()
    some.load_state_dict(none.state_dict())
    x = torch.randn(1, 4, 8, 8, 1)
    with torch.no_grad():
        torch.testing.assert_close(some(x), none(x), rtol=0, atol=0)


def test_a_batch_equals_its_samples_alone() -> None:
    torch.manual_seed(0)
    model = Earthformer((4, 8, 8, 1), (3, 8, 8, 1), **{**SMALL, **GLOBALS}).eval()
    x = torch.randn(3, 4, 8, 8, 1)
    with torch.no_grad():
        torch.testing.assert_close(model(x), torch.cat([model(sample[None]) for sample in x]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_checkpointing_changes_neither_loss_nor_gradients(level: int) -> None:
    options = {**SMALL, **GLOBALS, "use_global_vector_ffn": True, "ffn_drop": 0.2, "attn_drop": 0.2}
    torch.manual_seed(0)
    expected_model = Earthformer((4, 8, 8, 1), (3, 8, 8, 1), **options)
    model = Earthformer((4, 8, 8, 1), (3, 8, 8, 1), **{**options, "checkpoint_level": level})
    model.load_state_dict(expected_model.state_dict())
    x = torch.randn(1, 4, 8, 8, 1)
    torch.manual_seed(1)
    expected = loss_and_gradients(expected_model, x)
    torch.manual_seed(1)
    torch.testing.assert_close(loss_and_gradients(model, x), expected)


def test_parameters_without_gradient_are_the_declared_ones() -> None:
    options = {**SMALL, "num_global_vectors": 2, "separate_global_qkv": True, "use_global_self_attn": True}
    model = Earthformer((4, 8, 8, 1), (3, 8, 8, 1), **options)
    names = [name for name, _ in model.named_parameters()]
    expected = {
        f"encoder.blocks.1.0.attn_l.2.{part}"
        for part in (
            "g2l_global_q_net.weight",
            "g2l_k_net.weight",
            "g2l_v_net.weight",
            "g2g_global_qkv_net.weight",
            "global_proj.weight",
            "global_proj.bias",
        )
    }
    for path in ("fast", "plain"):
        if path == "plain":
            with model.reference():
                _, found = loss_and_gradients(model, torch.randn(1, 4, 8, 8, 1))
        else:
            _, found = loss_and_gradients(model, torch.randn(1, 4, 8, 8, 1))
        assert set(names) - set(found) == expected


@pytest.mark.slow
def test_the_model_compiles_without_graph_breaks() -> None:
    torch.manual_seed(0)
    options = {**SMALL, **GLOBALS, "enc_depth": [1], "dec_depth": [1], "initial_downsample_scale": 2}
    model = Earthformer((4, 8, 8, 1), (3, 8, 8, 1), **options, enc_attn_patterns="video_swin_2x2").eval()
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=keep, fullgraph=True)
    x = torch.randn(1, 4, 8, 8, 1)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1


def test_reference_context_ends_and_nests() -> None:
    model = Earthformer((4, 8, 8, 1), (3, 8, 8, 1), **SMALL)
    with model.reference():
        with model.reference():
            assert model.plain and "forward" in vars(model.decoder.upsample_layers[0])
        assert model.plain and "forward" in vars(model.decoder.upsample_layers[0])
    assert not model.plain and not any("forward" in vars(module) for module in model.modules())


def test_initialisation_matches_the_authors() -> None:
    torch.manual_seed(0)
    options = {"base_units": 64, "enc_depth": [1, 1], "dec_depth": [1, 1], "num_global_vectors": 8}
    model = Earthformer((4, 16, 16, 1), (3, 16, 16, 1), **options)
    blocks = model.encoder.blocks[0][0]
    assert blocks.attn_l[0].qkv.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert not blocks.ffn_l[0].ffn_1.bias.any() and not model.z_proj.bias.any()
    assert model.decoder.upsample_layers[0].conv.weight.std().item() == pytest.approx(
        (2 / 1.01 / (64 * 9)) ** 0.5, rel=0.05
    )
    for embedding in (model.init_global_vectors, model.enc_pos_embed.H_embed.weight):
        assert embedding.std().item() == pytest.approx(0.02, rel=0.2)
    # These keep torch's defaults, uniform with biases.
    for layer in (blocks.attn_l[0].global_proj, model.encoder.down_layer_global_proj[0]):
        assert layer.bias.any() and layer.weight.abs().max().item() <= 64**-0.5
    assert model.initial_encoder.conv_block[0].bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enc_depth": [1]}, "dec_depth"),
        ({"z_init_method": "random"}, "z_init_method"),
        ({"downsample_type": "conv"}, "downsample_type"),
        ({"upsample_type": "conv"}, "upsample_type"),
        ({"global_dim_ratio": 2}, "global_dim_ratio"),
        ({"num_global_vectors": -1}, "num_global_vectors"),
        ({"initial_downsample_type": "pool"}, "initial_downsample_type"),
        ({"enc_attn_patterns": ["axial"]}, "each of 2 levels"),
        ({"enc_attn_patterns": "axia"}, "did you mean axial"),
        ({"block_units": [16]}, "block_units"),
        ({"base_units": 24}, "multiple of 16"),
        ({**STACK, "initial_downsample_stack_conv_dim_list": [4, 8]}, "base_units=16"),
        ({"dec_hierarchical_pos_embed": True, "enc_depth": [1], "dec_depth": [1]}, "at least 2 levels"),
        ({"padding_type": "reflect"}, "padding_type"),
    ],
)
def test_invalid_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Earthformer((4, 8, 8, 1), (3, 8, 8, 1), **{**SMALL, **options})


def test_invalid_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"target_shape: expected H, W .* found \(8, 9\)"):
        Earthformer((4, 8, 8, 1), (3, 8, 9, 1))
    with pytest.raises(ValueError, match="input_shape: expected four positive sizes"):
        Earthformer((4, 8, 8), (3, 8, 8, 1))
    with pytest.raises(TypeError, match="depth"):
        Earthformer((4, 8, 8, 1), (3, 8, 8, 1), depth=3)
    model = Earthformer((4, 8, 8, 1), (3, 8, 8, 1), **SMALL)
    with pytest.raises(ValueError, match="context: expected"):
        model(torch.zeros(1, 5, 8, 8, 1))


def test_signature_shows_every_option_with_its_default() -> None:
    parameters = inspect.signature(EarthformerReleased).parameters
    assert parameters["enc_depth"].default == (1, 1) and parameters["z_init_method"].default == "zeros"
    assert parameters["base_units"].default == 64 and "options" not in parameters
    assert inspect.signature(Earthformer).parameters["num_global_vectors"].default == 8
    for model in (Earthformer, EarthformerNoGlobal, EarthformerReleased, EarthformerAux):
        known = set(inspect.signature(model).parameters)
        assert all(set(preset) <= known for preset in model.presets.values())
