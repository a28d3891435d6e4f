"""Strict loading of another implementation's weights, with a report of everything that does not fit."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

Config: TypeAlias = Mapping[str, Any] | Namespace


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads every entry of `state_dict` and sets every entry of the model.

    Raises:
        ValueError: Keys are missing, left over or of another shape; the message lists all of them. The model
            is then unchanged.
    """
    own = model.state_dict()
    complaints = [f"missing: {key} {tuple(own[key].shape)}" for key in own if key not in state_dict]
    complaints += [f"left over: {key} {tuple(state_dict[key].shape)}" for key in state_dict if key not in own]
    complaints += [
        f"shape: {key} is {tuple(state_dict[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]
    if complaints:
        name = type(model).__name__
        raise ValueError(f"{len(complaints)} weights do not fit {name}:\n  " + "\n  ".join(complaints))
    model.load_state_dict(dict(state_dict), strict=True)


def as_mapping(config: Config) -> Mapping[str, Any]:
    """Returns hyperparameters by name, given as a mapping or as a namespace of parsed arguments."""
    return config if isinstance(config, Mapping) else vars(config)


def check_config(config: Mapping[str, object], required: Sequence[str], implied: Mapping[str, object]) -> None:
    """Checks that a configuration has all required keys and does not contradict the implied values.

    Raises:
        ValueError: Keys are missing or contradict the implied values; all of them are listed.
    """
    complaints = [f"{key} is missing" for key in required if key not in config]
    complaints += [
        f"{key} is {config[key]}, expected {value}"
        for key, value in implied.items()
        if key in config and config[key] != value
    ]
    if complaints:
        raise ValueError("the configuration does not fit: " + "; ".join(complaints))
