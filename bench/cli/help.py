"""`earthbench help VERB`: the same as `earthbench VERB --help`."""

from __future__ import annotations

import argparse

EXAMPLES = ("earthbench help run", "earthbench help data make sevir")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("words", nargs="*", default=[], metavar="VERB", help="left out: all verbs")


def run(options: argparse.Namespace) -> int:
    """Prints the help of a verb, or the list of verbs."""
    from bench.cli.main import main

    return main([*options.words, "--help"])
