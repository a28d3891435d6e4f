"""The report as a static site: its pages, scripts and styles."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import distribution, version
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.errors import DataError
from bench.records.learning_curves import LearningCurve, read_learning_curve
from bench.records.schema import RunRecord
from bench.report.board_pages import BoardPage, board_page
from bench.report.boards import column_groups, shown_rows, shown_side
from bench.report.charts import charts
from bench.report.downloads import RunFiles, copy_runs, write_downloads
from bench.report.gallery import read_kept, scenes
from bench.report.labels import label_of
from bench.report.model_pages import model_pages, page_of
from bench.report.overview import heading, overview, page_of_table
from bench.tables.admission import Excluded, read_store
from bench.tables.cells import TableData, table_data
from bench.tables.definitions import Column, Published, Table, load_published, main_column
from bench.tables.folds import run_name
from bench.tables.lines import legend, number
from bench.tables.look import Look
from bench.tables.render import load_table, table_names
from bench.tables.runs import tables_without_entry, with_scores_there
from bench.tables.values import value_of

OWN = ("report.css", "icon.svg", "board_charts.js", "report.js")


def write_assets(folder: Path) -> dict[str, str]:
    """Writes scripts and styles into a folder and returns the versions of the libraries among them.

    DataTables is an ES module, which browsers refuse to load from the disk but accept as a data URL.
    """
    # Not by `importlib.resources`, which imports them: itables then reads the configs that it finds above this folder.
    tables, charts = (Path(str(distribution(name).locate_file(name))) for name in ("itables", "plotly"))
    folder.mkdir(parents=True, exist_ok=True)
    own = files("bench.report") / "static"
    for name in OWN:
        (folder / name).write_text((own / name).read_text(encoding="utf-8"), encoding="utf-8")
    module = base64.b64encode((tables / "html" / "dt_bundle.js").read_bytes()).decode("ascii")
    (folder / "tables.js").write_text(
        f'window.dataTables = import("data:text/javascript;base64,{module}");\n', encoding="ascii"
    )
    (folder / "tables.css").write_bytes((tables / "html" / "dt_bundle.css").read_bytes())
    (folder / "charts.js").write_bytes((charts / "package_data" / "plotly.min.js").read_bytes())
    return {name: version(name) for name in ("itables", "plotly")}


_MARK = ".earthbench-report"


def build(root: Path, out: Path, colours: str | None = None) -> Path:
    """Writes the site and returns the path of its first page.

    Args:
        root: Results root.
        out: Folder of the site; it is created if necessary, and may contain only an older report.
        colours: Name of a matplotlib colour map for forecasts, instead of the tasks' own.

    Raises:
        ConfigError: no colour map has this name.
        DataError: the folder contains other files.
    """
    environment = _environment()
    if out.exists() and any(out.iterdir()) and not (out / _MARK).exists():
        raise DataError(f"{out} is not empty and is not a report; choose another folder with --out")
    Look().coloured(colours)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text("", encoding="utf-8")
    libraries = write_assets(out / "assets")
    records, unreadable = read_store(root)
    losses = {r.run_id: curve for r in records if (curve := read_kept(read_learning_curve, r, root)) is not None}
    store = Store({record.run_id: record for record in records}, losses, copy_runs(records, root, out, losses))
    tables = [with_scores_there(load_table(name, root), records) for name in table_names(root)]
    tables += tables_without_entry(records)
    tables.sort(key=lambda table: (table.published is None, not (table.rows or table.groups), table.name))
    published = {table.name: load_published(table.published) if table.published else None for table in tables}
    filled = {table.name: table_data(table, published[table.name], records, unreadable) for table in tables}
    overviews = [overview(table, filled[table.name]) for table in tables]
    gallery = scenes(records, root, out, colours)
    printed = [(table, _printed(published[table.name]), filled[table.name]) for table in tables]
    models = model_pages(printed, records, store.files)
    measured = [one for one in overviews if one.podiums]
    common = {
        "version": version("earthbench"),
        "libraries": libraries,
        "record_count": len(records),
        "built": _built(),
        "newest": max((record.created_utc for record in records), default="")[:10],
        "page_of": page_of,
    }
    front = {
        "measured": sorted(measured, key=lambda one: (not one.table.groups, -one.run_count)),
        "published": [one for one in overviews if one.table.published and one not in measured],
        "empty": [one for one in overviews if not one.table.published and one not in measured],
        "unreadable": unreadable,
        "scenes": gallery,
    }
    pages: dict[str, tuple[str, dict[str, Any]]] = {
        "index.html": ("index.html", front),
        "gallery.html": ("gallery.html", {"scenes": gallery, "data": _json([asdict(scene) for scene in gallery])}),
        "models.html": ("models.html", {"models": models}),
        "submit.html": ("submit.html", {}),
    }
    for table in tables:
        files = write_downloads(table, published[table.name], filled[table.name], out)
        board = board_page(table, filled[table.name], records, root, out)
        shown = _table(table, published[table.name], filled[table.name], store, files, board)
        pages[page_of_table(table)] = ("table.html", shown)
    for model in models:
        pages[model.page] = ("model.html", {"model": model})
    for page, (template, values) in pages.items():
        text = environment.get_template(template).render(page=page, **common, **values)
        (out / page).write_text(text, encoding="utf-8")
    return out / "index.html"


@dataclass(frozen=True)
class Store:
    """The data behind the tables, by run id."""

    records: dict[str, RunRecord]
    losses: dict[str, LearningCurve]
    files: dict[str, RunFiles]


def _built() -> str:
    """Returns the date of the build, or that of `$SOURCE_DATE_EPOCH` (seconds), which makes builds reproducible."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch.isdecimal() else datetime.now(UTC)
    return f"{moment:%Y-%m-%d}"


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Everything is escaped, because names come from records and plugins.
    environment = Environment(
        loader=PackageLoader("bench.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"code": _code, "breakable": _breakable, "label": label_of}
    return environment


def _code(text: str) -> Any:
    """Returns escaped text, with parts between backticks as code."""
    from markupsafe import Markup, escape  # of jinja2

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _breakable(name: str) -> Any:
    """Returns a name that may be wrapped after underscores, but not within words."""
    from markupsafe import Markup, escape  # of jinja2

    return Markup(re.sub("_", "_<wbr>", str(escape(name))))


def _printed(published: Published | None) -> dict[str, dict[str, str]]:
    if published is None:
        return {}
    return {row: {key: figure.text for key, figure in figures.items()} for row, figures in published.rows.items()}


def _table(
    table: Table,
    published: Published | None,
    contents: TableData,
    store: Store,
    downloads: dict[str, str],
    board: BoardPage | None,
) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = []
    data = []
    column, records = main_column(table), contents.by_id(store.records.values())
    for block in contents.blocks:
        fingerprints = {
            r.data.fingerprint[:10]
            for cell in block.cells
            for run_id in cell.run_ids
            if (r := records.get(run_id)) is not None and r.data is not None
        }
        blocks.append(
            {
                "anchor": _anchor(fingerprints, [block["anchor"] for block in blocks]),
                "title": block.title,
                "rows": (rows := shown_rows(table, block)),
                "factors": any(cell.factor for row in rows for cell in row.cells),
                "side": shown_side(block, column),
                "remarks": block.remarks,
                "absences": block.absences,
                "runs": [
                    (cells[0].row, [_run(records[id_], column, store) for id_ in contents.run_ids(cells[0])])
                    for cells in block.rows
                    if cells[0].run_ids
                ],
            }
        )
        data.append(charts(table, block, records, store.losses, contents.parts))
    left_out: tuple[Excluded, ...] = contents.left_out
    return {
        "table": table,
        "heading": heading(table),
        "main": column,
        "published": published,
        "board": board,
        "groups": column_groups(table),
        "blocks": blocks,
        "legend": legend(contents.blocks),
        "left_out": left_out,
        "downloads": downloads,
        "data": _json(data),
    }


@dataclass(frozen=True)
class ShownRun:
    """A single run behind a row."""

    run_id: str
    files: RunFiles
    name: str
    score: str
    """The main score."""


def _run(record: RunRecord, column: Column | None, store: Store) -> ShownRun:
    value = None if column is None else value_of(record, column.key)
    score = "" if column is None or value is None else number(value * column.scale, column)
    return ShownRun(record.run_id, store.files[record.run_id], run_name(record), score)


def _anchor(fingerprints: set[str], taken: Sequence[str]) -> str:
    """Returns the anchor of a block: that of its data, with a suffix if another block has the same data."""
    name = f"data-{min(fingerprints)}" if len(fingerprints) == 1 else f"board-{len(taken)}"
    return name if name not in taken else f"{name}-{len(taken)}"


def _json(content: Any) -> str:
    """Returns JSON that is safe inside a script element: no text in it can end the element."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
