"""Official configs and checkpoints: names, strictness, files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from earthformer import (
    Earthformer,
    EarthformerAux,
    EarthformerReleased,
    load_earthformer,
    load_earthformer_aux,
)
from earthformer.upstream import build_layer, layer_names, load_state_dict_file, to_upstream_state_dict

KEY_LIST, CONFIGS = "earthformer_state_dict_keys.txt", "official_configs.md"

ENSO: dict[str, Any] = {
    "input_shape": [12, 24, 48, 1],
    "target_shape": [14, 24, 48, 1],
    "base_units": 64,
    "enc_depth": [1, 1],
    "dec_depth": [1, 1],
    "num_global_vectors": 0,
    "self_pattern": "axial",
    "cross_self_pattern": ["axial", "axial"],
    "cross_pattern": "cross_1x1",
    "pos_embed_type": "t+h+w",
    "padding_type": "zeros",
    "z_init_method": "zeros",
    "ffn_activation": "gelu",
    "initial_downsample_scale": [1, 1, 2],
    "final_upsample_conv_layers": 1,
    "checkpoint_level": 0,
}
TINY: dict[str, Any] = {
    "input_shape": (4, 8, 8, 1),
    "target_shape": (3, 8, 8, 1),
    "base_units": 16,
    "num_heads": 2,
    "enc_depth": [1, 1],
    "dec_depth": [1, 1],
    "enc_attn_patterns": "axial",
    "dec_self_attn_patterns": "axial",
    "dec_cross_attn_patterns": "cross_1x1",
}


def official_configs(originals: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The model sections of the authors' files, from the shared table."""
    text = (originals / CONFIGS).read_text().split("## model")[1].split("## optim")[0]
    rows = [
        [cell.strip() for cell in line.strip("|\n ").split("|")] for line in text.splitlines() if line.count("|") > 2
    ]
    for column, name in enumerate(rows[0][1:], start=1):
        config: dict[str, Any] = {}
        for row in rows[2:]:
            if row[column] != "–":  # noqa: RUF001  (the table's own dash)
                try:
                    config[row[0].strip("`")] = ast.literal_eval(row[column])
                except (ValueError, SyntaxError):
                    config[row[0].strip("`")] = row[column]
        yield name, config


def test_official_configs_build_the_released_models(originals: Path) -> None:
    counts = {}
    with torch.device("meta"):
        for name, config in official_configs(originals):
            load = load_earthformer_aux if "auxiliary_channels" in config else load_earthformer
            counts[name] = sum(parameter.numel() for parameter in load(config).parameters())
    assert counts == {
        "SEVIR released v1": 8_659_677,
        "SEVIR-LR": 1_505_069,
        "ICAR-ENSO released v1": 1_394_325,
        "EarthNet released v1": 60_618_380,
        "N-body MNIST": 6_702_109,
        "MovingMNIST": 6_702_109,
    }


def test_presets_are_the_official_configs(originals: Path) -> None:
    tasks = {
        "SEVIR released v1": "sevir",
        "SEVIR-LR": "sevir_lr",
        "ICAR-ENSO released v1": "icar_enso",
        "N-body MNIST": "nbody_mnist",
        "MovingMNIST": "moving_mnist",
    }
    with torch.device("meta"):
        for name, config in official_configs(originals):
            if name in tasks:
                official = load_earthformer(config)
                preset = EarthformerReleased(
                    config["input_shape"], config["target_shape"], **EarthformerReleased.presets[tasks[name]]
                )
            else:
                official = load_earthformer_aux(config)
                preset = EarthformerAux(
                    config["input_shape"], config["target_shape"], **EarthformerAux.presets["earthnet"]
                )
            # The same modules with the same settings, printed.
            assert str(preset).partition("\n")[2] == str(official).partition("\n")[2]
            assert to_shapes(preset) == to_shapes(official)


def test_defaults_are_those_of_the_official_constructors(originals: Path) -> None:
    for title, model in (
        ("CuboidTransformerModel", Earthformer),
        ("CuboidTransformerAuxModel", EarthformerAux),
    ):
        section = (originals / CONFIGS).read_text().split(f"## Constructor defaults of {title}")[1].split("##")[0]
        official = dict(re.findall(r"`(\w+)`=(.+?)(?=, `|\s*$)", section.strip()))
        load = load_earthformer if model is Earthformer else load_earthformer_aux
        shapes = {
            "input_shape": (4, 16, 16, 1),
            "target_shape": (4, 16, 16, 1),
            "enc_depth": [1],
            "dec_depth": [1],
        }
        with torch.device("meta"):
            options = load({**shapes, "enc_depth": [1], "dec_depth": [1]}).options
        for name, text in official.items():
            if name not in shapes and hasattr(options, name):
                expected, found = ast.literal_eval(text), getattr(options, name)
                assert (
                    repr(expected).replace("[", "(").replace("]", ")").replace(",)", ")")
                    == repr(found).replace("[", "(").replace("]", ")").replace(",)", ")")
                    or expected == found
                ), name


