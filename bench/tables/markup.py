"""Tables as Markdown, LaTeX and HTML pages.  All names from records and plugins are escaped."""

from __future__ import annotations

import itertools

from tabulate import tabulate

from bench.safe_text import for_html, for_latex, for_markdown, one_line
from bench.tables.cells import TableData
from bench.tables.definitions import Published, Table
from bench.tables.lines import (
    filled_columns,
    header,
    legend,
    number,
    ours_text,
    printed_lines,
    row_label,
    with_columns,
)

_STYLE = """
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0 }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
thead th { border-bottom: 1px solid }
tbody th { font-weight: 600; text-align: left }
tbody tr:hover { background: color-mix(in srgb, currentColor 7%, transparent) }
.published { opacity: .75 } .status { font-size: .85em; opacity: .75 }
.differs { color: #b3541e } .match { color: #1a7f37 }
@media (prefers-color-scheme: dark) { .differs { color: #f0a868 } .match { color: #56d364 } }
"""


def markdown(table: Table, published: Published | None, contents: TableData) -> str:
    """Returns the table as Markdown: the best bold, the next in italics."""
    parts = [f"# {for_markdown(table.name)}", "", for_markdown(table.title), ""]
    for block in contents.blocks:
        if block.title:
            parts += [f"## {for_markdown(block.title)}", ""]
        part, shown = with_columns(table, block, filled_columns(table, block))
        lines = printed_lines(part, shown, for_markdown, _mark_markdown)
        head = [for_markdown(text) for text in header(part)]
        aligned = ["left"] * (len(head) - len(part.columns)) + ["right"] * len(part.columns)
        parts += [tabulate(lines, head, tablefmt="pipe", colalign=aligned, disable_numparse=True), ""]
        remarks = (*block.remarks, *block.absences)
        parts += [f"- {for_markdown(remark)}" for remark in remarks]
        parts += [""] if remarks else []
    if not any(block.cells for block in contents.blocks):
        parts += ["No complete runs.", ""]
    below = [*legend(contents.blocks), *contents.remarks]
    parts += [*(f"- {for_markdown(remark)}" for remark in below), ""] if below else []
    parts += [for_markdown(table.note), ""] if table.note else []
    if published:
        parts.append(for_markdown(_citation(published)))
        parts += [f"- {for_markdown(line)}" for line in _sources(published)]
    return "\n".join(parts).rstrip() + "\n"


def latex(table: Table, published: Published | None, contents: TableData) -> str:
    """Returns the table as LaTeX with booktabs: the best bold, the next underlined."""
    parts = [_comment(f"{table.name}: {table.title}"), _comment(r"needs \usepackage{booktabs}")]
    for block in contents.blocks:
        if block.title:
            parts.append(_comment(block.title))
        part, shown = with_columns(table, block, filled_columns(table, block))
        head = [for_latex(text) for text in header(part)]
        aligned = "l" * (len(head) - len(part.columns)) + "r" * len(part.columns)
        lines = printed_lines(part, shown, for_latex, _mark_latex)
        parts += [rf"\begin{{tabular}}{{{aligned}}}", r"\toprule", " & ".join(head) + r" \\", r"\midrule"]
        for index, line in enumerate(lines):
            if line[0] and index and not lines[index - 1][0]:
                parts.append(r"\addlinespace")
            parts.append(" & ".join(line) + r" \\")
        parts += [r"\bottomrule", r"\end{tabular}"]
        parts += [_comment(remark) for remark in (*block.remarks, *block.absences)]
    parts += [_comment(line) for line in (*legend(contents.blocks), *contents.remarks, table.note) if line]
    if published:
        parts += [_comment(line) for line in (_citation(published), *_sources(published))]
    return "\n".join(parts) + "\n"


def page(table: Table, published: Published | None, contents: TableData) -> str:
    """Returns the table as a self-contained HTML page: the best bold, the next underlined."""
    escape = for_html
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">', f"<title>{escape(table.name)}</title>",
        f"<style>{_STYLE}</style>", "</head>", "<body>", f"<h1>{escape(table.name)}</h1>",
        f"<p>{escape(table.title)}</p>",
    ]  # fmt: skip
    for block in contents.blocks:
        parts += [f"<h2>{escape(block.title)}</h2>"] if block.title else []
        part, shown = with_columns(table, block, filled_columns(table, block))
        parts += ['<div class="scroll">', "<table>", "<thead>", _group_heading(part), "<tr><th>Model</th>"]
        parts += [f"<th>{escape(column.label)}</th>" for column in part.columns]
        parts += ["</tr>", "</thead>", "<tbody>"]
        for cells in shown.rows:
            parts.append(f"<tr><th>{escape(row_label(cells))}</th>")
            for cell in cells:
                column = table.column(cell.column)
                status, _, _ = cell.status.partition(",")
                ours = _mark_html(escape(ours_text(cell, column)), cell.mark)
                inner = f'<span class="ours">{ours}</span>'
                if cell.published_text:
                    inner = f'<span class="published">{escape(cell.published_text)}</span><br>{inner}'
                if cell.difference is not None:
                    difference = number(cell.difference, column, signed=True)
                    inner += f'<br><span class="status {status}">{escape(difference)} {escape(status)}</span>'
                title = f' title="{escape(cell.note)}"' if cell.note else ""
                parts.append(f"<td{title}>{inner}</td>")
            parts.append("</tr>")
        parts += ["</tbody>", "</table>", "</div>"]
        parts += _list((*block.remarks, *block.absences))
    if not any(block.cells for block in contents.blocks):
        parts.append("<p>No complete runs.</p>")
    if table.published:
        parts.append("<p>Each cell: published, ours, difference and status.</p>")
    parts += _list([*legend(contents.blocks), *contents.remarks])
    parts += [f"<p>{escape(table.note)}</p>"] if table.note else []
    if published:
        parts += [
            f"<p>{escape(_citation(published))}</p>",
            *_list([line.replace(" https://", " ") for line in _sources(published)]),
        ]
    return "\n".join([*parts, "</body>", "</html>"]) + "\n"


def _group_heading(table: Table) -> str:
    cells = ["<th></th>"]
    for group, columns in itertools.groupby(table.columns, key=lambda column: column.group):
        cells.append(f'<th colspan="{len(list(columns))}" scope="colgroup">{for_html(group)}</th>')
    return f"<tr>{''.join(cells)}</tr>"


def _list(lines: list[str] | tuple[str, ...]) -> list[str]:
    return ["<ul>", *(f"<li>{for_html(line)}</li>" for line in lines), "</ul>"] if lines else []


def _citation(published: Published) -> str:
    paper = published.paper
    return f"Published: {paper['authors']}, {paper['title']}, {paper['venue']}."


def _sources(published: Published) -> list[str]:
    return [
        f"{key}: {source.title} ({source.by}; {source.kind}) {source.url}" for key, source in published.sources.items()
    ]


def _mark_markdown(text: str, mark: int | None) -> str:
    return {1: f"**{text}**", 2: f"*{text}*"}.get(mark or 0, text)


def _mark_latex(text: str, mark: int | None) -> str:
    return {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(mark or 0, text)


def _mark_html(text: str, mark: int | None) -> str:
    return {1: f"<strong>{text}</strong>", 2: f"<u>{text}</u>"}.get(mark or 0, text)


def _comment(text: str) -> str:
    return "% " + one_line(text)
