"""Ensembles in evaluations, statistics per event, intervals and comparisons from them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import bench
from bench.data.sequences import PlainSequences, Units, events_of
from bench.data.sevir.synthetic import make_sevir
from bench.engine.ensembles import Ensemble, draw_members, member_seed, scorings_of
from bench.errors import ConfigError, ContractError, DataError
from bench.metrics.resampling import MIN_EVENTS, jackknife_interval, scale_of
from bench.records import compare, interval, read_record, write_record
from bench.records.rescoring import scores_of
from bench.records.schema import SCHEMA_VERSION, MetricStatistics, RunRecord, StatisticsPart, content_sha256
from bench.records.uncertainty import paired_p_values, why_no_interval


class Noisy(nn.Module):
    """Draws the last frame with noise, which depends only on the generator."""

    def __init__(self, width: float = 0.1) -> None:
        super().__init__()
        self.width = width

    def forward(self, context: Tensor) -> Tensor:
        return context[:, -1:].repeat(1, 12, 1, 1, 1)

    def sample(self, context: Tensor, *, members: int, generator: torch.Generator) -> Tensor:
        calm = self(context)
        return calm + self.width * torch.randn((members, *calm.shape), generator=generator)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("many") / "sevir"
    return bench.load_task("sevir", make_sevir(root, events={"train": 0, "val": 0, "test": 6}, size=16, seed=3))


@pytest.fixture(scope="module")
def plain(task) -> RunRecord:
    return bench.evaluate("persistence", task, device="cpu")


@pytest.fixture(scope="module")
def noisy(task) -> RunRecord:
    return bench.evaluate(Noisy(), task, device="cpu", members=3, batch_size=4)


def test_statistics_reproduce_every_score(plain: RunRecord, noisy: RunRecord) -> None:
    for record in (plain, noisy):
        assert record.statistics is not None and record.statistics.unit_count == 6
        found: dict[str, float] = {}
        for name in record.statistics.metrics:
            found |= scores_of(record.statistics, name, record.arrays)[0]
        flat = dict(record.scores)
        for score, leads in record.scores_per_lead.items():
            flat |= {f"{score}_lead_{lead}": value for lead, value in enumerate(leads, start=1)}
        # the distance of distributions is one number of all clips: there is nothing of it per event
        flat = {name: value for name, value in flat.items() if not name.startswith("frechet_")}
        assert set(found) == set(flat)
        for name, value in flat.items():
            assert found[name] == pytest.approx(math.nan if value is None else value, rel=1e-12, nan_ok=True), name


def test_an_ensemble_is_scored_by_mean_by_members_and_as_a_whole(task, noisy: RunRecord, plain: RunRecord) -> None:
    scores = noisy.scores
    assert noisy.members is not None and (noisy.members.count, noisy.members.seed) == (3, 0)
    assert {"mse", "mse_members", "csi_m", "csi_m_members", "crps", "crps_fair", "bss_74"} <= set(scores)
    assert scores["frechet_storm_clip_count"] == 3 * noisy.data.sequence_count and scores["frechet_storm"] > 0
    assert "mse_members" in noisy.scores_per_lead and noisy.conventions["probabilistic"]["scale"] == 255.0
    # noise of 0.1 adds 0.01 to the error of each member, a third of it to that of their mean
    assert scores["mse_members"] - plain.scores["mse"] == pytest.approx(0.01, rel=0.1)
    assert scores["mse"] - plain.scores["mse"] == pytest.approx(0.01 / 3, rel=0.2)
    assert scores["rmse_of_mean"] ** 2 == pytest.approx(scores["mse"], rel=1e-6)
    assert len(noisy.curves["rank_histogram"]["frequency"]) == 4 and len(noisy.curves["reliability_74"]["count"]) == 4


def test_members_depend_on_the_seed_and_not_on_the_batch_size(task, noisy: RunRecord) -> None:
    again = bench.evaluate(Noisy(), task, device="cpu", members=3, batch_size=1)
    assert again.counts == noisy.counts and again.curves == noisy.curves
    for name, value in noisy.scores.items():
        # with few clips the covariance of their features is singular, and its root magnifies the order of summation
        rel = 1e-6 if name == "frechet_storm" else 1e-9
        assert again.scores[name] == pytest.approx(value, rel=rel, nan_ok=True), name
    other = bench.evaluate(Noisy(), task, device="cpu", members=3, limit=2, member_seed=1)
    same = bench.evaluate(Noisy(), task, device="cpu", members=3, limit=2)
    assert other.scores["crps"] != same.scores["crps"]


def test_a_deterministic_model_may_be_scored_as_an_ensemble_of_one(task, plain: RunRecord) -> None:
    record = bench.evaluate("persistence", task, device="cpu", members=1)
    assert record.scores["crps"] == pytest.approx(plain.scores["mae"], rel=1e-12)
    assert record.scores["crps_fair"] is None and "mse_members" not in record.scores
    assert record.scores["mse"] == plain.scores["mse"] and plain.members is None
    with pytest.raises(ConfigError, match="deterministic"):
        bench.evaluate("persistence", task, device="cpu", members=2)
    with pytest.raises(ConfigError, match="members=0"):
        bench.evaluate("persistence", task, device="cpu", members=0)


def test_a_forecast_that_is_not_an_ensemble_is_refused(task) -> None:
    class Flat(Noisy):
        def sample(self, context: Tensor, *, members: int, generator: torch.Generator) -> Tensor:
            return self(context)

    with pytest.raises(ContractError, match=r"Flat.sample returned .* expected \(M, B, T, H, W, C\) = \(2, 1, 12"):
        bench.evaluate(Flat(), task, device="cpu", members=2)


def test_models_with_seeds_draw_a_batch_at_once(task) -> None:
    calls: list[tuple[int, Any]] = []

    class Seeded(Noisy):
        def sample(self, context: Tensor, *, members: int, seeds: Tensor) -> Tensor:  # type: ignore[override]
            calls.append((len(context), seeds.tolist()))
            return torch.zeros(members, len(context), *task.target_shape)

    class Single(Noisy):
        def sample(self, context: Tensor, *, members: int, generator: torch.Generator) -> Tensor:
            calls.append((len(context), generator.initial_seed()))
            assert generator.device.type == "cpu"
            return torch.zeros(members, 1, *task.target_shape)

    context, indices = torch.rand(3, *task.input_shape), torch.tensor([5, 0, 2])
    for model in (Seeded(), Single()):
        assert draw_members(model, context, indices, Ensemble(2, seed=9), task.target_shape).shape[:2] == (2, 3)
    together, *alone = calls
    assert together[0] == 3 and [size for size, _ in alone] == [1, 1, 1]
    assert together[1] == [seed for _, seed in alone] == [member_seed(9, index) for index in (5, 0, 2)]
    assert len({*together[1]}) == 3 and all(0 <= seed < 2**63 for seed in together[1])
    elsewhere = draw_members(Single(), context.to("meta"), indices, Ensemble(2), task.target_shape)
    assert elsewhere.is_meta  # what it drew on the CPU is where the context is


def test_drawing_on_another_device_than_the_generator_is_refused(task) -> None:
    class OnDevice(Noisy):
        def sample(self, context: Tensor, *, members: int, generator: torch.Generator) -> Tensor:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")

    with pytest.raises(ContractError, match=r"device=generator\.device"):
        bench.evaluate(OnDevice(), task, device="cpu", members=2)


def test_a_task_without_thresholds_has_no_brier_score() -> None:
    options = scorings_of(bench.load_task("icar_enso"), bench.engine.ensembles.Ensemble(2))["probabilistic"].options
    assert options["thresholds"] == [] and options["scale"] == pytest.approx(26.748097, abs=1e-5)


def _made(plain: RunRecord, values: np.ndarray, *, seed: int = 0, kind: str = "event") -> RunRecord:
    """A record whose statistics are one squared error per event, of one pixel each."""
    arrays = {"mse.error_sum": values[:, None], "mse.pixel_count": np.ones((len(values), 1), np.int64)}
    options = {"score": "mse", "scale": 1.0, "convention": "correct"}
    metric = MetricStatistics(family="errors", options=options)
    part = StatisticsPart(
        kind=kind,
        unit_count=len(values),
        units_sha256=f"{len(values)}",
        metrics={"mse": metric},
        content_sha256="0" * 64,
    )
    changes = {"statistics": part, "scores": {"mse": float(values.mean())}, "seed": seed, "run_id": f"made-{seed}"}
    return plain.model_copy(update=changes).with_arrays(arrays)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, RunRecord]:
    """Twelve events, forecast by a good and by a worse model."""
    root = make_sevir(
        tmp_path_factory.mktemp("dozen") / "sevir", events={"train": 0, "val": 0, "test": 12}, size=16, seed=5
    )
    dozen = bench.load_task("sevir", root)
    return bench.evaluate("persistence", dozen, device="cpu"), bench.evaluate(Noisy(), dozen, device="cpu", members=3)


def test_an_interval_equals_the_jackknife_definition(many: tuple[RunRecord, RunRecord]) -> None:
    """Recomputed here: leave out each event, sum the counts of the others, compute the score."""
    plain, _ = many
    hits, misses, alarms = (
        np.asarray(plain.arrays[f"skill.{name}"], np.int64)[:, :, 1].sum(1)
        for name in ("hits", "misses", "false_alarms")
    )
    of = [np.delete(np.stack([hits, hits + misses + alarms]), event, 1).sum(1) for event in range(12)]
    without = np.array([h / (over + 1e-4) for h, over in of])
    expected = [float(end) for end in jackknife_interval(plain.scores["csi_74"], without, scale=scale_of("csi_74"))]
    low, high = interval(plain, "csi_74")
    assert (low, high) == pytest.approx(expected, rel=1e-9) and 0 < low < plain.scores["csi_74"] < high < 1
    narrow = interval(plain, "csi_74", level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert interval(plain, "mse_lead_3") is not None and why_no_interval(plain, "mse_lead_3") == ""


@pytest.mark.parametrize("kind", ["event", "block"])
def test_fewer_than_ten_events_have_no_interval(plain: RunRecord, kind: str) -> None:
    values = np.linspace(1, 2, MIN_EVENTS)
    assert MIN_EVENTS == 10 and interval(_made(plain, values, kind=kind), "mse") is not None
    few = _made(plain, values[1:], kind=kind)
    assert interval(few, "mse") is None
    assert why_no_interval(few, "mse") == f"9 {kind}s, and an interval needs 10 or more"
    found = compare(few, _made(plain, values[1:] + 0.1, seed=1, kind=kind), "mse")
    assert found.low is None and found.high is None and found.why_no_interval == why_no_interval(few, "mse")
    assert found.p_value == found.smallest_p == 2 / 2**9


def test_a_missing_interval_has_a_reason(plain: RunRecord, many: tuple[RunRecord, RunRecord]) -> None:
    full, _ = many
    assert why_no_interval(full, "no_such_score") == "the statistics per event are missing"
    assert why_no_interval(full.with_arrays(None), "mse") == "the statistics per event are missing"
    assert "end of its range" in why_no_interval(_made(plain, np.r_[np.zeros(11), 1.0]), "mse")
    assert why_no_interval(_made(plain, np.linspace(1, 2, 12)), "mse_pixel_count") == "a count is not an estimate"


def test_models_are_compared_on_the_same_events(plain: RunRecord, noisy: RunRecord) -> None:
    found = compare(noisy, plain, "mse")
    assert found.difference == pytest.approx(noisy.scores["mse"] - plain.scores["mse"], rel=1e-12)
    assert found.low is None and found.event_count == 6 and found.replicates == 64
    # two of all 2^6 permutations have a difference this large: no p-value can be smaller
    assert found.p_value == found.smallest_p == 2 / 64
    same = compare(plain, plain, "mse")
    assert same.difference == 0 and same.p_value == 1
    back = compare(plain, noisy, "mse")
    assert back.difference == -found.difference and back.p_value == found.p_value


def test_the_interval_of_a_difference_is_paired(plain: RunRecord, many: tuple[RunRecord, RunRecord]) -> None:
    rng = np.random.default_rng(0)
    weather, gain = rng.exponential(size=30), rng.uniform(0.1, 0.2, 30)
    a, b = _made(plain, weather + gain), _made(plain, weather, seed=1)
    found = compare(a, b, "mse")
    expected = stats.t.interval(0.95, 29, gain.mean(), stats.sem(gain))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)
    assert found.p_value == found.smallest_p == 1 / 1001 and found.why_no_interval == ""
    back = compare(b, a, "mse")
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low), rel=1e-9)
    same = compare(many[0], many[0], "csi_m")
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    worse = compare(many[1], many[0], "mse")
    assert 0 < worse.low < worse.difference < worse.high and worse.p_value < 0.005


def test_small_permutation_tests_are_exact(plain: RunRecord) -> None:
    """Differences of 3, 2, 1 and -1 with sum 5: counts the choices of signs, of sixteen, with a sum as large."""
    a, b = _made(plain, np.array([3.0, 2.0, 1.0, 0.0])), _made(plain, np.array([0.0, 0.0, 0.0, 1.0]), seed=1)
    signs = np.array(np.meshgrid(*[[1, -1]] * 4)).reshape(4, -1)
    expected = (np.abs(signs.T @ [3, 2, 1, -1]) >= 5).mean()
    found = compare(a, b, "mse")
    assert found.p_value == expected and found.smallest_p == 2 / 16


def test_models_with_several_seeds_are_tested_on_mean_scores(plain: RunRecord) -> None:
    weather = np.random.default_rng(1).exponential(size=8)
    model = [_made(plain, weather + 0.1 * seed, seed=seed) for seed in (1, 2, 3)]
    other = _made(plain, weather, seed=9)
    one_by_one = [compare(run, other, "mse").p_value for run in model]
    assert one_by_one == [2 / 256] * 3 and paired_p_values(model, [other], ["mse"]) == {"mse": 2 / 256}
    mixed = [_made(plain, weather + 0.1, seed=4), _made(plain, weather - 0.1, seed=5)]
    assert paired_p_values(mixed, [other], ["mse"]) == {"mse": 1.0}
    assert paired_p_values(model, [other], ["mse", "csi_m"]) == {"mse": 2 / 256}, "no statistics of csi_m"
    assert paired_p_values(model, [_made(plain, weather[:7], seed=9)], ["mse"]) == {}, "other events"


def test_runs_that_cannot_be_paired_are_refused(task, plain: RunRecord) -> None:
    half = bench.evaluate("persistence", task, device="cpu", limit=3)
    with pytest.raises(ConfigError, match="same events"):
        compare(plain, half, "mse")
    with pytest.raises(ConfigError, match="csi_m"):
        compare(plain, plain, "csi_n")
    with pytest.raises(ConfigError, match="no statistics"):
        compare(plain, plain.with_arrays(None), "mse")


def test_statistics_are_stored_beside_the_record_and_verified(
    many: tuple[RunRecord, RunRecord], tmp_path: Path
) -> None:
    plain, _ = many
    path = write_record(plain, tmp_path)
    record = read_record(path)
    assert record == plain and interval(record, "csi_74") == interval(plain, "csi_74") is not None
    beside = path.with_suffix(".npz")
    arrays = dict(np.load(beside))
    np.savez_compressed(beside, **{**arrays, "skill.hits": arrays["skill.hits"] + 1})
    with pytest.raises(DataError, match="tampered"):
        interval(record, "csi_74")
    beside.write_bytes(b"PK")
    with pytest.raises(DataError, match="not readable"):
        interval(record, "csi_74")
    beside.unlink()
    assert interval(record, "csi_74") is None


def test_a_record_of_the_first_schema_is_read(plain: RunRecord, tmp_path: Path) -> None:
    content = json.loads(plain.model_dump_json())
    for key in ("curves", "members", "statistics"):
        del content[key]
    content["schema_version"] = 1
    content["sha256"] = content_sha256(content)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(content))
    record = read_record(path)
    assert record.schema_version == SCHEMA_VERSION and record.scores == plain.scores and interval(record, "mse") is None
    content["scores"]["mse"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="tampered"):
        read_record(path)


def test_sequences_are_grouped_into_events() -> None:
    several = events_of(Units.events(("a", "b"), 3), window=25, used=6)
    assert several.kind == "event" and several.of_sequence.tolist() == [0, 0, 0, 1, 1, 1]
    assert events_of(Units.events(("a", "b"), 3), window=25, used=2).ids == ("a",)
    record = events_of(Units("record", ("model",), (60,)), window=26, used=60)
    assert record.kind == "block" and len(record.ids) == 3 and np.bincount(record.of_sequence).tolist() == [26, 26, 8]
    only = events_of(Units.events(("a",), 60), window=26, used=60)
    assert only.ids == ("a[0]", "a[1]", "a[2]") and events_of(Units.events(("a",)), window=2, used=1).ids == ("a",)
    uneven = Units("record", ("a", "b"), (3, 2))
    blocks = events_of(uneven, window=2, used=5)
    assert blocks.kind == "block" and blocks.ids == ("a[0]", "a[1]", "b[0]")
    assert blocks.of_sequence.tolist() == [0, 0, 1, 2, 2]
    assert events_of(uneven, window=2, used=2).ids == ("a[0]",)


class _Reader:
    """A metric of a plugin that declares nothing."""

    def __init__(self, ids: tuple[str, ...], count: int) -> None:
        self.ids, self.count = ids, count

    def __len__(self) -> int:
        return self.count


@pytest.mark.parametrize(
    ("ids", "count", "expected"),
    [
        (("a", "b"), 6, Units("event", ("a", "b"), (3, 3))),
        (("a", "b"), 5, Units("event", tuple(f"sequence {n}" for n in range(5)), (1,) * 5)),
        (("a",), 5, Units("event", ("a",), (5,))),
        (("1950-01", "1950-02", "1950-03"), 2, Units("record", ("1950-01..1950-03",), (2,))),
        ((), 2, Units("event", ("sequence 0", "sequence 1"), (1, 1))),
    ],
)
def test_a_data_set_without_units_gets_default_ones(ids, count, expected) -> None:
    assert PlainSequences(_Reader(ids, count)).units == expected


def test_intervals_need_no_torch() -> None:
    code = "import sys; from bench.records import interval, compare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
