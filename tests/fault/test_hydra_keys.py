"""Hydra's own keys: only those listed in the docs can be set, by a file or an override, and nothing is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.cli.main import main
from bench.config import compose
from bench.errors import ConfigError

_CALL = "{_target_: torch.utils.collect_env.run, command: touch called}"
_FILES = {
    "callback": f"# @package _global_\nhydra: {{callbacks: {{x: {_CALL}}}}}",
    "package": "# @package hydra.callbacks.x\n_target_: torch.utils.collect_env.run\ncommand: touch called",
    "group": "# @package _global_\ndefaults: [override /hydra/callbacks: calls]",
    "logging": f"# @package _global_\nhydra: {{job_logging: {{formatters: {{x: {_CALL}}}}}}}",
    "environment": "# @package _global_\nhydra: {job: {env_set: {LD_PRELOAD: /x.so}}}",
    "mode": "# @package _global_\nhydra: {mode: MULTIRUN}",
    "overrides": "# @package _global_\nhydra: {overrides: {hydra: ['+hydra.callbacks.x=1']}}",
    "help": "# @package _global_\nhydra: {help: {template: x}}",
    "sweeper": "# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}}",
    "launcher": "# @package _global_\ndefaults: [override /hydra/launcher: mine]",
    "shadow": "# @package _global_\ndefaults: [override /hydra/launcher: joblib]\n"
    "hydra: {launcher: {_target_: os.system}}",
    "setup": "# @package _global_\nhydra: {launcher: {setup: [touch called]}}",
    "outside": "# @package _global_\ndefaults: [../../elsewhere/x]",
    "outside_escaped": '# @package _global_\ndefaults: ["\\x2e\\x2e/\\x2e\\x2e/elsewhere/x"]',
}
_OVERRIDES = [
    f"+hydra.callbacks.x={_CALL.replace('touch called', 'ls')}",
    "++hydra.callbacks.x._target_=os.system",
    "hydra.launcher._target_=os.system",
    "hydra/launcher=mine",
    "hydra/callbacks=calls",
    "+plain@hydra.callbacks=x",
    "model=calls",
    "hydra.searchpath=[pkg://this]",
    "hydra.searchpath=pkg://this",
    "experiment=../../elsewhere/x",
    "~hydra/launcher",
    "hydra.job.chdir=true",
    "hydra.output_subdir=x",
    "hydra/job_logging=default",
    "hydra/sweeper=x",
    "hydra.sweep.dir=[a]",
]
_OTHERS = [["evaluate"], ["forecast"], ["status"], ["status", "seed=0,1"], ["doctor"], ["ablate", "global_vectors"]]
"""Each is tried with four files at least."""
_AFTER = [["-m", "seed=0,1"], ["--cfg", "job"], ["--cfg", "hydra"], ["--info"]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of another user's configs; the run starts in an empty folder."""
    files = {
        **{f"experiment/{name}": content for name, content in _FILES.items()},
        "hydra/callbacks/calls": f"x: {_CALL}",
        "hydra/launcher/mine": _CALL,
        "plain/x": f"x: {_CALL}",
        "model/calls": f"# @package _global_\nhydra: {{callbacks: {{x: {_CALL}}}}}",
        "experiment/allowed": "# @package _global_\nseed: 5\ndefaults: [override /hydra/launcher: joblib]\n"
        "hydra: {sweep: {dir: mine}, launcher: {n_jobs: 2}}",
    }
    for name, content in files.items():
        path = tmp_path / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.yaml").write_text("# @package _global_\nseed: 7")
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "configs"


def _without(folder: Path, kept: str) -> None:
    """Removes the files that are refused as soon as they lie in a folder of configs."""
    for name in ("outside", "outside_escaped"):
        if name != kept:
            (folder / f"experiment/{name}.yaml").unlink()


def _refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 2, words
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert not list(Path.cwd().rglob("*")), "nothing was called, nothing was written"


