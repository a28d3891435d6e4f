from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from official import trained_with
from torch import Tensor, nn

import bench
from bench.cli.main import main
from bench.metrics.enso.formulas import moments
from bench.metrics.enso.metric import index_scores
from bench.records import rules
from bench.records.rescoring import allowed, scores_of
from bench.records.schema import (
    MetricStatistics,
    RunRecord,
    SourcePart,
    SplitPart,
    StatisticsPart,
    TrainingIdentity,
)
from bench.records.statistics import read_arrays
from bench.records.store import read_record, write_record
from bench.records.verify import verify_file, verify_records
from bench.tables import load_table
from bench.tables.render import write_renderings


@pytest.fixture(scope="module")
def record(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


def test_a_written_record_satisfies_every_rule(record: RunRecord, tmp_path: Path) -> None:
    write_record(record, tmp_path)
    assert verify_records(tmp_path) == (1, [])


def _fields(record: RunRecord, root: Path, change: Callable[[dict], object], *, sealed: bool = True) -> set[str]:
    """Detection of changes in a record that was resealed, as anybody with the code could do."""
    path = write_record(record, root)
    content = json.loads(path.read_text())
    change(content)
    if sealed:
        content = RunRecord.model_validate(content).sealed().model_dump(mode="json")
    path.write_text(json.dumps(content))
    return {finding.field for finding in verify_file(path)}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda c: c["scores"].update(csi_m=0.99), "scores.csi_m"),
        (lambda c: c["scores"].update(csi_219=0.5), "scores.csi_219"),
        (lambda c: c["scores"].update(mse=0.5), "scores.mse"),
        (lambda c: c["scores_per_lead"]["csi_74"].__setitem__(3, 0.5), "scores_per_lead.csi_74"),
        (lambda c: c["counts"]["hits"][0].__setitem__(0, -1), "counts.hits"),
        (lambda c: c["counts"]["misses"].pop(), "counts.misses"),
        (lambda c: c["config"].update(split="val"), "config_fingerprint"),
        (lambda c: c["data"]["identity"].update(origin="files"), "data.fingerprint"),
        (lambda c: c["data"].update(sequence_count=8), "scope"),
        (lambda c: c.update(scope="partial"), "scope_because"),
        (lambda c: c.update(status="failed"), "failure"),
        (lambda c: c["task"].update(version=7), "task.version"),
        (lambda c: c["conventions"].update(beauty={}), "conventions.beauty"),
        (lambda c: c["scores"].update(csi_m=None), "scores.csi_m"),
        (lambda c: c["undefined"].update(mse="no"), "scores.mse"),
        (lambda c: c["model"].update(name="unet"), "model.name"),
        (lambda c: c.update(run_id="other"), "run_id"),
    ],
)
def test_a_field_that_breaks_a_rule_is_named(record: RunRecord, tmp_path: Path, change, field: str) -> None:
    assert field in _fields(record, tmp_path, change)


def test_a_metric_over_all_members_is_registered(record: RunRecord, tmp_path: Path) -> None:
    assert not _fields(record, tmp_path, lambda c: c["conventions"].update(mse_members=c["conventions"]["mse"]))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda c: c["hardware"].update(cores=999), "sha256"),
        (lambda c: c["scores"].update(hss_m=0.1), "sha256"),
        (lambda c: c["scores"].update(mse=float("nan")), "scores.mse"),
        (lambda c: c["hardware"].update(cores=float("inf")), "hardware.cores"),
        (lambda c: c.update(schema_version=99), "schema_version"),
        (lambda c: c.update(note="by hand"), "note"),
        (lambda c: c.pop("seed"), "seed"),
        (lambda c: c["task"].update(name="../x"), "task.name"),
    ],
)
def test_an_edit_by_hand_is_named(record: RunRecord, tmp_path: Path, change, field: str) -> None:
    assert field in _fields(record, tmp_path, change, sealed=False)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({}, None),
        ({"data_fingerprint": "same"}, "training.data_fingerprint"),
        ({"monitor": "test/loss"}, "training.monitor"),
        ({"settings": {"limit": 4}}, "scope"),
    ],
)
def test_selection_and_training_use_their_splits(
    record: RunRecord, tmp_path: Path, change: dict, field: str | None
) -> None:
    fields = {
        "settings": {"limit": None}, "data_fingerprint": "f" * 64, "data_origin": "files", "sequence_count": 3,
        "validation_sequence_count": 1, "epochs": 1, "steps": 1, "resumed_count": 0, "stopped_because": "max_epochs",
        "monitor": "val/loss", "best_score": None, "weights": "last", "averaged": False, "final_loss": 1.0,
        "wall_s": 1.0, **change,
    }  # fmt: skip
    if fields["data_fingerprint"] == "same":
        fields["data_fingerprint"] = record.data.fingerprint
    found = _fields(record, tmp_path, lambda c: c.update(training=fields, checkpoint_sha256="0" * 64))
    assert found == ({field} if field else set())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1"])
def test_a_truncated_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "runs/sevir/unet/torn.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (finding,) = verify_file(path)
    assert finding.field == "file" and finding.path == path


