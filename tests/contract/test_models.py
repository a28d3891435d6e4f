"""The contract of every registered model; plugins call `check_model` themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import bench
from bench import api, registry
from bench.engine.forecaster import Forecaster
from bench.errors import ContractError
from bench.testing import check_model

# Samplers with many steps, which take twenty seconds and more.
_SLOW = {"ldm", "prediff", "prediff_ka"}
# One has no preset `tiny`, the other samples one code after another.
_SMALL = {
    "unet": {"channels": [4, 8], "center_channels": 16},
    "videogpt": {"input_shape": (4, 16, 16, 1), "target_shape": (3, 16, 16, 1)},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in registry.names("model")]
)
def test_every_registered_model_keeps_the_contract(name: str) -> None:
    model_class = registry.find("model", name).load()
    check_model(model_class, **getattr(model_class, "presets", {}).get("tiny", {}), **_SMALL.get(name, {}))


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


class _LossPerPixel(_Good):
    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> Tensor:
        return self(context) - target


class _LossNotANumber(_Good):
    def training_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> Tensor:
        return (self(context) - target).mean().abs() * torch.nan


class _MultipliesByZero(_Good):
    def __init__(self, input_shape, target_shape) -> None:
        super().__init__(input_shape, target_shape)
        self.idle = nn.Parameter(torch.ones(1))

    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context) + 0 * self.idle


class _Saturates(_Good):
    """Never gets a gradient, because its ReLU is always closed."""

    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context).sub(1e3).relu()


class _Detaches(_Good):
    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context).detach()


class _StartsAtZero(_Good):
    """Valid: the first layer gets a gradient as soon as the last one, which starts at zero, has changed."""

    def __init__(self, input_shape, target_shape) -> None:
        super().__init__(input_shape, target_shape)
        self.last = nn.Linear(1, 1)
        nn.init.zeros_(self.last.weight)

    def forward(self, context: Tensor) -> Tensor:
        return context[:, -1:] + self.last(super().forward(context))


class _InfiniteSlope(_Good):
    """Has finite forecasts, but an infinite gradient: that of a square root at zero."""

    def __init__(self, input_shape, target_shape) -> None:
        super().__init__(input_shape, target_shape)
        self.root = nn.Parameter(torch.ones(1))

    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context) + (self.root * torch.zeros_like(context[:, :1])).sqrt()


class _ForgetsState(_Good):
    def load_state_dict(self, *_, **__):
        return None


class _HidesWeights(_Good):
    """Its random projection is not in the state_dict: a copy has the same, a fresh model another one."""

    def __init__(self, input_shape, target_shape) -> None:
        super().__init__(input_shape, target_shape)
        self.projection = torch.rand(1)

    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context) + self.projection


class _HidesStatistics(_Good):
    """Its state from training mode is not in the state_dict."""

    mean = 0.0

    def forward(self, context: Tensor) -> Tensor:
        if self.training:
            self.mean = context.mean()
        return super().forward(context) - self.mean


class _HidesItsFit(_Good):
    mean = 0.0

    def fit(self, batches) -> None:
        self.mean = torch.cat([target for _, target in batches]).mean()

    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context) - self.mean


class _GrowsWeights(_Good):
    """Has weights after its first forecast that a fresh model does not have."""

    def forward(self, context: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Parameter(torch.ones(1))
        return super().forward(context) + self.late


class _WrongTime(_Good):
    def forward(self, context: Tensor) -> Tensor:
        return context * self.scale


class _NotANumber(_Good):
    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context) / 0


@pytest.mark.parametrize("model_class", [_Good, _StartsAtZero])
def test_a_valid_model_passes(model_class: type[nn.Module]) -> None:
    check_model(model_class)


@pytest.mark.parametrize(
    ("model_class", "words"),
    [
        (_Mutates, "changed its input"),
        (_MixesRows, "depends on its batch mates"),
        (_Random, "differ in eval mode"),
        (_Unused, "idle gets no gradient"),
        (_LossPerPixel, r"loss is of shape \(3, 3, 32, 32, 1\); expected one finite number"),
        (_LossNotANumber, "loss is nan; expected one finite number"),
        (_MultipliesByZero, "idle gets a gradient of zeros only"),
        (_Saturates, "scale gets a gradient of zeros only"),
        (_Detaches, "depends on no parameter"),
        (_InfiniteSlope, "root gets a gradient with NaN"),
        (_ForgetsState, "own state_dict gives another forecast"),
        (_HidesWeights, "own state_dict gives another forecast"),
        (_HidesStatistics, "own state_dict gives another forecast"),
        (_HidesItsFit, "own state_dict gives another forecast"),
        (_GrowsWeights, "state_dict does not load into a fresh model"),
        (_WrongTime, "returned shape"),
        (_NotANumber, "NaN"),
    ],
)
def test_each_breach_is_found(model_class: type[nn.Module], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        check_model(model_class)


class _LossIsMisspelt(_Good):
    def traning_loss(self, context: Tensor, target: Tensor, *, step: int, total_steps: int) -> Tensor:
        return self(context).sub(target).abs().mean()


class _PresetsAreMisspelt(_Good):
    preset: ClassVar[dict] = {"tiny": {}}


class _ReductionIsMisspelt(_Good):
    def __init__(self, input_shape, target_shape) -> None:
        super().__init__(input_shape, target_shape)
        self.loss_reducton = "sum"


class _ReductionIsUnknown(_Good):
    loss_reduction = "average"


class _PatternsAreText(_Good):
    parameters_without_gradient = "idle"


_MISSPELT = [
    (_LossIsMisspelt, r"traning_loss: .* Did you mean training_loss\?"),
    (_PresetsAreMisspelt, r"preset: .* Did you mean presets\?"),
    (_ReductionIsMisspelt, r"loss_reducton: .* Did you mean loss_reduction\?"),
    (_ReductionIsUnknown, "loss_reduction: expected 'mean' or 'sum', found 'average'"),
    (_PatternsAreText, "parameters_without_gradient: expected a tuple of texts, found 'idle'"),
]


@pytest.mark.parametrize(("model_class", "words"), _MISSPELT)
def test_a_misspelt_member_is_refused_for_models_of_any_origin(
    model_class: type[nn.Module], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = bench.load_task("sevir")
    with pytest.raises(ContractError, match=words):
        check_model(model_class)
    with pytest.raises(ContractError, match=words):
        Forecaster(model_class((4, 32, 32, 1), (3, 32, 32, 1)), task)
    entry = SimpleNamespace(load=lambda: model_class, origin="here")
    monkeypatch.setattr(registry, "find", lambda kind, name: entry)
    with pytest.raises(ContractError, match=words):
        bench.load_model("misspelt", task)


class _NamesOfItsOwn(_Good):
    """Valid: layers, numbers and hyperparameters may have names of the contract or similar ones."""

    def __init__(self, input_shape, target_shape, *, preset: str = "a", member: int = 2) -> None:
        super().__init__(input_shape, target_shape)
        self.stages, self.sample, self.fit = nn.ModuleList([nn.Identity()]), 5, False
        self.preset, self.member = preset, member

    def sample_rate(self) -> int:
        return self.sample


def test_only_methods_count_as_capabilities() -> None:
    model = check_model(_NamesOfItsOwn)
    for capability in api.MODEL_CAPABILITIES:
        assert not isinstance(model, capability)
    assert api.model_traits(model) == api.ModelTraits()


def test_parameters_without_gradient_can_be_declared() -> None:
    class Declared(_Unused):
        parameters_without_gradient = ("idle",)

    check_model(Declared)
