"""The contract that any model must keep."""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.api import FitsInOnePass, HasStages, Shape, model_traits
from bench.config import Train
from bench.contract import check_model_members
from bench.cost import count_model
from bench.engine.forecaster import check_forecast
from bench.engine.independence import dependence
from bench.engine.losses import training_loss
from bench.engine.optimizers import MAX_ALTERNATION, has_own_optimizers, parameter_groups
from bench.engine.weights import RunningAverage
from bench.errors import ContractError, NotCountableError, one_message

# Tolerances for forecasts of two models with the same weights, which may use different kernels.
_RELOADED_RELATIVE, _RELOADED_ABSOLUTE = 1e-5, 1e-6
_NOISE = 0.01
_STARTS = 4
_OTHER_SEED = 1
_AVERAGED = 4


def check_model(
    model_class: Callable[..., nn.Module],
    *,
    input_shape: Shape = (4, 32, 32, 1),
    target_shape: Shape = (3, 32, 32, 1),
    **hyperparameters: Any,
) -> nn.Module:
    """Returns a model that passed every check of the contract.

    Checked: making it does not change torch's defaults; no attribute is a misspelt one of `bench.api`; shape, dtype and
    finiteness of the forecast; the context is not changed; evaluation is deterministic, and rows of a batch are
    independent; every parameter gets a gradient that is finite and not all zeros (except those that match
    `parameters_without_gradient`, a tuple of glob patterns); with `optimizers()`, within the first ten steps, and each
    parameter is named once; a state_dict saved to a file and loaded into a fresh model gives the same forecast; the
    model can be counted without unknown operations, or `uncountable` says why not; a running average of constant
    weights gives the same forecast.

    Args:
        model_class: Class or factory that makes a model from the two shapes.
        input_shape: `(T_in, H, W, C)` to try.
        target_shape: `(T_out, H, W, C)` to try.
        **hyperparameters: Passed to the class.

    Raises:
        ContractError: checks failed; the message lists all of them.
    """
    torch.manual_seed(0)
    defaults = _global_state()
    build = functools.partial(model_class, input_shape=input_shape, target_shape=target_shape, **hyperparameters)
    try:
        model = build()
    except TypeError as error:
        called = f"{getattr(model_class, '__name__', model_class)}(input_shape={input_shape}, "
        raise ContractError(
            f"{called}target_shape={target_shape}) cannot be made: {error}. A model takes the two shapes by these "
            "names, (T, H, W, C) each, and has defaults for everything else"
        ) from error
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ContractError(f"{model_class!r} makes {name}, expected a torch.nn.Module")
    context, target = torch.rand((3, *input_shape)), torch.rand((3, *target_shape))
    problems = [
        f"making it changed torch's {key} from {value} to {now}"
        for (key, value), now in zip(defaults.items(), _global_state().values(), strict=True)
        if value != now
    ]
    for module in [model, *([stage.module for stage in model.stages()] if isinstance(model, HasStages) else [])]:
        try:
            check_model_members(module)
        except ContractError as error:
            problems.append(str(error))
    _shape_and_input(copy.deepcopy(model), context, target, problems)  # without a forecast, nothing else can be checked
    gradients, round_trip = (functools.partial(check, build=build) for check in (_gradients, _round_trip))
    for check in (_independence, gradients, round_trip, _average, _countable):
        try:
            check(copy.deepcopy(model), context, target, problems)
        except ContractError as error:
            problems.append(str(error))
    if problems:
        raise ContractError(one_message(f"{name} does not keep the model contract:", problems))
    return model


def _global_state() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "gradient mode": torch.is_grad_enabled(),
    }


def _shape_and_input(model: nn.Module, context: Tensor, target: Tensor, problems: list[str]) -> None:
    before = context.clone()
    forecast = model.eval()(context)
    check_forecast(forecast, context, tuple(target.shape[1:]), type(model).__name__)  # type: ignore[arg-type]
    if not torch.isfinite(forecast).all():
        problems.append("the forecast of a random context has NaN or infinite values")
    if not torch.equal(context, before):
        problems.append("forward changed its input")


def _independence(model: nn.Module, context: Tensor, target: Tensor, problems: list[str]) -> None:
    model.eval()
    with torch.no_grad():
        first = model(context)
        if not torch.equal(model(context), first):
            problems.append("two forecasts of one context differ in eval mode")
        elif found := dependence(model, context, first, range(len(context))):
            problems.append(f"in eval mode, a forecast depends {found}")


