"""`earthbench verify`: checks committed results against the rules; names file and field of each violation (exit 4)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bench.cli.flags import RESULTS, results_root
from bench.cli.printing import print
from bench.errors import DataError, EarthbenchError, VerificationError, counted, one_message
from bench.records.verify import Finding, verify_records
from bench.tables.counts import counts_path, load_counts, rows_to_count
from bench.tables.definitions import Table, load_published, published_folder
from bench.tables.render import (
    FORMATS,
    check_renderings,
    load_table,
    rendering_path,
    table_names,
    tables_with_rows,
)
from bench.tables.settings import load_settings

EXAMPLES = (
    "earthbench verify",
    "earthbench verify --results quickstart/results",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("--results", type=Path, default=RESULTS, help="results root (default: results)")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(options: argparse.Namespace) -> int:
    """Checks records, published figures and renderings, and says what was checked."""
    root = results_root(options.results)
    if not root.is_dir():
        raise DataError(f"results root {str(root)!r} is not a folder. Set --results DIR")
    record_count, findings = verify_records(root)
    published_count, table_count = 0, 0
    for name in dict.fromkeys([*table_names(root), *_rendered(root)]):
        try:
            table = load_table(name, root)
        except EarthbenchError as error:
            findings.append(Finding(root, f"table {name}", str(error)))
            continue
        published_count += table.published is not None
        findings += _published(table)
        if any(rendering_path(table, root, form).is_file() for form in FORMATS):
            table_count += 1
            findings += _renderings(table, root)
    findings += _counts()
    checked = {"records": record_count, "published": published_count, "tables": table_count}
    if options.format == "json":
        lines = [{"path": str(f.path), "field": f.field, "message": f.message} for f in findings]
        print(json.dumps({"checked": checked, "findings": lines}, indent=1))
        return VerificationError.exit_code if findings else 0
    if findings:
        raise VerificationError(
            one_message(
                f"{root} does not verify: {counted(len(findings), 'finding')}", [str(f) for f in findings], most=50
            )
        )
    print(
        f"{root} verifies: {counted(record_count, 'record')}, {counted(published_count, 'published table')}, "
        f"{counted(table_count, 'table')} equal to a fresh rendering"
    )
    return 0


def _rendered(root: Path) -> list[str]:
    """Returns the tables `runs/TASK` that have a rendering; most of them are not registered."""
    return sorted(path.stem.replace("_", "/", 1) for path in (root / "tables").glob("runs_*.*"))


def _published(table: Table) -> list[Finding]:
    if table.published is None:
        return []
    path = published_folder() / table.published
    try:
        published = load_published(table.published)
        load_settings(table)
    except DataError as error:
        return [Finding(path, "file", str(error))]
    known = {row.key: {column.key for column in table.columns} for row in table.rows}
    found = [Finding(path, "table", f"{published.table!r}, expected {table.name!r}")] * (published.table != table.name)
    for row, figures in published.rows.items():
        unknown = sorted(set(figures) - known.get(row, set())) if row in known else ["*"]
        found += [Finding(path, f"rows.{row}.{column}", f"{table.name} has no such cell") for column in unknown]
    return found


def _counts() -> list[Finding]:
    """Returns the rows without a count, and counts without a row; `earthbench count --check` recounts."""
    path, again = counts_path(), "write them: earthbench count --write"
    try:
        counted = {one.key for one in load_counts().sizes}
        rows = set(rows_to_count(tables_with_rows()))
    except EarthbenchError as error:
        return [Finding(path, "file", str(error))]
    found = [Finding(path, "/".join(key), f"a row of a table has no count; {again}") for key in sorted(rows - counted)]
    return found + [Finding(path, "/".join(key), f"no table has this row; {again}") for key in sorted(counted - rows)]


def _renderings(table: Table, root: Path) -> list[Finding]:
    try:
        check_renderings(table, root)
    except VerificationError as error:
        headline, *lines = str(error).splitlines()
        return [Finding(root / "tables", table.name, line.strip(" -") or headline) for line in lines or [headline]]
    return []
