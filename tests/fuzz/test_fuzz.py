"""All external input is read correctly or refused with one clear error: no traceback, no execution of code."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import bench
from bench.cli.main import main
from bench.config import Config, compose
from bench.engine.checkpoints import CheckpointFiles
from bench.errors import DataError, UsageError
from bench.records.schema import RunRecord
from bench.records.store import read_record, read_records, write_record

_SLOW = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
)

# Changes to a file: cut, replaced, inserted or removed bytes.
_CHANGES = st.lists(
    st.tuples(st.sampled_from(["cut", "set", "insert", "remove"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=4,
)


def _changed(content: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, new in changes:
        place = int(where * len(content))
        if kind == "cut":
            content = content[:place]
        elif kind == "set":
            content = content[:place] + new + content[place + len(new) :]
        elif kind == "insert":
            content = content[:place] + new + content[place:]
        else:
            content = content[:place] + content[place + len(new) :]
    return content


@pytest.fixture(scope="module")
def record(storms: Path) -> RunRecord:
    return bench.evaluate("persistence", bench.load_task("sevir", storms), device="cpu").sealed()


# Config

_KEYS = st.sampled_from(
    ["train.lr", "train.max_epochs", "data.batch_size", "seed", "model", "task", "split", "limit", "device", "devices",
     "train.early_stopping.monitor", "model.channels", "task.t_out", "train", "experiment", "hydra.run.dir", "nothing",
     "train.nothing", "model.name", "results.root", "train.checkpoints", "train.resume"]
)  # fmt: skip
_VALUES = st.one_of(
    st.sampled_from(
        ["1", "-1", "0", "nan", "inf", "1e-3", "null", "true", "[1,2]", "{a:1}", "unet", "../../etc", "''"]
    ),
    st.sampled_from(
        ["${seed}", "${nothing}", "${oc.env:HOME}", "!!python/object/apply:os.system", "1_000", "no", "1,2"]
    ),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)
_OVERRIDES = st.lists(
    st.builds(
        lambda prefix, key, value: f"{prefix}{key}={value}", st.sampled_from(["", "+", "++", "~"]), _KEYS, _VALUES
    )
    | st.text(max_size=12),
    max_size=3,
)


_WORDS = st.sampled_from(
    ["run", "evaluate", "status", "list", "show", "--format", "json", "-m", "--cfg", "job", "--resme", "model", "unet",
     "model=unet", "seed=0,1", "data.root=/not/there", "x", "--help", "-h"]
)  # fmt: skip


@pytest.mark.slow
@_SLOW
@given(_OVERRIDES)
@example(["+train._target_=os.system"])
@example(["model.name=../../etc"])
@example(["seed=1\x00"])
@example(["model=1"])
@example(["~model=1"])
def test_any_overrides_give_a_config_or_one_error(overrides: list[str]) -> None:
    try:
        config = compose(overrides)
    except UsageError as error:
        assert str(error)
    else:
        assert isinstance(config, Config)


_HYDRA = ["callbacks", "x", "_target_", "launcher", "n_jobs", "job", "env_set", "LD_PRELOAD", "sweep", "dir", "run",
          "job_logging", "formatters", "()", "mode", "overrides", "hydra", "task", "help", "template", "searchpath",
          "runtime", "choices", "sweeper", "params", "output_subdir", "verbose", "name", "config_name"]  # fmt: skip
_HYDRA_PATHS = st.lists(st.sampled_from(_HYDRA), min_size=1, max_size=3)
_CALLED: list[str] = []


def note_that_it_was_called(*arguments: object, **named: object) -> None:
    """The function named by the examples of the next test; it must never be called."""
    _CALLED.append(f"{arguments} {named}")


_TARGETS = st.sampled_from(
    [f"{__name__}.note_that_it_was_called", "os.system", "MULTIRUN", "2", "true", "null", "a\nb"]
)


@_SLOW
@given(_HYDRA_PATHS, _TARGETS, st.sampled_from(["", "+", "++"]), st.booleans(), st.sampled_from(["", "joblib"]))
@example(["callbacks", "x", "_target_"], "os.system", "+", True, "")
@example(["launcher", "n_jobs"], "2", "", False, "joblib")
def test_any_hydra_key_is_documented_or_one_error(
    tmp_path_factory, path: list[str], value: str, prefix: str, in_a_file: bool, launcher: str
) -> None:
    from bench.config.hydra_keys import ALLOWED

    if in_a_file:
        content: object = value
        for part in reversed(path):
            content = {part: content}
        folder = tmp_path_factory.mktemp("configs")
        (folder / "experiment").mkdir()
        text = "# @package _global_\n" + json.dumps({"hydra": content})
        (folder / "experiment/x.yaml").write_text(text, encoding="utf-8")
        given_ = [f"hydra.searchpath=['{folder}']", "experiment=x"]
    else:
        given_ = [f"{prefix}hydra.{'.'.join(path)}={value}"]
    given_ += [f"hydra/launcher={launcher}"] * bool(launcher)
    try:
        compose(given_)
    except UsageError as error:
        assert str(error)
    else:
        key = f"hydra.{'.'.join(path)}"
        same = value == "null" and key in ("hydra.mode", "hydra.output_subdir")
        noted = key.startswith(("hydra.runtime.", "hydra.job.config_name", "hydra.searchpath"))  # Hydra's own notes
        assert key in ALLOWED or same or noted, given_
    assert not _CALLED


@_SLOW
@given(st.lists(_WORDS | st.text(max_size=6), max_size=5))
def test_any_command_line_exits_with_a_documented_code(tmp_path_factory, words: list[str]) -> None:
    folder = tmp_path_factory.mktemp("cwd")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(words) in (0, 2)
        assert not list(folder.rglob("*.ckpt")) and not list(folder.rglob("results/runs/*"))
    finally:
        os.chdir(before)


# Records


@_SLOW
@given(_CHANGES)
def test_a_mutated_record_is_refused_or_equal(record: RunRecord, tmp_path_factory, changes) -> None:
    path = tmp_path_factory.mktemp("record") / "x.json"
    content = json.dumps(record.model_dump(mode="json"), indent=1).encode()
    path.write_bytes(_changed(content, changes))
    try:
        assert read_record(path) == record, "whatever reads must be what was written"
    except DataError as error:
        assert str(path) in str(error)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@_SLOW
@given(st.sampled_from(sorted(RunRecord.model_fields)), _JSON)
def test_any_field_content_is_refused_or_hashed(record: RunRecord, tmp_path_factory, key, value):
    path = tmp_path_factory.mktemp("record") / "x.json"
    path.write_text(json.dumps({**record.model_dump(mode="json"), key: value}))
    with suppress(DataError):
        assert read_record(path) == record


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"1" * 10_000, b'{"a": 1e999}'])
def test_deep_or_odd_files_are_skipped(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/x.json").write_bytes(content)
    records, problems = read_records(tmp_path)
    assert records == [] and len(problems) == 1


@_SLOW
@given(st.text(max_size=20), st.sampled_from(["task", "model", "run_id"]))
@example("../../etc", "task")
@example("a\n", "model")
@example("..", "run_id")
@example("a/b", "run_id")
def test_no_name_leaves_the_results_folder(record: RunRecord, tmp_path_factory, name: str, where: str) -> None:
    root = tmp_path_factory.mktemp("root")
    content = record.model_dump(mode="json")
    if where == "run_id":
        content["run_id"] = name
    else:
        content[where]["name"] = name
    try:
        named = RunRecord.model_validate(content)
    except ValidationError:
        return
    path = write_record(named, root / "results")
    assert path.resolve().is_relative_to(root / "results/runs") and len(path.relative_to(root / "results").parts) == 4


# Data and checkpoints


@_SLOW
@given(_CHANGES)
@example([("insert", 0.0, b"\xef\xbb\xbf")])
def test_a_mutated_catalogue_is_read_or_gives_one_error(storms: Path, tmp_path_factory, changes) -> None:
    root = tmp_path_factory.mktemp("sevir")
    (root / "data").symlink_to(storms / "data")
    for path in storms.iterdir():
        if path.is_file():
            shutil.copy(path, root)
    content = (storms / "CATALOG.csv").read_bytes()
    (root / "CATALOG.csv").write_bytes(_changed(content, changes))
    try:
        data = bench.load_task("sevir", root).dataset("all")
        for index in range(min(2, len(data))):
            data[index]
    except UsageError as error:
        assert str(error)


@_SLOW
@given(_CHANGES)
def test_a_mutated_checkpoint_is_refused_or_equal(tmp_path_factory, changes) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "last.ckpt"
    whole = {"state_dict": {"a": torch.arange(20.0)}, "epoch": 3}
    CheckpointFiles().save_checkpoint(whole, str(path))
    path.write_bytes(_changed(path.read_bytes(), changes))
    try:
        found = CheckpointFiles().load_checkpoint(str(path))
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert found["epoch"] == 3 and torch.equal(found["state_dict"]["a"], whole["state_dict"]["a"])
