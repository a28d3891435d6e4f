"""Registered models for a task: preset of the task, then the caller's hyperparameters, checked by name."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.errors import BrokenPluginError, ConfigError, DataError, did_you_mean, one_message
from bench.tasks.task import Task

if TYPE_CHECKING:
    from torch import nn

    from bench.cost import Cost

# Where a model made by `load_model` says what it was made from; a record repeats it.
_MADE_FROM = "earthbench_made_from"


@dataclass(frozen=True)
class MadeFrom:
    """The registered name and the hyperparameters that a model was made from."""

    name: str
    hyperparameters: dict[str, Any]
    preset: bool
    """Whether they are exactly the model's preset for the task."""
    origin: str


_SIGNATURE = ". A model takes input_shape and target_shape by name, (T, H, W, C) each, and defaults for everything else"


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def load_model(name: str, task: Task, **hyperparameters: Any) -> nn.Module:
    """Returns a freshly initialised model for a task's shapes.

    Args:
        name: A registered model, e.g. `unet`.
        task: Gives the shapes, and the name under which the model may have a preset.
        **hyperparameters: Override the preset (`earthbench show model NAME` lists them).

    Raises:
        UnknownNameError: no model has this name.
        ConfigError: an unknown hyperparameter, or values that the model refuses.
        BrokenPluginError: the registered object cannot be imported or is no `nn.Module` class.
    """
    from torch import nn

    entry = registry.find("model", name)
    model_class = entry.load()
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise BrokenPluginError(f"model {name!r} from {entry.origin} is not a torch.nn.Module class")
    known = inspect.signature(model_class).parameters
    if not _takes_any(known):
        unknown = [key for key in hyperparameters if key not in known]
        if unknown:
            own = [key for key in known if key not in ("input_shape", "target_shape")]
            lines = [f"{key}: {did_you_mean(key, own)}" for key in unknown]
            raise ConfigError(one_message(f"model {name!r} has no such hyperparameter:", lines))
    presets: Mapping[str, Mapping[str, Any]] = getattr(model_class, "presets", {})
    preset = presets.get(task.name, presets.get(task.presets_of or task.name, {}))
    chosen = {**preset, **hyperparameters}
    try:
        model = model_class(input_shape=task.input_shape, target_shape=task.target_shape, **chosen)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"model {name!r} cannot be made for {task.input_shape} -> {task.target_shape}: {error}"
            + ("" if {"input_shape", "target_shape"} <= set(known) or _takes_any(known) else _SIGNATURE)
        ) from error
    made = MadeFrom(name, _plain(chosen), _plain(chosen) == _plain(dict(preset)), entry.origin)
    object.__setattr__(model, _MADE_FROM, made)
    return model


def made_from(model: nn.Module) -> MadeFrom:
    """Returns what a model was made from; for one made by hand, its registered or class name and nothing else."""
    found = getattr(model, _MADE_FROM, None)
    if isinstance(found, MadeFrom):
        return found
    name = registry.name_of("model", type(model)) or type(model).__name__.lower()
    return MadeFrom(name, {}, False, f"{type(model).__module__}:{type(model).__qualname__}")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def is_fitted(model: nn.Module) -> bool:
    """Returns whether a model learns by `fit(batches)`, in closed form, instead of by gradients."""
    return callable(getattr(model, "fit", None))


def has_weights(model: nn.Module) -> bool:
    """Returns whether there is anything to train, by gradients or by `fit`."""
    return is_fitted(model) or any(parameter.requires_grad for parameter in model.parameters())


def load_weights(model: nn.Module, path: str | Path) -> str:
    """Loads a checkpoint of this project (or a bare state_dict) strictly, and returns the file's SHA-256.

    Where a run kept a running average of the weights, the average is what was evaluated, and what is loaded.

    Raises:
        DataError: the file is missing, unreadable, or holds anything but tensors and plain values.
        ConfigError: keys or shapes differ from the model's; all are listed.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise DataError(f"checkpoint {str(path)!r} is not a file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)  # never unpickles code
    except Exception as error:
        raise DataError(
            f"checkpoint {path} cannot be read safely: it is not a file of tensors and plain values"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise DataError(f"checkpoint {path} holds no state_dict")
    for prefix in ("average.module.", "model."):
        chosen = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if chosen:
            state = chosen
            break
    own = model.state_dict()
    problems = [f"unexpected: {key}" for key in state if key not in own]
    problems += [f"missing: {key}" for key in own if key not in state]
    problems += [
        f"shape of {key}: {tuple(state[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        raise ConfigError(one_message(f"checkpoint {path} is not of this model ({made_from(model).name}):", problems))
    model.load_state_dict(state)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def count(model: nn.Module | str, task: Task) -> Cost:
    """Returns parameters and multiply-adds of one forecast of a model (or a registered name) on a task's shapes."""
    from bench.cost import count_model

    if isinstance(model, str):
        model = load_model(model, task)
    return count_model(model, task.input_shape)
