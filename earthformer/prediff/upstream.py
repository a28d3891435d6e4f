"""Reads the authors' configs and checkpoints of PreDiff's three networks, and writes checkpoints for their code.

Configs are the sections of the authors' YAML files or the keyword arguments of their constructors. Checkpoints are
plain state_dicts, bare or inside one of their Lightning modules.

Source: the authors' released code, https://github.com/gaozhihan/PreDiff.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from earthformer.prediff.alignment import NoisyEncoder
from earthformer.prediff.autoencoder import FrameAutoencoder, make_autoencoder
from earthformer.prediff.denoiser import CuboidUNet
from earthformer.prediff.down_path import Levels
from earthformer.upstream import LIGHTNING_PREFIX, load_state_dict_file, load_strictly

# In the authors' Lightning modules the autoencoder of a diffusion model has another name.
_AUTOENCODER_PREFIXES = ("first_stage_model.", LIGHTNING_PREFIX)
_PREFIXES = (LIGHTNING_PREFIX,)
# Attention in the autoencoder: the names of the diffusers release that the authors used, and today's.
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_ATTENTION = re.compile(r"(?<=\.attentions\.)(\d+)\.(query|key|value|proj_attn)\.")
_NEW_ATTENTION = re.compile(r"(?<=\.attentions\.)(\d+)\.(to_q|to_k|to_v|to_out\.0)\.")

_YAML_NAMES = {"self_pattern": "block_attn_patterns", "down_up_linear_init_mode": "down_linear_init_mode"}
# Their arguments with the only values that work there or are documented anywhere.
_ONLY: dict[str, Any] = {
    "downsample_type": "patch_merge",
    "upsample_type": "upsample",
    "num_global_vectors": 0,
    "hierarchical_pos_embed": False,
    "pool": "attention",
    "readout_seq": True,
    "model_type": "cuboid",
}
# Arguments that have no effect without global vectors, or name files and quantities of their scripts.
_WITHOUT_EFFECT = frozenset({
    "use_dec_self_global", "dec_self_update_global", "use_dec_cross_global", "use_global_vector_ffn",
    "use_global_self_attn", "separate_global_qkv", "global_dim_ratio", "global_proj_linear_init_mode",
    "up_linear_init_mode", "alignment_type", "guide_scale", "model_ckpt_path", "pretrained_ckpt_path", "data_channels",
    "loss", "out_len",
})  # fmt: skip
_NO_DROPOUT = {"attn_drop": 0.0, "proj_drop": 0.0, "ffn_drop": 0.0}
_LEVELS = {field.name for field in dataclasses.fields(Levels)}

StateDict = Mapping[str, Any] | str | Path
"""Tensors by name, or the file that holds them."""


def load_autoencoder(config: Mapping[str, Any], state_dict: StateDict | None = None) -> FrameAutoencoder:
    """Returns the autoencoder that an official `config` describes, with the weights of `state_dict` if given.

    Args:
        config: the section ``model.vae``, or ``model`` of the autoencoder's own YAML file.
        state_dict: their checkpoint, with the attention keys of either diffusers release, or its path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown keys, settings that cannot work, or a checkpoint that does not fit; all are named.
    """
    arguments = _arguments(config, ("vae",))
    blocks = len(arguments.get("block_out_channels", (64,)))
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        kinds = arguments.pop(key, [kind] * blocks)
        if list(kinds) != [kind] * blocks:
            raise ValueError(f"config: expected {key} = {blocks} times {kind}, found {kinds}")
    if arguments.pop("out_channels", arguments.get("in_channels", 1)) != arguments.get("in_channels", 1):
        raise ValueError("config: expected as many out_channels as in_channels")
    known = {"in_channels", "latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups", "act_fn"}
    _refuse_unknown(arguments, known)
    model = make_autoencoder(**arguments)
    if state_dict is not None:
        entries = _select(state_dict, _AUTOENCODER_PREFIXES)
        load_strictly(model, {_OLD_ATTENTION.sub(_to_new, name): value for name, value in entries.items()})
    return model.eval()


def load_denoiser(config: Mapping[str, Any], state_dict: StateDict | None = None) -> CuboidUNet:
    """Returns the denoiser that an official `config` describes, with the weights of `state_dict` if given.

    Args:
        config: the section ``model.latent_model``, or the arguments of ``CuboidTransformerUNet``.
        state_dict: their checkpoint or its path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown keys, settings that cannot work, or a checkpoint that does not fit; all are named.
    """
    arguments = _arguments(config, ("latent_model",))
    _require(arguments, "input_shape", "target_shape")
    _refuse_unknown(arguments, {"input_shape", "target_shape", "upsample_kernel_size", "unet_res_connect", *_LEVELS})
    return _loaded(CuboidUNet(**{**_NO_DROPOUT, **arguments}), state_dict)


def load_alignment(config: Mapping[str, Any], state_dict: StateDict | None = None) -> NoisyEncoder:
    """Returns the alignment network that an official `config` describes, with the weights of `state_dict` if given.

    Args:
        config: the section ``model.align``, its ``model_args``, or the arguments of ``NoisyCuboidTransformerEncoder``.
        state_dict: their checkpoint or its path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: unknown keys, settings that cannot work, or a checkpoint that does not fit; all are named.
    """
    arguments = _arguments(config, ("align", "model_args"))
    _require(arguments, "input_shape")
    _refuse_unknown(arguments, {"input_shape", "out_channels", *_LEVELS})
    return _loaded(NoisyEncoder(**{**_NO_DROPOUT, **arguments}), state_dict)


def to_upstream_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of one of the three networks under the authors' names, detached, on the CPU.

    Their code loads the result strictly.
    """
    return {
        _NEW_ATTENTION.sub(_to_old, name): value.detach().cpu().clone() for name, value in model.state_dict().items()
    }


