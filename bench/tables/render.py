"""Renderings of a table: Markdown and LaTeX to read, CSV and JSON (one line per cell) to compute with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from bench import registry
from bench.errors import BrokenPluginError, VerificationError, one_message
from bench.files import replacing
from bench.records.schema import RunRecord
from bench.records.store import read_records
from bench.tables.cells import NOT_RUN, Block, Cell, blocks_of
from bench.tables.definitions import Column, Published, Table, load_published

FORMATS = ("md", "csv", "latex", "json")
_SUFFIX = {"md": ".md", "csv": ".csv", "latex": ".tex", "json": ".json"}


def load_table(name: str) -> Table:
    """Returns the table registered as `name`.

    Raises:
        UnknownNameError: no table has this name.
        BrokenPluginError: the registered object is no table.
    """
    entry = registry.find("table", name)
    table = entry.load()
    if not isinstance(table, Table):
        raise BrokenPluginError(f"table {name!r} from {entry.origin} is not a bench.tables.definitions.Table")
    return table


def render(table: Table, records: Sequence[RunRecord], form: str = "md") -> str:
    """Returns the text of a table: a pure function of the published figures and the records, ending in a newline."""
    published = load_published(table.published) if table.published else None
    blocks = blocks_of(table, published, records)
    if form == "csv":
        return frame(blocks).to_csv(index=False, lineterminator="\n")
    if form == "json":
        return _json(table, published, blocks)
    return (_markdown if form == "md" else _latex)(table, published, blocks)


def frame(blocks: Sequence[Block]) -> pd.DataFrame:
    """Returns a table as a data frame with one line per cell."""
    columns = ["block", *Cell.__dataclass_fields__]
    lines = [{"block": block.title, **asdict(cell)} for block in blocks for cell in block.cells]
    data = pd.DataFrame(lines, columns=columns)
    for name in ("sources", "run_ids"):
        data[name] = data[name].map(" ".join)
    return data


def _json(table: Table, published: Published | None, blocks: Sequence[Block]) -> str:
    content = {
        "table": table.name,
        "title": table.title,
        "task": table.task,
        "note": table.note,
        "paper": published.paper if published else None,
        "sources": {k: s.model_dump() for k, s in published.sources.items()} if published else {},
        "blocks": [asdict(block) for block in blocks],
    }
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _number(value: float | None, column: Column, *, signed: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:{'+' if signed else ''}.{column.digits}f}"


def _lines(table: Table, block: Block, mark: Callable[[Cell], Sequence[str]]) -> list[list[str]]:
    """Returns the printed lines of a block: per row published, ours and difference, or ours alone."""
    by_row: dict[str, list[Cell]] = {}
    for cell in block.cells:
        by_row.setdefault(cell.row, []).append(cell)
    lines = []
    for row, cells in by_row.items():
        columns = dict(zip([cell.column for cell in cells], table.columns, strict=True))
        ours = [_ours(cell, columns[cell.column], mark(cell)) for cell in cells]
        if not table.published:
            lines.append([row, *ours])
            continue
        lines.append([row, "published", *(cell.published_text or "" for cell in cells)])
        lines.append(["", "ours", *ours])
        lines.append(["", "difference", *(_number(c.difference, columns[c.column], signed=True) for c in cells)])
    return lines


def _ours(cell: Cell, column: Column, marks: Sequence[str]) -> str:
    if cell.ours is None:
        return NOT_RUN if cell.status == NOT_RUN else "undefined"
    text = _number(cell.ours, column)
    if cell.spread is not None:
        text += f" ± {_number(cell.spread, column)}"
    if "config deviates" in cell.status:
        text += " †"
    return text if not marks else f"{marks[0]}{text}{marks[1]}"


def _ranks(table: Table, block: Block) -> dict[str, list[float]]:
    """Returns the best two measured values of each column that has a better side."""
    found = {}
    for column in table.columns:
        values = {c.ours for c in block.cells if c.column == column.key and c.ours is not None}
        if column.better and len(values) > 1:
            found[column.key] = sorted(values, reverse=column.better == "higher")[:2]
    return found


def _marker(table: Table, block: Block, best: Sequence[str], second: Sequence[str]) -> Callable[[Cell], Sequence[str]]:
    ranks = _ranks(table, block)

    def mark(cell: Cell) -> Sequence[str]:
        top = ranks.get(cell.column, [])
        if cell.ours is None or cell.ours not in top:
            return ()
        return best if top[0] == cell.ours else second

    return mark


def _header(table: Table) -> list[str]:
    return ["Model", *([""] if table.published else []), *(column.label for column in table.columns)]


def _markdown(table: Table, published: Published | None, blocks: Sequence[Block]) -> str:
    parts = [f"# {table.name}", "", table.title, ""]
    for block in blocks:
        if block.title:
            parts += [f"## {_escape(block.title)}", ""]
        lines = [
            [_escape(text) for text in line] for line in _lines(table, block, _marker(table, block, ("**", "**"), ()))
        ]
        aligned = ["left"] * (2 if table.published else 1) + ["right"] * len(table.columns)
        parts += [
            tabulate(lines, _header(table), tablefmt="pipe", colalign=aligned, disable_numparse=True),
            "",
        ]
        parts += [f"- {_escape(remark)}" for remark in block.remarks]
        parts += [""] if block.remarks else []
    if not blocks:
        parts += ["No complete runs.", ""]
    parts += [table.note, ""] if table.note else []
    if published:
        parts.append(
            f"Published: {published.paper['authors']}, {published.paper['title']}, {published.paper['venue']}."
        )
        for key, source in published.sources.items():
            parts.append(f"- {key}: {source.title} ({source.by}; {source.kind})")
    return "\n".join(parts).rstrip() + "\n"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _latex(table: Table, published: Published | None, blocks: Sequence[Block]) -> str:
    parts = [f"% {table.name}: {table.title}"]
    for block in blocks:
        if block.title:
            parts.append(f"% {block.title}")
        mark = _marker(table, block, (r"\textbf{", "}"), (r"\underline{", "}"))
        lines = [[_escape_latex(text) for text in line] for line in _lines(table, block, mark)]
        aligned = ["left"] * (2 if table.published else 1) + ["right"] * len(table.columns)
        parts.append(
            tabulate(
                lines, [_escape_latex(h) for h in _header(table)], tablefmt="latex_raw", colalign=aligned,
                disable_numparse=True,
            ).replace(r"\hline", r"\midrule")
        )  # fmt: skip
        parts += [f"% {remark}" for remark in block.remarks]
    text = "\n".join(parts)
    return _booktabs(text) + "\n"


def _booktabs(text: str) -> str:
    """Gives the first and last rule of each tabular their booktabs names."""
    pieces = text.split(r"\begin{tabular}")
    for number, piece in enumerate(pieces[1:], start=1):
        first, *middle, last = piece.split(r"\midrule")
        pieces[number] = r"\toprule".join([first, r"\midrule".join(middle) + r"\bottomrule" + last])
    return r"\begin{tabular}".join(pieces)


def _escape_latex(text: str) -> str:
    for character in "&%#_":
        text = text.replace(character, "\\" + character)
    return text.replace("±", r"$\pm$").replace("†", r"$^\dagger$")


def rendering_path(table: Table, root: Path, form: str) -> Path:
    """Returns where the committed rendering of a table lies."""
    return root / "tables" / (table.name.replace("/", "_") + _SUFFIX[form])


def write_renderings(table: Table, root: Path) -> list[Path]:
    """Writes a table in every format under `ROOT/tables` and returns the paths."""
    records, _ = read_records(root, table.task)
    paths = []
    for form in FORMATS:
        path = rendering_path(table, root, form)
        with replacing(path) as part:
            part.write_text(render(table, records, form), encoding="utf-8")
        paths.append(path)
    return paths


def check_renderings(table: Table, root: Path) -> list[Path]:
    """Returns the committed renderings of a table, all equal to a fresh one.

    Raises:
        VerificationError: none is committed, or one is stale.
    """
    records, problems = read_records(root, table.task)
    if problems:
        raise VerificationError(one_message(f"records of table {table.name} do not verify:", problems))
    present = [form for form in FORMATS if rendering_path(table, root, form).is_file()]
    again = f"write it: earthbench table {table.name} --write --results {root}"
    if not present:
        raise VerificationError(f"no rendering of {table.name} under {root / 'tables'}; {again}")
    stale = []
    for form in present:
        path = rendering_path(table, root, form)
        if path.read_text(encoding="utf-8") != render(table, records, form):
            stale.append(f"{path} differs from a fresh rendering")
    if stale:
        raise VerificationError(one_message(f"table {table.name} is stale; {again}", stale))
    return [rendering_path(table, root, form) for form in present]
