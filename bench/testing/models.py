"""The contract that any model must keep."""

from __future__ import annotations

import contextlib
import copy
import fnmatch
import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.api import Shape
from bench.cost import count_model
from bench.errors import ContractError, NotCountableError, one_message
from bench.running.forecaster import check_forecast, masked_mse

# Rows of a batch go through the same kernels in other groupings; beyond float32 round-off they must not differ.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-4


def check_model(
    model_class: Callable[..., nn.Module],
    *,
    input_shape: Shape = (4, 32, 32, 1),
    target_shape: Shape = (3, 32, 32, 1),
    **hyperparameters: Any,
) -> nn.Module:
    """Returns a model that passed every check of the contract.

    Checked: making it leaves torch's defaults alone; shape, dtype and finiteness of the forecast; the context is left
    unchanged; evaluation is deterministic and each row of a batch is what it is alone; every parameter gets a gradient
    (but those that match the class's `parameters_without_gradient`, a tuple of glob patterns); a state_dict goes round
    through a file; the model can be counted with no unknown operation, or says in `uncountable` why not.

    Args:
        model_class: The class, or what makes a model from the two shapes.
        input_shape: `(T_in, H, W, C)` to try.
        target_shape: `(T_out, H, W, C)` to try.
        **hyperparameters: Passed to the class.

    Raises:
        ContractError: lists everything that is wrong.
    """
    torch.manual_seed(0)
    defaults = _global_state()
    model = model_class(input_shape=input_shape, target_shape=target_shape, **hyperparameters)
    name = type(model).__name__
    if not isinstance(model, nn.Module):
        raise ContractError(f"{model_class!r} makes {name}, expected a torch.nn.Module")
    context, target = torch.rand((3, *input_shape)), torch.rand((3, *target_shape))
    problems = [
        f"making it changed torch's {key} from {value} to {now}"
        for (key, value), now in zip(defaults.items(), _global_state().values(), strict=True)
        if value != now
    ]
    _shape_and_input(copy.deepcopy(model), context, target, problems)  # without a forecast, no more can be said
    for check in (_determinism, _rows, _gradients, _round_trip, _countable):
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


def _determinism(model: nn.Module, context: Tensor, target: Tensor, problems: list[str]) -> None:
    model.eval()
    with torch.no_grad():
        if not torch.equal(model(context), model(context)):
            problems.append("two forecasts of one context differ in eval mode")


def _rows(model: nn.Module, context: Tensor, target: Tensor, problems: list[str]) -> None:
    model.eval()
    with torch.no_grad():
        together = model(context)
        alone = torch.cat([model(row[None]) for row in context])
    if not torch.allclose(together, alone, rtol=_RELATIVE, atol=_ABSOLUTE):
        worst = float((together - alone).abs().max())
        problems.append(f"a row's forecast depends on its batch mates in eval mode (by up to {worst:.2g})")


def _gradients(model: nn.Module, context: Tensor, target: Tensor, problems: list[str]) -> None:
    stages = getattr(model, "stages", None)
    for stage in stages() if callable(stages) else ():
        _gradients(stage.module, context, target, problems)
    if callable(stages):
        return
    model.train()
    own = getattr(model, "training_loss", None)
    loss = own(context, target, step=0, total_steps=10) if callable(own) else masked_mse(model(context), target)
    if isinstance(loss, dict):
        loss = torch.stack(list(loss.values())).sum()
    if loss.dim() or not torch.isfinite(loss):
        problems.append(f"the training loss is {loss!r}; expected one finite number")
        return
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return
    loss.backward()
    allowed = getattr(model, "parameters_without_gradient", ())
    for name, parameter in model.named_parameters():
        excused = any(fnmatch.fnmatch(name, pattern) for pattern in allowed)
        if parameter.requires_grad and parameter.grad is None and not excused:
            problems.append(f"parameter {name} gets no gradient")


def _round_trip(model: nn.Module, context: Tensor, target: Tensor, problems: list[str]) -> None:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        if not torch.equal(model.eval()(context), other.eval()(context)):
            problems.append("a model loaded from its own state_dict gives another forecast")


def _countable(model: nn.Module, context: Tensor, target: Tensor, problems: list[str]) -> None:
    with contextlib.suppress(NotCountableError):
        count_model(model, tuple(context.shape[1:]))  # type: ignore[arg-type]
