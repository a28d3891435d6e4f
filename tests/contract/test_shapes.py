"""Models, tasks and data sets have the shapes that the contracts in `bench.api` declare."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from beartype.door import is_bearable
from jaxtyping import Bool, Float, Float32, Int, Real, Shaped, jaxtyped

import bench
from bench import api, registry
from bench.cli.main import main
from bench.data import sequences
from bench.data.loading import evaluation_loader
from bench.tasks import Task

_INPUT, _TARGET = (4, 32, 32, 1), (3, 32, 32, 1)
# What is imported for type checking only.
_NAMES = {kind.__name__: kind for kind in (Bool, Float, Float32, Int, Real, Shaped, sequences.SequenceDataset)} | {
    "Tensor": torch.Tensor,
    "nn": torch.nn,
}


def _hints(contract: Any) -> dict[str, Any]:
    names = {**vars(sys.modules[contract.__module__]), **_NAMES}
    return typing.get_type_hints(contract, names, include_extras=True)


def _keeping(contract: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the method with checks that arguments and result match the annotations of the contract."""
    hints, signature = _hints(contract), inspect.signature(contract)

    def called(*args: Any, **options: Any) -> Any:
        with jaxtyped("context"):
            bound = signature.bind(None, *args, **options).arguments
            result = method(*args, **options)
            for name, value in {**bound, "return": result}.items():
                if name in hints and name not in ("labels", "options") and not is_bearable(value, hints[name]):
                    raise AssertionError(f"{contract.__qualname__}: {name}: expected {hints[name]}")
        return result

    return called


def _tiny(name: str) -> torch.nn.Module:
    model_class = registry.find("model", name).load()
    torch.manual_seed(0)
    presets = api.model_traits(model_class).presets
    return model_class(input_shape=_INPUT, target_shape=_TARGET, **presets.get("tiny", {}))


@pytest.mark.parametrize("name", [name for name in registry.names("model") if not name.startswith("prediff")])
def test_models_keep_the_shapes_of_the_contract(name: str) -> None:
    model = _tiny(name)
    context, target = torch.rand((2, *_INPUT)), torch.rand((2, *_TARGET))
    with torch.no_grad():
        _keeping(api.Model.__call__, model.eval())(context)
    if isinstance(model, api.TrainsWithOwnLoss):
        _keeping(api.TrainsWithOwnLoss.training_loss, model.train().training_loss)(
            context, target, step=0, total_steps=10
        )


@pytest.mark.slow
def test_stages_and_samples_keep_the_shapes_of_the_contract() -> None:
    model = _tiny("prediff")
    assert isinstance(model, api.HasStages) and isinstance(model, api.Samples)
    context, target = torch.rand((2, *_INPUT)), torch.rand((2, *_TARGET))
    for stage in model.stages():
        if stage.prepare is not None:
            stage.prepare([(context, target)])
        module = stage.module
        assert isinstance(module, api.TrainsWithOwnLoss) and isinstance(module, api.ValidatesWithOwnLoss)
        options = {"context_known": torch.ones_like(context, dtype=torch.bool)}
        options = options if api.model_traits(module).verifies_context else {}
        _keeping(api.TrainsWithOwnLoss.training_loss, module.training_loss)(
            context, target, step=0, total_steps=10, **options
        )
        _keeping(api.ValidatesWithOwnLoss.validation_loss, module.validation_loss)(context, target, **options)
    drawn = _keeping(api.Samples.sample, model.sample)(context, members=2, seeds=torch.tensor([1, 2]))
    assert drawn.shape == (2, 2, *_TARGET)


@pytest.mark.parametrize(
    ("contract", "method"),
    [
        (api.Model.__call__, lambda context: context[:, 0]),
        (api.Model.__call__, lambda context: context.int()),
        (api.TrainsWithOwnLoss.training_loss, lambda context, target, **_: context - target),
        (api.Samples.sample, lambda context, **_: context),
    ],
)
def test_a_wrong_shape_is_found(contract: Callable[..., Any], method: Callable[..., Any]) -> None:
    target = torch.rand(2, *_INPUT)
    options = {"training_loss": {"target": target, "step": 0, "total_steps": 1}, "sample": {"members": 1}}
    with pytest.raises(AssertionError, match="expected"):
        _keeping(contract, method)(torch.rand(2, *_INPUT), **options.get(contract.__name__, {}))


@pytest.mark.parametrize("name", [name for name in registry.names("metric") if name != "energy"])
def test_metrics_keep_the_shapes_of_the_contract(name: str) -> None:
    metric = bench.load_metric(name)
    members = (4,) if api.metric_traits(metric).takes_members else ()
    forecast, target = torch.rand((*members, 2, 3, 24, 48, 1)), torch.rand((2, 3, 24, 48, 1))
    _keeping(api.Metric.update, metric.update)(forecast * 255, target * 255)
    _keeping(api.Metric.compute, metric.compute)()


def test_tasks_and_data_sets_keep_the_shapes_of_the_contract(tmp_path: Path) -> None:
    assert main(["data", "make", "nbody_mnist", "--out", str(tmp_path / "d"), "--train", "2", "--test", "2"]) == 0
    task = bench.load_task("nbody_mnist", tmp_path / "d")
    data = task.dataset("test")
    context, _ = _keeping(Task.item, task.item)(data.source, 1)
    for convert in (Task.normalise, Task.denormalise, Task.to_context, Task.context_known, Task.to_target):
        _keeping(convert, getattr(task, convert.__name__))(context)
    example = data.source[1]
    assert isinstance(example, sequences.Example) and example.index == 1 and len(example.labels) == 3
    batch = next(iter(evaluation_loader(data.source, batch_size=2, limit=2, num_workers=0)))
    for given in (example, batch):
        with jaxtyped("context"):
            for name, hint in _hints(sequences.Example).items():
                assert is_bearable(getattr(given, name), hint), name
    parts = (*example[:2], *example.labels)
    assert all(torch.equal(one, other) for one, other in zip(data.stored(1), parts, strict=True))
    assert data.source.units == sequences.Units.events(data.ids)
    metric = bench.load_metric("energy", **task.metrics["energy"])
    _keeping(api.Metric.update, metric.update)(batch.target, batch.target, *batch.labels)


def test_the_contracts_import_neither_torch_nor_jaxtyping() -> None:
    code = (
        "import sys, bench.api, bench.data.sequences, bench.tasks; assert not {'torch', 'jaxtyping'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
