from __future__ import annotations

import json
from pathlib import Path

import pytest
from logged import logged

from bench.cli.main import main
from bench.errors import ConfigError, UnknownNameError, UsageError
from bench.reproduction import find_rows, plan, run_rows, seeds_of
from bench.tables import load_table
from bench.tables.settings import overrides_of

TINY = ["model.channels=[4,8]", "model.center_channels=8", "train.max_epochs=1"]
QUIET = ["progress=false", "picture=false", "device=cpu", "train.loggers=[]"]


def _throughput(device: str) -> float:
    return 1e9


def _overrides(storms: Path, tmp_path: Path) -> list[str]:
    return [f"data.root={storms}", f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'outputs'}", *QUIET]


def test_a_row_is_found_by_its_name() -> None:
    table, rows = find_rows("earthformer/sevir")
    assert table.name == "earthformer/sevir" and len(rows) == 9
    assert [row.key for row in find_rows("earthformer/sevir/convlstm")[1]] == ["convlstm"]
    assert find_rows("earthformer/patterns_nbody_mnist/axial")[1][0].options == {"num_global_vectors": 0}


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("earthformer/sevr", UnknownNameError, "earthformer/sevir"),
        ("earthformer/sevir/convlst", UnknownNameError, "convlstm"),
        ("runs/sevir", UsageError, "lists finished runs"),
    ],
)
def test_a_wrong_name_gives_one_message(name: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        find_rows(name)


def test_overrides_of_the_caller_follow_those_of_the_paper() -> None:
    table, (row,) = find_rows("earthformer/patterns_nbody_mnist/video_swin_2x8")
    words = overrides_of(table, row, ["train.lr=0.5", "data.root=x", "seed=9"], 3)
    assert words[:4] == (
        "task=nbody_mnist", "model=earthformer", "model.enc_attn_patterns=video_swin_2x8", "model.num_global_vectors=0",
    )  # fmt: skip
    assert words.index("train.weight_decay=1e-5") < words.index("train.lr=0.5") and words[-1] == "seed=3"


def test_seeds_are_parsed() -> None:
    assert seeds_of([], None) == [0] and seeds_of(["seed=4"], None) == [4] and seeds_of([], "0,2,2") == [0, 2]
    with pytest.raises(ConfigError, match="one of the two"):
        seeds_of(["seed=1"], "0")
    with pytest.raises(ConfigError, match="whole numbers"):
        seeds_of([], "a")


def test_a_plan_without_data_states_data_and_cost() -> None:
    table, (row,) = find_rows("earthformer/icar_enso/earthformer")
    found = plan(table, row, ["data.root=/not/there"], 0, throughput=_throughput)
    assert found.status == "cannot run" and "not a folder" in found.reason and "52,350 training" in found.data
    assert found.parameters == 7_600_077 and found.estimate is not None and "published" in found.estimate.basis
    # 23.9 GMACs at 1 GMAC/s: a step is three forward passes of 52,350 sequences
    assert found.estimate.epoch_s == pytest.approx(23.9 * 3 * 52_350)
    assert found.estimate.total_s == pytest.approx(100 * found.estimate.epoch_s + 23.9 * (20 * 1_679 + 1_679))


def test_a_row_of_an_unregistered_model_cannot_run() -> None:
    table, (row,) = find_rows("prediff/sevir_lr/dgmr")
    found = plan(table, row.model_copy(update={"model": "nobodys"}), [], 0, throughput=_throughput)
    assert found.status == "cannot run" and "unknown model 'nobodys'" in found.reason


def test_a_measured_estimate_is_labelled(storms: Path, tmp_path: Path) -> None:
    table, (row,) = find_rows("earthformer/sevir/unet")
    found = plan(table, row, [*TINY, *_overrides(storms, tmp_path)], 0, measure=True)
    assert found.estimate is not None and found.estimate.basis.startswith(
        "measured: 3 steps at batch size 32 in 32-true"
    )
    assert found.estimate.epoch_s > 0 and not found.comparable and not (tmp_path / "results").exists()


@pytest.mark.slow
def test_rows_run_once_and_a_failure_does_not_stop_the_others(storms: Path, tmp_path: Path) -> None:
    table = load_table("earthformer/sevir")
    given = [*TINY, *_overrides(storms, tmp_path)]
    good, bad = table.row("unet"), [*given, "train.lr=1e30", "train.clip_norm=null"]
    plans = [plan(table, good, chosen, seed, throughput=_throughput) for chosen, seed in ((bad, 0), (given, 1))]
    assert [one.status for one in plans] == ["to run", "to run"] and "kept out of" in plans[0].data
    with logged() as said:
        results = run_rows(plans)
    assert [result.status for result in results] == ["failed", "done"], said
    assert results[0].exit_code == 3 and results[1].exit_code == 0
    again = [plan(table, good, chosen, seed, throughput=_throughput) for chosen, seed in ((bad, 0), (given, 1))]
    assert [one.status for one in again] == ["to run", "done"] and again[1].estimate is None
    assert plan(table, good, given, 1, again=True, throughput=_throughput).status == "to run"
    assert plan(table, good, [*given, "train.lr=0.01"], 1, throughput=_throughput).status == "to run"


def test_reproduce_plans_runs_and_resumes(storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["reproduce", "earthformer/sevir/persistence", *_overrides(storms, tmp_path)]
    assert main([*words, "--dry-run", "--format", "json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)
    assert planned["status"] == "to run" and not (tmp_path / "results").exists()
    assert main(words) == 0
    assert len(list((tmp_path / "results/runs/sevir/persistence").glob("*.json"))) == 1
    assert main(words) == 0
    assert len(list((tmp_path / "results/runs/sevir/persistence").glob("*.json"))) == 1
    assert "done: record" in capsys.readouterr().out
    assert main(["reproduce", "earthformer/sevir/unet"]) == 2
    assert "no data.root given" in capsys.readouterr().err
