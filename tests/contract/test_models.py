"""One contract for every registered model; a plugin's model gets it by calling `check_model` itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench import registry
from bench.errors import ContractError
from bench.testing import check_model

# Samplers of many steps: twenty seconds and more.
_SLOW = {"prediff", "prediff_ka"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in registry.names("model")]
)
def test_every_registered_model_keeps_the_contract(name: str) -> None:
    model_class = registry.find("model", name).load()
    check_model(model_class, **getattr(model_class, "presets", {}).get("tiny", {}))


class _Good(nn.Module):
    def __init__(self, input_shape, target_shape) -> None:
        super().__init__()
        self.t_out, self.scale, self.dropout = target_shape[0], nn.Parameter(torch.ones(1)), nn.Dropout(0.5)

    def forward(self, context: Tensor) -> Tensor:
        return self.dropout(context[:, -1:].repeat(1, self.t_out, 1, 1, 1) * self.scale)


class _Mutates(_Good):
    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context.mul_(2))


class _MixesRows(_Good):
    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context - context.mean())


class _Random(_Good):
    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context) + torch.rand(1)


class _Unused(_Good):
    def __init__(self, input_shape, target_shape) -> None:
        super().__init__(input_shape, target_shape)
        self.idle = nn.Parameter(torch.ones(1))


class _ForgetsState(_Good):
    def __init__(self, input_shape, target_shape) -> None:
        super().__init__(input_shape, target_shape)
        self.hidden = torch.tensor(1.0)

    def load_state_dict(self, *_, **__):
        return None


class _WrongTime(_Good):
    def forward(self, context: Tensor) -> Tensor:
        return context * self.scale


class _NotANumber(_Good):
    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context) / 0


def test_a_good_model_passes() -> None:
    check_model(_Good)


@pytest.mark.parametrize(
    ("model_class", "words"),
    [
        (_Mutates, "changed its input"),
        (_MixesRows, "depends on its batch mates"),
        (_Random, "differ in eval mode"),
        (_Unused, "idle gets no gradient"),
        (_ForgetsState, "own state_dict"),
        (_WrongTime, "returned shape"),
        (_NotANumber, "NaN"),
    ],
)
def test_each_breach_is_found(model_class: type[nn.Module], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        check_model(model_class)


def test_parameters_without_gradient_can_be_declared() -> None:
    class Declared(_Unused):
        parameters_without_gradient = ("idle",)

    check_model(Declared)
