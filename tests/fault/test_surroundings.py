"""The surroundings of a run do not matter: paths, locale, time, and whether its code is in git (C06, C07, D12, X02)."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from engines import COMMAND

import bench
from bench.cli.main import main
from bench.records import provenance, store
from bench.records.schema import CodePart, RunRecord
from bench.records.store import new_run_id, read_records, write_record

_REPO = Path(__file__).resolve().parents[2]

# Paths


def _evaluate(places: dict[str, object]) -> int:
    given = [f"{key}='{value}'" for key, value in places.items()]
    return main(["evaluate", "model=persistence", "device=cpu", "progress=false", "picture=false", *given])


def test_paths_with_spaces_any_alphabet_and_home_work(storms: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "données 数据").symlink_to(storms)
    monkeypatch.setenv("HOME", str(tmp_path))
    for root, results in ((tmp_path / "données 数据", tmp_path / "sp ace ü"), ("~/données 数据", "~/mine")):
        assert _evaluate({"data.root": root, "results.root": results, "work": "~/w"}) == 0
    assert len(read_records(tmp_path / "sp ace ü")[0]) == len(read_records(tmp_path / "mine")[0]) == 1


def test_a_path_that_is_not_utf8_is_read(storms: Path, tmp_path: Path) -> None:
    """As the archives of a system with Latin-1 names give it, and any with `LC_ALL=C PYTHONUTF8=0`."""
    there = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree(storms, there)
    except OSError:
        pytest.skip("this disk takes names in UTF-8 only")
    found, expected = (bench.load_task("sevir", root).data_fingerprint("test") for root in (there, storms))
    assert found == expected


def test_a_path_that_is_not_utf8_is_refused_in_a_config(tmp_path: Path, capsys) -> None:
    """A record is text; it would be found out when the run has been evaluated."""
    places = {"data.root": os.fsdecode(b"caf\xe9"), "results.root": tmp_path / "r", "work": tmp_path / "w"}
    assert _evaluate(places) == 2
    error = capsys.readouterr().err
    assert r"b'\xe9'" in error and "make a link" in error and "Traceback" not in error and not any(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["data.root", "results.root", "work"])
@pytest.mark.parametrize("name", ["loop", "x" * 300, "file"])
def test_a_path_that_cannot_be_a_folder_gives_one_error(
    storms: Path, tmp_path: Path, capsys, key: str, name: str
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    places = {"data.root": storms, "results.root": tmp_path / "r", "work": tmp_path / "w"}
    assert _evaluate({**places, key: tmp_path / name}) == 2
    error = capsys.readouterr().err
    assert name[:20] in error and "Traceback" not in error and len(error.strip().splitlines()) == 1


# Locale and time


@pytest.fixture(scope="module")
def record(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


def test_a_table_is_byte_identical_in_any_locale_and_time_zone(record: RunRecord, tmp_path: Path) -> None:
    write_record(record, tmp_path)
    command = [COMMAND, "table", "runs/sevir", "--results", str(tmp_path)]
    found = set()
    for more in (
        {"LC_ALL": "C.UTF-8", "TZ": "UTC"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "Pacific/Kiritimati"},
    ):
        found.add(subprocess.run(command, capture_output=True, check=True, env=os.environ | more).stdout)
    assert len(found) == 1 and b"persistence" in found.pop()


@pytest.mark.parametrize("step", [timedelta(hours=-1), timedelta(0)], ids=["backwards", "standing"])
def test_a_clock_that_stops_or_runs_backwards_loses_no_record(
    record: RunRecord, tmp_path: Path, monkeypatch, step: timedelta
) -> None:
    """As in the night when summer time ends, on a machine whose clock has no time zone."""
    now = datetime(2026, 10, 25, 2, 30, tzinfo=UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            nonlocal now
            now += step
            return now

    monkeypatch.setattr(store, "datetime", Clock)
    ids = [new_run_id(record.config_fingerprint)[0] for _ in range(5)]
    for name in ids:
        write_record(record.model_copy(update={"run_id": name}), tmp_path)
    assert sorted(found.run_id for found in read_records(tmp_path)[0]) == sorted(ids) and len(set(ids)) == 5


# The code's own state


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], CodePart]:
    """Returns a record's description of the code, as if it were installed in `tmp_path`."""
    (tmp_path / "bench/records").mkdir(parents=True)
    (tmp_path / "bench/model.py").write_text("one = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "bench/records/provenance.py"))

    def state() -> CodePart:
        provenance.code_state.cache_clear()
        return provenance.code_state()

    yield state
    provenance.code_state.cache_clear()


def _git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout


def test_a_wheel_has_a_version_and_no_commit(package: Callable[[], CodePart]) -> None:
    found = package()
    assert found.version and (found.commit, found.dirty, found.diff_sha256) == (None, None, None)


def test_a_checkout_has_a_commit_and_its_changes(package: Callable[[], CodePart], tmp_path: Path) -> None:
    _git(tmp_path, "init", "--quiet")
    assert (package().commit, package().dirty) == (None, None), "no commit yet"
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "--quiet", "--message=one")
    clean = package()
    assert clean.commit == _git(tmp_path, "rev-parse", "HEAD").strip() and clean.dirty is False
    (tmp_path / "notes.txt").write_text("not code")
    assert package() == clean
    (tmp_path / "bench/model.py").write_text("one = 2\n")
    changed = package()
    assert changed.dirty is True and changed.commit == clean.commit and changed.diff_sha256
    (tmp_path / "bench/new.py").write_text("three = 3\n")
    added = package()
    assert added.dirty is True and added.diff_sha256 != changed.diff_sha256
    (tmp_path / "bench/model.py").write_text("one = 1\n")
    assert package().dirty is True, "a file that git does not know is a change, too"


def test_a_shallow_clone_and_a_machine_without_git(package: Callable[[], CodePart], tmp_path: Path, monkeypatch):
    origin = tmp_path / "origin"
    (origin / "bench/records").mkdir(parents=True)
    _git(origin, "init", "--quiet")
    for text in ("1", "2"):
        (origin / "bench/model.py").write_text(text)
        _git(origin, "add", ".")
        _git(origin, "commit", "--quiet", "--message=x")
    _git(tmp_path, "clone", "--quiet", "--depth=1", origin.as_uri(), "shallow")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "shallow/bench/records/provenance.py"))
    found = package()
    assert found.commit == _git(origin, "rev-parse", "HEAD").strip() and found.dirty is False
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (package().commit, package().dirty) == (None, None)


@pytest.mark.parametrize("dirty", [True, False, None])
def test_a_table_marks_records_of_changed_code(record: RunRecord, tmp_path: Path, capsys, dirty: bool | None) -> None:
    code = record.code.model_copy(update={"dirty": dirty})
    write_record(record.model_copy(update={"code": code}), tmp_path)
    assert main(["table", "runs/sevir", "--results", str(tmp_path)]) == 0
    assert ("uncommitted" in capsys.readouterr().out) == bool(dirty)


# Archives (D12)


def test_no_archive_is_extracted_under_its_own_names() -> None:
    """`bench.data.transfer.archives` unpacks under our names; checkpoints are archives, too."""
    sources = [path for folder in ("bench", "baselines", "earthformer") for path in (_REPO / folder).rglob("*.py")]
    calls = {
        node.func.attr
        for path in sources
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and not (isinstance(node.func.value, ast.Attribute) and node.func.value.attr == "str")  # of pandas
    }
    assert sources and not calls & {"extract", "extractall", "unpack_archive"}
