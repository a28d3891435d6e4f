"""Reads the authors' configs and checkpoints, and writes checkpoints that their code reads.

Configs are the ``model`` section of the authors' YAML files, or the keyword arguments of their constructors;
keys that are absent take the defaults of their code, not ours. Checkpoints are plain state_dicts, bare or
with the prefix of their Lightning modules. Parameter names here are those of their code.

Source: the authors' released code, https://github.com/amazon-science/earth-forecasting-transformer.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from earthformer.aux_model import ONLY_WITHOUT_AUXILIARY, EarthformerAux
from earthformer.model import Earthformer
from earthformer.options import full_signature
from earthformer.upstream_layers import LAYER_DEFAULTS, make_layer

LIGHTNING_PREFIX = "torch_nn_module."
INDEX_BUFFER = "relative_position_index"


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """A checkpoint that the authors published: its URL, and how to load it."""

    url: str
    usage: str
    """Python; ``{path}`` stands for the file."""


def _released(file: str, loader: str, config: str) -> ReleasedCheckpoint:
    return ReleasedCheckpoint(
        url=f"https://earthformer.s3.amazonaws.com/pretrained_checkpoints/{file}",
        usage=(
            f"import torch, yaml\nfrom earthformer.upstream import {loader}\n"
            f'config = yaml.safe_load(open("{config}"))["model"]  # of the authors\' repository\n'
            f'model = {loader}(config, torch.load("{{path}}", map_location="cpu", weights_only=True))'
        ),
    )


EARTHFORMER_SEVIR = _released("earthformer_sevir.pt", "load_earthformer", "earthformer_sevir_v1.yaml")
"""Earthformer on SEVIR, 13 -> 12 frames: the authors' released model, which is not the one of the paper's table."""
EARTHFORMER_ICAR_ENSO = _released("earthformer_icarenso2021.pt", "load_earthformer", "earthformer_enso_v1.yaml")
"""Earthformer on ICAR-ENSO, 12 -> 14 months: the authors' released model, which is not the one of the paper's table."""
EARTHFORMER_EARTHNET = _released("earthformer_earthnet2021.pt", "load_earthformer_aux", "earthformer_earthnet_v1.yaml")
"""Earthformer with auxiliary input on EarthNet2021: the authors' released model."""

# What the authors' YAML files call the arguments of their constructor.
YAML_NAMES = {
    "self_pattern": "enc_attn_patterns",
    "cross_self_pattern": "dec_self_attn_patterns",
    "cross_pattern": "dec_cross_attn_patterns",
}

# Defaults of the authors' models where they differ from `earthformer.options.Options`.
MODEL_DEFAULTS: dict[str, Any] = {
    "base_units": 128,
    "attn_drop": 0.0,
    "proj_drop": 0.0,
    "ffn_drop": 0.0,
    "enc_depth": (4, 4, 4),
    "enc_attn_patterns": None,
    "dec_depth": (2, 2),
    "dec_self_attn_patterns": None,
    "dec_cross_attn_patterns": None,
    "num_global_vectors": 4,
    "use_dec_self_global": True,
    "use_dec_cross_global": True,
    "use_global_vector_ffn": True,
    "initial_downsample_scale": 1,
    "final_upsample_conv_layers": 2,
    "ffn_activation": "leaky",
    "padding_type": "ignore",
    "pos_embed_type": "t+hw",
    "checkpoint_level": 1,
}

ModelT = TypeVar("ModelT", bound=nn.Module)


def load_earthformer(config: Mapping[str, Any], state_dict: Mapping[str, Any] | None = None) -> Earthformer:
    """Returns the model that an official `config` describes, with the weights of `state_dict` if given.

    Args:
        config: the ``model`` section of a YAML file, or keyword arguments of ``CuboidTransformerModel``;
            sizes may be lists or tuples.
        state_dict: their checkpoint, bare or with the prefix ``torch_nn_module.``.

    Raises:
        ValueError: unknown keys, settings that cannot work, or a checkpoint that does not fit; all of them
            are named.
    """
    defaults = {**MODEL_DEFAULTS, "z_init_method": "nearest_interp"}
    return _load(Earthformer, config, defaults, state_dict)


def load_earthformer_aux(config: Mapping[str, Any], state_dict: Mapping[str, Any] | None = None) -> EarthformerAux:
    """Returns the model with auxiliary input that an official `config` describes, with weights if given.

    Args:
        config: the ``model`` section of a YAML file, or keyword arguments of ``CuboidTransformerAuxModel``.
        state_dict: their checkpoint, bare or with the prefix ``torch_nn_module.``.

    Raises:
        ValueError: unknown keys, settings that cannot work, or a checkpoint that does not fit; all of them
            are named.
    """
    return _load(EarthformerAux, config, MODEL_DEFAULTS, state_dict)


