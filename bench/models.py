"""Registered models for a task, made from its preset and the caller's hyperparameters, which are checked by name."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bench import registry
from bench.api import FitsInOnePass, model_traits
from bench.cards import TARGET
from bench.checkpoint_format import OURS, local_weights, read_checkpoint, shared_config
from bench.config import check_hyperparameters
from bench.contract import check_model_members
from bench.errors import BrokenPluginError, ConfigError, DataError, one_message
from bench.files import sha256_of
from bench.padding import pad_frames, padded_shape, size_multiple
from bench.records.identity import model_differences, source_differences, task_differences
from bench.records.schema import TrainingIdentity
from bench.records.sources import sources_of
from bench.tasks.task import Task

if TYPE_CHECKING:
    from torch import nn

    from bench.api import Shape
    from bench.cost import Cost

# Attributes that `load_model` and `load_weights` set on a model; a record repeats both.
_MADE_FROM, _TRAINED = "earthbench_made_from", "earthbench_trained"


@dataclass(frozen=True)
class MadeFrom:
    """The registered name and the hyperparameters that a model was made from."""

    name: str
    hyperparameters: dict[str, Any]
    preset: bool
    """Whether they are exactly the model's preset for the task."""
    origin: str
    task: Task | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    """Defaults of all hyperparameters, given or not."""


@dataclass(frozen=True)
class Trained:
    """Where the weights of a model come from, as their checkpoint states it."""

    sha256: str
    """Of the checkpoint file."""
    identity: TrainingIdentity | None
    """None for weights from elsewhere."""
    events: dict[str, TrainedEvents]
    """Events that they were trained on (`train`) and selected on (`val`)."""
    path: Path | None = None
    """The file."""
    other_code: tuple[str, ...] = ()
    """Differences between the model's code and the code they were trained with, if these were allowed."""


@dataclass(frozen=True)
class TrainedEvents:
    """The independent events of a split that a training saw."""

    ids: frozenset[str]
    contents: frozenset[str]
    """Digests of their values, if the data set has any."""


_SIGNATURE = ". A model takes input_shape and target_shape by name, (T, H, W, C) each, and defaults for everything else"


def load_model(name: str, task: Task, *, weights: str | Path | None = None, **hyperparameters: Any) -> nn.Module:
    """Returns a model for a task's shapes, freshly initialised or with trained weights.

    Args:
        name: A registered model, e.g. `unet`.
        task: Gives the shapes, and selects the model's preset.
        weights: A checkpoint of a run, a folder of shared weights, or an fsspec URL of either (`hf://owner/name`);
            hyperparameters that are not given are then those of the training; from a folder, also those of sampling.
        **hyperparameters: Override the preset (`earthbench show model NAME` lists them).

    Raises:
        UnknownNameError: no model has this name.
        ConfigError: an unknown hyperparameter, values that the model refuses, or weights of another model.
        DataError: the weights cannot be read.
        BrokenPluginError: the registered object cannot be imported or is no `nn.Module` class.
        ContractError: a member of the model misspells one of `bench.api`.
    """
    if weights is not None:
        return _with_weights(name, task, weights, hyperparameters)
    from torch import nn

    entry = registry.find("model", name)
    model_class = entry.load()
    if not (isinstance(model_class, type) and issubclass(model_class, nn.Module)):
        raise BrokenPluginError(f"model {name!r} from {entry.origin} is not a torch.nn.Module class")
    presets = model_traits(model_class).presets
    of_task = _taken_from_task(name, model_class, task, hyperparameters)
    preset = of_task | {**presets.get(task.name, presets.get(task.presets_of or task.name, {}))}
    chosen = {**preset, **hyperparameters}
    try:
        if model_traits(model_class).widths and TARGET in chosen:
            chosen = _with_target(model_class, task, chosen)
        model = _construct(model_class, task, chosen)
    except (TypeError, ValueError, AssertionError) as error:
        with suppress(BrokenPluginError):  # a class made at run time has no source to read
            check_hyperparameters(name, hyperparameters)
        known = inspect.signature(model_class).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        raise ConfigError(
            f"model {name!r} cannot be made for {task.input_shape} -> {task.target_shape}: {error}"
            + ("" if {"input_shape", "target_shape"} <= set(known) or takes_any else _SIGNATURE)
        ) from error
    check_model_members(model)
    is_preset = _plain(chosen) == _plain(dict(preset))
    made = MadeFrom(name, _plain(chosen), is_preset, entry.origin, task, _defaults(model_class))
    object.__setattr__(model, _MADE_FROM, made)
    return model