@pytest.mark.parametrize("name", _FILES)
def test_files_cannot_set_hydra_keys_with_side_effects(capsys, folder: Path, name: str) -> None:
    _without(folder, name)
    given = ["--config-dir", str(folder), f"experiment={name}"]
    _refused(capsys, ["run", *given])
    _refused(capsys, ["run", *given, *_AFTER[len(name) % len(_AFTER)]])
    path = f"hydra.searchpath=['file://{folder}']"
    at = list(_FILES).index(name)
    for verb in (_OTHERS[at % len(_OTHERS)], _OTHERS[(at + 3) % len(_OTHERS)]):
        _refused(capsys, [*verb, path, f"experiment={name}"])
    with pytest.raises(ConfigError):
        compose([path, f"experiment={name}"])


@pytest.mark.parametrize("override", _OVERRIDES)
def test_overrides_cannot_set_hydra_keys_with_side_effects(capsys, folder: Path, override: str) -> None:
    _without(folder, "")
    for number, after in enumerate(_AFTER):
        if number in (0, 1 + len(override) % 3):
            _refused(capsys, ["run", "--config-dir", str(folder), override, *after])


@pytest.mark.parametrize("swept", ["model=calls,persistence", "experiment=callback,null", "experiment=glob(c*)"])
def test_every_job_of_a_sweep_is_checked(capsys, folder: Path, swept: str) -> None:
    _without(folder, "")
    _refused(capsys, ["run", "-m", "--config-dir", str(folder), swept])


@pytest.mark.parametrize(
    "flags", [["-cn", "x"], ["-cp", "x"], ["--experimental-rerun", "x.pickle"], ["-sc", "install=bash"], ["--", "-cn"]]
)
def test_another_primary_config_is_refused(capsys, folder: Path, flags: list[str]) -> None:
    _refused(capsys, ["run", *flags])


def test_documented_keys_may_be_set_by_files_and_overrides(capsys, folder: Path) -> None:
    _without(folder, "")
    given = ["run", "--config-dir", str(folder), "experiment=allowed", "--cfg", "hydra"]
    assert main([*given, "-p", "hydra.launcher"]) == 0
    assert "n_jobs: 2" in capsys.readouterr().out
    overrides = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=x", "hydra.sweep.subdir=y"]
    assert compose([*overrides, "hydra.run.dir=z", "hydra.verbose=true", "seed=3"]).seed == 3


def test_the_documented_keys_are_the_allowed_ones() -> None:
    from bench.config.hydra_keys import ALLOWED

    page = (Path(__file__).parents[2] / "docs/scaling.md").read_text(encoding="utf-8")
    assert [key for key in ALLOWED if f"`{key.removeprefix('hydra.launcher.')}`" not in page and key not in page] == []


_NINE = ",".join(["*{0}"] * 9)
_BOMB = "a0: &a0 [1,2,3,4,5,6,7,8,9]\n" + "\n".join(f"a{n}: &a{n} [{_NINE.format(f'a{n - 1}')}]" for n in range(1, 10))


@pytest.mark.parametrize("way", ["searchpath", "plain", "linked folder", "linked file", "yml"])
def test_a_yaml_bomb_is_refused_by_every_route(capsys, folder: Path, tmp_path: Path, way: str) -> None:
    _without(folder, "")
    bombs = tmp_path / "bombs"
    bombs.mkdir()
    (bombs / "bomb.yaml").write_text(_BOMB)
    given = ["--config-dir", str(folder), "experiment=bomb"]
    if way in ("searchpath", "plain"):
        (bombs / "experiment").mkdir()
        (bombs / "bomb.yaml").rename(bombs / "experiment/bomb.yaml")
        given = [f"hydra.searchpath=['{'file://' * (way == 'searchpath')}{bombs}']", "experiment=bomb"]
    elif way == "linked folder":
        (folder / "more").symlink_to(bombs, target_is_directory=True)
        (bombs / "again").symlink_to(folder, target_is_directory=True)
        given[-1] = "+more=bomb"
    elif way == "linked file":
        (folder / "experiment/bomb.yaml").symlink_to(bombs / "bomb.yaml")
    else:
        (folder / "experiment/bomb.yml").write_text(_BOMB)
        given[-1] = "experiment=bomb.yml"
    assert main(["run", *given]) == 2
    assert "aliases" in capsys.readouterr().err


def test_a_fifo_is_refused_before_it_is_opened(capsys, folder: Path) -> None:
    _without(folder, "")
    os.mkfifo(folder / "experiment/pipe.yaml")
    assert main(["run", "--config-dir", str(folder), "experiment=pipe"]) == 2
    assert "not a file" in capsys.readouterr().err
