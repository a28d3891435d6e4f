"""A store with truncated, corrupted or huge files, or non-files: each is named and skipped, the rest is read."""

from __future__ import annotations

import io
import json
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from logged import logged

import bench
from bench.cli.main import main
from bench.config import compose
from bench.data.sevir.synthetic import make_sevir
from bench.engine import run as pipeline
from bench.errors import DataError, RunFailedError
from bench.records.learning_curves import learning_curve_path, read_learning_curve
from bench.records.reading import MAX_DEPTH, read_npz
from bench.records.samples import read_sample, sample_path, write_sample
from bench.records.schema import RunRecord, content_sha256
from bench.records.statistics import packed, read_arrays
from bench.records.store import read_record, read_records, write_record
from bench.records.verify import verify_file, verify_records


@pytest.fixture(scope="module")
def record(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu")


def _npz(name: str, content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def _header(text: str) -> bytes:
    padded = text.encode() + b" " * (64 - len(text) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


def _declares(shape: str, dtype: str = "<f8", held: bytes = b"\0" * 8) -> bytes:
    return _npz(
        "mse.error_sum.npy", _header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}") + held
    )


def _says_it_is_small(bomb: bytes) -> bytes:
    """Returns the same archive with a directory that declares fewer bytes than it contains."""
    at = bomb.rindex(b"PK\x01\x02")
    return bomb[: at + 24] + (64).to_bytes(4, "little") + bomb[at + 28 :]


def _many(count: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(count):
            archive.writestr(str(number), b"")
    return file.getvalue()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "half": lambda whole: whole[: len(whole) // 2],
    "no directory": lambda whole: whole[:-40],
    "text": lambda whole: b"not an archive",
    "other arrays": lambda whole: packed({"mse.error_sum": np.zeros(3)}),
    "huge shape": lambda whole: _declares("(400000000000,)"),
    "shape beyond any integer": lambda whole: _declares("(" + "9" * 40 + ",)"),
    "negative shape": lambda whole: _declares("(-1, -1)"),
    "nested header": lambda whole: _npz("x.npy", _header("(" * 4_000 + ")" * 4_000)),
    "objects": lambda whole: _declares("(1,)", "|O"),
    "words": lambda whole: _declares("(1,)", "<U2"),
    "bomb that denies it": lambda whole: _says_it_is_small(_npz("x.npy", bytes(50_000_000))),
    "packed without a bound": lambda whole: _npz("x.npy", bytes(1_000), zipfile.ZIP_LZMA),
    "many arrays": lambda whole: _many(20_000),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_statistics_are_named_and_the_rest_shown(
    record: RunRecord, tmp_path: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_record(record, tmp_path)
    bad = write_record(record.model_copy(update={"run_id": f"{record.run_id}-x", "seed": 1}), tmp_path)
    statistics = bad.with_suffix(".npz")
    statistics.write_bytes(damage(statistics.read_bytes()))
    with pytest.raises(DataError, match=f"{statistics.name}: (not readable statistics|tampered)"):
        read_arrays(read_record(bad))
    assert read_arrays(read_record(good)) is not None
    assert {(one.path, one.field) for one in verify_records(tmp_path)[1]} == {(bad, "statistics.content_sha256")}
    assert main(["table", "runs/sevir", "--results", str(tmp_path)]) == 0
    assert main(["verify", "--results", str(tmp_path)]) == 4
    captured = capsys.readouterr()
    assert "persistence" in captured.out and statistics.name in captured.err and "Traceback" not in captured.err


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(packed({"x": np.zeros(1_000_000)}))
    assert len(path.read_bytes()) < 100_000
    with pytest.raises(DataError, match="larger than 1 MiB when unpacked"):
        read_npz(path, "statistics", 1 << 20)


def test_a_table_names_the_statistics_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = make_sevir(tmp_path / "sevir", events={"train": 0, "val": 0, "test": 30}, size=16)
    record = bench.evaluate("persistence", bench.load_task("sevir", root), device="cpu")
    statistics = write_record(record, tmp_path).with_suffix(".npz")
    whole = statistics.read_bytes()
    statistics.write_bytes(b"")
    assert main(["table", "runs/sevir", "--results", str(tmp_path)]) == 0
    assert "persistence" in capsys.readouterr().out
    assert len([line for line in caplog.messages if str(statistics) in line]) == 1
    statistics.write_bytes(whole)
    path = statistics.with_suffix(".json")
    content = json.loads(path.read_text())
    del content["statistics"]["metrics"]["skill"]["options"]["thresholds"]
    path.write_text(json.dumps(RunRecord.model_validate(content).sealed().model_dump(mode="json")))
    model = record.model.model_copy(update={"name": "unet"})
    scores = {name: (value or 0.0) / 2 for name, value in record.scores.items()}
    write_record(record.model_copy(update={"model": model, "run_id": "x", "scores": scores, "undefined": {}}), tmp_path)
    assert main(["table", "runs/sevir", "--results", str(tmp_path)]) == 0
    assert "KeyError: 'thresholds'" in caplog.text


def _nested(levels: int) -> str:
    return '{"config":' + '{"a":' * levels + "1" + "}" * levels + "}"


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may be of 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (_pipe, "a named pipe"),
    "socket": (_socket, "a socket"),
    "folder": (Path.mkdir, "a folder"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "huge": (_sparse, "larger than"),
    "link to itself": (lambda path: path.symlink_to(path), "symbolic links"),
}
NO_RECORDS: dict[str, tuple[Callable[[Path], object], str]] = {
    **NO_FILES,
    "link to nothing": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "deep list": (lambda path: path.write_text("[" * 200_000), "nested|recursion"),
    "deep and whole": (lambda path: path.write_text(_nested(100_000)), "nested|recursion"),
    "deeper than a record": (lambda path: path.write_text(_nested(MAX_DEPTH)), "nested"),
    "long number": (lambda path: path.write_text('{"seed": ' + "9" * 10_000 + "}"), "digits"),
    "not UTF-8": (lambda path: path.write_bytes('{"seed": 0}'.encode("utf-16")), "utf-8"),
}


@pytest.mark.parametrize(("make", "words"), NO_RECORDS.values(), ids=NO_RECORDS)
def test_invalid_records_are_named_and_the_rest_shown(
    record: RunRecord,
    tmp_path: Path,
    make: Callable[[Path], object],
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = write_record(record, tmp_path)
    bad = good.with_name("x.json")
    make(bad)
    records, (problem,) = read_records(tmp_path)
    assert [one.run_id for one in records] == [record.run_id] and str(bad) in problem
    with pytest.raises(DataError, match=words):
        read_record(bad)
    assert {(one.path, one.field) for one in verify_records(tmp_path)[1]} == {(bad, "file")}
    assert [one.field for one in verify_file(bad)] == ["file"]
    assert main(["table", "runs/sevir", "--results", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "persistence" in captured.out and "left out: sevir/persistence/x.json: not a readable record" in captured.err
    assert main(["verify", "--results", str(tmp_path)]) == 4


def test_a_deeply_nested_field_of_a_record_is_refused(record: RunRecord, tmp_path: Path) -> None:
    path = write_record(record, tmp_path)
    content = json.loads(path.read_text())
    content["config"] = json.loads(_nested(MAX_DEPTH))
    content["sha256"] = content_sha256(content)
    path.write_text(json.dumps(content))
    assert [one.field for one in verify_file(path)] == ["file"] and "nested more than" in read_records(tmp_path)[1][0]


@pytest.mark.parametrize(("make", "words"), NO_FILES.values(), ids=NO_FILES)
def test_paths_beside_a_record_that_are_not_files_are_errors(
    record: RunRecord, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    statistics = write_record(record, tmp_path).with_suffix(".npz")
    statistics.unlink()
    sample, curve = sample_path(record, tmp_path), learning_curve_path(record, tmp_path)
    for path in (statistics, sample, curve):
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
    for read in (read_sample, read_learning_curve):
        with pytest.raises(DataError, match=words):
            read(record, tmp_path)
    with pytest.raises(DataError, match=words):
        read_arrays(read_record(statistics.with_suffix(".json")))
    named = {one.path for one in verify_records(tmp_path)[1]}
    if not statistics.is_dir():  # verify names the files in folders, not every folder that is there
        assert {sample, curve} <= named
    assert statistics.with_suffix(".json") in named


def test_a_damaged_sample_or_curve_is_a_finding(record: RunRecord, tmp_path: Path) -> None:
    frames = np.zeros((2, 4, 4))
    path = write_sample({"context": frames, "target": frames, "forecast": frames}, record, tmp_path)
    write_record(record, tmp_path)
    curve = learning_curve_path(record, tmp_path)
    curve.parent.mkdir(parents=True)
    curve.write_text("steps,split,loss\n1,train,0.5\n")
    assert verify_records(tmp_path) == (1, [])
    path.write_bytes(path.read_bytes()[:-1])
    curve.write_text("steps,split,loss\n1,tr")
    assert [one.path for one in verify_records(tmp_path)[1]] == [path, curve]
    path.write_bytes(packed(dict.fromkeys(("context", "target", "forecast"), np.zeros((0, 4, 4)))))
    with pytest.raises(DataError, match="T,H,W"):
        read_sample(record, tmp_path)


@pytest.mark.parametrize("drawing", [OSError(28, "No space left on device"), ImportError("No module named 'pyproj'")])
def test_errors_after_the_record_is_written_are_warnings(
    drawing: Exception, storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*args: object, **options: object) -> None:
        raise DataError("samples/x.npz cannot be written: [Errno 28] No space left on device")

    def fails(*args: object, **options: object) -> None:
        raise drawing

    monkeypatch.setattr(pipeline, "write_sample", no_space)
    monkeypatch.setattr(pipeline, "draw_forecasts", fails)
    words = ["task=sevir", "model=persistence", "device=cpu", "progress=false", f"data.root={storms}", "picture=true"]
    config = compose([*words, f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}"])
    with logged() as said:
        outcome = pipeline.run(config, training=False)
    assert outcome.picture_path is None and read_record(outcome.record_path) == outcome.record
    warned = [line for line in said if line.startswith("warning: ")]
    assert len(warned) == 2 and "No space left on device" in warned[0] and str(drawing.args[-1]) in warned[1]
    assert verify_records(tmp_path / "results") == (1, [])


def test_a_full_disk_before_the_record_is_written_fails_the_run(
    storms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bench.records.store.publish", no_space)
    words = ["task=sevir", "model=persistence", "device=cpu", "progress=false", f"data.root={storms}"]
    config = compose([*words, f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}"])
    with pytest.raises(RunFailedError, match="No space left"):
        pipeline.run(config, training=False)
