"""Protocols of boards and ablations: allowed YAML, the resulting runs, and their decisions."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.config import compose, fingerprint, numbers_only
from bench.errors import ConfigError
from bench.protocols.board import BoardFile, board_names, read_board, refuse_other_numbers, run_names
from bench.protocols.decided import Decided, Decision, read_decided, write_decided
from bench.protocols.entries import layered
from bench.protocols.variants import load_ablation, variants, varied_keys

BOARD = """
title: Two models
task: nbody_mnist
data: earthbench data make nbody_mnist --out digits
units: sequences
base: [data.batch_size=4, train.lr=1e-3]
budget: {steps: 16}
seeds: [3, 4]
references:
  blank:
  frame: {label: mean frame, overrides: [model=climatology]}
rows:
  unet: {label: UNet, overrides: ["model.channels=[4,8]", train.lr=2e-3]}
ablations:
  centre:
    title: Centre
    base: [model=unet]
    sweeps:
      - - size:
            small: ["model.channels=[4,8]", model.center_channels=8]
            large: ["model.channels=[8,16]", model.center_channels=16]
        - model.norm_momentum=0.1,0.2
    labels: {model.norm_momentum: momentum}
    seeds: [0]
"""
_WITHOUT_ABLATIONS = BOARD.partition("ablations:")[0]


def _board(folder: Path, text: str = BOARD, name: str = "two") -> BoardFile:
    path = folder / "results/boards" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return read_board(path)


def test_a_later_layer_overrides_an_earlier_one() -> None:
    assert layered(["train.lr=1", "model=unet"], ["train.lr=2"], ["+model.x=1"], ["task=sevir"]) == [
        "model=unet", "train.lr=2", "+model.x=1", "task=sevir",
    ]  # fmt: skip


def test_the_rows_of_a_board(tmp_path: Path) -> None:
    board = _board(tmp_path)
    rows = {row.key: row for row in board.rows()}
    assert [row.block for row in rows.values()] == ["references"] * 2 + ["rows"] + ["centre"] * 4
    assert [row.model for row in rows.values()] == ["blank", "climatology", *["unet"] * 5]
    assert rows["frame"].label == "mean frame" and rows["frame"].seeds == (0,) and rows["unet"].seeds == (3, 4)
    config = compose(rows["unet"].run_overrides(4))
    assert (config.train.lr, config.train.max_steps, config.data.batch_size, config.seed) == (2e-3, 16, 4, 4)
    assert [row.label for row in board.rows()[3:]] == [
        "size small, momentum 0.1", "size small, momentum 0.2", "size large, momentum 0.1", "size large, momentum 0.2",
    ]  # fmt: skip
    large = compose(board.rows()[-1].run_overrides(0)).model.options
    assert (large["channels"], large["center_channels"], large["norm_momentum"]) == ([8, 16], 16, 0.2)
    assert board.table == "boards/two" and board.root == tmp_path / "results"
    assert board_names(board.root) == ["two"]


def test_runs_of_a_row_are_identified_by_their_configs(tmp_path: Path) -> None:
    row = _board(tmp_path).rows()[2]
    expected = {seed: (fingerprint(numbers_only(compose(row.run_overrides(seed)))),) for seed in (3, 4)}
    assert run_names(row) == expected and len(set(expected.values())) == 2


def test_folds_multiply_the_runs_and_share_one_decision(tmp_path: Path) -> None:
    row = _board(tmp_path, BOARD.replace("seeds: [3, 4]", "seeds: [3, 4]\nfolds: [task.t_out=4, task.t_out=5]")).rows()[
        2
    ]
    assert row.runs == [(seed, fold) for seed in (3, 4) for fold in ("task.t_out=4", "task.t_out=5")]
    made = [compose(row.run_overrides(seed, fold=fold)).task.options["t_out"] for seed, fold in row.runs]
    assert made == [4, 5, 4, 5] and compose(row.run_overrides(3)).task.options["t_out"] == 4, "what is decided"
    assert [len(names) for names in run_names(row).values()] == [2, 2]
    six = _board(tmp_path, BOARD.replace("seeds: [3, 4]", "seeds: [3]\nfolds: 3")).board
    assert six.folds == ("task.fold=0", "task.fold=1", "task.fold=2") and six.base[0] == "task.folds=3"


def test_folds_by_number_are_named_as_if_each_were_composed(tmp_path: Path) -> None:
    text = _WITHOUT_ABLATIONS.replace("nbody_mnist", "radar").replace("seeds: [3, 4]", "seeds: [3]\nfolds: 3")
    row = _board(tmp_path, text).rows()[2]
    composed = [fingerprint(numbers_only(compose(row.run_overrides(3, fold=fold)))) for fold in row.folds]
    assert run_names(row) == {3: tuple(composed)} and len(set(composed)) == 3


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("title: Two models", "titel: Two models", "titel: unknown key. Did you mean 'title'"),
        ("task: nbody_mnist", "task: nbody", "unknown task 'nbody'"),
        ("budget: {steps: 16}", "budget: {steps: 16, cpu_s: 3}", "expected one of cpu_s, device_s, steps, found"),
        ("budget: {steps: 16}", "", "rows need a budget"),
        ("train.lr=2e-3]", "'train.lr=1e-3,2e-3']", "several values; a row has one"),
        ("train.lr=2e-3]", "train.lr]", "expected KEY=VALUE"),
        ("  blank:", "  unet:", "unet is the name of both a reference and a row"),
        ("  unet: {label: UNet,", "  unet: {lable: UNet,", "rows.unet.lable: unknown key"),
        ("seeds: [3, 4]", "seeds: []", "seeds"),
        ("seeds: [3, 4]", "seeds: [3, 4]\ngrid: [train.lr=1e-3]", "one value; a grid has several"),
        ("seeds: [3, 4]", "seeds: [3, 4]\nseeds: [5]", "not readable YAML"),
    ],
)
def test_errors_in_a_board_name_file_and_key(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in _WITHOUT_ABLATIONS
    with pytest.raises(ConfigError) as caught:
        _board(tmp_path, _WITHOUT_ABLATIONS.replace(before, after, 1))
    assert "two.yaml" in str(caught.value) and said in str(caught.value)


def test_a_board_file_must_be_in_a_folder_of_boards(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(BOARD, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"move it to results/boards/two\.yaml"):
        read_board(tmp_path / "two.yaml")
    with pytest.raises(ConfigError, match="not a file"):
        read_board(tmp_path / "boards/none.yaml")


def test_overrides_that_change_the_numbers_of_a_board_are_refused(tmp_path: Path) -> None:
    row = _board(tmp_path).rows()[2]
    refuse_other_numbers(row, ["data.root=/x", "work=/y", "device=cpu", "progress=false", "hydra/launcher=joblib"])
    for word in ("train.lr=0.1", "task.t_out=5", "limit=3", "train.max_steps=9"):
        with pytest.raises(ConfigError, match="would change the board's numbers"):
            refuse_other_numbers(row, ["data.root=/x", word])


def test_a_decision_applies_to_its_grid_and_budget_only(tmp_path: Path) -> None:
    text = _WITHOUT_ABLATIONS.replace("budget: {steps: 16}", "budget: {cpu_s: 2}\ngrid: ['train.lr=1e-3,5e-3']")
    board = _board(tmp_path, text)
    row = board.rows()[2]
    assert read_decided(board) == Decided() and row.decides
    decided = Decided(
        data={"test": "ab"}, rows={row.key: Decision(asked=row.asked, steps=40, chosen=("train.lr=0.005",))}
    )
    write_decided(board, decided)
    assert read_decided(board) == decided
    config = compose(decided.run_overrides(row, 4))
    assert (config.train.max_steps, config.train.lr, config.seed) == (40, 0.005, 4), "the grid's choice comes last"
    for changed in (("cpu_s: 2", "cpu_s: 3"), ("1e-3,5e-3", "1e-3,6e-3"), ("[4,8]", "[4,16]"), ("[3, 4]", "[7, 4]")):
        other = _board(tmp_path, text.replace(*changed))
        assert read_decided(other).of(other.rows()[2]) is None, changed
    relabelled = _board(tmp_path, text.replace("label: UNet", "label: U-Net").replace("[3, 4]", "[3, 4, 5]"))
    assert read_decided(relabelled).of(relabelled.rows()[2]) is not None, "further seeds train with the same steps"
    with pytest.raises(ConfigError, match="has no row 'unet'"):
        read_decided(_board(tmp_path, text.replace("  unet:", "  other:").replace("label: UNet,", "")))


def test_a_user_defined_ablation(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        """
title: Pattern at equal depth
base: [model=earthformer]
sweeps:
  - - pattern:
        axial: [model.enc_attn_patterns=axial, "model.enc_depth=[2]"]
        full: [model.enc_attn_patterns=full, "model.enc_depth=[6]"]
    - model.num_global_vectors=0,8
""",
        encoding="utf-8",
    )
    runs = variants(load_ablation(str(path)), ["task=icar_enso", "seed=0,1"])
    assert len(runs) == 8 and varied_keys(runs) == ["pattern", "model.num_global_vectors", "seed"]
    made = {(run.settings["pattern"], *map(int, run.config.model.options["enc_depth"])) for run in runs}
    assert made == {("axial", 2), ("full", 6)}
    assert all(compose(run.overrides) == run.config for run in runs)
    with pytest.raises(ConfigError, match="not a file"):
        load_ablation(str(tmp_path / "none.yaml"))
    path.write_text("title: x\nsweeps: [[model.a]]\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        load_ablation(str(path))
