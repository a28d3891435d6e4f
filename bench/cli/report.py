"""`earthbench report --out DIR`: writes the leaderboards as a static site."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from bench.cli.flags import RESULTS, results_root
from bench.cli.printing import print
from bench.report import build

EXAMPLES = (
    "earthbench report --out site",
    "earthbench report --out site --results quickstart/results --open",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("--out", type=Path, required=True, help="folder of the site")
    parser.add_argument("--open", action="store_true", help="open it in the web browser")
    parser.add_argument("--results", type=Path, default=RESULTS, help="results root (default: results)")
    parser.add_argument("--colours", help="colour map of matplotlib for forecasts, e.g. cividis (default: the tasks')")


def run(options: argparse.Namespace) -> int:
    """Writes the site and prints the path of its first page, or opens it."""
    first = build(results_root(options.results), options.out.expanduser(), options.colours)
    if not (options.open and webbrowser.open(first.absolute().as_uri())):
        print(f"open {first}")
    return 0