def made_for(
    model_class: Any, input_shape: Shape, target_shape: Shape, hyperparameters: Mapping[str, Any]
) -> nn.Module:
    """Returns a model of a class for these shapes, padded to multiples that it supports."""
    known = {**_inherited_defaults(model_class), **_defaults(model_class), **_plain(hyperparameters)}
    multiple = size_multiple(model_class, known)
    shapes = [padded_shape(shape, multiple) for shape in (input_shape, target_shape)]
    model: nn.Module = model_class(input_shape=shapes[0], target_shape=shapes[1], **hyperparameters)
    if shapes[0] != tuple(input_shape):
        pad_frames(model, input_shape[1:3], shapes[0][1:3])
    return model


def _construct(model_class: Any, task: Task, hyperparameters: Mapping[str, Any]) -> nn.Module:
    return made_for(model_class, task.input_shape, task.target_shape, hyperparameters)


def _with_target(model_class: Any, task: Task, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyperparameters with `target_params` replaced by the widths that it stands for."""
    from bench.model_sizes import widths_for

    given = {key: value for key, value in hyperparameters.items() if key != TARGET}
    known = {**_inherited_defaults(model_class), **_defaults(model_class), **_plain(given)}
    scaled = {key: multiple for key, multiple in model_traits(model_class).widths.items() if known.get(key) is not None}
    found = widths_for(
        hyperparameters[TARGET], scaled, known, lambda widths: _construct(model_class, task, {**given, **widths})
    )
    return {**given, **found}


def _with_weights(name: str, task: Task, weights: str | Path, given: dict[str, Any]) -> nn.Module:
    import platformdirs

    cache = (
        Path(platformdirs.user_cache_dir("earthbench")) / "shared" / hashlib.sha256(str(weights).encode()).hexdigest()
    )
    path = local_weights(str(weights), "weights", cache)
    identity = provenance_of(read_checkpoint(path), path).identity
    if identity is not None and identity.model != name:
        raise ConfigError(f"weights {path} are of model {identity.model!r}, not of {name!r}")
    given = {**shared_config(path).get("hyperparameters", {}), **given}  # also those of sampling
    model = load_model(name, task, **given)
    if identity is not None:
        own = trained_hyperparameters(model)
        other = {key: value for key, value in identity.hyperparameters.items() if own.get(key) != value}
        if other.keys() - given.keys():
            model = load_model(name, task, **{**other, **given})
    load_weights(model, path)
    return model


def _taken_from_task(name: str, model_class: type, task: Task, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyperparameters whose default is an attribute of the task, except those that are given.

    Raises:
        ConfigError: the task has no such attribute.
    """
    found = {}
    for key, attribute in model_traits(model_class).of_task.items():
        if key in given:
            continue
        if hasattr(task, attribute):
            found[key] = getattr(task, attribute)
        else:
            able = [one for one in registry.names("task") if hasattr(registry.find("task", one).load(), attribute)]
            raise ConfigError(
                f"model {name!r} takes {key} from the task, and task {task.name!r} has no {attribute}. "
                f"Tasks with one: {', '.join(able)}. Or set model.{key}"
            )
    return found


def made_from(model: nn.Module) -> MadeFrom:
    """Returns what a model was made from; for one made by hand, only its registered or class name."""
    found = getattr(model, _MADE_FROM, None)
    if isinstance(found, MadeFrom):
        return found
    name = registry.name_of("model", type(model)) or type(model).__name__.lower()
    return MadeFrom(name, {}, False, f"{type(model).__module__}:{type(model).__qualname__}")


def _defaults(model_class: type) -> dict[str, Any]:
    """Returns the defaults of a model's hyperparameters, including those of its `options_class`."""
    parameters = inspect.signature(model_class).parameters.values()
    found = {p.name: p.default for p in parameters if p.default is not p.empty}
    if options := model_traits(model_class).options_class:
        module, _, name = options.partition(":")
        for one in dataclasses.fields(getattr(importlib.import_module(module), name)):
            if one.default is not dataclasses.MISSING:
                found[one.name] = one.default
            elif one.default_factory is not dataclasses.MISSING:
                found[one.name] = one.default_factory()
    return _plain(found)


def _inherited_defaults(model_class: type) -> dict[str, Any]:
    """Returns the defaults of a constructor's parameters and of those that `**kwargs` pass on to its parents.

    `_defaults` leaves out the latter, because the identity of a training never had them.
    """
    found: dict[str, Any] = {}
    for one in model_class.__mro__:
        if "__init__" not in vars(one):
            continue
        parameters = inspect.signature(one.__init__).parameters.values()  # type: ignore[misc]
        found = {p.name: p.default for p in parameters if p.default is not p.empty} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return _plain(found)


def trained_hyperparameters(model: nn.Module) -> dict[str, Any]:
    """Returns the hyperparameters that trained weights depend on, given or default."""
    made = made_from(model)
    not_trained = model_traits(model).evaluation_only
    return {key: value for key, value in {**made.defaults, **made.hyperparameters}.items() if key not in not_trained}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def is_fitted(model: nn.Module) -> bool:
    """Returns whether a model learns by `fit(batches)`, in closed form, instead of by gradients."""
    return isinstance(model, FitsInOnePass)


def has_weights(model: nn.Module) -> bool:
    """Returns whether there is anything to train, by gradients or by `fit`."""
    return is_fitted(model) or any(parameter.requires_grad for parameter in model.parameters())


def trained(model: nn.Module) -> Trained | None:
    """Returns where the weights of a model come from, or None unless `load_weights` loaded them."""
    found = getattr(model, _TRAINED, None)
    return found if isinstance(found, Trained) else None


def load_weights(model: nn.Module, path: str | Path, *, other_code: bool = False) -> str:
    """Loads a checkpoint of this project (or a bare state_dict) strictly, and returns the file's SHA-256.

    If a run kept a running average of the weights, the average was evaluated, and is loaded.  A checkpoint states the
    hyperparameters of its training: a model with others refuses it, even if all shapes fit.

    Args:
        model: Made by `load_model`, or by hand: then only names and shapes can be compared.
        path: The file.
        other_code: Also load weights that were trained with other source code of the model.

    Raises:
        DataError: the file is missing, damaged, or holds anything but tensors and plain values.
        ConfigError: keys, shapes, hyperparameters, task or code differ from the model's; all are listed.
    """
    path = Path(path)
    content = read_checkpoint(path)
    found = provenance_of(content, path)
    changed = _refuse_other_training(model, found, path, other_code) if found.identity is not None else ()
    _load_strictly(model, content, path)
    object.__setattr__(model, _TRAINED, dataclasses.replace(found, other_code=changed))
    return found.sha256


def options_of_weights(task: str, path: str | Path | None) -> dict[str, Any]:
    """Returns the options that a task derives from its training data, as stored in a checkpoint, if they are.

    Args:
        task: Its registered name.
        path: The checkpoint, None for no weights.
    """
    wanted: frozenset[str] = getattr(registry.find("task", task).load(), "from_training", frozenset())
    if path is None or not wanted or not Path(path).is_file():
        return {}
    identity = provenance_of(read_checkpoint(Path(path)), Path(path)).identity
    fields = identity.task_fields if identity is not None and identity.task == task else {}
    return {name: fields[name] for name in wanted if fields.get(name) is not None}


def provenance_of(content: Any, path: Path) -> Trained:
    """Returns where the weights of a checkpoint come from.

    Args:
        content: From `read_checkpoint`; None for a file in another format.
        path: The file.

    Raises:
        DataError: another release wrote its description, in a form that this one cannot read.
    """
    sha256 = sha256_of(path)
    said = content.get(OURS) if isinstance(content, dict) else None
    if said is None:
        return Trained(sha256, None, {}, path)
    try:
        events = {
            split: TrainedEvents(frozenset(part["ids"]), frozenset(part["contents"]))
            for split, part in said["events"].items()
        }
        return Trained(sha256, TrainingIdentity.model_validate(said["identity"]), events, path)
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"checkpoint {path} was written by another release: this earthbench cannot read how it was trained"
        ) from error


