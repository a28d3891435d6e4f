"""`earthbench run`: one run from a composed config, or a sweep of them by Hydra's launchers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from bench.config import compose, expand_sweep, hydra_errors, register_groups, to_plain, validate

TAKES_HYDRA_FLAGS = True
_SWEEP = ("-m", "--multirun")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="Hydra overrides, e.g. task=sevir model=unet data.root=DIR train.max_epochs=3; "
        "Hydra's flags work too: -m sweeps over a=1,2, --cfg job prints the config",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the config, or hands over to Hydra where one of its flags was given."""
    flags = getattr(options, "hydra_flags", [])
    if flags:
        if any(flag in _SWEEP for flag in flags):
            for combination in expand_sweep(options.overrides):
                compose(combination)  # every job's config is checked before the first one starts
        sweep(options.overrides, flags, job)
        return 0
    execute(compose(options.overrides))
    return 0


def execute(config: Any) -> None:
    """Runs a checked config and prints what came of it."""
    from bench.cli.evaluate import print_outcome
    from bench.pipeline import run as run_pipeline

    print_outcome(run_pipeline(config, training=True))


def job(composed: Any) -> None:
    """One job of a sweep; launchers import it by name, on whatever machine it runs."""
    execute(validate(to_plain(composed)))


def sweep(overrides: list[str], flags: list[str], task: Callable[[Any], None]) -> None:
    """Hands overrides and Hydra's own flags over to Hydra, which calls `task` with each composed config."""
    import hydra

    register_groups()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach our own handler, and so our exit codes
    sys.argv = ["earthbench", *overrides, *flags]
    with hydra_errors(overrides):
        hydra.main(config_path="pkg://bench.conf", config_name="config", version_base="1.3")(task)()
