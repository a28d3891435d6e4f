"""`earthbench evaluate`: scores of a checkpoint, or of a model that has nothing to train."""

from __future__ import annotations

import argparse

from bench.cli.flags import add_overrides
from bench.cli.outcome import print_outcome
from bench.cli.printing import print
from bench.config import compose
from bench.logs import shown_on

EXAMPLES = (
    "earthbench evaluate task=sevir model=persistence data.root=DIR",
    "earthbench evaluate task=sevir model=unet checkpoint=FILE data.root=DIR",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_overrides(parser, "Hydra overrides, e.g. task=sevir model=persistence data.root=DIR split=all checkpoint=FILE")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: the record, on stdout")


def run(options: argparse.Namespace) -> int:
    """Evaluates and prints the result."""
    config = compose(options.overrides)
    from bench.engine.run import run as run_pipeline

    with shown_on("stderr" if options.format == "json" else "stdout"):
        outcome = run_pipeline(config, training=False)
    if options.format == "json":
        print(outcome.record.model_dump_json(indent=1))
    else:
        print_outcome(outcome)
    return 0