def test_files_that_are_not_records_and_duplicates_are_found(record: RunRecord, tmp_path: Path) -> None:
    path = write_record(record, tmp_path)
    (path.parent / ".x.part").write_text("")
    twin = tmp_path / "runs/sevir/unet" / path.name
    twin.parent.mkdir()
    twin.write_bytes(path.read_bytes())
    fields = {finding.field for finding in verify_records(tmp_path)[1]}
    assert {"file", "run_id", "model.name"} <= fields


def test_verify_command(record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_record(record, tmp_path)
    write_renderings(load_table("runs/sevir"), tmp_path)
    assert main(["verify", "--results", str(tmp_path)]) == 0
    assert "1 record," in capsys.readouterr().out
    rendering = tmp_path / "tables/runs_sevir.md"
    rendering.write_text(rendering.read_text().replace("persistence", "my_model"))
    assert main(["verify", "--results", str(tmp_path)]) == 4
    assert f"{rendering} differs from a fresh rendering" in capsys.readouterr().err
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    assert main(["verify", "--results", str(tmp_path), "--format", "json"]) == 4
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"path": str(path), "field": "sha256"}.items() <= findings[0].items()


def test_statistics_match_the_record(record: RunRecord, tmp_path: Path) -> None:
    path = write_record(record, tmp_path)
    statistics = path.with_suffix(".npz")
    assert statistics.is_file() and not list(verify_file(path))
    statistics.write_bytes(statistics.read_bytes()[:-40])
    assert {finding.field for finding in verify_file(path)} == {"statistics.content_sha256"}
    statistics.unlink()
    assert {finding.field for finding in verify_file(path)} == {"statistics"}
    stray = path.parent / "stray.npz"
    stray.write_bytes(b"")
    assert stray in {finding.path for finding in verify_records(tmp_path)[1]}


def test_the_committed_results_verify(committed_results: Path) -> None:
    assert main(["verify", "--results", str(committed_results)]) == 0


def _halve(content: dict, score: str) -> None:
    content["scores"][score] *= 0.5
    content["scores_per_lead"][score] = [value * 0.5 for value in content["scores_per_lead"][score]]


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (lambda c: _halve(c, "mse"), {"scores.mse", "scores_per_lead.mse"}),
        (lambda c: _halve(c, "mae"), {"scores.mae", "scores_per_lead.mae"}),
        *(
            (lambda c, name=f"{score}_{end}": c["scores"].update({name: 0.9}), {f"scores.{score}_{end}"})
            for score in ("pod", "sucr", "far", "bias", "hss", "bias_upstream")
            for end in ("m", "74", "m_per_lead_mean")
        ),
        (lambda c: c["scores_per_lead"]["hss_m"].__setitem__(2, 0.9), {"scores_per_lead.hss_m"}),
        (lambda c: c["scores_per_lead"]["mse"].pop(), {"scores_per_lead.mse"}),
        (lambda c: c["scores"].update(ssim=0.99), {"scores.ssim"}),
        (lambda c: c["scores_per_lead"].update(ssim=[0.9]), {"scores_per_lead.ssim"}),
        (lambda c: c["counts"]["hits"][0].__setitem__(0, c["counts"]["hits"][0][0] + 1), {"counts"}),
        (lambda c: c["statistics"]["metrics"]["mse"]["options"].update(scale=510.0), {
            "statistics.metrics.mse.options.scale", "scores.mse", "scores_per_lead.mse"}),
        (lambda c: c["statistics"]["metrics"]["mse"]["options"].update(scale="x"), {
            "statistics.metrics.mse.options.scale", "statistics.metrics.mse"}),
        (lambda c: c["statistics"]["metrics"]["skill"]["options"].pop("pools"), {"statistics.metrics.skill"}),
        (lambda c: c["conventions"].pop("mae"), {"statistics.metrics.mae"}),
        (lambda c: c["statistics"].update(unit_count=4), {"statistics.content_sha256"}),
        (lambda c: c.update(statistics=None), {"statistics"}),
    ],
)  # fmt: skip
def test_a_forged_score_with_a_valid_hash_is_found(
    record: RunRecord, tmp_path: Path, change: Callable[[dict], object], fields: set[str]
) -> None:
    found = _fields(record, tmp_path, change)
    assert fields <= found and (len(fields) == 1 or found - fields <= {"scores.mse"}), found


def test_scores_are_recomputed_from_counts(record: RunRecord, tmp_path: Path) -> None:
    path = write_record(record.model_copy(update={"statistics": None}).with_arrays(None), tmp_path)
    assert not list(verify_file(path))
    content = json.loads(path.read_text())
    content["scores"].update(hss_m=0.9, csi_m=0.9)
    content["scores_per_lead"]["far_74"][1] = 0.9
    content = RunRecord.model_validate(content).sealed().model_dump(mode="json")
    path.write_text(json.dumps(content))
    assert {one.field for one in verify_file(path)} == {"scores.hss_m", "scores.csi_m", "scores_per_lead.far_74"}


