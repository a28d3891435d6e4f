"""`earthbench table NAME`: published, ours and the difference side by side."""

from __future__ import annotations

import argparse
import builtins
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.cli.flags import RESULTS, results_root
from bench.cli.printing import print
from bench.errors import UsageError
from bench.records.schema import RunRecord
from bench.tables.admission import read_store
from bench.tables.cells import TableData, table_data
from bench.tables.citations import bibliography
from bench.tables.definitions import Table, load_published, main_column
from bench.tables.own_rows import with_own
from bench.tables.render import FORMATS, check_renderings, load_table, text_of, write_renderings
from bench.tables.runs import with_scores_there
from bench.tables.terminal import narrowed, terminal

EXAMPLES = (
    "earthbench table earthformer/sevir",
    "earthbench table runs/radar --sort mse --columns csi_m,mse",
    "earthbench table runs/radar --format latex",
    "earthbench table earthformer/sevir --with my_model --with simvp",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("name", help="a registered table, e.g. earthformer/sevir")
    parser.add_argument(
        "--format",
        choices=("text", *FORMATS, "bib"),
        help="default: text in a terminal, fitted to its width; else md; bib: what to cite",
    )
    parser.add_argument("--columns", metavar="KEY,...", help="these columns only, by key or label, e.g. csi_m,mse")
    parser.add_argument(
        "--sort",
        metavar="KEY",
        help="sort rows by this column, the best first (default: a table of runs in a terminal by its first score)",
    )
    parser.add_argument(
        "--with",
        dest="model",
        action="append",
        default=[],
        metavar="MODEL",
        help="show the complete runs of a model that is not in the paper beside its rows; may be repeated",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="results root (default: results)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="write RESULTS/tables/NAME.md and .json")
    action.add_argument("--picture", type=Path, help="draw scores by lead time to FILE (.png, .svg, .pdf)")
    action.add_argument("--samples", type=Path, help="draw each row's stored forecast to FILE (.png, .svg, .gif, ...)")
    action.add_argument("--curves", type=Path, help="draw each row's training and validation loss to FILE (.png, ...)")
    parser.add_argument("--colours", help="colour map of matplotlib for --samples, e.g. cividis (default: the task's)")
    action.add_argument("--check", action="store_true", help="fail (exit 4) when the committed rendering is stale")


def run(options: argparse.Namespace) -> int:
    """Prints, writes, draws or checks the table."""
    if options.colours is not None and options.samples is None:
        raise UsageError("--colours is for forecasts: give --samples FILE, too")
    root = results_root(options.results, may_be_made=options.write)
    table = load_table(options.name, root)
    if (options.columns or options.sort) and (options.write or options.check or options.picture or options.samples
                                              or options.curves):  # fmt: skip
        raise UsageError("--columns and --sort apply to printed tables only")
    if options.model and (options.write or options.check):
        raise UsageError("--with applies to tables that are printed or drawn; committed ones have the paper's rows")
    if options.check:
        for path in check_renderings(table, root):
            print(f"{path} is up to date")
        return 0
    if options.write:
        for path in write_renderings(table, root):
            print(path)
        return 0
    if options.picture or options.samples or options.curves:
        records, unreadable = read_store(root, table.task)
        table = with_own(with_scores_there(table, records), options.model, records)
        published = load_published(table.published) if table.published else None
        contents = table_data(table, published, records, unreadable)
        from bench.report.plots import draw_learning_curves, draw_samples, draw_table

        if options.picture:
            print(draw_table(options.picture.expanduser(), table, contents, records))
        elif options.curves:
            print(draw_learning_curves(options.curves.expanduser(), table, contents, records, root))
        else:
            drawn = draw_samples(options.samples.expanduser(), table, contents, records, root, options.colours)
            print(*drawn, sep="\n")
        return 0
    if options.format == "bib":
        print(bibliography(load_published(table.published) if table.published else None), end="")
        return 0
    columns = [name for name in (options.columns or "").split(",") if name]
    print_contents(table, root, options.format, columns, options.sort, options.model)
    return 0


def print_contents(
    table: Table,
    root: Path,
    form: str | None,
    columns: Sequence[str] = (),
    by: str | None = None,
    own: Sequence[str] = (),
) -> None:
    """Prints a table.

    Args:
        table: The definition.
        root: Results root.
        form: `text` or one of `FORMATS`; None for text in a terminal, else Markdown.
        columns: Keys or labels of those to show; none for all.
        by: Key or label of the column to sort by.
        own: Models that are not in the paper, see `bench.tables.own_rows`.
    """
    records, unreadable = read_store(root, table.task)
    table = with_own(with_scores_there(table, records), own, records)
    published = load_published(table.published) if table.published else None
    contents = table_data(table, published, records, unreadable)
    for one in unreadable:
        print(f"left out: {one.task}/{one.model}/{one.run_id}.json: {one.reason}", file=sys.stderr)
    form = form or ("text" if sys.stdout.isatty() else "md")
    of_runs = not (table.rows or table.groups)
    if by is None and form == "text" and of_runs and (first := main_column(table)) is not None:
        by = first.key
    shown, contents = narrowed(table, contents, columns, by)
    if form == "text":
        print_table(shown, contents, records)
    else:
        print(text_of(shown, published, contents, form), end="")


def print_table(table: Table, contents: TableData, records: Sequence[RunRecord]) -> None:
    """Prints a table fitted to the terminal; to a file or a pipe without escape sequences."""
    width = shutil.get_terminal_size().columns
    by_id = contents.by_id(records)
    # Foreign text is made safe cell by cell, because the escape sequences of the styles must stay.
    builtins.print(terminal(table, contents, by_id, width=width, styled=sys.stdout.isatty()), end="")