def to_shapes(model: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


@pytest.mark.parametrize(("title", "task"), [("sevir", "sevir"), ("enso", "icar_enso")])
def test_keys_and_shapes_are_the_official_ones(title: str, task: str, originals: Path) -> None:
    section = (originals / KEY_LIST).read_text().split(f"### {title}:")[1].split("###")[0]
    expected = [
        (name, ast.literal_eval(shape)) for name, shape in re.findall(r"^(\S+)  (\(.*?\))", section, flags=re.MULTILINE)
    ]
    shapes = {
        "sevir": ((13, 384, 384, 1), (12, 384, 384, 1)),
        "icar_enso": ((12, 24, 48, 1), (14, 24, 48, 1)),
    }
    model = EarthformerReleased(*shapes[task], **EarthformerReleased.presets[task])
    found = to_upstream_state_dict(model)
    assert [(name, tuple(value.shape)) for name, value in found.items()] == expected
    assert all(value.dtype == torch.int64 for name, value in found.items() if name.endswith("index"))


def test_weights_round_trip() -> None:
    torch.manual_seed(0)
    model = load_earthformer(TINY).eval()
    weights = to_upstream_state_dict(model)
    x = torch.randn(1, 4, 8, 8, 1)
    bare = load_earthformer(TINY, weights).eval()
    prefixed = load_earthformer(TINY, {f"torch_nn_module.{name}": value for name, value in weights.items()}).eval()
    nested = load_earthformer(TINY, {"state_dict": {f"torch_nn_module.{k}": v for k, v in weights.items()}}).eval()
    without = load_earthformer(TINY, {k: v for k, v in weights.items() if not k.endswith("index")}).eval()
    with torch.no_grad():
        for other in (bare, prefixed, nested, without):
            torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)


