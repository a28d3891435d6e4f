"""Parameter groups of the optimiser: all parameters with one learning rate, or a model's own groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import nn

from bench.api import HasOptimizers
from bench.config import Train
from bench.errors import ConfigError, ContractError

MAX_ALTERNATION = 10
"""Steps within which each group of a model with `optimizers()` must be updated."""


def has_own_optimizers(model: nn.Module) -> bool:
    """Returns whether a model has its own parameter groups, some of which a step may not update."""
    return isinstance(model, HasOptimizers)


def refuse_settings(model: nn.Module, train: Train) -> None:
    """Refuses settings for all parameters if the model has groups with their own settings.

    Raises:
        ConfigError: names the setting and says where to change it.
    """
    if not has_own_optimizers(model):
        return
    problem = None
    if train.lr != Train.model_fields["lr"].default:
        problem = f"train.lr={train.lr:g}"
    elif train.betas is not None:
        problem = f"train.betas={list(train.betas)}"
    elif train.optimizer == "sgd":
        problem = "train.optimizer=sgd"
    if problem is None:
        return
    raise ConfigError(
        f"{problem}: {type(model).__name__} has its own learning rates and betas for Adam, one for each of its parts; "
        "they are hyperparameters (`earthbench show model NAME`), and the schedule of train.* multiplies each rate. "
        "Leave train.lr and train.betas out; train.optimizer is adam or adamw"
    )


def parameter_groups(model: nn.Module, train: Train) -> tuple[nn.Module | list[dict[str, Any]], float]:
    """Returns the optimiser's parameters, and the base learning rate of its schedule.

    A model's own group has its learning rate as the factor `lr_scale` of timm's schedules, whose base rate is then 1.
    Weights with fewer than two dimensions are exempt from decay, as in timm.

    Raises:
        ContractError: the groups of a model do not have each of its trained parameters once.
    """
    if not isinstance(model, HasOptimizers):
        return model, train.lr
    groups: list[dict[str, Any]] = []
    named: list[nn.Parameter] = []
    for parameters, lr, betas in model.optimizers():
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        named += trained
        settings = {"lr": 1.0, "lr_scale": lr, "betas": tuple(betas)}
        for decays in (True, False):
            part = [parameter for parameter in trained if (parameter.ndim > 1) == decays]
            if part:
                groups.append({"params": part, **settings, "weight_decay": train.weight_decay if decays else 0.0})
    _check_named_once(model, named)
    return groups, 1.0


def _check_named_once(model: nn.Module, named: Iterable[nn.Parameter]) -> None:
    counts = Counter(id(parameter) for parameter in named)
    wrong = [name for name, one in model.named_parameters() if counts[id(one)] != int(one.requires_grad)]
    if wrong:
        raise ContractError(
            f"optimizers() of {type(model).__name__} must name every trained parameter once, which is not so for "
            f"{', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}"
        )


def can_fuse(model: nn.Module, train: Train, *, sharded: bool) -> bool:
    """Returns whether a fused kernel may update the weights: unsharded, on a GPU, in a precision that allows it.

    In float16, gradients must be unscaled first. Lightning also refuses to clip the gradients of a fused optimiser in
    bfloat16, which needs no scaling.
    """
    mixed = train.precision == "16-mixed" or (train.precision == "bf16-mixed" and train.clip_norm is not None)
    return not (sharded or mixed) and all(parameter.is_cuda for parameter in model.parameters())
