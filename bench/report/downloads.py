"""Files beside the pages: records, learning curves, and each table as text, data and citations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.paths import AnyPath
from bench.records.learning_curves import learning_curve_path
from bench.records.schema import RunRecord
from bench.records.store import record_path
from bench.tables.cells import TableData
from bench.tables.citations import bibliography
from bench.tables.definitions import Published, Table
from bench.tables.render import texts_of

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_ENDINGS = {"csv": "csv", "md": "md", "json": "json", "latex": "tex"}


@dataclass(frozen=True)
class RunFiles:
    """Paths of a run's files within the site; empty for missing files."""

    record: str
    learning_curve: str = ""


def copy_runs(
    records: Sequence[RunRecord], root: AnyPath, site: Path, curves: Mapping[str, object]
) -> dict[str, RunFiles]:
    """Copies records and learning curves into a site and returns their paths by run id.

    Args:
        records: All valid records.
        root: Results root.
        site: Folder of the site.
        curves: Runs with a readable learning curve.
    """
    found = {}
    for record in records:
        # names in records are not trusted as file names
        parts = [_NOT_IN_A_NAME.sub("-", text) for text in (record.task.name, record.model.name, record.run_id)]
        stem = "/".join(["records", *parts])
        _copy(record_path(root, record), site / f"{stem}.json")
        curve = ""
        if record.run_id in curves:
            curve = f"{stem}-losses.csv"
            _copy(learning_curve_path(record, root), site / curve)
        found[record.run_id] = RunFiles(f"{stem}.json", curve)
    return found


def _copy(source: AnyPath, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def write_downloads(table: Table, published: Published | None, contents: TableData, site: Path) -> dict[str, str]:
    """Writes a table under `SITE/downloads` and returns the files by their labels."""
    folder = site / "downloads"
    folder.mkdir(exist_ok=True)
    texts = texts_of(table, published, contents, tuple(_ENDINGS))
    files = {_ENDINGS[form]: text for form, text in texts.items()} | {"bib": bibliography(published)}
    for ending, text in files.items():
        (folder / f"{table.file_stem}.{ending}").write_text(text, encoding="utf-8")
    return {ending: f"downloads/{table.file_stem}.{ending}" for ending in files}
