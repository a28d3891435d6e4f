"""A user's YAML is a valid config or refused: it cannot run code or exhaust the memory (C04, C05)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli.main import main
from bench.config.user_yaml import check_config_folder

_NINE = ",".join(["*{0}"] * 9)
# Nine to the tenth power: what OmegaConf would copy.
_BOMB = "a0: &a0 [1,2,3,4,5,6,7,8,9]\n" + "\n".join(f"a{n}: &a{n} [{_NINE.format(f'a{n - 1}')}]" for n in range(1, 10))

# Each one level deeper than the one before it, on a hundred lines of two levels.
_CHAIN = "a0: &a0 [1]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 100))


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in a folder of configs; the run starts in an empty folder."""
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "mine/experiment/evil.yaml"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("seed: !!python/object/apply:os.system ['touch pwned']", "could not determine a constructor"),
        ("seed: 1\nseed: 2", "duplicate"),
        ("train:\n  _target_: os.system\n  command: touch pwned", "_target_"),
        ("a: [unclosed", "expected"),
        ("- 1", "config"),
        (_BOMB, "aliases"),
        ("a: &a [*a]", "aliases"),
        ("a: " + "x" * (2 << 20), "too large for a config"),
        ("[" * 100_000, "levels deep"),
        ("[" * 60 + "]" * 60, "levels deep"),
        ("- " * 2000 + "1", "levels deep"),
        (_CHAIN, "levels deep"),
        ("seed: \N{LATIN SMALL LETTER E WITH ACUTE}", "utf-8"),
        ("seed: \x01", "cannot be read"),
    ],
    ids=[
        "tag",
        "duplicate",
        "target",
        "unclosed",
        "list",
        "bomb",
        "circle",
        "large",
        "deep",
        "closed",
        "dashes",
        "chain",
        "latin",
        "control",
    ],
)
@pytest.mark.parametrize(
    "verb", [["run"], ["run", "-m", "seed=0,1"], ["status", "seed=0,1"]], ids=["run", "-m", "status"]
)
def test_a_dangerous_yaml_file_is_refused(capsys, evil: Path, content: str, words: str, verb: list[str]) -> None:
    evil.write_text("# @package _global_\n" + content, encoding="latin-1")
    assert main([*verb, "--config-dir", str(evil.parents[1]), "experiment=evil"]) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not list(Path.cwd().rglob("*"))


@pytest.mark.slow
def test_a_few_yaml_aliases_are_allowed_in_runs_and_sweeps(capsys, evil: Path, storms: Path) -> None:
    evil.write_text("# @package _global_\nmodel: {name: persistence}\nlimit: &two 2\ndata: {batch_size: *two}\n")
    chosen = [f"--config-dir={evil.parents[1]}", "experiment=evil", f"data.root={storms}", "progress=false"]
    chosen += ["picture=false", "device=cpu"]
    assert main(["run", *chosen, "--cfg", "job"]) == 0
    assert "name: persistence" in capsys.readouterr().out
    assert main(["run", "-m", *chosen, "seed=0,1"]) == 0
    capsys.readouterr()
    assert main(["status", *chosen, "seed=0,1", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"recorded": 2}
    records = [json.loads(path.read_text()) for path in Path("results").rglob("*.json")]
    assert {(r["data"]["sequence_count"], r["config"]["data"]["batch_size"]) for r in records} == {(2, 2)}


def test_unused_files_may_be_invalid_but_not_dangerous(evil: Path) -> None:
    for name, content in {
        "unclosed": b"a: [1",
        "latin": b"a: \xe9",
        "wide": "a: 1".encode("utf-16"),
        "empty": b"",
    }.items():
        evil.with_stem(name).write_bytes(content)
    evil.write_text("- " * 49 + "1")
    check_config_folder(evil.parents[1])
