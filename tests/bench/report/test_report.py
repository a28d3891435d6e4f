from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bench
from bench.errors import DataError
from bench.records.samples import read_sample, sample_path, write_sample
from bench.records.schema import RunRecord
from bench.records.store import write_record
from bench.report import build
from bench.report.gallery import _box, scenes
from bench.report.site import _code
from bench.tables.look import Look


@pytest.fixture(scope="module")
def measured(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


@pytest.fixture
def root(measured: RunRecord, tmp_path: Path) -> Path:
    write_record(measured, tmp_path / "results")
    frames = np.linspace(0, 255, 13 * 8 * 10).reshape(13, 8, 10)
    write_sample({"context": frames, "target": frames[:12], "forecast": frames[1:]}, measured, tmp_path / "results")
    return tmp_path / "results"


def test_a_stored_sample_is_reduced_for_pictures(measured: RunRecord, tmp_path: Path) -> None:
    frames = np.repeat(np.repeat(np.arange(6.0).reshape(1, 2, 3), 200, axis=1), 200, axis=2)
    frames[0, 0, 0] = np.nan
    write_sample({"context": frames, "target": frames, "forecast": frames}, measured, tmp_path)
    sample = read_sample(measured, tmp_path)
    assert sample is not None and sample.target.shape == (1, 100, 150)
    assert np.isnan(sample.target[0, 0, 0]) and sample.target[0, -1, -1] == 5 and sample.target[0, 0, 1] == 0
    assert read_sample(measured.model_copy(update={"run_id": "other"}), tmp_path) is None
    sample_path(measured, tmp_path).write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(DataError, match="not a sample"):
        read_sample(measured, tmp_path)


def test_sequences_and_exceedance_probabilities_round_trip(measured: RunRecord, tmp_path: Path) -> None:
    frames = np.arange(3 * 2 * 4 * 4.0).reshape(3, 2, 4, 4)
    parts = {"context": frames, "target": frames + 1, "forecast": frames + 2, "probability": frames / 96}
    write_sample(parts, measured, tmp_path)
    sample = read_sample(measured, tmp_path)
    assert sample is not None and sample.count == 3
    for index in range(3):
        assert np.array_equal(sample.sequence(index).forecast, frames[index] + 2)
        assert sample.sequence(index).probability == pytest.approx(frames[index] / 96, abs=1e-3)


def test_coastlines_round_trip_in_reduced_pixels(measured: RunRecord, tmp_path: Path) -> None:
    write_record(measured, tmp_path)
    frames = np.zeros((2, 1, 400, 400))
    coast = np.full((2, 3, 2), np.nan)
    coast[0, :2] = [[1, 1], [1, 399 - 1]]
    write_sample({"context": frames, "target": frames, "forecast": frames, "coast": coast}, measured, tmp_path)
    sample = read_sample(measured, tmp_path)
    assert sample is not None and sample.target.shape == (1, 133, 133)
    assert sample.coast is not None and sample.coast[:2] == pytest.approx(np.array([[0, 0], [0, 132.33]]), abs=0.1)
    first, second = scenes([measured], tmp_path, tmp_path / "site")
    assert first.coast.startswith("M0.50 132.50L") and second.coast == ""


def test_the_gallery_prefers_complete_runs_and_names_others(measured: RunRecord, tmp_path: Path) -> None:
    told = {"scope": "partial", "scope_because": "untrained weights"}
    later = measured.model_copy(update={"run_id": f"3{measured.run_id[1:]}", **told})
    frames = np.full((1, 12, 8, 8), 9.0)
    for record, error in ((measured, 1), (later, 2)):
        write_sample({"context": frames, "target": frames, "forecast": frames + error}, record, tmp_path)
    for records, label, score in (([measured, later], "persistence", "RMSE 1"),
                                  ([later], "persistence (partial: untrained weights)", "RMSE 2")):  # fmt: skip
        ((forecast,),) = (scene.forecasts for scene in scenes(records, tmp_path, tmp_path / "site"))
        assert (forecast.label, forecast.scores[0]) == (label, score)


def test_the_gallery_shows_sequences_errors_and_probabilities(measured: RunRecord, tmp_path: Path) -> None:
    write_record(measured, tmp_path)
    frames = np.random.default_rng(0).uniform(0, 200, (2, 12, 8, 8))
    chance = np.zeros_like(frames)
    parts = {"context": frames, "target": frames, "forecast": frames + 4, "probability": chance}
    write_sample(parts, measured, tmp_path)
    first, second = scenes([measured], tmp_path, tmp_path / "site")
    assert (first.name, second.name) == ("sequence 1 of 2", "sequence 2 of 2") and first.anchor != second.anchor
    (forecast,) = first.forecasts
    assert set(forecast.scores) == {"RMSE 4"} and forecast.frames[0] == "+5 min" and first.context.frames[-1] == "0 min"
    assert first.probabilities[0].label.endswith("P(≥ 74)")
    assert [text for _, text in first.probability_colours][::10] == ["0 to 0.1", "1"]
    for strip in (first.context, first.target, forecast, *first.probabilities):
        assert (tmp_path / "site" / strip.picture).is_file()
    assert (tmp_path / "site" / forecast.difference).is_file()
    assert first.colours[0][1] == "0 to 16" and first.colours[-1][1].endswith("and above")


def test_a_region_is_outlined_around_its_cells() -> None:
    look = Look.of_name("enso_ersst")
    assert look.regions is not None
    box = _box("Nino3.4", look.regions["Nino3.4"], (24, 48), look.palette)
    # 190..240 E of 92.5..332.5 E, 5 S..5 N of 57.5 S..62.5 N, north at the top
    assert box.left == pytest.approx(100 * (190 - 92.5) / 240) and box.width == pytest.approx(100 * 50 / 240)
    assert box.top == pytest.approx(100 * (62.5 - 5) / 120) and box.height == pytest.approx(100 * 10 / 120)


def test_a_store_without_forecasts_says_how_to_make_them(measured: RunRecord, tmp_path: Path) -> None:
    write_record(measured, tmp_path / "results")
    text = (build(tmp_path / "results", tmp_path / "site").parent / "gallery.html").read_text(encoding="utf-8")
    assert "no stored forecasts" in text and "earthbench run task=" in text


def test_the_data_of_a_table_can_be_downloaded(measured: RunRecord, root: Path, tmp_path: Path) -> None:
    site = build(root, tmp_path / "site", colours="cividis").parent
    record = site / f"records/sevir/persistence/{measured.run_id}.json"
    assert json.loads(record.read_text(encoding="utf-8"))["run_id"] == measured.run_id
    assert f"records/sevir/persistence/{measured.run_id}.json" in (site / "table-runs_sevir.html").read_text()
    assert (site / "downloads/runs_sevir.csv").read_text().startswith("block,row,")
    bib = (site / "downloads/earthformer_sevir.bib").read_text()
    assert "@software{earthbench," in bib and "Z. Gao and X. Shi" in bib and "year = {2022}" in bib


def _texts(site: Path) -> dict[str, bytes]:
    return {str(p.relative_to(site)): p.read_bytes() for p in sorted(site.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_the_same_store_gives_the_same_site(root: Path, tmp_path: Path) -> None:
    first = build(root, tmp_path / "a")
    assert first == tmp_path / "a/index.html"
    assert _texts(build(root, tmp_path / "b").parent) == _texts(first.parent)
    assert _texts(build(root, tmp_path / "a").parent) == _texts(tmp_path / "b"), "an older report is written over"


def test_pages_load_nothing_external_and_all_links_resolve(root: Path, tmp_path: Path, committed_results: Path) -> None:
    shutil.copytree(committed_results / "boards", root / "boards")  # of which nothing was run here
    site = build(root, tmp_path / "site").parent
    assert (site / "table-boards_nbody16.html").is_file()
    for path in site.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r'(?:src|<link[^>]* href)="([^"]*)"', text) + re.findall(r"url\('([^']*)'\)", text)
        assert not [one for one in loaded if one.startswith(("http:", "https:", "//"))]
        for one in [*loaded, *re.findall(r'<a[^>]* href="([^"#]+)"', text)]:
            assert one.startswith(("data:", "https://")) or (site / one).is_file(), f"{path.name}: {one}"
        for block in re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL):
            json.loads(block)


def test_names_are_escaped_in_html(measured: RunRecord, tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    model = measured.model.model_copy(update={"hyperparameters": {"note": evil}, "is_preset": False, "origin": evil})
    write_record(measured.model_copy(update={"model": model, "scope_because": evil}), tmp_path / "results")
    site = build(tmp_path / "results", tmp_path / "site").parent
    assert not [path.name for path in site.glob("*.html") if "<script>alert" in path.read_text(encoding="utf-8")]


def test_a_published_page_has_counts_and_commands(root: Path, tmp_path: Path) -> None:
    page = (build(root, tmp_path / "site").parent / "table-earthformer_sevir.html").read_text(encoding="utf-8")
    assert 'data-side="published"' in page and '<span class="counterpart match">ours 15.1</span>' in page
    assert "(<code>earthbench count</code>)" in page
    assert _code("`<script>` & <b>") == "<code>&lt;script&gt;</code> &amp; &lt;b&gt;"


def test_curves_and_points_match_the_records(measured: RunRecord, root: Path, tmp_path: Path) -> None:
    text = (build(root, tmp_path / "site").parent / "table-runs_sevir.html").read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    (block,) = json.loads(found[1])
    lead = next(chart for chart in block["lead"] if chart["key"] == "mse")["curves"][0]
    assert lead["y"] == pytest.approx([v * 1e3 for v in measured.scores_per_lead["mse"]])
    assert lead["x"] == [5 * k for k in range(1, 13)] and lead["unit"] == "minutes"
    csi = next(chart for chart in block["threshold"] if chart["key"] == "csi")["curves"][0]
    assert csi["y"] == [measured.scores[f"csi_{level}"] for level in csi["x"]] and csi["x"] == sorted(csi["x"])


def test_library_configs_do_not_change_the_report(root: Path, tmp_path: Path) -> None:
    """itables reads an `itables.toml` or `pyproject.toml` of the folder that one stands in, when it is imported."""
    for name in ("itables.toml", "pyproject.toml"):
        (tmp_path / name).write_text("no [toml")
    command = [sys.executable, "-m", "bench", "report", "--results", str(root), "--out", "site"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


def test_a_folder_that_is_not_a_report_is_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(DataError, match="is not a report"):
        build(root, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_the_command_needs_no_torch(root: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from bench.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, 'torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "report", "--out", str(tmp_path / "site"), "--results", str(root)],
        capture_output=True, text=True, env=dict(os.environ), check=True,
    )  # fmt: skip
    assert done.stderr.split()[-2:] == ["0", "False"] and "index.html" in done.stdout