def load_part(part: nn.Module, state_dict: StateDict) -> None:
    """Loads a checkpoint of one of the three networks, under the authors' names or the current ones.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a checkpoint that does not fit; everything that differs is named.
    """
    is_autoencoder = isinstance(part, FrameAutoencoder)
    entries = _select(state_dict, _AUTOENCODER_PREFIXES if is_autoencoder else _PREFIXES)
    load_strictly(part, {_OLD_ATTENTION.sub(_to_new, name): value for name, value in entries.items()})


def _to_new(match: re.Match[str]) -> str:
    return f"{match[1]}.{_ATTENTION[match[2]]}."


def _to_old(match: re.Match[str]) -> str:
    return f"{match[1]}.{next(old for old, new in _ATTENTION.items() if new == match[2])}."


def _arguments(config: Mapping[str, Any], sections: Sequence[str]) -> dict[str, Any]:
    """Returns the arguments of a constructor: those in the innermost section, without keys that have no effect."""
    inner = config
    for section in ("model", *sections):
        if isinstance(inner.get(section), Mapping):
            inner = inner[section]
    arguments = {_YAML_NAMES.get(name, name): _as_builtin(value) for name, value in inner.items()}
    for name, value in _ONLY.items():
        if arguments.pop(name, value) != value:
            raise ValueError(f"config: expected {name} = {value!r}, the only value that works, found {inner[name]!r}")
    frames = arguments.get("out_len")
    if frames is not None and "input_shape" in arguments and frames != arguments["input_shape"][0]:
        raise ValueError(f"config: expected out_len = {arguments['input_shape'][0]} frames, found {frames}")
    return {name: value for name, value in arguments.items() if name not in _WITHOUT_EFFECT}


def _as_builtin(value: Any) -> Any:
    """Returns `value` with all sequences in it as lists (configs may have their own types)."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_builtin(entry) for entry in value]
    return value


def _require(arguments: Mapping[str, Any], *names: str) -> None:
    missing = [name for name in names if name not in arguments]
    if missing:
        raise ValueError(f"config: expected {', '.join(missing)}, found {', '.join(arguments) or 'nothing'}")


def _refuse_unknown(arguments: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(arguments) - known)
    if unknown:
        raise ValueError(f"config: expected keys among {', '.join(sorted(known))}; found unknown {', '.join(unknown)}")


def _loaded(model: Any, state_dict: StateDict | None) -> Any:
    if state_dict is not None:
        load_strictly(model, _select(state_dict, _PREFIXES))
    return model.eval()


def _select(state_dict: StateDict, prefixes: Sequence[str]) -> dict[str, Any]:
    """Returns the entries of one network: all, or those with the first prefix found in a Lightning module.

    Other entries of a Lightning module, such as other networks and schedule tables, are reported by a warning.
    """
    if isinstance(state_dict, str | Path):
        state_dict = load_state_dict_file(state_dict)
    inner = state_dict.get("state_dict")
    entries = dict(inner if isinstance(inner, Mapping) else state_dict)
    for prefix in prefixes:
        chosen = {name.removeprefix(prefix): value for name, value in entries.items() if name.startswith(prefix)}
        if chosen:
            others = Counter(name.partition(".")[0] for name in entries if not name.startswith(prefix))
            if others:
                listed = ", ".join(f"{name} ({count})" for name, count in sorted(others.items()))
                warnings.warn(f"checkpoint: entries of other parts were left out: {listed}", stacklevel=4)
            return chosen
    return entries
