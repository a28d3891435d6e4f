"""The authors' single layers under their names and arguments, made of the layers here.

Source: the authors' released code, https://github.com/amazon-science/earth-forecasting-transformer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from earthformer.attention import CuboidSelfAttention
from earthformer.blocks import CrossAttentionBlock, SelfAttentionBlock
from earthformer.cross_attention import CuboidCrossAttention
from earthformer.layers import NORM_EPS, FeedForward, PositionEmbedding
from earthformer.options import Options
from earthformer.patterns import CrossPattern, SelfPattern
from earthformer.resampling import (
    FinalDecoder,
    FinalStackDecoder,
    InitialEncoder,
    InitialStackEncoder,
    PatchMerging,
    Upsample,
)


@dataclass(frozen=True, kw_only=True)
class _LayerOptions(Options):
    """Options that the authors' single layers take but their models never set."""

    qkv_bias: bool = False
    qk_scale: float | None = None


# Defaults of the authors' layers; ellipses are required.
_MODES = dict.fromkeys(("attn_linear_init_mode", "ffn_linear_init_mode", "norm_init_mode"), "0")
_ATTENTION: dict[str, Any] = {
    "dim": ..., "num_heads": ..., "padding_type": "ignore", "qkv_bias": False, "qk_scale": None, "attn_drop": 0.0,
    "proj_drop": 0.0, "norm_layer": "layer_norm", "separate_global_qkv": False, "global_dim_ratio": 1,
    "checkpoint_level": 1, "use_relative_pos": True, **_MODES,
}  # fmt: skip
_BLOCK: dict[str, Any] = {**_ATTENTION, "ffn_drop": 0.0, "activation": "leaky", "gated_ffn": False}
_CROSS: dict[str, Any] = {"cross_last_n_frames": None, "max_temporal_relative": 50}
_STRATEGIES = (("d", "d", "d"), ("l", "l", "l"))
_DOWN: dict[str, Any] = {"padding_type": "nearest", "linear_init_mode": "0", "norm_init_mode": "0"}
_CONVOLUTIONS: dict[str, Any] = {"activation": "leaky", "conv_init_mode": "0"}
LAYER_DEFAULTS: dict[str, dict[str, Any]] = {
    "CuboidSelfAttentionLayer": {
        **_ATTENTION, "cuboid_size": (2, 7, 7), "shift_size": (0, 0, 0), "strategy": ("l", "l", "l"),
        "use_final_proj": True, "use_global_vector": False, "use_global_self_attn": False,
    },
    "CuboidCrossAttentionLayer": {
        **_ATTENTION, **_CROSS, "n_temporal": 1, "cuboid_hw": (7, 7), "shift_hw": (0, 0), "strategy": ("d", "l", "l"),
        "use_global_vector": True,
    },
    "StackCuboidSelfAttentionBlock": {
        **_BLOCK, "block_cuboid_size": ((4, 4, 4), (4, 4, 4)), "block_strategy": _STRATEGIES,
        "block_shift_size": ((0, 0, 0), (2, 2, 2)), "use_inter_ffn": False, "use_global_vector": False,
        "use_global_vector_ffn": True, "use_global_self_attn": False, "use_final_proj": True,
    },
    "StackCuboidCrossAttentionBlock": {
        **_BLOCK, **_CROSS, "block_cuboid_hw": ((4, 4), (4, 4)), "block_shift_hw": ((0, 0), (2, 2)),
        "block_strategy": _STRATEGIES, "block_n_temporal": (1, 2), "use_inter_ffn": True, "use_global_vector": False,
    },
    "PositionwiseFFN": {
        "units": 512, "hidden_size": 2048, "activation_dropout": 0.0, "dropout": 0.1, "gated_proj": False,
        "activation": "relu", "normalization": "layer_norm", "layer_norm_eps": NORM_EPS, "pre_norm": False,
        "linear_init_mode": "0", "norm_init_mode": "0",
    },
    "PosEmbed": {"embed_dim": ..., "maxT": ..., "maxH": ..., "maxW": ..., "typ": "t+h+w"},
    "PatchMerging3D": {"dim": ..., "out_dim": None, "downsample": (1, 2, 2), "norm_layer": "layer_norm", **_DOWN},
    "Upsample3DLayer": {
        "dim": ..., "out_dim": ..., "target_size": ..., "temporal_upsample": False, "kernel_size": 3,
        "layout": "THWC", "conv_init_mode": "0",
    },
    "InitialEncoder": {
        "dim": ..., "out_dim": ..., "downsample_scale": ..., "num_conv_layers": 2, **_CONVOLUTIONS, **_DOWN,
    },
    "FinalDecoder": {
        "target_thw": ..., "dim": ..., "num_conv_layers": 2, **_CONVOLUTIONS, "linear_init_mode": "0",
        "norm_init_mode": "0",
    },
    "InitialStackPatchMergingEncoder": {
        "num_merge": ..., "in_dim": ..., "out_dim_list": ..., "downsample_scale_list": ...,
        "num_conv_per_merge_list": ..., **_CONVOLUTIONS, **_DOWN,
    },
    "FinalStackUpsamplingDecoder": {
        "target_shape_list": ..., "in_dim": ..., "num_conv_per_up_list": ..., **_CONVOLUTIONS,
        "linear_init_mode": "0", "norm_init_mode": "0",
    },
}  # fmt: skip
# Their arguments that are fields of `Options` under another name.
_RENAMED = {
    "use_final_proj": "self_attn_use_final_proj", "cross_last_n_frames": "dec_cross_last_n_frames",
    "use_inter_ffn": "dec_use_inter_ffn", "activation": "ffn_activation", "dropout": "ffn_drop",
    "gated_proj": "gated_ffn", "normalization": "norm_layer",
}  # fmt: skip
_FIELDS = {field.name for field in dataclasses.fields(_LayerOptions)}


