"""Pictures of tables: their contents, and tables that cannot be drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
from official import PAPER_SETTINGS, trained_with

import bench
from bench.cli.main import main
from bench.records.schema import RunRecord
from bench.report.charts import charts
from bench.tables import load_table
from bench.tables.cells import table_data
from bench.tables.intervals import intervals


@pytest.fixture(scope="module")
def measured(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_table_with_records_is_drawn(measured: RunRecord, tmp_path: Path, ending: str) -> None:
    bench.write_record(measured, tmp_path / "results")
    picture = tmp_path / f"figure.{ending}"
    words = ["table", "runs/sevir", "--results", str(tmp_path / "results"), "--picture", str(picture)]
    assert main(words) == 0
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG") if ending == "png" else b"<svg" in content


def test_stored_forecasts_of_a_tables_rows_are_drawn(storms: Path, tmp_path: Path) -> None:
    from bench.config import compose
    from bench.engine.run import run

    root = tmp_path / "results"
    for limit in ("null", "1"):
        options = [f"data.root={storms}", f"results.root={root}", f"work={tmp_path}", f"limit={limit}"]
        settings = ["task=sevir", "model=persistence", "device=cpu", "progress=false", "picture=false"]
        run(compose([*settings, *options]), training=False)
    words = ["table", "runs/sevir", "--results", str(root), "--samples"]
    assert main([*words, str(tmp_path / "forecasts.png")]) == 0
    assert (tmp_path / "forecasts.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "forecasts-2.png").exists(), "a partial run is in no table"
    assert main([*words, str(tmp_path / "forecasts.svg"), "--colours", "cividis"]) == 0
    assert b"<svg" in (tmp_path / "forecasts.svg").read_bytes()
    assert main([*words, str(tmp_path / "none.png"), "--colours", "no_such_map"]) == 2
    assert main(["table", "runs/sevir", "--results", str(root), "--colours", "cividis"]) == 2
    for sample in (root / "samples").rglob("*.npz"):
        sample.unlink()
    assert main([*words, str(tmp_path / "none.png")]) == 2


def test_undrawable_input_gives_one_error_and_no_file(
    measured: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["table", "runs/sevir", "--results", str(tmp_path), "--picture"]
    assert main([*words, str(tmp_path / "a.png")]) == 2
    assert "nothing to draw" in capsys.readouterr().err
    bench.write_record(measured, tmp_path)
    assert main([*words, str(tmp_path / "a.xyz")]) == 2
    assert "expected a name that ends in" in capsys.readouterr().err
    assert not list(tmp_path.glob("a.*"))


def test_a_curve_has_the_range_of_seeds_or_the_interval_of_one_run(measured: RunRecord) -> None:
    table = load_table("runs/sevir")
    doubled = {"mse": [2 * value for value in measured.scores_per_lead["mse"]]}
    trained = {"training": trained_with(PAPER_SETTINGS)}
    measured = measured.model_copy(update={**trained, "checkpoint_sha256": "a" * 64})
    other = {"checkpoint_sha256": "b" * 64, "seed": 1, "run_id": "other"}
    higher = measured.model_copy(update={**other, "scores_per_lead": doubled})
    for records in ([measured], [measured, higher]):
        block = table_data(table, None, records).blocks[0]
        by_id = {record.run_id: record for record in records}
        chart = next(c for c in charts(table, block, by_id)["lead"] if c["key"] == "mse")
        (curve,) = chart["curves"]
        once = [1e3 * value for value in measured.scores_per_lead["mse"]]
        if len(records) == 2:
            assert curve["y"] == pytest.approx([1.5 * v for v in once])
            assert curve["low"] == pytest.approx(once) and curve["high"] == pytest.approx([2 * v for v in once])
        else:
            assert curve["y"] == pytest.approx(once)
            bounds = intervals(measured, [f"mse_lead_{lead + 1}" for lead in range(len(once))]).values()
            assert curve["low"] == [b and 1e3 * b[0] for b in bounds]
