"""Misuse of every verb: one message with the cure and exit code 2, never that of a bug in earthbench."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bench import plugins
from bench.cli.main import VERBS, main
from bench.errors import ContractError, RunFailedError

_TABLE = "earthformer/sevir"
# `empty` is an empty folder, `file` a file, `nope` does not exist.
_MISUSED = {
    "quickstart": ["word", "--seed x", "--out file"],
    "list": ["x", "models models", "--format xml", "-m"],
    "show": ["", "model", "model x", "model unet --size 1,2,3", "pattern x", "pattern axial --out file/x.png",
             "pattern axial --out empty", "é"],
    "data": ["", "x", "info", "info sevir", "info x --root empty", "info sevir --root empty", "info sevir --root file",
             "check sevir --root empty", "check icar_enso --root empty", "check enso_ersst --root empty",
             "check grid --root empty", "info grid --root file", "make grid", "make grid --out file",
             "convert radar_files grid", "convert radar_files grid --reader knmi_hdf5 --in file --out o.zarr",
             "convert radar_files radar --reader x --in file --out o",
             "check moving_mnist --root empty", "check nbody_mnist --root empty", "make", "make x", "make sevir",
             "make sevir --out file", "make moving_mnist --out file", "make nbody_mnist --out file", "fetch",
             "fetch sevir --out file", "fetch weights/x", "convert", "convert sevir radar",
             "convert sevir sevir_lr --root empty --out o"],
    "run": ["", "x", "data.root", "data.root=empty", "data.root=file", "data.root=empty work=file",
            "data.root=empty results.root=file/x", "data.root=empty train.checkpoints=file", "=x", "model=", "~model",
            "--config-dir", "--config-dir file", "--cfg", "--cfg x", "--cfg job -p nope", "-p", "task=null",
            "model=unet,persistence data.root=empty", "data.root=~/nope", "train.loggers.first=csv",
            "hydra.searchpath.x=1", "é=1", "data.root=${oc.env:NOPE}", "-- -m"],
    "evaluate": ["", "x", "data.root=empty", "-m seed=0,1", "--cfg job", "data.root=file", "seed=0,1"],
    "forecast": ["", "model=persistence data.root=empty", "model=persistence --input file", "-m",
                 "model=persistence --input empty", "model=persistence --input nope.npy", "--picture x.xyz",
                 "model=persistence data.root=empty --out now.zarr"],
    "rescore": ["", "x", "file", "nope.json", "empty", "x --results file", "x seed=1", "evaluate.metrics.skill.x=1",
                "-m"],
    "new": ["", "model", "x y", "model X!", "model unet", "model mine --out file", "model mine --out file/x",
            "task mine --out ."],
    "check": ["", "x", "unet --task x", "sevir --root empty", "sevir --root file", "unet --kind task"],
    "ablate": ["", "x", "patterns -m", "patterns x"],
    "tune": ["", "x", "data.root=empty", "data.root=empty train.lr=1e-3,2e-3", "-m", "data.root=file train.lr=1,2",
             "task=null train.lr=1e-3,2e-3"],
    "board": ["", "run", "x", "run nope.yaml", "plan file", "table empty", "check nope.yaml",
              "run file data.root=empty", "picture file --out pictures"],
    "status": ["x", "work=file", "work=missing", "results.root=file seed=0,1", "work=s3://x", "--config-dir file",
               "--frmt json"],
    "doctor": ["x", "=x", "data.root", "seed=0,1", "-m seed=0,1", "--cfg job", "--frmt json",
               "model=nope", "device=tpu"],
    "count": ["--model x", "--table x", "--table runs/sevir", "--task x --model persistence", "x"],
    "table": ["", "x", f"{_TABLE} --results nope", f"{_TABLE} --results file", f"{_TABLE} --results file/x --write",
              f"{_TABLE} --results empty --picture x.png", f"{_TABLE} --format xml", f"{_TABLE} -m",
              f"{_TABLE} --with nope", "runs/sevir --with unet", f"{_TABLE} --with unet --write"],
    "explain": ["", _TABLE, "x y z", f"{_TABLE} x csi_m", f"{_TABLE} unet x", f"{_TABLE} unet csi_m --results file",
                f"{_TABLE} unet csi_m --results nope"],
    "reproduce": ["", "x", "runs/sevir", f"{_TABLE}/x", f"{_TABLE}/persistence --seeds x", f"{_TABLE}/persistence x",
                  f"{_TABLE}/persistence seed=0,1", f"{_TABLE}/persistence data.root=file", f"{_TABLE} -m"],
    "report": ["", "--out file", "--out file/x", "--out o --results nope", "--out o --results file"],
    "compare": ["", "unet", "x y", "unet persistence --results nope", "unet unet --results file"],
    "completion": ["", "x", "bash zsh"],
    "help": ["x", "data x", "--frmt"],
    "verify": ["x", "--results nope", "--results file"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cwd/empty").mkdir(parents=True)
    (tmp_path / "cwd/file").write_text("x")
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "cwd"


def _one_message(capfd: pytest.CaptureFixture[str], words: list[str]) -> str:
    code = main(words)
    error = capfd.readouterr().err
    assert code == 2, f"{words}: exit code {code}: {error}"
    assert "error: " in error and "Traceback" not in error and "fault of earthbench" not in error, error
    return error


@pytest.mark.parametrize("verb", VERBS)
def test_a_misused_verb_gives_one_message_and_exit_code_2(capfd, folder: Path, verb: str) -> None:
    for words in _MISUSED[verb]:
        _one_message(capfd, [verb, *words.split()])
        left = {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()}
        assert left <= {"file"}, f"{verb} {words}: {left}"


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["--bogus"], "unknown flag --bogus"),
        (["--hlp"], "Did you mean '--help'"),
        (["list", "modls"], "Did you mean 'models'"),
        (["list", "--fromat", "json"], "Did you mean '--format'"),
        (["show", "patern", "axial"], "Did you mean 'pattern'"),
        (["table", "runs/radar", "--colums", "csi_m"], "Did you mean '--columns'"),
        (["data", "nfo"], "Did you mean 'info'"),
        (["data", "info", "--rot", "x"], "Did you mean '--root'"),
        (["help", "tabel"], "Did you mean 'table'"),
        (["completion", "fsh"], "Did you mean 'fish'"),
        (["run", "model=unet,convlstm"], "`earthbench run -m`"),
        (["evaluate", "seed=0,1"], "`earthbench run -m`"),
        (["run", "-m", "model=glob(u*)"], "list the names"),
        (["evaluate", "--cfg", "job"], "for `earthbench run`"),
        (["count", "--table", "runs/sevir"], "earthbench count --task sevir --model NAME"),
        (["run", "hydra/launcher=mine", "-m", "seed=0,1"], "pip install 'earthbench[sweep]'"),
        (["run", "data.root=a(b"], "Quote values"),
        (["run", "sevir", "unet"], "Did you mean task=sevir?"),
        (["evaluate", "model=unet", "persistence"], "Did you mean model=persistence?"),
    ],
)
def test_a_typical_mistake_gets_advice(capfd, words: list[str], cure: str) -> None:
    assert cure in _one_message(capfd, words)


def test_a_tilde_needs_no_quotes(monkeypatch, storms: Path) -> None:
    from bench.config import compose

    monkeypatch.setenv("HOME", str(storms.parent))
    assert compose(["data.root=~/sevir"]).data.root == "~/sevir"
    given = ["task=sevir", "model=persistence", "picture=false", "progress=false", "results.root=~/results"]
    assert main(["evaluate", "data.root=~/sevir", *given]) == 0
    assert list((storms.parent / "results").rglob("*.json"))


@pytest.mark.parametrize("words", [["verify"], ["table", "runs/grid"], ["report", "--out", "site"]])
def test_a_root_one_level_too_high_gets_a_suggestion(capfd, folder: Path, words: list[str]) -> None:
    (folder / "empty/results/runs").mkdir(parents=True)
    assert "Set --results empty/results" in _one_message(capfd, [*words, "--results", "empty"])


@pytest.mark.parametrize("given", ["..", "data"])
def test_a_root_next_to_the_data_set_gets_a_suggestion(capfd, storms: Path, given: str) -> None:
    root = storms / given
    said = _one_message(capfd, ["evaluate", "task=sevir", "model=persistence", f"data.root={root}"])
    assert f"Did you mean {root / storms.name if given == '..' else root.parent}?" in said


@pytest.mark.parametrize("path", ["données/pluie d été.nc", "runs/lr=0.1/best.ckpt", "data~1", "a#b&c;d!"])
def test_text_with_special_characters_needs_no_quotes(path: str) -> None:
    from bench.config import compose, expand_sweep

    assert compose([f"data.root={path}"]).data.root == path
    two = expand_sweep([f"data.root={path},{path}", "seed=0"])
    assert [compose(one).data.root for one in two] == [path, path]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
def test_a_plan_for_absent_devices_says_so(capfd, storms: Path) -> None:
    given = ["reproduce", f"{_TABLE}/unet", "--dry-run", f"data.root={storms}", "devices=8"]
    assert main([*given, "device=cuda"]) == 0
    told = capfd.readouterr()
    assert "cannot run" in told.out and "no CUDA device here" in told.out and "Traceback" not in told.err
    assert main([*given[:2], *given[3:], "device=cuda"]) == 2


class Ported(nn.Module):
    """A model with the constructor of another project."""

    def __init__(self, in_shape: tuple[int, ...], hidden: int = 8, **kwargs: object) -> None:
        super().__init__()
        self.layer = nn.Linear(in_shape[0], hidden)


@pytest.fixture
def plugins_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test give `--plugin`, which sets a variable and the path of the whole process."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.usefixtures("plugins_of_its_own")
def test_a_model_with_a_wrong_constructor_gets_advice(capfd, folder: Path) -> None:
    from bench.testing import check_model

    with pytest.raises(ContractError, match=r"Ported\(input_shape=.*'in_shape'.*A model takes the two shapes"):
        check_model(Ported)
    source = "EARTHBENCH = {'models': {'ported': 'Ported'}}\nfrom torch import nn\n"
    source += "class Ported(nn.Module):\n    def __init__(self, in_shape, hidden=8):\n        super().__init__()\n"
    (folder / "ported_plugin.py").write_text(source)
    (folder / "empty").rmdir()
    assert "A model takes the two shapes" in _one_message(capfd, ["--plugin", "ported_plugin.py", "check", "ported"])


@pytest.mark.usefixtures("plugins_of_its_own")
def test_a_plugin_error_is_not_reported_as_an_internal_error(capfd, folder: Path, storms: Path) -> None:
    source = "EARTHBENCH = {'models': {'raises': 'Raises'}}\nimport torch\n"
    source += "class Raises(torch.nn.Module):\n    def __init__(self, input_shape, target_shape):\n"
    source += (
        "        super().__init__()\n    def forward(self, context):\n        return context + torch.zeros(7, 7, 7)\n"
    )
    (folder / "raising_plugin.py").write_text(source)
    command = ["--plugin", "raising_plugin.py", "evaluate", "task=sevir", "model=raises"]
    assert main([*command, f"data.root={storms}", "device=cpu", "progress=false"]) == 3
    error = capfd.readouterr().err
    assert "fault of earthbench" not in error
    assert "raising_plugin.py:7, which is a plugin's code" in error.splitlines()[-1]


def test_batch_norm_over_one_value_names_the_batch_size() -> None:
    from bench.engine.trainer import translated_errors

    layer = nn.BatchNorm2d(4)
    with pytest.raises(RunFailedError, match=r"1x1 grid.*data\.batch_size"), translated_errors("training"):
        layer(torch.zeros(1, 4, 1, 1))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_harmless(closed: str) -> None:
    command = f"{sys.executable} -m bench list models {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "Traceback" not in done.stderr + done.stdout