def _options(given: Mapping[str, Any], **more: Any) -> Options:
    """Returns the options for the arguments of a layer, with `more` under our names."""
    named = {_RENAMED.get(name, name): value for name, value in given.items()}
    return _LayerOptions(**{name: value for name, value in named.items() if name in _FIELDS}, **more)


def make_layer(class_name: str, given: dict[str, Any]) -> nn.Module:
    """Returns a new layer of the authors' name and arguments, all of them given.

    Raises:
        ValueError: settings that cannot work.
    """
    dim, uses_globals = given.get("dim", 0), given.get("use_global_vector", False)
    initial = {"initial_downsample_activation": given.get("activation", "leaky")}
    mode = {"down_up_linear_init_mode": given.get("linear_init_mode", "0")}
    match class_name:
        case "CuboidSelfAttentionLayer":
            cut = (given["cuboid_size"], given["strategy"], given["shift_size"])
            return CuboidSelfAttention(_options(given), dim, *cut, use_global_vector=uses_globals)
        case "CuboidCrossAttentionLayer":
            windows = (given["cuboid_hw"], given["shift_hw"], given["strategy"], given["n_temporal"])
            frames = given["max_temporal_relative"]
            return CuboidCrossAttention(
                _options(given), dim, *windows, max_temporal_relative=frames, use_global_vector=uses_globals
            )
        case "StackCuboidSelfAttentionBlock":
            layers = SelfPattern(given["block_cuboid_size"], given["block_strategy"], given["block_shift_size"])
            inter = given["use_inter_ffn"]
            return SelfAttentionBlock(_options(given), dim, layers, use_inter_ffn=inter, use_global_vector=uses_globals)
        case "StackCuboidCrossAttentionBlock":
            crossed = CrossPattern(
                given["block_cuboid_hw"], given["block_shift_hw"], given["block_strategy"], given["block_n_temporal"]
            )
            frames = given["max_temporal_relative"]
            return CrossAttentionBlock(
                _options(given), dim, crossed, max_temporal_relative=frames, use_global_vector=uses_globals
            )
        case "PositionwiseFFN":
            options = _options(given, ffn_linear_init_mode=given["linear_init_mode"])
            own = {name: given[name] for name in ("hidden_size", "activation_dropout", "pre_norm")}
            return FeedForward(options, given["units"], eps=given["layer_norm_eps"], **own)
        case "PosEmbed":
            return PositionEmbedding(given["embed_dim"], given["maxT"], given["maxH"], given["maxW"], given["typ"])
        case "PatchMerging3D":
            scale, norm = given["downsample"], given.pop("norm_layer")
            out_dim = max(scale) * dim if given["out_dim"] is None else given["out_dim"]
            return PatchMerging(_options({**given, "downsample": 2}, **mode), dim, out_dim, scale, norm_layer=norm)
        case "Upsample3DLayer":
            for name, only in (("temporal_upsample", False), ("layout", "THWC")):
                if given[name] != only:
                    raise ValueError(f"{class_name}: expected {name}={only!r}, the only value that ever worked")
            size = (given["target_size"], given["kernel_size"], given["conv_init_mode"])
            return Upsample(dim, given["out_dim"], *size)
        case "InitialEncoder":
            options = _options(
                given, **initial, **mode,
                base_units=given["out_dim"],
                initial_downsample_scale=given["downsample_scale"],
                initial_downsample_conv_layers=given["num_conv_layers"],
            )  # fmt: skip
            return InitialEncoder(options, dim)
        case "FinalDecoder":
            count = given["num_conv_layers"]
            options = _options(given, **initial, base_units=dim, final_upsample_conv_layers=count)
            return FinalDecoder(options, given["target_thw"])
        case "InitialStackPatchMergingEncoder":
            options = _options(
                given, **initial, **mode,
                initial_downsample_stack_conv_num_layers=given["num_merge"],
                initial_downsample_stack_conv_dim_list=given["out_dim_list"],
                initial_downsample_stack_conv_downscale_list=given["downsample_scale_list"],
                initial_downsample_stack_conv_num_conv_list=given["num_conv_per_merge_list"],
            )  # fmt: skip
            return InitialStackEncoder(options, given["in_dim"])
        case _:
            counts = given["num_conv_per_up_list"][::-1]
            options = _options(given, **initial, initial_downsample_stack_conv_num_conv_list=counts)
            return FinalStackDecoder(options, given["target_shape_list"], given["in_dim"])