def _load(
    model: Callable[..., ModelT],
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    state_dict: Mapping[str, Any] | None,
) -> ModelT:
    arguments = {YAML_NAMES.get(name, name): _as_builtin(value) for name, value in config.items()}
    assert isinstance(model, type)
    known = dict(full_signature(model).parameters)
    for name in ONLY_WITHOUT_AUXILIARY[1:] if model is EarthformerAux else ():
        del known[name]
    _refuse_unknown("config", arguments, known)
    missing = [name for name in ("input_shape", "target_shape") if name not in arguments]
    if missing:
        raise ValueError(f"config: expected {', '.join(missing)}, found {', '.join(arguments) or 'nothing'}")
    built = model(**{**defaults, **arguments})
    if state_dict is not None:
        load_strictly(built, state_dict)
    return built


def _as_builtin(value: Any) -> Any:
    """Returns `value` with all sequences in it as lists (configs may have their own types)."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_as_builtin(entry) for entry in value]
    return value


def _refuse_unknown(what: str, found: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ValueError(f"{what}: expected keys among {', '.join(sorted(known))}; found unknown {', '.join(unknown)}")


def layer_names() -> list[str]:
    """Returns the class names of the authors' code that `build_layer` knows."""
    return [*LAYER_DEFAULTS, "CuboidTransformerModel", "CuboidTransformerAuxModel"]


def build_layer(class_name: str, kwargs: Mapping[str, Any], state_dict: Mapping[str, Any] | None = None) -> nn.Module:
    """Returns the layer that the authors call `class_name`, made from their arguments, with weights if given.

    Args:
        class_name: one of `layer_names`.
        kwargs: arguments of their constructor, by name; sizes may be lists or tuples.
        state_dict: the weights of their layer.

    Raises:
        ValueError: unknown class or arguments, settings that cannot work, or weights that do not fit.
    """
    if class_name == "CuboidTransformerModel":
        return load_earthformer(kwargs, state_dict)
    if class_name == "CuboidTransformerAuxModel":
        return load_earthformer_aux(kwargs, state_dict)
    if class_name not in LAYER_DEFAULTS:
        raise ValueError(f"layer: expected one of {', '.join(layer_names())}, found {class_name!r}")
    defaults = LAYER_DEFAULTS[class_name]
    if unknown := sorted(set(kwargs) - set(defaults)):
        known = ", ".join(sorted(defaults))
        raise ValueError(f"{class_name}: unexpected keyword argument {', '.join(unknown)}; expected some of {known}")
    given = {**defaults, **{name: _as_builtin(value) for name, value in kwargs.items()}}
    missing = [name for name, value in given.items() if value is ...]
    if missing:
        raise ValueError(f"{class_name}: expected {', '.join(missing)}, found {', '.join(kwargs) or 'nothing'}")
    built = make_layer(class_name, given)
    if state_dict is not None:
        load_strictly(built, state_dict)
    return built


def load_strictly(module: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Copies the weights of `state_dict` into `module`; every key must fit.

    A Lightning checkpoint may be given whole; its prefix is removed. Index buffers may be missing, since they
    follow from the config.

    Raises:
        ValueError: keys that are missing, left over or of another shape, all of them listed.
    """
    inner = state_dict.get("state_dict")
    entries = dict(inner if isinstance(inner, Mapping) else state_dict)
    if any(name.startswith(LIGHTNING_PREFIX) for name in entries):
        entries = {name.removeprefix(LIGHTNING_PREFIX): value for name, value in entries.items()}
    own = module.state_dict()
    missing = [name for name in own if name not in entries and name.rpartition(".")[2] != INDEX_BUFFER]
    unexpected = [name for name in entries if name not in own]
    shapes = {name: tuple(value.shape) if isinstance(value, Tensor) else value for name, value in entries.items()}
    wrong = [
        f"{name}: expected {tuple(own[name].shape)}, found {shape}"
        for name, shape in shapes.items()
        if name in own and shape != tuple(own[name].shape)
    ]
    if missing or unexpected or wrong:
        parts = (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        report = "".join(f"\n{len(names)} {what}:\n  " + "\n  ".join(names) for what, names in parts if names)
        raise ValueError(f"state_dict does not fit {type(module).__name__}:{report}")
    module.load_state_dict({**own, **entries})


def to_upstream_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights and index buffers of `model` under the authors' names, detached, on the CPU.

    Their code loads the result strictly.
    """
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def load_state_dict_file(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint: a ``.safetensors`` file, or what ``torch.save`` wrote, read without code.

    The ``state_dict`` of a Lightning checkpoint is returned alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds anything but tensors by name, or objects whose loading would execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint: expected a file at {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"checkpoint {path.name}: expected tensors only, found objects that need code") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"checkpoint {path.name}: expected tensors by name, found {type(content).__name__}")
    return dict(content)