def _gradients(
    model: nn.Module, context: Tensor, target: Tensor, problems: list[str], build: Callable[[], nn.Module]
) -> None:
    found = _gradient_problems(model, context, target)
    # Units that happen to be dead block gradients, so only problems at every initialisation count.
    for seed in range(1, _STARTS):
        if found:
            torch.manual_seed(seed)
            again = _gradient_problems(build(), context, target)
            found = [problem for problem in found if problem in again]
    problems.extend(found)


def _gradient_problems(model: nn.Module, context: Tensor, target: Tensor) -> list[str]:
    _move_off_zero(model)
    modules = [stage.module for stage in model.stages()] if isinstance(model, HasStages) else [model]
    return [problem for module in modules for problem in _gradient_problems_of(module, context, target)]


def _gradient_problems_of(model: nn.Module, context: Tensor, target: Tensor) -> list[str]:
    parameter_groups(model, Train())
    for step in range(MAX_ALTERNATION if has_own_optimizers(model) else 1):
        loss = _training_loss(model, context, target, step)
        if loss.dim() or not torch.isfinite(loss):
            value = f"of shape {tuple(loss.shape)}" if loss.dim() else loss.item()
            return [f"the training loss is {value}; expected one finite number"]
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return []
        if not loss.requires_grad:
            return ["the training loss depends on no parameter"]
        loss.backward()
    allowed = model_traits(model).parameters_without_gradient
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or any(fnmatch.fnmatch(name, pattern) for pattern in allowed):
            continue
        if parameter.grad is None:
            found.append(f"parameter {name} gets no gradient")
        elif not torch.isfinite(parameter.grad).all():
            found.append(f"parameter {name} gets a gradient with NaN or infinite values")
        elif not parameter.grad.any():
            found.append(f"parameter {name} gets a gradient of zeros only")
    return found


def _training_loss(model: nn.Module, context: Tensor, target: Tensor, step: int = 0) -> Tensor:
    return training_loss(model.train(), context, target, step=step, total_steps=MAX_ALTERNATION)


def _move_off_zero(model: nn.Module) -> None:
    """Perturbs trainable parameters, because layers initialised with zeros block the gradient of earlier layers."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(_NOISE * torch.randn_like(parameter))


def _round_trip(
    model: nn.Module, context: Tensor, target: Tensor, problems: list[str], build: Callable[[], nn.Module]
) -> None:
    """Loads the state of a trained model into a fresh one with a different initialisation."""
    _change_weights(model, context, target)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(_OTHER_SEED)
    fresh = build()
    try:
        fresh.load_state_dict(torch.load(file, weights_only=True))
    except (RuntimeError, pickle.UnpicklingError) as error:
        problems.append(f"its own state_dict does not load into a fresh model: {error}")
        return
    with torch.no_grad():
        expected, found = model.eval()(context), fresh.eval()(context)
    if not torch.allclose(expected, found, rtol=_RELOADED_RELATIVE, atol=_RELOADED_ABSOLUTE, equal_nan=True):
        worst = float((expected - found).abs().max())
        problems.append(f"a fresh model loaded from its own state_dict gives another forecast (by up to {worst:.2g})")


def _change_weights(model: nn.Module, context: Tensor, target: Tensor) -> None:
    """Changes parameters and buffers as a training would: by a pass in training mode or a fit."""
    if isinstance(model, FitsInOnePass):
        model.fit(iter([(context, target)]))
        return
    _move_off_zero(model)
    if not isinstance(model, HasStages):
        with torch.no_grad():
            _training_loss(model, context, target)


def _average(model: nn.Module, context: Tensor, target: Tensor, problems: list[str]) -> None:
    """Checks that the running average of constant weights is the model itself."""
    if next(model.parameters(), None) is None:
        return
    average = RunningAverage(model, decay=0.9)
    _change_weights(model, context, target)
    for step in range(1, _AVERAGED):
        average.update(model, step=step)
    before, after = model.state_dict(), average.module.state_dict()
    # Values that `prepare` or `fit` will set may be NaN.
    changed = [n for n in before if n not in after or not torch.allclose(before[n], after[n], 0, 0, equal_nan=True)]
    if changed:
        problems.append(f"a running average of weights that stay as they are changes {', '.join(changed)}")
    with torch.no_grad():
        expected, found = model.eval()(context), average.module.eval()(context)
    if not torch.equal(expected, found):
        problems.append("the forecast of a running average of weights that stay as they are is another one")


def _countable(model: nn.Module, context: Tensor, target: Tensor, problems: list[str]) -> None:
    with contextlib.suppress(NotCountableError):
        count_model(model, tuple(context.shape[1:]))  # type: ignore[arg-type]