def _refuse_other_training(model: nn.Module, found: Trained, path: Path, other_code: bool) -> tuple[str, ...]:
    """Returns the differences of the model's code, if these are allowed.

    Raises:
        ConfigError: the weights are of another model or task, or of other code.
    """
    made = made_from(model)
    if made.task is None or found.identity is None or found.identity.stage is not None:
        return ()
    problems = model_differences(found.identity, made.name, trained_hyperparameters(model))
    problems += task_differences(found.identity, made.task)
    if problems:
        message = f"checkpoint {path} was trained with other settings; give those of its training:"
        raise ConfigError(one_message(message, problems))
    sources = sources_of(type(model), type(made.task), ())
    changed = source_differences(found.identity.sources, {k: v for k, v in sources.items() if k != "harness"})
    if changed and not other_code:
        advice = "train.resume=anyway (other_code=True in Python) uses the weights anyway, in a partial record"
        raise ConfigError(one_message(f"checkpoint {path} was trained by other code; {advice}:", changed))
    return tuple(changed)


def _load_strictly(model: nn.Module, content: Any, path: Path) -> None:
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
        f"shape of {key}: {'none' if found is None else tuple(found)} in the file, {tuple(own[key].shape)} in the model"
        for key in own
        if key in state and (found := getattr(state[key], "shape", None)) != own[key].shape
    ]
    if problems:
        raise ConfigError(one_message(f"checkpoint {path} is not of this model ({made_from(model).name}):", problems))
    model.load_state_dict(state)


def count(model: nn.Module | str, task: Task) -> Cost:
    """Returns parameters and multiply-adds of one forecast of a model (or a registered name) on a task's shapes."""
    from bench.cost import count_model

    if isinstance(model, str):
        model = load_model(model, task)
    return count_model(model, task.input_shape)
