"""`earthbench list`: every registered name with one line, and the boards under `results`; imports none of them."""

from __future__ import annotations

import argparse
import json

from bench import registry
from bench.cli.flags import RESULTS
from bench.cli.printing import print, wrapped
from bench.errors import BrokenPluginError, EarthbenchError
from bench.protocols.board import FOLDER, TABLES, board_names, read_board

EXAMPLES = (
    "earthbench list models",
    "earthbench list --format json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("kind", nargs="?", choices=[f"{kind}s" for kind in registry.KINDS], help="only this kind")
    parser.add_argument("--load", action="store_true", help="also import each one, to find broken plugins")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(options: argparse.Namespace) -> int:
    """Prints the registry; a name that clashes or cannot be read is listed with its problem."""
    kinds = [kind for kind in registry.KINDS if options.kind in (None, f"{kind}s")]
    listing = {
        f"{kind}s": [_line(entries, kind, options.load) for entries in registry.entries(kind).items()] for kind in kinds
    }
    if "tables" in listing:
        listing["tables"] += [_board_line(name) for name in board_names(RESULTS)]
    if options.format == "json":
        print(json.dumps(listing, indent=1))
        return 0
    for heading, lines in listing.items():
        print(heading)
        width = max((len(line["name"]) for line in lines), default=0)
        for line in lines:
            text = f"  {line['name']:<{width}}  {(line['problem'] and 'BROKEN: ' + line['problem']) or line['summary']}"
            print(wrapped(text, width + 4))
    return 0


def _board_line(name: str) -> dict[str, str]:
    path = RESULTS / FOLDER / f"{name}.yaml"
    line = {"name": f"{TABLES}{name}", "summary": "", "origin": str(path), "problem": ""}
    try:
        return {**line, "summary": read_board(path).board.title}
    except EarthbenchError as error:
        return {**line, "problem": " ".join(str(error).split())}


def _line(named: tuple[str, list[registry.Entry]], kind: registry.Kind, load: bool) -> dict[str, str]:
    name, candidates = named
    line = {"name": name, "summary": "", "origin": candidates[0].origin, "problem": ""}
    if len(candidates) > 1:
        return {**line, "problem": registry.clash_message(kind, name, candidates)}
    try:
        line["summary"] = candidates[0].card().summary
        if load:
            candidates[0].load()
    except BrokenPluginError as error:
        line["problem"] = " ".join(str(error).split())
    return line
