"""A real plugin, installed by `tox -e plugin`: listed, checked, trained, in a table; its broken part is harmless."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from bench import registry
from bench.testing import check_model

try:
    version("earthbench-plugin-example")
except PackageNotFoundError:
    pytest.skip("the example plugin is installed by `tox -e plugin`", allow_module_level=True)


def _earthbench(*arguments: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "bench.cli.main", *arguments], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_the_plugin_is_listed_with_its_description(tmp_path: Path) -> None:
    listing = _earthbench("list", "models", cwd=tmp_path).stdout
    assert "linear_extrapolation" in listing and "learned share of the last change" in listing
    loaded = _earthbench("list", "models", "--load", cwd=tmp_path).stdout
    assert "BROKEN" in loaded and "no licence found" in loaded and "unet" in loaded


def test_the_plugin_keeps_the_contract(tmp_path: Path) -> None:
    model_class = registry.find("model", "linear_extrapolation").load()
    check_model(model_class, **model_class.presets["tiny"])
    assert "keeps its contract" in _earthbench("check", "linear_extrapolation", cwd=tmp_path).stdout


def test_the_plugin_is_counted(tmp_path: Path) -> None:
    done = _earthbench("count", "--model", "linear_extrapolation", "--format", "json", cwd=tmp_path)
    (line,) = json.loads(done.stdout)
    assert line["status"] == "counted" and line["parameters"] == 1


def test_the_plugin_is_trained_and_in_tables_and_report(tmp_path: Path, storms: Path) -> None:
    chosen = ["model=linear_extrapolation", "model.damping=0.2", "train.max_epochs=1", "progress=false"]
    _earthbench("run", *chosen, f"data.root={storms}", cwd=tmp_path)
    for table in ("runs/sevir", "example/storms"):
        text = _earthbench("table", table, cwd=tmp_path).stdout
        assert "linear_extrapolation (plugin)" in text and "of linear_extrapolation: damping=0.2" in text
    _earthbench("verify", cwd=tmp_path)
    _earthbench("report", "--out", "site", cwd=tmp_path)
    page = (tmp_path / "site/table-example_storms.html").read_text(encoding="utf-8")
    assert "of linear_extrapolation: damping=0.2" in page and '<span class="chip">plugin</span>' in page
    assert (tmp_path / "site/model-linear_extrapolation.html").is_file()


def test_a_broken_plugin_gives_one_error(tmp_path: Path, storms: Path) -> None:
    done = _earthbench("run", "model=broken_on_import", f"data.root={storms}", cwd=tmp_path, code=2)
    assert "no licence found" in done.stderr and "earthbench-plugin-example" in done.stderr
