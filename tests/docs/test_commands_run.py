"""The pages' commands are run, page by page in an empty folder, on tiny made data: `tox -e docs`."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import CHECKED_ONLY, PAGES, REPO, SHELL, Block, blocks
from PIL import Image, ImageChops, ImageStat

from bench import plugins
from bench.cli.main import main

pytestmark = pytest.mark.docs
_MAKES = {
    "sevir": ["--train", "2", "--val", "2", "--test", "2", "--size", "32"],
    "sevir_lr": ["--train", "2", "--val", "2", "--test", "2", "--size", "32"],
    "moving_mnist": ["--train", "4", "--val", "2", "--test", "2"],
    "nbody_mnist": ["--train", "4", "--val", "2", "--test", "2"],
}
_TAKES_OVERRIDES = ("run", "evaluate", "reproduce", "ablate", "forecast", "status", "tune")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The data folder of each task, made on first use."""

    class Made(dict):
        def __missing__(self, task: str) -> Path:
            folder = tmp_path_factory.mktemp("data") / task
            assert main(["data", "make", task, "--out", str(folder), *_MAKES[task]]) == 0
            self[task] = folder
            return folder

    return Made()


def _to_run(page: Path) -> list[Block]:
    if page.name in CHECKED_ONLY:
        return []
    return [block for block in blocks(page) if block.language in (*SHELL, "python", "yaml") and not block.not_run]


@pytest.mark.parametrize("page", [page for page in PAGES if _to_run(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run(
    page: Path, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(plugins.VARIABLE, "")
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site-packages")])
    for block in _to_run(page):
        if _written(block):
            continue
        if block.language == "python":
            _python(block, made)
            continue
        for words in block.commands:
            code = _run([*words, *_added(words, block)], made)
            assert code == 0, f"{block.name}: {' '.join(words)}: exit code {code}\n{capsys.readouterr()}"
            if words[:2] == ["earthbench", "quickstart"]:
                _check_shown_output(page, capsys.readouterr().out)


def _check_shown_output(page: Path, printed: str) -> None:
    """Fails if the page shows other scores or another picture than the command gives."""
    shown, result = page.read_text(encoding="utf-8"), re.compile(r"MSE (\S+) < (\S+), after")
    for ours, theirs in zip(result.search(printed).groups(), result.search(shown).groups(), strict=True):
        assert float(ours) == pytest.approx(float(theirs), rel=0.1), f"{page.name} shows older scores"
    for line in ("[1/4] making 84 storms", "data 8fde125c31", "8 epochs, 192 steps"):
        assert line in printed and line in shown
    with Image.open(page.parent / "quickstart.png") as picture, Image.open("quickstart/quickstart.png") as drawn:
        assert picture.size == drawn.size
        difference = ImageStat.Stat(ImageChops.difference(picture.convert("L"), drawn.convert("L"))).mean[0]
    assert difference < 4, "docs/quickstart.png is not what the command draws: copy quickstart/quickstart.png there"


def _added(words: list[str], block: Block) -> list[str]:
    takes = words[0] == "earthbench" and any(verb in words for verb in _TAKES_OVERRIDES)
    return list(block.added) if takes else []


def _run(words: list[str], made: dict[str, Path]) -> int:
    program, *rest = words
    rest = [_with_data(word, rest, made) for word in rest]
    if program == "earthbench":
        return main(rest)
    # What a page installs is installed in a folder of the test's own, without a network.
    if program == "pip":
        packages = [word for word in rest[1:] if word != "-e"]
        target = ["--target", "site-packages", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
        command = [sys.executable, "-m", "pip", "install", *target, *(f"./{one.partition('[')[0]}" for one in packages)]
    elif program in ("pytest", "ruff"):
        command = [sys.executable, "-m", program, *rest]
    else:
        pytest.fail(f"{' '.join(words)}: nothing here runs this; mark it `not run`, with the reason")
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd() / "site-packages")}
    code = subprocess.run(command, env=environment, check=False).returncode
    importlib.invalidate_caches()  # what was installed can be imported
    return code


def _with_data(word: str, words: list[str], made: dict[str, Path]) -> str:
    """Returns the word with the reader's DIR replaced by generated data of the command's task."""
    key, _, value = word.partition("=")
    if value != "DIR":
        return word
    task = next((w.partition("=")[2] for w in words if w.startswith("task=")), "sevir")
    table = next((w for w in words if w.startswith(("earthformer/", "prediff/"))), "")
    return f"{key}={made[table.split('/')[1] if table else task]}"


def _written(block: Block) -> bool:
    """Writes a file named by its first line, `# FILE.py` or `# FILE.yaml`; returns whether there is such a line."""
    first = block.text.splitlines()[0]
    if not (first.startswith("# ") and first.endswith((".py", ".yaml"))):
        return False
    Path(first[2:]).parent.mkdir(parents=True, exist_ok=True)
    Path(first[2:]).write_text(block.text)
    return True


def _python(block: Block, made: dict[str, Path]) -> None:
    code = block.text.replace('"DIR"', repr(str(made["sevir"])))
    exec(compile(code, f"{REPO.name}/{block.name}", "exec"), {"__name__": block.name})
