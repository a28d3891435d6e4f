from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from bench import registry
from bench.cli import data as command
from bench.cli.flags import parse_flags
from bench.cli.main import main
from bench.data.verbs import AdvanceLabel, DataVerb, Folder, Plan, load_verb
from bench.errors import BrokenPluginError, UsageError


class Count(DataVerb):
    """Writes what it was given."""

    summary: ClassVar[str] = "count 100 % of things"
    asks: ClassVar[bool] = False

    out: Folder
    up_to: int = Field(3, ge=1, description="the last number")
    words: tuple[str, ...] = Field((), description="said beside the numbers")
    start: float | None = Field(None, description="the first number")
    loud: bool = Field(False, description="in capitals")
    sorted: bool = Field(True, description="in order")

    def plan(self, advance: AdvanceLabel) -> Plan:
        return Plan(("about to count",), ask=self.asks)

    def run(self, advance: AdvanceLabel) -> list[str]:
        for number in range(self.up_to):
            advance("numbers", number + 1, self.up_to)
        return [repr(self.model_dump())]


class CountAsking(Count):
    asks: ClassVar[bool] = True


def _parse(*words: str) -> Count:
    return parse_flags(Count, words, command="c", summary=Count.summary)


def test_fields_are_flags() -> None:
    assert _parse("--out", "~/x") == Count(out=Path.home() / "x")
    given = _parse("--out=x", "--up-to", "7", "--words", "a,b", "--start", "1e-3", "--loud", "--no-sorted")
    assert given == Count(out="x", up_to=7, words=("a", "b"), start=0.001, loud=True, sorted=False)


def test_help_shows_descriptions_and_defaults(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        _parse("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for words in (
        "count 100 % of things",
        "--up-to N",
        "the last number (default 3)",
        "--words WORDS,...",
        "--no-sorted",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: --out"),
        (["--out", "x", "--uo-to", "3"], "unknown argument '--uo-to'. Did you mean '--up-to'"),
        (["--out", "x", "--up", "3"], "unknown argument '--up'"),  # no abbreviations: a new flag must not break scripts
        (["--out", "x", "--up-to", "0"], "--up-to 0: Input should be greater than or equal to 1"),
        (["--out", "x", "--start", "nan"], "--start nan: Input should be a finite number"),
        (["--out", "x", "more"], "unknown argument 'more'"),
    ],
)
def test_wrong_flags_give_one_usage_error(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match="c") as caught:
        _parse(*words)
    assert message in str(caught.value)


def test_the_command_finds_the_verb_of_a_task(monkeypatch, capsys, tmp_path: Path) -> None:
    here = f"{__name__}:Count"
    verbs = {"sevir": {"make": here, "fetch": here + "Asking"}, "sevir_lr": {"convert:sevir": here}}
    monkeypatch.setattr(command, "_verbs", lambda task: verbs.get(registry.find("task", task).name, {}))
    monkeypatch.setattr("sys.stdin", (tmp_path / "empty").open("a+"))
    assert main(["data", "make", "sevir", "--out", "x", "--up-to", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("about to count") and "'up_to': 2" in out
    assert main(["data", "make", "--out", "x", "sevir"]) == 0, "flags may come first"
    assert main(["data", "convert", "sevir", "sevir_lr", "--out", "x"]) == 0
    assert main(["data", "fetch", "sevir", "--out", "x"]) == 2, "nobody is there to say yes"
    error = capsys.readouterr().err
    assert "add --yes" in error
    for words, message in {
        ("make", "sevir_lr", "--out", "x"): "task 'sevir_lr' has no `data make`. Known: sevir.",
        ("make",): "Known: sevir.",
        ("make", "sevri"): "Did you mean 'sevir'",
        ("make", "nothing"): "unknown name 'nothing'. Known: sevir.",
        ("convert", "sevir_lr", "sevir"): "Known: sevir sevir_lr.",
        ("convert", "icar_enso", "sevir_lr"): "it is made from: sevir",
        ("convert", "sevir"): "SOURCE TARGET",
    }.items():
        assert main(["data", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("action", "name"), [("make", "sevir"), ("fetch", "radar_open"), ("convert", "sevir sevir_lr")]
)
def test_help_of_an_action_lists_its_targets(capsys, action: str, name: str) -> None:
    assert main(["data", action, "--help"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {name}  ")]
    assert line.endswith(load_verb(command._targets(action)[name]).summary)


def test_an_unknown_verb_is_named() -> None:
    for value in ("bench.nowhere:X", "bench.errors:DataError", "bench.errors:Nothing"):
        with pytest.raises(BrokenPluginError, match=value):
            load_verb(value)


def test_help_of_a_task_imports_no_torch() -> None:
    code = "import sys; from bench.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "make", "sevir", "--help"], capture_output=True, text=True, check=True
    )
    assert "--frames N" in done.stdout and done.stdout.rstrip().endswith("False")
