"""Manifests of data folders, and the origin that records and tables repeat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.data.report import Advance, Report
from bench.data.transfer.paths import as_os_errors
from bench.errors import DataError
from bench.files import replacing, sha256_of


def origin(root: Path) -> str:
    """Returns the origin of data: that in `DATASET.json` (written for generated data), else 'files'.

    Raises:
        DataError: `DATASET.json` exists but cannot be read.
    """
    try:
        with as_os_errors(root):
            return str(json.loads((root / "DATASET.json").read_text(encoding="utf-8"))["origin"])
    except FileNotFoundError:
        return "files"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root / 'DATASET.json'} is not readable: {error}. Delete it or write it again.") from error


NAME = "MANIFEST.json"


def write_manifest(root: Path, source: str, files: Mapping[str, tuple[int, str]], **more: Any) -> None:
    """Writes the manifest of a data set.

    Args:
        root: Its folder.
        source: Where the files come from.
        files: Bytes and SHA-256 by path below the root.
        **more: Further facts, JSON types.
    """
    listing = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(files.items())}
    with replacing(root / NAME) as part:
        part.write_text(json.dumps({"source": source, **more, "files": listing}, indent=1) + "\n", encoding="utf-8")


def read_manifest(root: Path) -> dict[str, Any] | None:
    """Returns the manifest of a data set, or None if there is none.

    Raises:
        DataError: it cannot be read.
    """
    try:
        content = json.loads((root / NAME).read_text(encoding="utf-8"))
        for name, entry in content["files"].items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{name} leaves the folder")
            int(entry["bytes"]), str(entry["sha256"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{root / NAME} is not readable: {error!r}. Delete it to continue without it.") from error
    return dict(content)


def check_manifest(root: Path, report: Report, advance: Advance | None = None) -> None:
    """Adds to a report the files that differ from the manifest; reads every byte of them.

    Args:
        root: Folder of the data set.
        report: Gets the problems.
        advance: Called with `(done, total)` after each file.
    """
    try:
        manifest = read_manifest(root)
    except DataError as error:
        report.problems.append(str(error))
        return
    files = manifest["files"] if manifest else {}
    for done, (name, entry) in enumerate(files.items(), start=1):
        path = root / name
        if not path.is_file():
            report.problems.append(f"{path}: file is missing; {NAME} lists it")
        elif path.stat().st_size != entry["bytes"]:
            report.problems.append(f"{path}: {path.stat().st_size} bytes; {NAME} says {entry['bytes']}")
        elif sha256_of(path) != entry["sha256"]:
            report.problems.append(f"{path}: its bytes are not those that {NAME} was made of; get the file again")
        if advance:
            advance(done, len(files))
    report.facts["manifest"] = len(files) if manifest else None
