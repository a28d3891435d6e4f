"""The record store: `ROOT/runs/TASK/MODEL/RUN_ID.json`, published atomically and never replaced.

Its statistics are stored beside it as `RUN_ID.npz`, which is published first.
"""

from __future__ import annotations

import gc
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from bench.config import explain
from bench.errors import DataError, RunFailedError
from bench.files import sync_folder
from bench.paths import AnyPath, as_path
from bench.records.reading import read_json
from bench.records.schema import SCHEMA_VERSION, RunRecord, content_sha256, migrated
from bench.records.statistics import packed


def new_run_id(config_fingerprint: str) -> tuple[str, str]:
    """Returns a run id that sorts by time and contains the config's fingerprint, and its time (UTC, ISO 8601)."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{config_fingerprint[:10]}-{secrets.token_hex(2)}", now.isoformat(timespec="seconds")


def record_path(root: str | AnyPath, record: RunRecord) -> AnyPath:
    """Returns the path of a record under a results root."""
    return _at(root) / "runs" / record.task.name / record.model.name / f"{record.run_id}.json"


def write_record(record: RunRecord, root: str | AnyPath) -> AnyPath:
    """Writes a record atomically and returns its path; existing files are never replaced.

    Args:
        record: The record, which is sealed here.
        root: Results root: a folder, or an fsspec URL whose backend publishes objects atomically (S3, GCS, Azure do).

    Raises:
        DataError: a field is invalid; nothing is written.
        RunFailedError: it cannot be written (disk full, read-only, no access); names the path.
    """
    try:  # a copy with changed fields was never validated
        RunRecord.model_validate(record.model_dump(warnings=False))
    except ValidationError as error:
        raise DataError("not a valid record: " + "; ".join(explain(error, RunRecord)[:3])) from error
    record = record.sealed()
    path = record_path(root, record)
    text = json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    beside = None
    try:
        if isinstance(record.arrays, Mapping):  # before the record that names their hash
            publish(packed(record.arrays), path.with_suffix(".npz"))
            beside = path.with_suffix(".npz")
        publish(text.encode(), path)
    except Exception as error:  # a disk gives OSError, each remote backend errors of its own
        if beside is not None:  # useless without the record
            with suppress(Exception):
                beside.unlink()
        raise RunFailedError(f"record {path} cannot be written: {error}") from error
    return path


def publish(content: bytes, path: AnyPath) -> None:
    """Writes a file atomically, on a disk or at a URL, and never replaces another.

    Raises:
        FileExistsError: the name is taken.
        Exception: the error of the disk or the backend.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(path, Path):
        _publish_on_disk(content, path)
    else:
        _upload(content, path)


def publish_beside(content: bytes, path: AnyPath) -> AnyPath:
    """Publishes a file for pictures beside a record, and returns its path.

    Raises:
        DataError: it cannot be written; names the path.
    """
    try:
        publish(content, path)
    except Exception as error:  # a disk gives OSError, each remote backend errors of its own
        raise DataError(f"{path} cannot be written: {error}") from error
    return path


def _publish_on_disk(content: bytes, path: Path) -> None:
    part = path.with_name(f".{path.stem}-{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _give_name(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def _give_name(part: Path, path: Path) -> None:
    try:
        os.link(part, path)  # unlike rename, never replaces
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system
        if path.exists():
            raise FileExistsError(f"{path} exists") from None
        part.rename(path)


def _upload(content: bytes, path: AnyPath) -> None:
    try:
        path.fs.pipe_file(path.path, content, mode="create")  # the backend refuses a name that is taken
    # Without conditional writes, a check before is enough, because ids are random.
    except (NotImplementedError, TypeError):
        if path.exists():
            raise FileExistsError(f"{path} exists") from None
        path.fs.pipe_file(path.path, content)


def read_record(path: AnyPath) -> RunRecord:
    """Returns the record of a file.

    Raises:
        DataError: not JSON, not of this schema, or changed after it was written.
    """
    content = read_json(path, "a readable record")
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(f"{path}: written by a newer earthbench (schema {version}); upgrade to read it")
    try:
        record = RunRecord.model_validate(migrated(content) if isinstance(content, dict) else content)
    except ValidationError as error:
        raise DataError(f"{path}: not a valid record: " + "; ".join(explain(error, RunRecord)[:3])) from error
    if record.sha256 != content_sha256(content):
        raise DataError(f"{path}: tampered: its content does not have the hash it carries")
    if version != SCHEMA_VERSION:
        record = record.sealed()  # its hash was that of the older schema
    return record.with_arrays(path.with_suffix(".npz"))


def read_records(root: str | AnyPath, task: str | None = None) -> tuple[list[RunRecord], list[str]]:
    """Returns the readable records under a results root, oldest first, and one line per unreadable file.

    Args:
        root: Results root, a folder or an fsspec URL.
        task: Only this task's records.
    """
    records, problems = [], []
    folder = _at(root) / "runs" / (task or "")
    if not isinstance(folder, Path):
        folder.fs.invalidate_cache()  # others may have written since the last listing
        if not folder.exists():
            return [], []
    with _without_garbage_collection():
        for path in sorted(folder.rglob("*.json")):
            try:
                records.append(read_record(path))
            except DataError as error:
                problems.append(str(error))
    return sorted(records, key=lambda record: record.run_id), problems


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pauses garbage collection, which takes a third of the time while thousands of records are read and kept."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _at(root: str | AnyPath) -> AnyPath:
    return as_path(root, "results.root") if isinstance(root, str) else root
