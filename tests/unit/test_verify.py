from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import bench
from bench.cli.main import main
from bench.records.schema import RunRecord
from bench.records.store import write_record
from bench.records.verify import verify_file, verify_records
from bench.tables import load_table
from bench.tables.render import write_renderings


@pytest.fixture(scope="module")
def record(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


def test_a_record_as_it_was_written_keeps_every_rule(record: RunRecord, tmp_path: Path) -> None:
    write_record(record, tmp_path)
    assert verify_records(tmp_path) == (1, [])


def _fields(record: RunRecord, root: Path, change: Callable[[dict], object], *, sealed: bool = True) -> set[str]:
    """What is found in a record that was changed; sealed again, as somebody with the code at hand could."""
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


def test_a_metric_counted_over_all_members_is_a_registered_one(record: RunRecord, tmp_path: Path) -> None:
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
def test_selection_and_training_keep_to_their_splits(
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
def test_a_torn_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "runs/sevir/unet/torn.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (finding,) = verify_file(path)
    assert finding.field == "file" and finding.path == path


def test_what_is_no_record_and_what_is_there_twice(record: RunRecord, tmp_path: Path) -> None:
    path = write_record(record, tmp_path)
    (path.parent / ".x.part").write_text("")
    twin = tmp_path / "runs/sevir/unet" / path.name
    twin.parent.mkdir()
    twin.write_bytes(path.read_bytes())
    fields = {finding.field for finding in verify_records(tmp_path)[1]}
    assert {"file", "run_id", "model.name"} <= fields


def test_the_command(record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_record(record, tmp_path)
    write_renderings(load_table("runs/sevir"), tmp_path)
    assert main(["verify", "--results", str(tmp_path)]) == 0
    assert "1 records" in capsys.readouterr().out
    rendering = tmp_path / "tables/runs_sevir.md"
    rendering.write_text(rendering.read_text().replace("persistence", "my_model"))
    assert main(["verify", "--results", str(tmp_path)]) == 4
    assert f"{rendering} differs from a fresh rendering" in capsys.readouterr().err
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1', 1))
    assert main(["verify", "--results", str(tmp_path), "--format", "json"]) == 4
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"path": str(path), "field": "sha256"}.items() <= findings[0].items()


def test_statistics_are_those_that_the_record_names(record: RunRecord, tmp_path: Path) -> None:
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
