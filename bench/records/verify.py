"""Checks committed records from their files alone: each broken rule of `bench.records.rules` is named.

No file in the folder can end the check: files that are not records are findings, too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench import registry
from bench.config import explain
from bench.errors import DataError, EarthbenchError
from bench.metrics.names import metric_of
from bench.records import rules
from bench.records.learning_curves import learning_curve_at
from bench.records.reading import read_json
from bench.records.samples import sample_at
from bench.records.schema import SCHEMA_VERSION, RunRecord, content_sha256, migrated
from bench.records.statistics import read_arrays


@dataclass(frozen=True)
class Finding:
    """One broken rule."""

    path: Path
    field: str
    message: str

    def __str__(self) -> str:
        """Returns `path: field: message`."""
        return f"{self.path}: {self.field}: {self.message}"


class Registered:
    """The registered names, looked up once for all records."""

    def __init__(self) -> None:
        self.metrics, self.tasks = frozenset(registry.names("metric")), frozenset(registry.names("task"))
        self.task_version: Callable[[str], int] = cache(_task_version)


def _task_version(name: str) -> int:
    return int(registry.find("task", name).load().version)


def verify_records(root: Path) -> tuple[int, list[Finding]]:
    """Returns the number of records under `ROOT/runs`, and everything that is wrong with them, in order of path.

    Samples and learning curves are checked, too.
    """
    findings: list[Finding] = []
    files = _files(root / "runs", findings)
    there, known = set(files), Registered()
    seen: dict[str, Path] = {}
    for path in files:
        if path.suffix == ".npz" and path.with_suffix(".json") in there:
            continue  # a record's statistics, checked with it
        if path.suffix != ".json":
            findings.append(Finding(path, "file", "not part of a record; killed runs leave such files: delete it"))
            continue
        findings += verify_file(path, known)
        if path.stem in seen:
            findings.append(Finding(path, "run_id", f"also the id of {seen[path.stem]}"))
        seen[path.stem] = path
    readers: dict[str, Callable[[Path], object]] = {"samples": sample_at, "learning_curves": learning_curve_at}
    for folder, read in readers.items():
        for path in _files(root / folder, findings):
            try:
                read(path)
            except DataError as error:
                findings.append(Finding(path, "file", _without_path(path, error)))
    return sum(path.suffix == ".json" for path in files), findings


def _files(folder: Path, findings: list[Finding]) -> list[Path]:
    """Returns all files under a folder, and folders that have the name of a record."""

    def unreadable(error: OSError) -> None:
        if Path(error.filename) == folder and isinstance(error, FileNotFoundError):
            return  # the store has no such folder
        findings.append(Finding(Path(error.filename), "file", f"not a readable folder: {error.strerror}"))

    found = []
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        names += [name for name in folders if name.endswith(".json")]
        found += [Path(parent, name) for name in names]
    return sorted(found)


def verify_file(path: Path, known: Registered | None = None) -> Iterator[Finding]:
    """Yields every rule that a record's file breaks.

    Args:
        path: The file.
        known: The registered names, if they were looked up before.
    """
    for field, message in _broken(path, known or Registered()):
        yield Finding(path, field, message)


def _broken(path: Path, known: Registered) -> rules.Broken:
    try:
        content = read_json(path, "a readable record")
    except DataError as error:
        yield "file", _without_path(path, error)
        return
    if not isinstance(content, dict):
        yield "file", f"expected a JSON object, found {type(content).__name__}"
        return
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        yield "schema_version", f"{version} is newer than this earthbench reads ({SCHEMA_VERSION}); upgrade"
        return
    try:
        sha256 = content_sha256(content)
    except ValueError:  # content with a non-finite number has no canonical form, and so no hash
        yield from ((field, "not a finite number") for field in _not_finite(content))
        return
    try:
        record = RunRecord.model_validate(migrated(content))
    except ValidationError as error:
        for line in explain(error, RunRecord):
            field, _, message = line.partition(": ")
            yield field.partition(" = ")[0], message
        return
    if record.sha256 != sha256:
        yield "sha256", "the content does not have the hash it carries: it was changed after it was written"
    yield from _location(record, path)
    yield from _registered(record, known)
    for rule in rules.RULES:
        yield from rule(record)
    yield from _statistics(record.with_arrays(path.with_suffix(".npz")), path)


def _not_finite(value: Any, where: str = "") -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _not_finite(item, f"{where}.{key}" if where else str(key))


def _without_path(path: Path, error: EarthbenchError) -> str:
    """Returns an error's message without the path, which a finding has itself."""
    return str(error).removeprefix(f"{path}: ")


def _location(record: RunRecord, path: Path) -> rules.Broken:
    """The path agrees with the content."""
    for field, found, expected in (
        ("run_id", record.run_id, path.stem),
        ("model.name", record.model.name, path.parent.name),
        ("task.name", record.task.name, path.parent.parent.name),
    ):
        if found != expected:
            yield field, f"{found!r}, but the file lies at {expected!r}"


def _registered(record: RunRecord, known: Registered) -> rules.Broken:
    """The metrics and the task are registered, and the task has the recorded version."""
    for name in record.conventions:
        if metric_of(name) not in known.metrics:
            yield f"conventions.{name}", "no registered metric; install its distribution, or leave the record out"
    task = record.task
    if task.name not in known.tasks:
        yield "task.name", f"no registered task {task.name!r}; install its distribution, or leave the record out"
        return
    try:
        current = known.task_version(task.name)
    except EarthbenchError as error:
        yield "task.name", str(error)
        return
    if task.version != current:
        yield "task.version", f"{task.version}, registered is {current}: scores may have moved, run it again"


def _statistics(record: RunRecord, path: Path) -> rules.Broken:
    """The statistics exist, have the recorded hash, and give the record's scores."""
    beside = path.with_suffix(".npz")
    if record.statistics is None:
        if beside.exists():
            yield "statistics", f"{beside.name} lies beside, and the record names no statistics"
        return
    try:
        arrays = read_arrays(record)
    except DataError as error:
        yield "statistics.content_sha256", str(error)
        return
    if arrays is None:
        yield "statistics", f"{beside.name} is missing: scores cannot be checked, and there are no intervals"
        return
    yield from rules.statistics(record, arrays)
