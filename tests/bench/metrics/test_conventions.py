"""Metrics behave as users of torchmetrics expect, and leave missing pixels out whatever the batches."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

import bench
from bench import registry
from bench.errors import ContractError
from bench.metrics.states import SETTINGS

ROWS = 6
Arguments = list[Tensor]


def _grid(name: str) -> tuple[int, int]:
    return {"enso": (24, 48), "energy": (64, 64)}.get(name, (16, 16))


def _arguments(name: str, *, seed: int = 0, dry: bool = False, rows: int = ROWS) -> Arguments:
    """Returns forecast, target and labels; the forecast has members if the metric takes them."""
    random = torch.Generator().manual_seed(seed)
    target = torch.rand((rows, 4, *_grid(name), 1), generator=random) * 255
    members = (3,) if name in ("probabilistic", "frechet") else ()
    forecast = torch.rand((*members, *target.shape), generator=random) * 255
    if dry:
        forecast, target = torch.zeros_like(forecast), torch.zeros_like(target)
    labels = []
    if name == "energy":
        digits = torch.zeros(rows, 3, 28, 28)
        digits[..., 4:24, 10:18] = 255
        labels = [digits, torch.rand((rows, 2, 3, 2), generator=random, dtype=torch.float64) * 60]
    return [forecast, target, *labels]


def _part(name: str, arguments: Arguments, rows: Any) -> Arguments:
    first = arguments[0][:, rows] if name in ("probabilistic", "frechet") else arguments[0][rows]
    return [first, *(part[rows] for part in arguments[1:])]


def _same(found: dict[str, float], expected: dict[str, float], rel: float = 1e-9) -> bool:
    return found == pytest.approx(expected, rel=rel, abs=1e-9, nan_ok=True)


NAMES = ["energy", "enso", "frames", "frechet", "mae", "mse", "probabilistic", "skill"]
OTHER: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "enso": ({"box": "papers"}, {"box": "exact"}),
    "frames": ({"convention": "correct", "scale": 1.0}, {"convention": "correct", "scale": 255.0}),
    "frechet": ({"scale": 255.0}, {"scale": 1.0}),
    "mae": ({"scale": 1.0}, {"scale": 255.0}),
    "mse": ({"convention": "correct"}, {"convention": "upstream"}),
    "probabilistic": ({"thresholds": [16, 74]}, {"thresholds": [133, 219]}),
    "skill": ({"thresholds": [16]}, {"thresholds": [200]}),
}
"""Two settings whose states may be equal after a dry batch."""


def test_every_registered_metric_is_covered_here() -> None:
    ours = [name for name in registry.names("metric") if "(earthbench " in registry.find("metric", name).origin]
    assert sorted(ours) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_forward_returns_the_batch_score_and_accumulates(name: str) -> None:
    batches = [_arguments(name, seed=seed) for seed in (1, 2)]
    metric, whole = bench.load_metric(name), bench.load_metric(name)
    for batch in batches:
        alone = bench.load_metric(name)
        alone.update(*batch)
        assert _same(metric(*batch), alone.compute())
        whole.update(*batch)
    assert _same(metric.compute(), whole.compute())
    metric.reset()
    assert _same(metric(*batches[1]), alone.compute()) and _same(metric.compute(), alone.compute())


@pytest.mark.parametrize("options", [{}, {"t_out": 4}])
def test_forward_refuses_another_number_of_lead_times(options: dict[str, Any]) -> None:
    forecast, target = _arguments("skill")
    metric = bench.load_metric("skill", **options)
    metric(forecast, target)
    with pytest.raises(ContractError, match="lead times"):
        metric(forecast[:, :1], target[:, :1])


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("groups", [True, False])
def test_a_collection_does_not_mix_two_settings(name: str, groups: bool) -> None:
    made = {key: bench.load_metric(name, **how) for key, how in zip("ab", OTHER[name], strict=True)}
    alone = {key: bench.load_metric(name, **how) for key, how in zip("ab", OTHER[name], strict=True)}
    both = MetricCollection(made, compute_groups=groups)
    for arguments in (_arguments(name, dry=True), _arguments(name, seed=1), _arguments(name, seed=2)):
        for metric in (both, *alone.values()):
            metric.update(*arguments)
    found = both.compute()
    for key, metric in alone.items():
        assert len(both.compute_groups) == 2 if groups else True
        expected = metric.compute()
        assert _same({score: float(found.get(f"{key}_{score}", found.get(score))) for score in expected}, expected)


def test_a_collection_does_not_mix_two_classes() -> None:
    both = MetricCollection([bench.load_metric("mse"), bench.load_metric("mae")])
    target = _arguments("mse")[1]
    both.update(target, target)
    both.update(target + 2, target)
    assert both.compute()["mse"] == pytest.approx(2 / 255**2, rel=1e-5)
    assert both.compute()["mae"] == pytest.approx(1 / 255, rel=1e-5)


def test_a_collection_shares_the_states_of_equal_metrics() -> None:
    one, other = bench.load_metric("skill", thresholds=[16, 74]), bench.load_metric("skill", thresholds=(16.0, 74.0))
    both = MetricCollection({"one": one, "other": other})
    for seed in (0, 1):
        both.update(*_arguments("skill", seed=seed))
    assert len(both.compute_groups) == 1
    assert both.compute()["one_csi_16"] == both.compute()["other_csi_16"]
    both.reset()
    clone = both.clone(prefix="clone_")
    clone.update(*_arguments("skill", seed=3))
    assert clone.compute()["clone_one_csi_16"] == clone.compute()["clone_other_csi_16"]


class _PluginMetric(Metric):
    """A metric that is independent of our code."""

    full_state_update = False

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, forecast: Tensor, target: Tensor) -> None:
        self.total = self.total + (forecast - target).abs().double().pow(self.power).sum()

    def compute(self) -> dict[str, float]:
        return {"total": float(self.total)}


def test_metrics_of_plugins_are_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.find("metric", "mse")
    monkeypatch.setattr(type(entry), "load", lambda self: _PluginMetric)
    monkeypatch.setattr(type(entry), "card", lambda self: type("C", (), {"parameters": ("power",)})())
    both = MetricCollection({str(power): bench.load_metric("mse", power=power) for power in (1, 2)})
    for arguments in (_arguments("mse", dry=True), _arguments("mse")):
        both.update(*arguments)
    assert both.compute()["1_total"] != both.compute()["2_total"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric)), lambda metric: metric.clone()]
)
def test_copies_are_independent(name: str, copied: Callable[[Metric], Metric]) -> None:
    metric = bench.load_metric(name)
    metric.update(*_arguments(name))
    before = metric.compute()
    other = copied(metric)
    other.update(*_arguments(name, seed=1))
    assert _same(metric.compute(), before) and not _same(other.compute(), before)


@pytest.mark.parametrize("name", NAMES)
def test_states_are_merged(name: str) -> None:
    parts = [_arguments(name, seed=seed) for seed in (1, 2)]
    metrics = [bench.load_metric(name) for _ in parts]
    whole, fresh = bench.load_metric(name), bench.load_metric(name)
    for metric, part in zip(metrics, parts, strict=True):
        metric.update(*part)
        whole.update(*part)
        fresh.merge_state(metric)
    assert not _same(metrics[0].compute(), whole.compute())
    metrics[0].merge_state(metrics[1].metric_state)
    assert _same(fresh.compute(), whole.compute()) and _same(metrics[0].compute(), whole.compute())


@pytest.mark.parametrize("name", OTHER)
def test_states_of_other_settings_are_not_merged(name: str) -> None:
    one, other = (bench.load_metric(name, **how) for how in OTHER[name])
    for metric in (one, other):
        metric.update(*_arguments(name))
    with pytest.raises(ContractError, match=r"different settings|differ"):
        one.merge_state(other)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "cast",
    [
        lambda metric: metric.half(),
        lambda metric: metric.double(),
        lambda metric: metric.to(torch.float16),
        lambda metric: metric.to("cpu", torch.bfloat16),
        lambda metric: metric.set_dtype(torch.float16),
        lambda metric: torch.nn.ModuleList([metric]).to(torch.float16)[0],
    ],
    ids=["half", "double", "to(float16)", "to(device, bfloat16)", "set_dtype", "of a module"],
)
def test_casting_a_metric_keeps_the_dtype_of_its_sums(name: str, cast: Callable[[Metric], Metric]) -> None:
    plain, metric = bench.load_metric(name), cast(bench.load_metric(name))
    for seed in (0, 1):
        for each in (plain, metric):
            each.update(*_arguments(name, seed=seed))
        metric = cast(metric)
    for key in metric._defaults:
        assert isinstance(value := getattr(metric, key), list) or value.dtype in (torch.int64, torch.float64)
    assert metric.compute() == pytest.approx(plain.compute(), rel=0, abs=0, nan_ok=True)
    metric.reset()
    tensors = {key: value for key, value in plain._defaults.items() if isinstance(value, Tensor)}
    assert all(getattr(metric, key).dtype == value.dtype for key, value in tensors.items())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("enso", "frames")])
def test_a_process_without_a_batch_can_be_merged(name: str) -> None:
    """The other two metrics keep lists, whose empty case torchmetrics defines."""
    idle, alone = (bench.load_metric(name) for _ in range(2))
    alone.update(*_arguments(name))
    for mine, theirs in ((alone, idle), (idle, alone)):
        others = iter([getattr(theirs, key).clone() for key in theirs._reductions])
        how = {
            "dist_sync_fn": lambda state, group=None, others=others: [next(others), state],
            "distributed_available_fn": lambda: True,
        }
        metric = bench.load_metric(name, **how)
        if mine is alone:
            metric.update(*_arguments(name))
        assert _same(metric.compute(), alone.compute())


def test_every_metric_declares_the_settings_of_its_states() -> None:
    for name in NAMES:
        assert SETTINGS in registry.find("metric", name).load()()._defaults


# Missing pixels

MASKED: list[tuple[str, dict[str, Any]]] = [
    ("skill", {"convention": "correct", "pool": (1, 4), "fss_windows": (3,)}),
    ("skill", {"convention": "upstream", "pool": (1, 4), "fss_windows": (3,)}),
    ("mse", {"convention": "correct"}),
    ("mae", {"convention": "correct"}),
    ("frames", {"convention": "correct", "scale": 255.0}),
    ("probabilistic", {"convention": "correct"}),
    ("probabilistic", {"convention": "upstream"}),
    ("frechet", {}),
    ("energy", {}),
]
"""`upstream` has no rule for errors, one missing pixel makes them undefined; nor has `enso`, whose tasks have none."""


@pytest.mark.parametrize(("name", "options"), MASKED)
def test_a_wholly_missing_sequence_is_excluded(name: str, options: dict[str, Any]) -> None:
    arguments = _arguments(name)
    arguments[1][2] = math.nan
    found, expected = bench.load_metric(name, **options), bench.load_metric(name, **options)
    found.update(*arguments)
    expected.update(*_part(name, arguments, [0, 1, 3, 4, 5]))
    assert _same(found.compute(), expected.compute()) and not all(map(math.isnan, found.compute().values()))


@pytest.mark.parametrize(("name", "options"), MASKED)
def test_batches_of_any_size_add_up(name: str, options: dict[str, Any]) -> None:
    arguments = _arguments(name)
    if name not in ("frechet", "energy"):
        arguments[1][torch.rand(arguments[1].shape, generator=torch.Generator().manual_seed(1)) < 0.001] = math.nan
    arguments[1][0, 1:3], arguments[1][4] = math.nan, math.nan
    whole, single = bench.load_metric(name, **options), bench.load_metric(name, **options)
    whole.update(*arguments)
    for row in range(ROWS):
        single.update(*_part(name, arguments, [row]))
    assert _same(single.compute(), whole.compute(), rel=1e-6 if name == "frechet" else 1e-12)  # a singular covariance


@pytest.mark.parametrize(("name", "options"), [case for case in MASKED if case[0] not in ("frechet", "energy")])
def test_missing_rows_equal_cropped_frames(name: str, options: dict[str, Any]) -> None:
    options = {key: value for key, value in options.items() if key not in ("pool", "fss_windows")}
    forecast, target = _arguments(name)
    cut = (*([slice(None)] * 2), slice(0, 12))
    expected = bench.load_metric(name, **options)
    expected.update(forecast[(slice(None), *cut)] if forecast.dim() == 6 else forecast[cut], target[cut])
    target[:, :, 12:] = math.nan
    found = bench.load_metric(name, **options)
    found.update(forecast, target)
    # an image with missing pixels has no structural similarity, and a summed frame has the size of a complete one
    scores = {key for key in expected.compute() if "ssim" not in key and "frame_sum" not in key}
    results = [{key: value for key, value in each.compute().items() if key in scores} for each in (found, expected)]
    assert _same(*results)


def test_only_correct_skill_excludes_missing_codes() -> None:
    forecast = torch.full((1, 1, 16, 16, 1), 100, dtype=torch.uint8)
    target = torch.full_like(forecast, 255)
    target[:, :, :8] = 20
    for dtype in (torch.uint8, torch.int64, torch.float32):
        counted = {}
        for convention in ("correct", "upstream"):
            metric = bench.load_metric("skill", thresholds=[16], convention=convention)
            metric.update(forecast.to(dtype), target.to(dtype))
            counted[convention] = int(metric.hits)
        assert counted == {"correct": 128, "upstream": 256}
