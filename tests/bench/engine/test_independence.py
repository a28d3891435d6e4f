"""A model whose forecast depends on batch mates or on earlier calls is found in the first evaluated batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.engine.independence import dependence
from bench.errors import ContractError


class _Persists(nn.Module):
    def forward(self, context: Tensor) -> Tensor:
        return context[:, -1:].repeat(1, 12, 1, 1, 1)


class _BatchNormLeftInTraining(_Persists):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(12)

    def forward(self, context: Tensor) -> Tensor:
        self.norm.train()
        return self.norm(super().forward(context))


class _TakesTheBatchMean(_Persists):
    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context) + context.mean()


class _LooksAtTheRowBefore(_Persists):
    def forward(self, context: Tensor) -> Tensor:
        return super().forward(context.roll(1, 0))


class _CarriesItsState(_Persists):
    def __init__(self) -> None:
        super().__init__()
        self.state: float | Tensor = 0.0

    def forward(self, context: Tensor) -> Tensor:
        self.state = 0.9 * self.state + 0.01 * context.mean()
        return super().forward(context) + self.state


class _DropsAtRandom(_Persists):
    def forward(self, context: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(context), 0.1, training=True)


class _NeedsWholeBatches(_Persists):
    def forward(self, context: Tensor) -> Tensor:
        if len(context) != 4:
            raise ValueError(f"expected 4 sequences, found {len(context)}")
        return super().forward(context)


class _Draws(_Persists):
    def sample(self, context: Tensor, *, members: int, generator: torch.Generator) -> Tensor:
        calm = self(context)
        return calm + 0.1 * torch.randn((members, *calm.shape), generator=generator)


class _DrawsFromElsewhere(_Draws):
    def sample(self, context: Tensor, *, members: int, generator: torch.Generator) -> Tensor:
        return super().sample(context, members=members, generator=None)


@pytest.mark.parametrize(
    ("model_class", "words"),
    [
        (_BatchNormLeftInTraining, "depends on its batch mates"),
        (_TakesTheBatchMean, "depends on its batch mates"),
        (_LooksAtTheRowBefore, "depends on its batch mates"),
        (_CarriesItsState, "depends on earlier calls"),
        (_DropsAtRandom, "depends on earlier calls"),
        (_NeedsWholeBatches, "expected 4 sequences, found 1"),
    ],
)
def test_a_dependent_forecast_has_no_scores(storms: Path, model_class: type[nn.Module], words: str) -> None:
    with pytest.raises(ContractError, match=f"{model_class.__name__} .*{words}"):
        bench.evaluate(model_class(), bench.load_task("sevir", storms), batch_size=4, device="cpu")


def test_irreproducible_members_have_no_scores(storms: Path) -> None:
    task = bench.load_task("sevir", storms)
    assert bench.evaluate(_Draws(), task, limit=2, members=2, device="cpu").scores["crps"] is not None
    with pytest.raises(ContractError, match="_DrawsFromElsewhere depends on earlier calls"):
        bench.evaluate(_DrawsFromElsewhere(), task, limit=2, members=2, device="cpu")


class _Counts(_Persists):
    def __init__(self) -> None:
        super().__init__()
        self.forecasts: list[int] = []

    def forward(self, context: Tensor) -> Tensor:
        self.forecasts.append(len(context))
        return super().forward(context)


def test_the_check_costs_one_more_batch_and_one_sequence(storms: Path) -> None:
    model = _Counts()
    bench.evaluate(model, bench.load_task("sevir", storms), batch_size=4, device="cpu")
    counted_for_cost = [1] * (len(model.forecasts) - 5)
    assert model.forecasts == [4, 4, 1, 4, 1, *counted_for_cost]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_round_off_is_not_a_dependence(scale: float) -> None:
    torch.manual_seed(0)
    found = scale * torch.rand(4, 2, 16, 16, 1)
    context = torch.zeros(4, 1, 16, 16, 1)

    def rounded(batch: Tensor, off: float) -> Tensor:
        return found[-len(batch) :] + off * scale * torch.randn(len(batch), 2, 16, 16, 1)

    assert dependence(lambda batch: rounded(batch, 1e-6), context, found) is None
    assert "batch mates" in str(
        dependence(lambda batch: rounded(batch, 1e-6 if len(batch) > 1 else 1e-3), context, found)
    )
    assert "earlier calls" in str(dependence(lambda batch: rounded(batch, 1e-4), context, found))
    assert dependence(lambda batch: torch.zeros_like(batch), context, torch.zeros_like(context)) is None
    assert dependence(lambda batch: batch / 0, context, torch.zeros_like(context)) is not None
