"""Verbs that help a reader: compare, completion, help, report --open."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from bench import registry
from bench.cli.main import VERBS, main
from bench.errors import counted
from bench.records import compare, read_records


def _out(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(words) == code
    found = capsys.readouterr()
    return found.err if code else found.out


def test_compare_runs_the_paired_test_on_the_newest_runs(capsys, committed_results: Path) -> None:
    given = ["compare", "optical_flow_blurred", "persistence", "--task", "radar", "--results", str(committed_results)]
    found = json.loads(_out(capsys, *given, "--score", "csi_16", "--format", "json"))
    records = {record.run_id: record for record in read_records(committed_results, "radar")[0]}
    expected = compare(records[found["a"]["run_id"]], records[found["b"]["run_id"]], "csi_16")
    (score,) = found["scores"]
    assert score["difference"] == expected.difference > 0 and score["p_value"] == expected.p_value < 0.05
    shown = _out(capsys, *given)
    line = next(line.split() for line in shown.splitlines() if line.startswith("csi_16 "))
    assert line[1:3] == [f"{expected.a:.4g}", f"{expected.b:.4g}"] and line[-1] == "A"
    assert next(line for line in shown.splitlines() if line.startswith("mse")).split()[-1] == "A"  # lower is better
    told = (
        "the newest of 5 data sets or task options that both have"  # an evening, three folds of days, two days at 4 km
    )
    assert told in shown and "one of the two lacks the score: crps_fair" in shown  # undefined for one member
    by_id = _out(capsys, "compare", found["a"]["run_id"], f"x/{found['b']['run_id']}.json", *given[3:])
    assert told not in by_id and by_id.split("\n\n")[1:] == shown.split("\n\n")[1:]


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["optical_flo", "persistence"], "Did you mean 'optical_flow'"),
        (["optical_flow", "convlstm", "--score", "csi_n"], "Did you mean 'csi_m'"),
        (["optical_flow", "e3d_lstm"], "was scored on the same data"),
        (["unet", "persistence"], "give --task, one of enso_ersst, nbody_mnist, radar"),
        (["unet", "persistence", "--task", "radr"], "no run of task 'radr' under"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(capsys, committed_results: Path, words: list[str], cure: str) -> None:
    assert cure in _out(capsys, "compare", *words, "--results", str(committed_results), code=2)


def test_a_score_missing_from_one_run_is_left_out_with_a_note(capsys, storms: Path, tmp_path: Path) -> None:
    places = [f"results.root={tmp_path}/results", f"work={tmp_path}/work"]
    given = ["task=sevir", f"data.root={storms}", "device=cpu", "progress=false", "picture=false", *places]
    assert main(["evaluate", *given, "model=blank", "evaluate.metrics.other={metric: mae}"]) == 0
    assert main(["evaluate", *given, "model=persistence"]) == 0
    capsys.readouterr()
    words = ["blank", "persistence", "--results", f"{tmp_path}/results"]
    for pair in (words, [words[1], words[0], *words[2:]]):
        shown = _out(capsys, "compare", *pair)
        assert "one of the two lacks the score: mae_other" in shown and "\ncsi_m " in shown
    assert "has no score 'mae_other'" in _out(capsys, "compare", *words, "--score", "mae_other", code=2)


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["show", "unet"], "'unet' is a model: `earthbench show model unet`. `earthbench show --help`"),
        (["board", "chek", "x.yaml"], "Did you mean 'check'? `earthbench board --help`"),
    ],
)
def test_a_misplaced_word_gets_a_suggestion(capsys, words: list[str], cure: str) -> None:
    assert cure in _out(capsys, *words, code=2)


def test_check_of_a_table_suggests_the_right_verb(capsys) -> None:
    assert "`earthbench table runs/sevir` prints it" in _out(capsys, "check", "runs/sevir", code=2)


@pytest.mark.parametrize("verb", VERBS)
def test_help_verb_equals_verb_help_and_has_examples(capsys, verb: str) -> None:
    shown = _out(capsys, "help", verb)
    assert shown == _out(capsys, verb, "--help")
    assert f"\n  {'eval' if verb == 'completion' else 'earthbench ' + verb}" in shown.split("examples:")[1]


@pytest.mark.parametrize("words", [["data", "info"], ["data", "check"], ["data", "make", "sevir"]])
def test_help_of_a_nested_verb_has_examples(capsys, words: list[str]) -> None:
    shown = _out(capsys, "help", *words)
    assert "earthbench " + " ".join(words[:2]) in shown.split("examples:")[1]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tabl"], "table"),
        (["table", "runs/rad"], "runs/radar"),
        (["table", "--form"], "--format"),
        (["table", "runs/radar", "--format", "la"], "latex"),
        (["table", "runs/radar", "--with", "simv"], "simvp"),
        (["run", "mod"], "model="),
        (["run", "model", "=", "rainf"], "rainformer"),
        (["run", "train.max_e"], "train.max_epochs="),
        (["help", "expl"], "explain"),
    ],
)
def test_bash_completion(capsys, tmp_path: Path, words: list[str], expected: str) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(_out(capsys, "completion", "bash"))
    typed = " ".join(f"'{word}'" for word in ["earthbench", *words])
    program = f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _earthbench 2>/dev/null; "
    program += 'echo "${COMPREPLY[@]}"'
    found = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert expected in found.stdout.split(), found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_have_verbs_and_names(capsys, shell: str) -> None:
    script = _out(capsys, "completion", shell)
    for word in (*VERBS, *registry.names("model"), *registry.names("table"), "--results", "data.root="):
        assert word in script, word


def test_report_opens_in_the_browser(capsys, monkeypatch, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: not opened.append(address))
    (tmp_path / "results").mkdir()
    given = ["report", "--out", str(tmp_path / "site"), "--results", str(tmp_path / "results")]
    shown = _out(capsys, *given, "--open")
    assert opened == [(tmp_path / "site/index.html").as_uri()] and "open " not in shown
    assert "open " in _out(capsys, *given) and len(opened) == 1


def test_counts_of_one_are_singular() -> None:
    assert [counted(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


def test_count_shows_published_sizes_with_a_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = {"status": "counted", "parameters": 15_082_069, "gmacs": 257.4}
    monkeypatch.setattr(
        "bench.cli.count._counted", lambda rows, speed: ({"model": m, "task": t, **size} for t, m, _ in rows)
    )
    assert main(["count", "--table", "earthformer/sevir"]) == 0
    said = capsys.readouterr().out
    assert "earthformer            match" in said and "compared with half the published figure" in said
    assert "No published size" not in said
    for table in ("earthformer/moving_mnist", "earthformer/depth", "earthformer/patterns_moving_mnist"):
        assert main(["count", "--table", table]) == 0
        said = capsys.readouterr().out
        assert "No published size of these rows could be confirmed" in said and "half the published" not in said
        counts = [line for line in said.splitlines() if "15,082,069" in line]
        assert max(map(len, counts)) <= 80
        assert not any(line.startswith("-") for line in counts), "a row without its name"
