"""An ablation's table: seeds in one row, skill against trivial references, no rank for rows that do not beat them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.ablation import table as ablation_table
from bench.ablation.records import reference_configs
from bench.ablation.table import cost_of
from bench.cli import ablate
from bench.cli.main import main
from bench.config import compose
from bench.protocols.variants import Ablation, load_ablation, runs_by_variant, variants, varied_keys

CENTRES = Ablation(
    title="Centre of a small UNet",
    base=["model=unet", "task=sevir", "model.channels=[4,8]", "train.max_epochs=1", "train.max_steps=2"],
    sweeps=[["model.center_channels=8,16"]],
    labels={"model.center_channels": "centre"},
)


def test_depth_varies_hierarchy_and_depth() -> None:
    runs = variants(load_ablation("depth"), ["task=moving_mnist"])
    options = [run.config.model.options for run in runs]
    assert [(o["enc_depth"], o["downsample"]) for o in options] == [
        ([1, 1], 1), ([2, 2], 1), ([3, 3], 1), ([4, 4], 1), ([4, 4], 2),
    ]  # fmt: skip
    assert all(o["enc_depth"] == o["dec_depth"] for o in options)


@pytest.mark.slow
@pytest.mark.parametrize(("index", "parameters", "gmacs"), [(0, 1.4, 17.9), (3, 6.6, 73.0), (4, 6.6, 33.7)])
def test_depth_has_the_sizes_of_the_papers_rows(index: int, parameters: float, gmacs: float) -> None:
    run = variants(load_ablation("depth"), ["task=moving_mnist"])[index]
    cost = cost_of(run.config)
    assert (round(cost["parameters"] / 1e6, 1), round(cost["gmacs"], 1)) == (parameters, gmacs)


def test_seeds_of_a_variant_are_grouped() -> None:
    runs = variants(CENTRES, ["seed=0,1"])
    found = [
        [(runs[i].settings["model.center_channels"], runs[i].config.seed) for i in g] for g in runs_by_variant(runs)
    ]
    assert found == [[("8", 0), ("8", 1)], [("16", 0), ("16", 1)]]


def test_references_are_the_trivial_models_on_the_same_data() -> None:
    config = compose(["task=sevir", "model=unet", "data.root=x", "seed=3", "train.lr=0.5"])
    assert {one.model.name for one in reference_configs(config)} == {
        "blank", "blurred_persistence", "climatology", "damped_persistence", "persistence",
    }  # fmt: skip
    assert all(one.data == config.data and not one.model.options for one in reference_configs(config))
    assert not reference_configs(compose(["task=sevir", "model=unet", "limit=2"])), "a part of the data ranks nothing"


@pytest.mark.slow
def test_variants_are_measured_against_the_trivial_references(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablate, "load_ablation", lambda name: CENTRES)
    monkeypatch.setattr(ablation_table, "costs", lambda runs, advance: [cost_of(run.config) for run in runs])
    quiet = ["progress=false", "picture=false", "device=cpu", "train.loggers=[]"]
    words = ["ablate", "any", "seed=0,1", f"data.root={storms}", f"results.root={tmp_path / 'results'}", *quiet]
    assert main([*words, "--format", "json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert [(line["centre"], line["seeds"]) for line in lines] == [("8", "2 of 2"), ("16", "2 of 2")]
    for line in lines:
        assert line["MSE 1e-3 spread"] >= 0 and line["run"].count("(full)") == 2
        assert line["Skill MSE 1e-3"] < 0 and line.get("MSE 1e-3 mark") is None, "two steps beat nothing"
    assert len(list((tmp_path / "results/runs/sevir").glob("*/*.json"))) == 4 + 5  # the trivial references
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "not ranked, since they do not beat it" in said and "±" in said and "**" not in said


def test_no_reference_is_run_without_variants(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    impossible = Ablation(title="", base=["model=convlstm", "task=sevir"], sweeps=[["model.hidden=[0]"]], labels={})
    monkeypatch.setattr(ablate, "load_ablation", lambda name: impossible)
    monkeypatch.setattr(ablation_table, "costs", lambda runs, advance: [{"problem": "none"} for _ in runs])
    quiet = ["progress=false", "picture=false", "device=cpu", "train.loggers=[]"]
    assert main(["ablate", "any", f"data.root={storms}", f"results.root={tmp_path / 'results'}", *quiet]) == 2
    assert "cannot be made" in capsys.readouterr().err
    assert not list(tmp_path.glob("results/runs/*/*/*.json"))


@pytest.mark.parametrize(
    ("name", "task"), [("depth", "radar"), ("global_vectors", "sevir_lr"), ("patterns", "nbody_mnist")]
)
def test_runs_of_an_ablation_differ_only_in_what_is_varied(name: str, task: str) -> None:
    found = variants(load_ablation(name), [f"task={task}", "seed=0,1", "train.max_steps=7", "model.base_units=16"])
    varied = set(varied_keys(found))
    assert {key.partition(".")[0] for key in varied} == {"model", "seed"}
    plain = [run.config.model_dump(mode="json") for run in found]
    for one in plain:
        one["model"] = {key: value for key, value in one["model"].items() if f"model.{key}" not in varied}
        one["seed"] = None
    assert all(one == plain[0] for one in plain)
    assert {run.config.seed for run in found} == {0, 1} and len(found) == 2 * len(runs_by_variant(found))
    assert found[0].config.train.max_steps == 7 and found[0].config.model.options["base_units"] == 16
