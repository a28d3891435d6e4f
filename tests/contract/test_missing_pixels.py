"""Missing pixels do not affect the loss, gradient or fit of any registered model: only known pixels count."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench import registry
from bench.engine.losses import masked_mse
from bench.engine.optimizers import MAX_ALTERNATION, has_own_optimizers

CONTEXT, TARGET = (5, 32, 32, 1), (3, 32, 32, 1)
ROWS = 3
# At the first step of such a long training, scheduled sampling always reads the truth.
STEPS = {"step": 0, "total_steps": 10**9}

_LEARNT = [
    "convlstm", "dgmr", "e3d_lstm", "earthformer", "earthformer_no_global", "ldm", "phydnet", "prediff", "prediff_ka",
    "predrnn", "rainformer", "simvp", "tau", "unet", "videogpt",
]  # fmt: skip
_FITTED = [
    "blurred_persistence", "climatology", "damped_persistence", "linear_inverse", "optical_flow_blurred",
    "seasonal_regression",
]  # fmt: skip
_NOT_TRAINED = ["blank", "earthformer_released", "optical_flow", "persistence", "steps"]
"""The released one is the same class with other numbers; the others learn nothing."""
_OPTIONS = {
    "predrnn": [{}, {"memory_decoupling": True}, {"sampling": "reverse_scheduled"}, {"stem_channels": 4}],
    "e3d_lstm": [{}, {"sampling": "none"}],
    "prediff": [{}, {"discriminator_from": 0}],
    "rainformer": [{}, {"loss": "balanced_mae"}],
}
CASES = [(name, options) for name in _LEARNT for options in _OPTIONS.get(name, [{}])]


def test_every_registered_model_is_covered_here() -> None:
    ours = [name for name in registry.names("model") if "(earthbench " in registry.find("model", name).origin]
    assert sorted(ours) == sorted(_LEARNT + _FITTED + _NOT_TRAINED)


def _modules(name: str, options: dict[str, object]) -> list[nn.Module]:
    torch.manual_seed(0)
    model_class = registry.find("model", name).load()
    model = model_class(CONTEXT, TARGET, **{**getattr(model_class, "presets", {}).get("tiny", {}), **options})
    stages = getattr(model, "stages", None)
    return [stage.module for stage in stages()] if callable(stages) else [model]


def _batch(*, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the context (missing pixels 0), the target (missing pixels NaN), and where the context is known."""
    random = torch.Generator().manual_seed(1)
    context, target = (torch.rand((ROWS, *shape), generator=random) for shape in (CONTEXT, TARGET))
    unknown = [torch.rand(part.shape, generator=random) < share for part in (context, target)]
    return context.masked_fill(unknown[0], 0), target.masked_fill(unknown[1], math.nan), ~unknown[0]


def _loss(module: nn.Module, context: Tensor, target: Tensor, known: Tensor, *, validation: bool = False) -> Tensor:
    extra = {"context_known": known} if getattr(module, "verifies_context", False) else {}
    if validation and hasattr(module, "validation_loss"):
        return module.validation_loss(context, target, **extra)
    own = getattr(module, "training_loss", None)
    if own is None:
        return masked_mse(module(context), target)
    turns = range(MAX_ALTERNATION) if has_own_optimizers(module) else [STEPS["step"]]
    losses = [own(context, target, **{**STEPS, "step": step}, **extra) for step in turns]
    parts = [part for loss in losses for part in (loss.values() if isinstance(loss, dict) else [loss])]
    return torch.stack(parts).sum()


def _draws_by_sequences(name: str, options: dict[str, object]) -> bool:
    """Returns whether a loss uses other random numbers for a sequence if other sequences are left out."""
    return name == "dgmr" or options.get("sampling") == "reverse_scheduled"


