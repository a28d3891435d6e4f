"""The log: the contents of each stream and of a run's folder, without secrets in any handler."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from faults import TINY, tiny

from bench.cli.main import main
from bench.engine.run import run
from bench.errors import RunFailedError
from bench.logs import LEVEL, log, only_in_files, run_log, shown_on

UNTRAINED = "no checkpoint given: these are the scores of untrained weights"
SECRET = "s3://user:hunter22@bucket/x"


@pytest.fixture(autouse=True)
def _level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEVEL, "INFO")  # restored after `main` has set it


def _words(storms: Path, out: Path) -> list[str]:
    return [*TINY, "limit=1", f"data.root={storms}", f"results.root={out / 'results'}", f"work={out / 'work'}"]


@pytest.mark.usefixtures("small_model")
@pytest.mark.parametrize(
    ("flags", "out", "err"),
    [
        ([], UNTRAINED, ""),
        (["--format", "json"], "", UNTRAINED),
        (["--quiet"], "", ""),
        (["--verbose"], "process 1 of 1", ""),
    ],
)
def test_verbosity_flags_select_the_lines_and_their_stream(
    storms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], out: str, err: str
) -> None:
    assert main(["evaluate", *_words(storms, tmp_path), *flags]) == 0
    shown = capsys.readouterr()
    assert out in shown.out and err in shown.err
    for stream, wanted in ((shown.out, out), (shown.err, err)):
        assert stream.count(UNTRAINED) == (wanted == UNTRAINED or (flags == ["--verbose"] and bool(wanted)))
    assert ("process 1 of 1" in shown.out) == (flags == ["--verbose"])
    assert ("CSI-M" in shown.out or "csi_m" in shown.out) and not log.handlers
    (file,) = tmp_path.rglob("run.log")
    assert UNTRAINED in file.read_text() and "process 1 of 1" in file.read_text(), "whatever the console shows"


def test_contradicting_verbosity_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--quiet", "--verbose"]) == 2
    assert "--verbose and --quiet exclude each other" in capsys.readouterr().err
    assert main(["--verbos"]) == 2
    assert "Did you mean '--verbose'" in capsys.readouterr().err


@pytest.mark.usefixtures("small_model")
def test_repeated_runs_and_errors_append_to_the_log_of_the_run(
    storms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        run(tiny(storms, tmp_path, "train.max_epochs=1"), training=True)
    (file,) = tmp_path.rglob("run.log")
    lines = file.read_text().splitlines()
    assert [sum(words in line for line in lines) for words in ("training ended (", "training had ended")] == [1, 1]
    assert all(line[:4].isdigit() for line in lines), "each with its time"
    assert any("training ended (" in line for line in caplog.messages)
    with pytest.raises(RunFailedError):
        run(tiny(storms, tmp_path / "failed", "train.lr=1e30", "train.clip_norm=null"), training=True)
    (file,) = (tmp_path / "failed").rglob("run.log")
    assert "ended by RunFailedError: " in file.read_text() and "Traceback" in file.read_text()


def test_an_unwritable_log_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with run_log(tmp_path / "file", 0):
        log.info("goes on")
    assert "this run has no log file" in caplog.messages[0]


def test_other_processes_only_write_their_own_log_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with shown_on("stdout"):
        with only_in_files(), run_log(tmp_path, 1):
            log.warning("from the second")
        log.info("from the first")
    assert capsys.readouterr().out == "from the first\n" and caplog.messages == ["from the first"]
    assert (tmp_path / "run.rank1.log").read_text().endswith(" from the second\n")


def test_secrets_reach_no_log_handler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with shown_on("stderr"), pytest.raises(ValueError, match="hunter22"), run_log(tmp_path, 0):
        log.warning("reads %s\x1b[2J", SECRET)
        try:
            raise ValueError(SECRET)
        except ValueError:
            log.exception("failed at %(place)s", {"place": SECRET})
            raise
    for text in (capsys.readouterr().err, caplog.text, (tmp_path / "run.log").read_text()):
        assert "hunter22" not in text and text.count("s3://***@bucket/x") >= 3
    assert "\x1b" not in (tmp_path / "run.log").read_text()


def test_the_python_api_installs_no_console_handler(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not log.handlers and log.level == logging.NOTSET and log.propagate
    with run_log(tmp_path, 0):
        log.info("a line")
    assert "a line" in (tmp_path / "run.log").read_text() and capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("small_model")
def test_the_deprecated_callback_still_receives_lines(storms: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    with pytest.warns(DeprecationWarning, match="logger `earthbench`"):
        run(tiny(storms, tmp_path, "limit=1"), training=False, say=lines.append)
    assert UNTRAINED in lines and not log.handlers