@pytest.mark.parametrize("task", ["enso_ersst", "nbody_mnist", "radar"])
def test_every_score_determined_by_sums_is_checked(committed_results: Path, tmp_path: Path, task: str) -> None:
    """Changes every score of one committed record of each kind in turn."""
    path = sorted((committed_results / "runs" / task / "unet").glob("*.json"))[0]
    record = read_record(path)
    arrays = read_arrays(record)
    assert arrays is not None and record.data is not None
    no_sums = {"nino34_label_difference"}  # a maximum over pixels
    forged = {name: (value or 0.0) * 1.001 + 1e-3 for name, value in record.scores.items() if name not in no_sums}
    for name, value in forged.items():
        scores = {**record.scores, name: value}
        found = {field for field, _ in rules.statistics(record.model_copy(update={"scores": scores}), arrays)}
        assert found == {f"scores.{name}"}
    for name, values in record.scores_per_lead.items():
        per_lead = {**record.scores_per_lead, name: [*values[:-1], (values[-1] or 0.0) * 1.001 + 1e-3]}
        changed = record.model_copy(update={"scores_per_lead": per_lead})
        assert f"scores_per_lead.{name}" in {field for field, _ in rules.statistics(changed, arrays)}
    if task != "radar":  # whose sums are of pixels
        data = record.data.model_copy(update={"sequence_count": record.data.sequence_count + 1})
        found = {field for field, _ in rules.statistics(record.model_copy(update={"data": data}), arrays)}
        assert found == {"data.sequence_count"}


def test_the_scores_of_an_ensemble_are_checked(storms: Path, tmp_path: Path) -> None:
    ensemble = bench.evaluate(_Noisy(), bench.load_task("sevir", storms), device="cpu", members=2)
    path = write_record(ensemble, tmp_path)
    found = {one.field for one in verify_file(path)}
    assert not found, found
    for name in ("crps", "crps_fair", "bss_74", "brier_m", "spread_skill_ratio", "mse_members", "csi_m_members"):
        content = json.loads(path.read_text())
        content["scores"][name] = 0.123
        content["undefined"].pop(name, None)
        path.with_name("x.json").write_text(json.dumps(RunRecord.model_validate(content).sealed().model_dump()))
        path.with_name("x.npz").write_bytes(path.with_suffix(".npz").read_bytes())
        assert f"scores.{name}" in {one.field for one in verify_file(path.with_name("x.json"))}


class _Noisy(nn.Module):
    def forward(self, context: Tensor) -> Tensor:
        return context[:, -1:].repeat(1, 12, 1, 1, 1)

    def sample(self, context: Tensor, *, members: int, generator: torch.Generator) -> Tensor:
        calm = self(context)
        return calm + 0.1 * torch.randn((members, *calm.shape), generator=generator)


def test_a_correlation_may_differ_by_round_off_only() -> None:
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(500, 3))
    events = np.repeat(np.arange(5), 100)
    metric = MetricStatistics(family="correlation", options={"convention": "correct"})
    part = StatisticsPart(kind="event", unit_count=5, units_sha256="", metrics={"enso": metric}, content_sha256="")
    for spread in (1.0, 1e-3, 1e-5):
        predicted = 1 + spread * (observed + rng.normal(size=observed.shape))
        sums = {f"enso.{name}": values for name, values in moments(predicted, observed, events, 5).items()}
        again, totals = scores_of(part, "enso", sums)
        slack, own = allowed(metric, totals), index_scores(predicted, observed, "correct")
        for name, value in again.items():
            assert abs(own[name] - value) <= slack[name] + 1e-12
            assert slack[name] <= 1e-11 / spread**2, "as fine as the sums are"
    constant = {f"enso.{name}": values for name, values in moments(observed * 0 + 0.1, observed, events, 5).items()}
    assert math.isnan(allowed(metric, scores_of(part, "enso", constant)[1])["c_nino34_lead_1"])


@pytest.mark.parametrize(
    ("source", "digest", "fields"),
    [("model", "b", {"code.sources.model"}), ("harness", "b", set()), ("model", "a", set()), ("metric x", "b", set())],
)
def test_weights_are_evaluated_by_the_code_that_trained_them(
    record: RunRecord, source: str, digest: str, fields: set[str]
) -> None:
    def part(sha256: str) -> SourcePart:
        return SourcePart(module="m", origin="m.py", version=None, commit=None, dirty=None, sha256=sha256 * 64)

    split = SplitPart(fingerprint="f" * 64, event_count=1, sequence_count=1)
    identity = TrainingIdentity(
        model="persistence", hyperparameters={}, task="sevir", task_version=1, task_fields={}, settings={}, seed=0,
        train=split, val=None, sources={source: part("a")}, libraries={},
    )  # fmt: skip
    training = trained_with({"limit": None}, identity=identity)
    used = {} if source == "metric x" else {source: part(digest)}
    code = record.code.model_copy(update={"sources": used})
    changed = record.model_copy(update={"training": training, "code": code})
    assert {field for field, _ in rules.same_code(changed)} == fields