def _gradients(module: nn.Module) -> Iterator[Tensor]:
    return (parameter.grad for parameter in module.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("everything", [False, True])
def test_missing_pixels_leave_loss_and_gradient_finite(name: str, options: dict[str, object], everything: bool) -> None:
    for module in _modules(name, options):
        context, target, known = _batch(share=0.3)
        target[0] = math.nan
        if everything:
            context, target, known = torch.zeros_like(context), target * math.nan, torch.zeros_like(known)
        loss = _loss(module.train(), context, target, known)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(gradient).all() for gradient in _gradients(module))
        if everything and name not in ("phydnet",):  # whose kernels have a loss without any pixel
            assert loss == 0
            assert not any(gradient.any() for gradient in _gradients(module))


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_wholly_missing_sequence_is_excluded(name: str, options: dict[str, object]) -> None:
    context, target, known = _batch(share=0.3)
    context[1], target[1], known[1] = 0, math.nan, False
    rest = [0, 2]
    for module in _modules(name, options):
        with torch.no_grad():
            torch.manual_seed(3)
            found = _loss(module.eval(), context, target, known, validation=True)
            torch.manual_seed(3)
            expected = _loss(module, context[rest], target[rest], known[rest], validation=True)
        if _draws_by_sequences(name, options):
            assert torch.isfinite(found)
        else:
            assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_losses_of_batches_are_weighted_by_known_pixels(name: str, options: dict[str, object]) -> None:
    if _draws_by_sequences(name, options):  # tests/baselines/test_dgmr.py has fixed draws
        return
    context, target, known = _batch(share=0.3)
    target[0, 1:] = math.nan
    of_sum = name == "e3d_lstm" or options.get("loss") == "balanced_mae"  # their authors' losses are sums
    for module in _modules(name, options):
        verified = [~torch.isnan(target)] + [known] * getattr(module, "verifies_context", False)
        if name in ("predrnn", "phydnet"):
            verified[1] = known[:, 1:]  # nothing forecasts the first frame
        weights = [1.0 if of_sum else float(sum(part[row].sum() for part in verified)) for row in range(ROWS)]
        with torch.no_grad():
            whole = float(_loss(module.eval(), context, target, known, validation=True))
            parts = [
                float(_loss(module, context[[row]], target[[row]], known[[row]], validation=True))
                for row in range(ROWS)
            ]
        summed = math.fsum(part * weight for part, weight in zip(parts, weights, strict=True))
        assert whole == pytest.approx(summed if of_sum else summed / sum(weights), rel=1e-4)


class _LooksAtNothing(TorchDispatchMode):
    """Refuses operations for which the host waits for a GPU: values read by Python, shapes that depend on values."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "options"), [case for case in CASES if not case[0].startswith(("ldm", "phydnet", "prediff"))]
)
def test_no_loss_waits_for_the_device(name: str, options: dict[str, object]) -> None:
    """PhyDNet, PreDiff and LDM draw numbers on the CPU, which does not wait, but cannot be distinguished here."""
    batch = _batch(share=0.3)
    for module in _modules(name, options):
        with _LooksAtNothing():
            _loss(module.train(), *batch).backward()


@pytest.mark.parametrize("name", ["predrnn", "e3d_lstm"])
def test_a_reversed_clip_uses_no_missing_pixel(name: str) -> None:
    (model,) = _modules(name, {"time_reversed": True})
    context, target, known = _batch(share=0.3)
    target[:, -1] = math.nan  # the first frame that the reversed clip reads
    losses = model.training_loss(context, target, step=1, total_steps=10**9, context_known=known)
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("name", _FITTED)
def test_a_fit_uses_known_pixels_only(name: str) -> None:
    torch.manual_seed(0)
    shapes = (4, 3, 4, 1), (2, 3, 4, 1)
    model_class = registry.find("model", name).load()
    context, target = torch.randn(40, *shapes[0]), torch.randn(40, *shapes[1])
    gaps = [torch.full_like(part[:5], math.nan) for part in (context, target)]
    options = getattr(model_class, "presets", {}).get("tiny", {})
    one, other = (model_class(*shapes, **options) for _ in range(2))
    one.fit([(context, target)])
    other.fit([(context[:20], target[:20]), (gaps[0], gaps[1]), (context[20:], target[20:])])
    for (key, expected), found in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-4, atol=1e-5, msg=key)
