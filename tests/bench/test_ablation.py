"""Ablations: the runs of a sweep, those that are already recorded, and the table."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
from bench.ablation import table as ablation_table
from bench.ablation.records import finished_record
from bench.ablation.table import cost_of, costs
from bench.cli import ablate
from bench.cli.main import main
from bench.config import compose
from bench.errors import ConfigError, UnknownNameError
from bench.protocols.variants import Ablation, ablation_names, load_ablation, variants, varied_keys

WITHOUT_TRAINING = Ablation(
    title="How much is evaluated", base=["model=persistence"], sweeps=[["limit=1,2"]], labels={"limit": "sequences"}
)


@pytest.mark.slow
def test_shipped_ablations_vary_what_they_declare() -> None:
    assert ablation_names() == ["depth", "global_vectors", "patterns"]
    patterns = variants(load_ablation("patterns"), ["task=icar_enso"])
    assert len(patterns) == 20 and varied_keys(patterns) == ["model.enc_attn_patterns", "model.num_global_vectors"]
    vectors = variants(load_ablation("global_vectors"), ["task=icar_enso"])
    found = [
        (run.config.model.options["num_global_vectors"], run.config.model.options.get("separate_global_qkv"))
        for run in vectors
    ]
    assert found == [(0, None), *((count, way) for count in (1, 2, 4, 8, 16) for way in (False, True))]


def test_overrides_replace_and_sweep() -> None:
    runs = variants(
        load_ablation("patterns"), ["task=icar_enso", "model.enc_attn_patterns=full", "seed=0,1", "model.base_units=32"]
    )
    assert varied_keys(runs) == ["model.num_global_vectors", "seed"] and len(runs) == 4
    assert {run.config.model.options["base_units"] for run in runs} == {32}
    with pytest.raises(ConfigError, match="no such hyperparameter"):
        variants(load_ablation("patterns"), ["model=unet"])
    with pytest.raises(UnknownNameError, match="Did you mean 'patterns'"):
        load_ablation("pattern")


def _ablate(capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[list[dict[str, Any]], str]:
    assert main(["ablate", "any", "--format", "json", *overrides]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablate, "load_ablation", lambda name: WITHOUT_TRAINING)
    monkeypatch.setattr(ablation_table, "costs", lambda runs, advance: [cost_of(run.config) for run in runs])


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_existing_runs_are_not_repeated(storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [f"data.root={storms}", f"results.root={tmp_path / 'results'}", "progress=false", "picture=false"]
    first, said = _ablate(capsys, "limit=1", *common)
    assert "already recorded" not in said and len(first) == 1 and first[0]["CSI-M"] is not None
    both, said = _ablate(capsys, *common)
    assert said.count("already recorded") == 1 and [line["sequences"] for line in both] == ["1", "2"]
    assert both[0]["run"] == first[0]["run"] and both[1]["run"].endswith("(partial)")
    config = compose(["model=persistence", "limit=1", *common])
    record = finished_record(config)
    assert record is not None and both[0]["run"].startswith(record.run_id)
    # The same config on other data is another run.
    from bench.data.sevir.synthetic import make_sevir

    other = make_sevir(tmp_path / "other", events={"train": 1, "val": 1, "test": 1}, size=32, seed=2)
    assert finished_record(compose(["model=persistence", "limit=1", *common, f"data.root={other}"])) is None


@pytest.mark.usefixtures("in_this_process")
def test_an_ablation_without_data_names_the_missing_override(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "any"]) == 2
    assert "--count-only" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_sizes_need_no_data(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    small = Ablation(
        title="small",
        base=["model=earthformer", "task=icar_enso", "model.enc_depth=[1,1]", "model.dec_depth=[1,1]"],
        sweeps=[["model.num_global_vectors=0"]],
        labels={},
    )
    monkeypatch.setattr(ablate, "load_ablation", lambda name: small)
    lines, _ = _ablate(capsys, "--count-only")
    assert lines[0]["Params M"] == 1.394 and lines[0]["GMACs"] == 6.77 and lines[0]["latency ms"] > 0
    assert main(["ablate", "any", "--count-only"]) == 0
    assert "1.394" in capsys.readouterr().out


@pytest.mark.slow
def test_an_impossible_variant_is_listed_with_the_reason() -> None:
    runs = variants(
        Ablation(title="", base=["model=earthformer"], sweeps=[["model.num_heads=7"]], labels={}), ["task=icar_enso"]
    )
    (found,) = costs(runs, lambda line: None)
    assert "multiple of num_heads=7" in found["problem"]
    (line,) = ablation_table.lines(load_ablation("patterns"), runs, [found], None)
    assert line["GMACs"] is None and "num_heads" in line["problem"]


def test_the_ablation_of_the_page_runs_with_equal_depth(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/ablations.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_ablation.yaml").write_text(block)
    runs = variants(load_ablation(str(tmp_path / "my_ablation.yaml")), ["task=nbody_mnist"])
    assert varied_keys(runs) == ["pattern", "model.num_global_vectors"] and len(runs) == 4
    for run in runs:
        with torch.device("meta"):
            model = bench.load_model(run.config.model.name, bench.load_task("nbody_mnist"), **run.config.model.options)
        attention = [name for name, module in model.named_modules() if type(module).__name__ == "CuboidSelfAttention"]
        assert len([name for name in attention if name.startswith("encoder.")]) == 6


@pytest.mark.slow
def test_the_papers_pattern_rows_are_reproduced() -> None:
    (run,) = variants(
        load_ablation("patterns"),
        ["task=moving_mnist", "model.enc_attn_patterns=divided_st", "model.num_global_vectors=0"],
    )
    cost = cost_of(run.config)
    assert (round(cost["parameters"] / 1e6, 3), round(cost["gmacs"], 2)) == (5.697, 35.21)
