"""The record store: `ROOT/runs/TASK/MODEL/RUN_ID.json`, published atomically and never replaced.

What scores are resampled from lies beside it as `RUN_ID.npz`, which is there before the record is.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from bench.config import explain
from bench.errors import DataError, RunFailedError
from bench.records.schema import SCHEMA_VERSION, RunRecord, content_sha256, migrated
from bench.records.statistics import write_arrays


def new_run_id(config_fingerprint: str) -> tuple[str, str]:
    """Returns a run id that sorts by time and names the config, and the time it carries (UTC, ISO 8601)."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%dT%H%M%SZ}-{config_fingerprint[:10]}-{secrets.token_hex(2)}", now.isoformat(timespec="seconds")


def write_record(record: RunRecord, root: str | Path) -> Path:
    """Writes a record and returns its path; it is there whole or not at all, and nothing is ever replaced.

    Raises:
        RunFailedError: the disk refused (full, read-only); names the path.
    """
    record = record.sealed()
    folder = Path(root) / "runs" / record.task.name / record.model.name
    path = folder / f"{record.run_id}.json"
    part = folder / f".{record.run_id}-{secrets.token_hex(4)}.part"
    statistics, statistics_part = path.with_suffix(".npz"), part.with_name(f"{part.name}.npz")
    text = json.dumps(record.model_dump(mode="json"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if isinstance(record.arrays, Mapping):
            write_arrays(statistics_part, record.arrays)
            _publish(statistics_part, statistics)
        _publish(part, path)
    except OSError as error:
        raise RunFailedError(f"record {path} cannot be written: {error}") from error
    finally:
        for leftover in (part, statistics_part):
            leftover.unlink(missing_ok=True)
    with suppress(OSError):  # not every file system lets a folder be synced
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return path


def _publish(part: Path, path: Path) -> None:
    try:
        os.link(part, path)  # unlike rename, never replaces
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system
        if path.exists():
            raise FileExistsError(f"{path} exists") from None
        part.rename(path)


def read_record(path: Path) -> RunRecord:
    """Returns the record of a file.

    Raises:
        DataError: not JSON, not of this schema, or changed after it was written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable record: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise DataError(f"{path}: written by a newer earthbench (schema {version}); upgrade to read it")
    try:
        record = RunRecord.model_validate(migrated(content) if isinstance(content, dict) else content)
    except ValidationError as error:
        raise DataError(f"{path}: not a valid record: " + "; ".join(explain(error, RunRecord)[:3])) from error
    if record.sha256 != content_sha256(content):
        raise DataError(f"{path}: tampered: its content does not have the hash it carries")
    # an older record has the hash of what it says in its own schema; sealed, it has that of what it says in this one
    return record.sealed().with_arrays(path.with_suffix(".npz"))


def read_records(root: str | Path, task: str | None = None) -> tuple[list[RunRecord], list[str]]:
    """Returns the readable records under a results root, oldest first, and one line per file that is not.

    Args:
        root: Results root.
        task: Only this task's records.
    """
    records, problems = [], []
    for path in sorted((Path(root) / "runs" / (task or "")).rglob("*.json")):
        try:
            records.append(read_record(path))
        except DataError as error:
            problems.append(str(error))
    return sorted(records, key=lambda record: record.run_id), problems
