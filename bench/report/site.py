"""What the pages need besides their text: DataTables and Plotly as their Python packages ship them, and our own."""

from __future__ import annotations

import base64
import importlib.util
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench import registry
from bench.errors import ConfigError, DataError
from bench.records.schema import RunRecord
from bench.report.boards import ShownRow, charts, column_groups, shown_rows
from bench.report.gallery import scenes
from bench.report.model_pages import model_pages, page_of
from bench.tables.admission import Excluded, read_store
from bench.tables.cells import NOT_RUN, Block, TableData, table_data
from bench.tables.definitions import Published, Table, load_published
from bench.tables.lines import legend
from bench.tables.render import load_table
from bench.tables.runs import tables_without_entry

OWN = ("report.css", "report.js")


def write_assets(folder: Path) -> dict[str, str]:
    """Writes scripts and styles into a folder and returns the versions of the libraries among them.

    DataTables comes as an ES module, which browsers refuse to load from the disk; as a data URL they take it.

    Raises:
        ConfigError: the extra `report` is not installed.
    """
    tables, charts = _package("itables"), _package("plotly")
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


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ConfigError(f"`earthbench report` needs {name}: pip install 'earthbench[report]'")
    return Path(spec.origin).parent


_MARK = ".earthbench-report"


@dataclass(frozen=True)
class Overview:
    """A table on the first page."""

    table: Table
    page: str
    row_count: int
    run_count: int
    statuses: dict[str, int]
    best: str


def build(root: Path, out: Path) -> Path:
    """Writes the site and returns the path of its first page.

    Args:
        root: Results root.
        out: Folder of the site; made if it is not there, must hold nothing but an older report.

    Raises:
        ConfigError: the extra `report` is not installed.
        DataError: the folder holds something else.
    """
    environment = _environment()
    if out.exists() and any(out.iterdir()) and not (out / _MARK).exists():
        raise DataError(f"{out} holds something else than a report; give another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text("", encoding="utf-8")
    libraries = write_assets(out / "assets")
    records, unreadable = read_store(root)
    by_id = {record.run_id: record for record in records}
    tables = [*map(load_table, registry.names("table")), *tables_without_entry(records)]
    tables.sort(key=lambda table: (table.published is None, not table.rows, table.name))
    published = {table.name: load_published(table.published) if table.published else None for table in tables}
    filled = {table.name: table_data(table, published[table.name], records, unreadable) for table in tables}
    common = {
        "version": version("earthbench"),
        "libraries": libraries,
        "record_count": len(records),
        "page_of": page_of,
        "tables": [_overview(table, filled[table.name]) for table in tables],
    }
    gallery = scenes(records, root, out)
    printed = [(table, _printed(published[table.name])) for table in tables]
    models = model_pages(printed, records)
    pages: dict[str, tuple[str, dict[str, Any]]] = {
        "index.html": ("index.html", {"unreadable": unreadable, "models": models, "scenes": gallery}),
        "gallery.html": ("gallery.html", {"scenes": gallery, "data": _json([asdict(scene) for scene in gallery])}),
        "models.html": ("models.html", {"models": models}),
    }
    for table in tables:
        pages[_page(table)] = ("table.html", _table(table, published[table.name], filled[table.name], by_id))
    for model in models:
        pages[model.page] = ("model.html", {"model": model})
    for page, (template, values) in pages.items():
        text = environment.get_template(template).render(page=page, **common, **values)
        (out / page).write_text(text, encoding="utf-8")
    return out / "index.html"


def _environment() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise ConfigError("`earthbench report` needs jinja2: pip install 'earthbench[report]'") from error
    # Everything is escaped: names come from records and plugins.
    return Environment(
        loader=PackageLoader("bench.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def _page(table: Table) -> str:
    return f"table-{table.file_stem}.html"


def _overview(table: Table, contents: TableData) -> Overview:
    cells = [cell for block in contents.blocks for cell in block.cells]
    rows = {(number, cell.row_key) for number, block in enumerate(contents.blocks) for cell in block.cells}
    statuses: dict[str, int] = {}
    for cell in cells:
        status = cell.status.partition(",")[0]
        statuses[status] = statuses.get(status, 0) + 1
    marked = ((block, column) for column in table.columns for block in contents.blocks if _best(block, column.key))
    block, column = next(marked, (None, None))
    return Overview(
        table=table,
        page=_page(table),
        row_count=len(rows),
        run_count=len({run_id for cell in cells for run_id in cell.run_ids}),
        statuses={key: statuses[key] for key in sorted(statuses) if key != NOT_RUN},
        best=f"{', '.join(_best(block, column.key))} ({column.label})" if block and column else "",
    )


def _best(block: Block, key: str) -> list[str]:
    return [cell.row for cell in block.cells if cell.column == key and cell.mark == 1]


def _printed(published: Published | None) -> dict[str, dict[str, str]]:
    if published is None:
        return {}
    return {row: {key: figure.text for key, figure in figures.items()} for row, figures in published.rows.items()}


def _table(
    table: Table,
    published: Published | None,
    contents: TableData,
    records: dict[str, RunRecord],
) -> dict[str, Any]:
    blocks: list[dict[str, Any]] = []
    data = []
    for block in contents.blocks:
        rows: list[ShownRow] = shown_rows(table, block)
        blocks.append({"title": block.title, "rows": rows, "remarks": block.remarks, "absences": block.absences})
        data.append(charts(table, block, records))
    left_out: tuple[Excluded, ...] = contents.left_out
    return {
        "table": table,
        "published": published,
        "groups": column_groups(table),
        "blocks": blocks,
        "legend": legend(contents.blocks),
        "left_out": left_out,
        "data": _json(data),
    }


def _json(content: Any) -> str:
    """Returns JSON that may stand inside a script element: no text in it can end the element."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
