"""`earthbench doctor`: what would stop a run on this machine, and the remedy, before it starts."""

from __future__ import annotations

import argparse
import json
import sys

from bench.cli.flags import add_overrides
from bench.cli.printing import print, wrapped
from bench.cli.run import overrides_and_flags
from bench.config import compose
from bench.config.overrides import quoted
from bench.errors import UsageError

TAKES_HYDRA_FLAGS = True
_MARKS = {"ok": "ok", "warning": "WARNING", "wrong": "WRONG", "skipped": "-"}
_INDENT = 24
EXAMPLES = (
    "earthbench doctor",
    "earthbench doctor model=earthformer data.root=DIR device=cuda",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_overrides(parser, "overrides of the planned run, e.g. model=earthformer data.root=DIR device=cuda devices=8")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: one object, on stdout")


def run(options: argparse.Namespace) -> int:
    """Prints a line per check; returns 0, 2 for invalid input, 3 if something failed when it was tried."""
    from bench.engine.preflight import checks

    overrides, flags = overrides_and_flags(options)
    if flags:
        raise UsageError(f"earthbench doctor looks at one run: {' '.join(flags)} is for `earthbench run`")
    config = compose(quoted(overrides))
    found = []
    for check in checks(config):
        found.append(check)
        if options.format == "text":
            print(wrapped(f"{_MARKS[check.outcome]:<8} {check.name:<14} {check.found}", _INDENT), flush=True)
            if check.cure:
                print(wrapped(f"{'':<{_INDENT}}-> {check.cure}", _INDENT + 3), flush=True)
        elif sys.stderr.isatty():
            print(f"{check.name}: {check.outcome}", file=sys.stderr)
    code = max(check.exit_code for check in found)
    if options.format == "json":
        print(json.dumps({"checks": [check.as_dict() for check in found], "exit_code": code}, indent=1))
    return code
