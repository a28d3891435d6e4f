"""What the pages tell a reader to type exists: verbs, flags, names, overrides, extras, environments, files."""

from __future__ import annotations

import argparse
import ast
import configparser
import importlib
import re
import tomllib
from pathlib import Path

import pytest
from pages import PAGES, REPO, SHELL, Block, blocks, inline_commands

from bench import registry
from bench.cli.main import VERBS
from bench.config import compose, expand_sweep
from bench.errors import UsageError
from bench.tables.runs import task_of_runs
from bench.tasks import load_task

# What a reader puts in: a folder, a file, a name.
PLACEHOLDER = re.compile(r"^[A-Z][A-Z_./-]*(\.\w+)?$")
_HYDRA_FLAGS = {"-m", "--multirun", "--cfg", "job"}
_KNOWN_TOOLS = {".", "cd", "git", "mlflow", "pre-commit"}
"""Programs of which a page uses nothing that could be wrong here."""
_SHELL_BLOCKS = [block for page in PAGES for block in blocks(page) if block.language in SHELL]


def test_every_page_is_checked_and_every_block_has_a_language() -> None:
    assert len(_SHELL_BLOCKS) > 20
    for page in PAGES:
        unnamed = [block.line for block in blocks(page) if not block.language]
        assert not unnamed, f"{page.name}: blocks without a language in lines {unnamed}"
        marks = re.findall(r"<!-- *(?:not )?run\b.*?-->", page.read_text())
        used = [b for b in blocks(page) if b.not_run or b.added]
        assert len(marks) == len(used), f"{page.name}: a mark does not stand right before a block"


@pytest.mark.parametrize("block", _SHELL_BLOCKS, ids=lambda block: block.name)
def test_every_command_of_a_block_exists(block: Block) -> None:
    assert block.commands
    for words in block.commands:
        check(words, REPO)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_flags_in_running_text_exist(page: Path) -> None:
    for _, verb, *rest in inline_commands(page):
        for one in verb.split("|"):
            assert one in VERBS or one == "VERB" or one.startswith("--"), f"{page.name}: earthbench {one}"
            for flag in (word for word in rest if word.startswith("--")):
                assert flag.partition("=")[0] in _flags(one), f"{page.name}: earthbench {one} {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_and_toml_of_a_page_parse(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("help", "completion")])
def test_every_example_in_help_exists(verb: str) -> None:
    examples = importlib.import_module(VERBS[verb][0]).EXAMPLES
    assert all(example.startswith(f"earthbench {verb}") for example in examples)
    for example in examples:
        check(example.split(), REPO)


def check(words: list[str], where: Path) -> None:
    """Fails for an invalid command."""
    while "=" in words[0]:  # VARIABLE=value before the program
        words = words[1:]
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program == "earthbench":
        _earthbench(rest)
    elif program in ("pip", "pip3"):
        _pip(rest)
    elif program in ("python", "python3"):
        _python(rest)
    elif program == "tox":
        _tox(rest)
    elif program == "pytest":
        assert rest, "which tests?"
    elif program == "sbatch":
        files = [word for word in rest if word.endswith(".sbatch")]
        assert files and all((where / one).is_file() for one in files)
        _overrides([word for word in rest if "=" in word and not word.startswith("--")])
    else:
        assert program in _KNOWN_TOOLS, f"{program}: nobody checks this command"


def _earthbench(words: list[str]) -> None:
    words = list(words)
    while "--plugin" in words:
        at = words.index("--plugin")
        del words[at : at + 2]
    if words[:1] == ["--help"] or words[:1] == ["--version"]:
        return
    verb, *rest = words
    assert verb in VERBS, f"earthbench {verb}"
    if verb == "data":
        _data(rest)
        return
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    module = importlib.import_module(VERBS[verb][0])
    module.add_arguments(parser)
    options, more = parser.parse_known_args([word for word in rest if word not in _HYDRA_FLAGS])
    bare = [word for word in getattr(options, "overrides", []) if "=" not in word and word != "..."]
    unknown = [word for word in [*more, *bare] if "=" not in word and not PLACEHOLDER.match(word)]
    assert not unknown, f"earthbench {verb}: {unknown}"
    overrides = [*getattr(options, "overrides", []), *(word for word in more if "=" in word)]
    for kind in ("table", "model"):
        given = getattr(options, kind, None) or []
        for name in [given] if isinstance(given, str) else given:
            _known(kind, name)
    if verb in ("table", "check") or (verb == "show" and options.kind in registry.KINDS and options.name):
        kinds = {"table": ["table"], "check": ["model", "task", "metric", "constraint"]}.get(verb) or [options.kind]
        assert PLACEHOLDER.match(options.name) or any(
            options.name in registry.names(kind) for kind in kinds
        ) or task_of_runs(options.name) or _of_the_page(options.name), options.name  # fmt: skip
    if verb == "reproduce":
        from bench.reproduction import find_rows

        find_rows(options.name)
    if verb == "ablate":
        from bench.protocols.variants import load_ablation

        if not options.name.endswith(".yaml"):  # the reader's own
            load_ablation(options.name)
    if overrides:
        _overrides(overrides)


