"""`earthbench tune`: a grid of settings, trained and scored on the validation split; the test split stays unseen."""

from __future__ import annotations

import argparse
import json

from tabulate import tabulate

from bench.ablation.tuning import Trial, best_of, run_grid
from bench.cli.ablate import job
from bench.cli.printing import print
from bench.cli.run import launch
from bench.config import expand_sweep
from bench.errors import UsageError
from bench.protocols.entries import hydra_overrides, key_of, layered
from bench.safe_text import for_markdown

EXAMPLES = (
    "earthbench tune model=unet task=sevir data.root=DIR train.max_epochs=3 train.lr=1e-3,2e-3 data.batch_size=4,16",
    "earthbench tune model=unet data.root=DIR train.max_steps=500 train.val_every_steps=100 train.lr=1e-3,1e-2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="KEY=VALUE",
        help="Hydra overrides; those with several values are the grid: train.lr=1e-3,2e-3 data.batch_size=4,16",
    )
    parser.add_argument("--format", choices=("md", "json"), default="md")


def run(options: argparse.Namespace) -> int:
    """Trains the missing points of the grid, prints all from best to worst, and recommends the best."""
    points = [layered(point) for point in expand_sweep(options.overrides)]
    if len(points) == 1:
        raise UsageError("earthbench tune: a grid needs several values of a key, as in train.lr=1e-3,2e-3")
    varied = [one for one in dict.fromkeys(o for p in points for o in p) if not all(one in p for p in points)]
    keys = list(dict.fromkeys(key_of(one) for one in varied))
    hydra = hydra_overrides(options.overrides)
    trials = sorted(
        run_grid(points, lambda jobs: launch([[*one, *hydra] for one in jobs], job)), key=lambda trial: trial.badness
    )
    best = [one for one in best_of(trials).overrides if key_of(one) in keys]
    if options.format == "json":
        print(json.dumps({"trials": [_line(trial, keys) for trial in trials], "best": best}, indent=1))
        return 0
    lines = [_line(trial, keys) for trial in trials]
    head = {key: for_markdown(key) for key in lines[0]}
    print(tabulate(lines, head, tablefmt="pipe", floatfmt=".4g", missingval="-", disable_numparse=[0]))
    print(f"\nBest on the validation split: {' '.join(best)}")
    return 0


def _line(trial: Trial, keys: list[str]) -> dict[str, str | float | None]:
    """Returns the line of a point: its settings, its score, and its cost."""
    line: dict[str, str | float | None] = {
        key_of(one): one.partition("=")[2] for one in trial.overrides if key_of(one) in keys
    }
    training = trial.record.training if trial.record is not None else None
    line[trial.config.train.early_stopping.monitor] = trial.score
    line["steps"] = training.steps if training is not None else None
    line["training s"] = round(training.wall_s, 1) if training is not None else None
    return line
