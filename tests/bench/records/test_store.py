from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from old_records import RECORD_OF_SCHEMA_2
from pydantic import ValidationError

import bench
from bench.engine.evaluate import failed_record
from bench.errors import DataError, RunFailedError
from bench.files import check_writable
from bench.records.schema import SCHEMA_VERSION, RunRecord, split_scores
from bench.records.store import read_record, read_records, write_record


@pytest.fixture(scope="module")
def record(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


def _again(record: RunRecord, number: int) -> RunRecord:
    return record.model_copy(update={"run_id": f"{record.run_id}-{number:03d}"})


def test_a_record_describes_the_run(record: RunRecord) -> None:
    assert record.scope == "full" and record.status == "ok" and record.task.is_default and record.model.is_preset
    assert record.data is not None and record.data.origin == "synthetic storms" and record.data.sequence_count == 9
    assert record.conventions["skill"]["convention"] == "upstream"
    assert set(record.versions) >= {"python", "torch", "lightning", "numpy"}
    assert len(record.scores_per_lead["csi_m"]) == len(record.scores_per_lead["mse"]) == 12
    assert record.counts is not None and len(record.counts["hits"]) == 12
    assert record.content_sha256() == record.sha256


def test_a_record_round_trips_and_leaves_no_temporary_file(record: RunRecord, tmp_path: Path) -> None:
    path = write_record(record, tmp_path)
    assert path == tmp_path / "runs/sevir/persistence" / f"{record.run_id}.json"
    assert read_record(path) == record.sealed()
    assert {p.name for p in path.parent.iterdir()} == {path.name, path.with_suffix(".npz").name}


def test_a_record_of_an_older_schema_is_read_and_verified() -> None:
    content = json.loads(RECORD_OF_SCHEMA_2.read_text())
    assert content["schema_version"] == 2
    read = read_record(RECORD_OF_SCHEMA_2)
    assert (read.schema_version, read.run_id, read.scores) == (SCHEMA_VERSION, content["run_id"], content["scores"])


def test_records_are_never_replaced(record: RunRecord, tmp_path: Path) -> None:
    path = write_record(record, tmp_path)
    before = path.read_bytes()
    with pytest.raises(RunFailedError, match="cannot be written"):
        write_record(record, tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["scores"].update(csi_m=0.99), "tampered"),
        (lambda c: c.update(schema_version=SCHEMA_VERSION + 1), "newer earthbench"),
        (lambda c: c.update(note="hand-written"), "unknown key"),
        (lambda c: c.update(schema_version=0), "not a valid record"),
        (lambda c: c.pop("scores"), "missing"),
    ],
)
def test_a_changed_file_is_skipped_and_named(record: RunRecord, tmp_path: Path, change, words: str) -> None:
    good, bad = write_record(_again(record, 1), tmp_path), write_record(_again(record, 2), tmp_path)
    content = json.loads(bad.read_text())
    change(content)
    bad.write_text(json.dumps(content))
    records, problems = read_records(tmp_path)
    assert [r.run_id for r in records] == [good.stem]
    assert len(problems) == 1 and words in problems[0] and bad.name in problems[0]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}'])
def test_a_truncated_record_is_skipped(record: RunRecord, tmp_path: Path, text: str) -> None:
    (tmp_path / "runs/sevir/unet").mkdir(parents=True)
    (tmp_path / "runs/sevir/unet/torn.json").write_text(text)
    assert read_records(tmp_path)[0] == [] and len(read_records(tmp_path)[1]) == 1


def test_an_unwritable_root_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"results\.root"):
        check_writable(tmp_path / "file", "results.root")


def test_undefined_scores_are_null_with_a_reason() -> None:
    overall, per_lead, undefined = split_scores(
        {"csi_m": 0.5, "csi_219": math.nan, "csi_m_lead_2": 0.2, "csi_m_lead_1": math.inf}
    )
    assert overall == {"csi_m": 0.5, "csi_219": None} and per_lead == {"csi_m": [None, 0.2]}
    assert set(undefined) == {"csi_219", "csi_m_lead_1"}


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_scores_do_not_depend_on_the_batch_size(storms: Path, record: RunRecord, batch_size: int) -> None:
    again = bench.evaluate("persistence", bench.load_task("sevir", storms), batch_size=batch_size, device="cpu")
    assert again.counts == record.counts
    assert again.scores["mse"] == pytest.approx(record.scores["mse"], rel=1e-12)
    assert again.data == record.data


def test_a_limit_makes_a_partial_record(storms: Path) -> None:
    record = bench.evaluate("persistence", bench.load_task("sevir", storms), limit=2, device="cpu")
    assert record.scope == "partial" and record.data is not None and record.data.sequence_count == 2
    assert record.scope_because == "limit=2 of 9 sequences"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scope": "nonsense"}, "scope"),
        ({"status": "done"}, "status"),
        ({"seed": "first"}, "seed"),
        ({"scores": {"mse": math.nan}}, "scores.mse"),
        ({"run_id": "../up"}, "run_id"),
    ],
)
def test_a_record_is_validated_before_writing(record: RunRecord, tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(DataError, match=words):
        write_record(record.model_copy(update=changes), tmp_path)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("broken", [{"scope": "nonsense"}, {"status": "maybe"}, {"counts": {"hits": [[0.5]]}}])
def test_an_invalid_record_cannot_be_constructed(record: RunRecord, broken: dict) -> None:
    with pytest.raises(ValidationError):
        RunRecord(**{**record.model_dump(), **broken})


def test_a_failed_run_has_a_record_without_scores(storms: Path) -> None:
    task = bench.load_task("sevir", storms)
    model = bench.load_model("persistence", task)
    failed = failed_record(
        model, task, {"config": {}, "config_fingerprint": "0" * 64, "seed": 0}, phase="training", message="no"
    )
    assert failed.status == "failed" and failed.failure is not None and failed.failure.message == "no"
    assert failed.scope == "partial" and failed.data is None and not failed.scores and failed.statistics is None
    assert RunRecord.model_validate(failed.model_dump()) == failed
