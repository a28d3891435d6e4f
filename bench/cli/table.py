"""`earthbench table NAME`: published, ours and the difference side by side."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.cli.flags import RESULTS, results_root
from bench.cli.printing import print
from bench.tables.admission import read_store
from bench.tables.cells import table_data
from bench.tables.definitions import load_published
from bench.tables.render import FORMATS, check_renderings, load_table, render, write_renderings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("name", help="a registered table, e.g. earthformer/sevir")
    parser.add_argument("--format", choices=FORMATS, default="md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="results root (default: results)")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="write RESULTS/tables/NAME.md and .json")
    action.add_argument("--picture", type=Path, help="draw scores by lead time to FILE (.png, .svg, .pdf)")
    action.add_argument("--samples", type=Path, help="draw each row's stored forecast to FILE (.png, .gif, .mp4)")
    action.add_argument("--curves", type=Path, help="draw each row's training and validation loss to FILE (.png, ...)")
    action.add_argument("--check", action="store_true", help="fail (exit 4) when the committed rendering is stale")


def run(options: argparse.Namespace) -> int:
    """Prints, writes or checks the table."""
    root = results_root(options.results, may_be_made=options.write)
    table = load_table(options.name, root)
    if options.check:
        for path in check_renderings(table, root):
            print(f"{path} is up to date")
        return 0
    if options.write:
        for path in write_renderings(table, root):
            print(path)
        return 0
    records, unreadable = read_store(root, table.task)
    if options.picture or options.samples or options.curves:
        from bench.report.plots import draw_learning_curves, draw_samples, draw_table

        published = load_published(table.published) if table.published else None
        contents = table_data(table, published, records, unreadable)
        if options.picture:
            print(draw_table(options.picture.expanduser(), table, contents, records))
        elif options.curves:
            print(draw_learning_curves(options.curves.expanduser(), table, contents, records, root))
        else:
            print(*draw_samples(options.samples.expanduser(), table, contents, records, root), sep="\n")
        return 0
    for one in unreadable:
        print(f"left out: {one.task}/{one.model}/{one.run_id}.json: {one.reason}", file=sys.stderr)
    print(render(table, records, options.format, unreadable=unreadable), end="")
    return 0
