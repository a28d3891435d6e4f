from __future__ import annotations

import json
import math
import shlex
from pathlib import Path

import pytest

import bench
from bench.cli.main import main
from bench.config import compose
from bench.errors import UnknownNameError
from bench.receipts import alternative_values, command_of, receipts_of
from bench.records.schema import RunRecord
from bench.records.store import write_record
from bench.tables import load_table


@pytest.fixture(scope="module")
def measured(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


def _with_counts(record: RunRecord, **counts: list[list[int]]) -> RunRecord:
    leads = len(next(iter(counts.values())))
    zero = [[0] * 6 for _ in range(leads)]
    states = ("hits", "misses", "false_alarms", "correct_negatives")
    return record.model_copy(update={"counts": {state: counts.get(state, zero) for state in states}})


def test_alternative_csi_conventions_follow_from_the_counts(measured: RunRecord) -> None:
    # lead 1: 1 hit of 2 everywhere; lead 2: 3 of 4; nothing at the highest threshold
    half, most = [1, 1, 1, 1, 1, 0], [3, 3, 3, 3, 3, 0]
    record = _with_counts(measured, hits=[half, most], misses=[half, [1, 1, 1, 1, 1, 0]])
    found = {reading.convention: reading for reading in alternative_values(record, "csi_m")}
    pooled, by_lead = 4 / 6, (1 / 2 + 3 / 4) / 2

    def value(*words: str) -> float:
        return next(r.value for name, r in found.items() if all(word in name for word in words))

    assert value("upstream", "pooled") == pytest.approx(5 * pooled / 6, abs=1e-4)
    assert value("correct", "pooled") == pytest.approx(pooled)
    assert value("upstream", "per lead") == pytest.approx(5 * by_lead / 6, abs=1e-4)
    assert value("correct", "per lead") == pytest.approx(by_lead)
    assert value("MIT") == pytest.approx((5 * pooled + 1) / 6)


def test_the_recorded_convention_is_among_the_alternatives(measured: RunRecord) -> None:
    for key in ("csi_m", "csi_74", "pod_16", "bias_m", "hss_133", "csi_m_per_lead_mean", "mse", "mae"):
        values = [reading.value for reading in alternative_values(measured, key)]
        assert any(value == pytest.approx(measured.scores[key], rel=1e-12) for value in values), key


def test_errors_scale_exactly(measured: RunRecord) -> None:
    unit, physical, frame = (reading.value for reading in alternative_values(measured, "mse"))
    assert physical == pytest.approx(unit * 255**2) and frame == pytest.approx(unit * 32 * 32)


def test_a_perfect_index_is_one_when_normalised(measured: RunRecord) -> None:
    record = measured.model_copy(update={"scores_per_lead": {"c_nino34": [1.0] * 12}})
    mean, weighted, normalised = (reading.value for reading in alternative_values(record, "c_nino34_wm"))
    assert (mean, normalised) == (1.0, 1.0) and weighted == pytest.approx(3.405859, abs=1e-6)


def test_a_score_without_counts_has_no_alternatives(measured: RunRecord) -> None:
    assert (
        alternative_values(measured, "ssim") == []
        and alternative_values(measured.model_copy(update={"counts": None}), "csi_m") == []
    )


def test_the_command_of_a_record_reproduces_its_config(measured: RunRecord) -> None:
    words = [
        "task=sevir",
        "task.t_out=6",
        "model=unet",
        "model.channels=[8,16]",
        "train.lr=0.01",
        "seed=3",
        "split=all",
    ]
    config = compose([*words, "data.root=/some/where", "data.batch_size=2"])
    record = measured.model_copy(update={"config": config.model_dump(mode="json"), "training": None})
    command = command_of(record)
    assert "data.root=DIR" in command and "/some/where" not in command
    again = compose([word for word in shlex.split(command)[2:] if not word.startswith("data.root")])
    given = config.model_copy(update={"data": config.data.model_copy(update={"root": None})})
    assert again == given


def test_an_empty_cell_shows_the_command_to_run(tmp_path: Path) -> None:
    (receipt,) = receipts_of(load_table("earthformer/sevir"), "convlstm", "csi_m", [], tmp_path)
    assert receipt.cell.status == "not run" and "authors" in receipt.published_sources[0]
    assert receipt.commands == ("earthbench reproduce earthformer/sevir/convlstm data.root=DIR",)


@pytest.mark.parametrize(("row", "column", "words"), [("unett", "csi_m", "'unet'"), ("unet", "csi_n", "'csi_m'")])
def test_a_wrong_name_gets_a_suggestion(tmp_path: Path, row: str, column: str, words: str) -> None:
    with pytest.raises(UnknownNameError, match=words):
        receipts_of(load_table("earthformer/sevir"), row, column, [], tmp_path)


def test_explain_prints_the_receipt(measured: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_record(measured, tmp_path)
    assert main(["explain", "runs/sevir", "persistence", "CSI-M", "--results", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "packages  " in text and (" -> " in text or "exactly the versions of constraints.txt" in text)
    for words in (
        str(path),
        str(measured.sha256),
        "synthetic storms",
        "convention=upstream",
        "mean of scores per lead",
    ):
        assert words in text
    assert main(["explain", "runs/sevir", "persistence", "csi_m", "--results", str(tmp_path), "--format", "json"]) == 0
    (receipt,) = json.loads(capsys.readouterr().out)
    assert math.isclose(receipt["cell"]["ours"], measured.scores["csi_m"]) and receipt["records"] == [str(path)]


def test_a_model_name_matches_its_variants_in_a_table_of_runs(measured: RunRecord, tmp_path: Path) -> None:
    model = measured.model.model_copy(update={"is_preset": False, "hyperparameters": {"note": "x"}})
    records = [measured, measured.model_copy(update={"run_id": "2026-x", "model": model})]
    found = receipts_of(load_table("runs/sevir"), "persistence", "csi_m", records, tmp_path)
    assert [len(receipt.records) for receipt in found] == [1, 1]
    assert {receipt.cell.row for receipt in found} == {"persistence", "persistence (note=x)"}
