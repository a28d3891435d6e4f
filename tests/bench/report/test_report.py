from __future__ import annotations

import json
import os
import re
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


@pytest.fixture(scope="module")
def measured(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


@pytest.fixture
def root(measured: RunRecord, tmp_path: Path) -> Path:
    write_record(measured, tmp_path / "results")
    frames = np.linspace(0, 255, 13 * 8 * 10).reshape(13, 8, 10)
    write_sample({"context": frames, "target": frames[:12], "forecast": frames[1:]}, measured, tmp_path / "results")
    return tmp_path / "results"


def test_a_sample_comes_back_reduced_to_what_a_picture_needs(measured: RunRecord, tmp_path: Path) -> None:
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


def _texts(site: Path) -> dict[str, bytes]:
    return {str(p.relative_to(site)): p.read_bytes() for p in sorted(site.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_the_same_store_gives_the_same_site(root: Path, tmp_path: Path) -> None:
    first = build(root, tmp_path / "a")
    assert first == tmp_path / "a/index.html"
    assert _texts(build(root, tmp_path / "b").parent) == _texts(first.parent)
    assert _texts(build(root, tmp_path / "a").parent) == _texts(tmp_path / "b"), "an older report is written over"


def test_nothing_is_loaded_from_elsewhere_and_every_link_leads_somewhere(root: Path, tmp_path: Path) -> None:
    site = build(root, tmp_path / "site").parent
    for path in site.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        loaded = re.findall(r'(?:src|<link[^>]* href)="([^"]*)"', text) + re.findall(r"url\('([^']*)'\)", text)
        assert not [one for one in loaded if one.startswith(("http:", "https:", "//"))]
        for one in [*loaded, *re.findall(r'<a[^>]* href="([^"#]+)"', text)]:
            assert one.startswith(("data:", "https://")) or (site / one).is_file(), f"{path.name}: {one}"
        for block in re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL):
            json.loads(block)


def test_names_cannot_leave_their_text(measured: RunRecord, tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    model = measured.model.model_copy(update={"hyperparameters": {"note": evil}, "is_preset": False, "origin": evil})
    write_record(measured.model_copy(update={"model": model, "scope_because": evil}), tmp_path / "results")
    site = build(tmp_path / "results", tmp_path / "site").parent
    assert not [path.name for path in site.glob("*.html") if "<script>alert" in path.read_text(encoding="utf-8")]


def test_curves_and_points_are_the_records(measured: RunRecord, root: Path, tmp_path: Path) -> None:
    text = (build(root, tmp_path / "site").parent / "table-runs_sevir.html").read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    (block,) = json.loads(found[1])
    lead = next(chart for chart in block["lead"] if chart["key"] == "mse")["curves"][0]
    assert lead["y"] == pytest.approx([v * 1e3 for v in measured.scores_per_lead["mse"]])
    assert lead["minutes"] == [5 * k for k in range(1, 13)]
    csi = next(chart for chart in block["threshold"] if chart["key"] == "csi")["curves"][0]
    assert csi["y"] == [measured.scores[f"csi_{level}"] for level in csi["x"]] and csi["x"] == sorted(csi["x"])


def test_a_folder_of_something_else_is_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    with pytest.raises(DataError, match="holds something else"):
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
