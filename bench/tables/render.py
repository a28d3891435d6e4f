"""Renderings of a table: a pure function of the published figures and the records, without pandas or torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench import registry
from bench.errors import BrokenPluginError, VerificationError, one_message
from bench.files import replacing
from bench.paths import AnyPath
from bench.records.schema import RunRecord
from bench.records.store import read_records
from bench.safe_text import for_csv
from bench.tables.admission import Excluded, read_store
from bench.tables.cells import Cell, TableData, table_data
from bench.tables.definitions import Published, Table, load_published
from bench.tables.markup import latex, markdown, page
from bench.tables.protocols import TABLES, board_of, board_table, board_tables
from bench.tables.runs import runs_table, task_of_runs, with_scores_there

FORMATS = ("md", "csv", "latex", "html", "json")
RESULTS = Path("results")
_OWN = "earthbench"
COMMITTED = ("md", "json")
"""Formats that are kept under `results/tables`; `earthbench table --format` prints any other."""


def table_names(root: AnyPath) -> list[str]:
    """Returns the names of all tables: those that are registered, and the boards under a results root."""
    return [*registry.names("table"), *board_tables(root)]


def load_table(name: str, root: AnyPath | None = None) -> Table:
    """Returns a registered table, that of a board, or `runs/TASK` of a task that is registered or has records.

    Args:
        name: Name of the table.
        root: Results root with the boards (None: `results`), whose records give the columns of a table that is not
            registered.

    Raises:
        UnknownNameError: no table has this name.
        BrokenPluginError: the registered object is not a table.
    """
    if name.startswith(TABLES):
        board = board_of(name, RESULTS if root is None else root)
        return board_table(board, load_table(f"runs/{board.board.task}", board.root).columns)
    if root is not None and name.startswith("runs/") and name not in registry.names("table"):
        records = read_records(root, name.rpartition("/")[2])[0]
        if (task := task_of_runs(name, (record.task.name for record in records))) is not None:
            return runs_table(task, records)
    entry = registry.find("table", name)
    table = entry.load()
    if not isinstance(table, Table):
        raise BrokenPluginError(f"table {name!r} from {entry.origin} is not a bench.tables.definitions.Table")
    return table


def tables_with_rows() -> list[Table]:
    """Returns this project's tables with predefined rows, whose sizes are counted."""
    own = [name for name in registry.names("table") if registry.find("table", name).distribution == _OWN]
    return [table for table in map(load_table, own) if table.rows]


def render(
    table: Table,
    records: Sequence[RunRecord],
    form: str = "md",
    *,
    unreadable: Sequence[Excluded] = (),
) -> str:
    """Returns the text of a table, ending in a newline; the same text whatever the order of the records.

    Args:
        table: The definition.
        records: Records of any task.
        form: One of `FORMATS`.
        unreadable: Files that are not records, from `read_store`; they are named, and mark their rows.
    """
    return _texts(table, records, (form,), unreadable)[form]


def _texts(
    table: Table,
    records: Sequence[RunRecord],
    forms: Sequence[str],
    unreadable: Sequence[Excluded],
) -> dict[str, str]:
    """Returns the text of a table by format; its intervals, which take long, are computed once."""
    table = with_scores_there(table, records)
    published = load_published(table.published) if table.published else None
    return texts_of(table, published, table_data(table, published, records, unreadable), forms)


def texts_of(table: Table, published: Published | None, contents: TableData, forms: Sequence[str]) -> dict[str, str]:
    """Returns the text of a table's contents by format."""
    return {form: text_of(table, published, contents, form) for form in forms}


def text_of(table: Table, published: Published | None, contents: TableData, form: str) -> str:
    """Returns the text of a table whose contents are known, in one of `FORMATS`."""
    writers = {"md": markdown, "csv": _csv, "latex": latex, "html": page, "json": _json}
    return writers[form](table, published, contents)


def _csv(table: Table, published: Published | None, contents: TableData) -> str:
    """Returns one line per cell, with multiple values joined by spaces."""
    text = io.StringIO()
    names = ["block", *Cell.__dataclass_fields__]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for block in contents.blocks:
        for cell in block.cells:
            line = {key: " ".join(map(str, v)) if isinstance(v, tuple) else v for key, v in asdict(cell).items()}
            line |= {key: for_csv(v) for key, v in line.items() if isinstance(v, str)}
            writer.writerow({"block": for_csv(block.title), **line})
    return text.getvalue()


def _json(table: Table, published: Published | None, contents: TableData) -> str:
    content = {
        "table": table.name,
        "title": table.title,
        "task": table.task,
        "note": table.note,
        "paper": published.paper if published else None,
        "sources": {k: s.model_dump(exclude_none=True) for k, s in published.sources.items()} if published else {},
        "blocks": [asdict(block) for block in contents.blocks],
        "left_out": [asdict(one) for one in contents.left_out],
    }
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def rendering_path(table: Table, root: Path, form: str) -> Path:
    """Returns the path of the committed rendering of a table."""
    return root / "tables" / f"{table.file_stem}.{form}"


def write_renderings(table: Table, root: Path) -> list[Path]:
    """Writes a table under `ROOT/tables`, as Markdown and JSON, and returns the paths."""
    records, unreadable = read_store(root, table.task)
    paths = []
    for form, text in _texts(table, records, COMMITTED, unreadable).items():
        path = rendering_path(table, root, form)
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def check_renderings(table: Table, root: Path) -> list[Path]:
    """Returns the committed renderings of a table, all equal to a fresh one.

    Raises:
        VerificationError: a record does not verify, no rendering is committed, or one is stale.
    """
    records, unreadable = read_store(root, table.task)
    if unreadable:
        lines = [f"{one.task}/{one.model}/{one.run_id}.json: {one.reason}" for one in unreadable]
        raise VerificationError(one_message(f"records of table {table.name} do not verify:", lines))
    again = f"write it: earthbench table {table.name} --write --results {root}"
    paths = {form: rendering_path(table, root, form) for form in COMMITTED}
    if not any(path.is_file() for path in paths.values()):
        raise VerificationError(f"no rendering of {table.name} under {root / 'tables'}; {again}")
    fresh = _texts(table, records, COMMITTED, ())
    stale = [
        f"{path} differs from a fresh rendering"
        for form, path in paths.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != fresh[form]
    ]
    if stale:
        raise VerificationError(one_message(f"table {table.name} is stale; {again}", stale))
    return list(paths.values())