def _of_the_page(name: str) -> bool:
    return name.rpartition("/")[2].startswith("my_")


def _known(kind: registry.Kind, name: str) -> None:
    assert PLACEHOLDER.match(name) or name in registry.names(kind) or _of_the_page(name), f"{kind} {name}"


def _overrides(overrides: list[str]) -> None:
    """Checks config keys, names, hyperparameters and task fields of a command's runs."""
    overrides = [word for word in overrides if "=" in word and not word.startswith(("hydra", "+hydra"))]
    if any(_of_the_page(word.removeprefix("model=").removeprefix("task=")) for word in overrides):
        overrides = [word for word in overrides if not word.startswith(("model", "task"))]
    first, *others = expand_sweep(overrides)
    config = compose(first)
    load_task(config.task.name, **config.task.options)
    for name in {word.partition("=")[2] for combination in others for word in combination if word.startswith("model=")}:
        registry.find("model", name)


def _data(words: list[str]) -> None:
    if words[0] in ("info", "check"):
        assert words[1] in registry.names("task") or _of_the_page(words[1])
        return
    way, *rest = words
    names, flags = [w for w in rest if not w.startswith("-")][:1], {w for w in rest if w.startswith("--")}
    if way == "convert":
        names = rest[:2]
    if _of_the_page(names[0]):
        return
    assert flags <= _data_flags(way, names), f"earthbench data {way} {names}: {flags}"


def _data_flags(way: str, names: list[str]) -> set[str]:
    from bench.cli.data import _load, _split_words

    _, value, _ = _split_words(way, [*names, "--help"])
    fields = _load(value).model_fields.items()
    return {f"--{(field.alias or name).replace('_', '-')}" for name, field in fields} | {"--help"}


def _flags(verb: str) -> set[str]:
    parser = argparse.ArgumentParser()
    if verb in VERBS:
        importlib.import_module(VERBS[verb][0]).add_arguments(parser)
    own = {flag for action in parser._actions for flag in action.option_strings}
    everywhere = {"--plugin", "--version", "--help"}
    if verb == "data":
        own |= {"--help", *_data_flags("fetch", ["sevir"])}
    return own | everywhere | ({"--cfg"} if verb == "run" else set())


def _pip(words: list[str]) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert words[0] == "install"
    if "-c" in words:
        at = words.index("-c")
        assert (REPO / words[at + 1]).is_file(), words
        words = words[:at] + words[at + 2 :]
    for word in words[1:]:
        extras = re.match(r"^(?:earthbench|\.)\[([\w,]+)\]$", word)
        if extras:
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"]), word
        else:
            package = word.partition("[")[0].removeprefix("earthbench-").replace("-", "_")
            assert word in (".", "-e", "tox", "tox-ignore-env-name-mismatch", "earthbench") or _of_the_page(package), (
                word
            )


def _python(words: list[str]) -> None:
    if words[0] == "-m":
        assert words[1] == "venv" or (REPO / f"{words[1].replace('.', '/')}.py").is_file(), words
    else:
        assert (REPO / words[0]).is_file(), words


def _tox(words: list[str]) -> None:
    settings = configparser.ConfigParser()
    settings.read(REPO / "tox.ini")
    names = [name for word in words if word not in ("run", "-e") for name in word.split(",")]
    assert names and all(f"testenv:{name}" in settings for name in names), names


def test_the_check_finds_nonexistent_commands() -> None:
    for wrong in (
        "earthbench tabel earthformer/sevir", "earthbench table earthformer/sevri",
        "earthbench table runs/sevir --fromat md", "earthbench run model=unett", "earthbench run train.lrr=1",
        "earthbench run model=unet model.chanels=[1]", "earthbench run task=sevir task.t_inn=3",
        "earthbench run -m model=unet,unett", "earthbench data fetch sevir --everything",
        "earthbench reproduce earthformer/sevir/unett", "pip install earthbench[nothing]", "tox run -e nothing",
        "pip install -c nothing.txt .", "python tests/nothing.py", "sbatch nothing.sbatch", "curl x",
    ):  # fmt: skip
        with pytest.raises((AssertionError, UsageError)):
            check(wrong.split(), REPO)