def test_all_mismatched_weights_are_listed() -> None:
    weights = to_upstream_state_dict(load_earthformer(TINY))
    del weights["z_proj.bias"]
    weights["extra.weight"] = torch.zeros(1)
    weights["dec_final_proj.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"1 missing") as caught:
        load_earthformer(TINY, weights)
    message = str(caught.value)
    for part in ("z_proj.bias", "extra.weight", "dec_final_proj.bias: expected (1,), found (5,)"):
        assert part in message


def test_yaml_and_constructor_configs_build_the_same_model() -> None:
    with torch.device("meta"):
        yaml = load_earthformer(ENSO)
        names = {"self_pattern": "enc_attn_patterns", "cross_self_pattern": "dec_self_attn_patterns"}
        constructor = {names.get(key, key): value for key, value in ENSO.items()}
        constructor["dec_cross_attn_patterns"] = constructor.pop("cross_pattern")
        assert str(yaml) == str(load_earthformer(constructor))
    assert sum(parameter.numel() for parameter in yaml.parameters()) == 1_394_325


def test_wrong_configs_are_named() -> None:
    with pytest.raises(ValueError, match="unknown depth"):
        load_earthformer({**TINY, "depth": 3})
    with pytest.raises(ValueError, match="unknown z_init_method"):
        load_earthformer_aux({**TINY, "z_init_method": "zeros"})
    with pytest.raises(ValueError, match="expected target_shape"):
        load_earthformer({"input_shape": (4, 8, 8, 1)})


LAYERS: list[tuple[str, dict[str, Any], list[tuple[int, ...]], tuple[int, ...]]] = [
    (
        "CuboidSelfAttentionLayer",
        {"dim": 8, "num_heads": 2, "checkpoint_level": True},
        [(1, 4, 8, 8, 8)],
        (1, 4, 8, 8, 8),
    ),
    (
        "CuboidCrossAttentionLayer",
        {"dim": 8, "num_heads": 2, "cuboid_hw": [1, 1], "use_global_vector": False, "checkpoint_level": 1},
        [(1, 4, 3, 5, 8), (1, 6, 3, 5, 8)],
        (1, 4, 3, 5, 8),
    ),
    ("StackCuboidSelfAttentionBlock", {"dim": 8, "num_heads": 2}, [(1, 4, 6, 6, 8)], (1, 4, 6, 6, 8)),
    (
        "StackCuboidCrossAttentionBlock",
        {"dim": 8, "num_heads": 2},
        [(1, 3, 8, 8, 8), (1, 3, 8, 8, 8)],
        (1, 3, 8, 8, 8),
    ),
    ("PositionwiseFFN", {"units": 8, "hidden_size": 12}, [(2, 5, 8)], (2, 5, 8)),
    (
        "PosEmbed",
        {"embed_dim": 4, "maxT": 5, "maxH": 6, "maxW": 7, "typ": "t+hw"},
        [(1, 3, 4, 5, 4)],
        (1, 3, 4, 5, 4),
    ),
    ("PatchMerging3D", {"dim": 4}, [(2, 4, 6, 6, 4)], (2, 4, 3, 3, 8)),
    (
        "Upsample3DLayer",
        {"dim": 4, "out_dim": 6, "target_size": [3, 7, 9], "temporal_upsample": False, "layout": "THWC"},
        [(2, 3, 4, 4, 4)],
        (2, 3, 7, 9, 6),
    ),
    (
        "InitialEncoder",
        {"dim": 3, "out_dim": 16, "downsample_scale": [2, 2]},
        [(1, 4, 6, 8, 3)],
        (1, 4, 3, 4, 16),
    ),
    ("FinalDecoder", {"target_thw": (3, 8, 10), "dim": 16}, [(1, 3, 4, 5, 16)], (1, 3, 8, 10, 16)),
    (
        "InitialStackPatchMergingEncoder",
        {
            "num_merge": 3,
            "in_dim": 2,
            "out_dim_list": [4, 8, 16],
            "downsample_scale_list": [3, 2, 2],
            "num_conv_per_merge_list": [2, 1, 2],
        },
        [(1, 2, 23, 25, 2)],
        (1, 2, 2, 3, 16),
    ),
    (
        "FinalStackUpsamplingDecoder",
        {
            "target_shape_list": [(2, 4, 5, 16), (2, 8, 9, 8), (2, 23, 25, 4)],
            "in_dim": 16,
            "num_conv_per_up_list": [2, 1, 2],
        },
        [(1, 2, 2, 3, 16)],
        (1, 2, 23, 25, 4),
    ),
    ("CuboidTransformerModel", TINY, [(1, 4, 8, 8, 1)], (1, 3, 8, 8, 1)),
    ("CuboidTransformerAuxModel", TINY, [(1, 4, 8, 8, 1)] * 3, (1, 3, 8, 8, 1)),
]


@pytest.mark.parametrize(("name", "kwargs", "inputs", "output"), LAYERS, ids=[case[0] for case in LAYERS])
def test_single_layers_are_built_by_their_official_names(
    name: str, kwargs: dict[str, Any], inputs: list[tuple[int, ...]], output: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    layer = build_layer(name, kwargs)
    again = build_layer(name, kwargs, to_upstream_state_dict(layer)).eval()
    tensors = [torch.randn(shape) for shape in inputs]
    assert again(*tensors).shape == output
    torch.testing.assert_close(again(*tensors), layer.eval()(*tensors), rtol=0, atol=0)


def test_every_layer_is_covered_above() -> None:
    assert {case[0] for case in LAYERS} == set(layer_names())


def test_wrong_layers_are_named() -> None:
    with pytest.raises(ValueError, match="PosEmbed"):
        build_layer("PosEmbedding", {})
    with pytest.raises(ValueError, match="unexpected keyword"):
        build_layer("PositionwiseFFN", {"width": 3})
    with pytest.raises(ValueError, match="temporal_upsample=False"):
        build_layer("Upsample3DLayer", {"dim": 4, "out_dim": 4, "target_size": (1, 2, 2), "temporal_upsample": True})


def test_checkpoint_files_are_read_without_running_code(tmp_path: Path) -> None:
    weights = {"a": torch.arange(3.0)}
    torch.save(weights, tmp_path / "bare.pt")
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "lightning.ckpt")
    for name in ("bare.pt", "lightning.ckpt"):
        torch.testing.assert_close(load_state_dict_file(tmp_path / name), weights)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(weights, tmp_path / "safe.safetensors")
    torch.testing.assert_close(load_state_dict_file(tmp_path / "safe.safetensors"), weights)
    torch.save({"a": torch.nn.Linear(2, 2)}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="need code"):
        load_state_dict_file(tmp_path / "code.pt")
    torch.save({"a": 3}, tmp_path / "number.pt")
    with pytest.raises(ValueError, match="tensors by name"):
        load_state_dict_file(tmp_path / "number.pt")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load_state_dict_file(tmp_path / "nothing.pt")
