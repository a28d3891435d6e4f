"""`earthbench data info|check|make`: what is on disk, what is wrong with it, and storms made on the spot."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from bench.errors import DataError, UsageError, one_message


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    verbs = parser.add_subparsers(dest="what", required=True, metavar="info|check|make")
    for name, summary in {
        "info": "what is there",
        "check": "everything that is wrong, in one message",
    }.items():
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.add_argument("task", help="task whose format the data has, e.g. sevir")
        sub.add_argument("--root", required=True, type=Path, help="folder of the data set")
        sub.add_argument("--format", choices=("text", "json"), default="text")
        if name == "check":
            sub.add_argument("--quick", action="store_true", help="catalogue and file headers only, read no values")
    make = verbs.add_parser(
        "make", help="make synthetic storms in the same format", description="make synthetic storms"
    )
    make.add_argument("task", help="sevir or sevir_lr")
    make.add_argument("--out", required=True, type=Path, help="folder to make; must hold no data set yet")
    make.add_argument("--train", type=int, default=32, help="training events (default 32)")
    make.add_argument("--val", type=int, default=8, help="validation events (default 8)")
    make.add_argument("--test", type=int, default=8, help="test events (default 8)")
    make.add_argument("--size", type=int, help="height and width in pixels (default: the task's)")
    make.add_argument("--frames", type=int, help="frames per event (default: 49, or 25 for sevir_lr)")
    make.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")


def run(options: argparse.Namespace) -> int:
    """Does what was asked for."""
    return {"info": _info, "check": _check, "make": _make}[options.what](options)


def _sevir_task(name: str) -> Any:
    from bench.tasks import load_task
    from bench.tasks.sevir import Sevir

    task = load_task(name)
    if not isinstance(task, Sevir):
        raise UsageError(f"storms are made in the format of sevir and sevir_lr; task {name!r} has another")
    return task


def _info(options: argparse.Namespace) -> int:
    from bench.tasks import load_task

    report = load_task(options.task, options.root).describe_data()
    if options.format == "json":
        print(json.dumps({"facts": report.facts, "remarks": report.remarks, "problems": report.problems}, indent=1))
        return 0
    for line in report.lines:
        print(line)
    for remark in report.remarks:
        print(f"  note: {remark}")
    for problem in report.problems:
        print(f"  PROBLEM: {problem}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from bench.tasks import load_task

    task = load_task(options.task, options.root)
    with Progress(
        transient=True, disable=options.quick or not sys.stderr.isatty(), console=Console(stderr=True)
    ) as progress:
        bar = progress.add_task("reading", total=None)
        report = task.describe_data(
            read_everything=not options.quick,
            advance=lambda done, total: progress.update(bar, completed=done, total=total),
        )
    if options.format == "json":
        print(json.dumps({"problems": report.problems, "remarks": report.remarks}, indent=1))
        return 2 if report.problems else 0
    for remark in report.remarks:
        print(f"note: {remark}")
    if report.problems:
        headline = f"{len(report.problems)} problem{'s' * (len(report.problems) > 1)} under {options.root}:"
        raise DataError(one_message(headline, report.problems, most=len(report.problems)))
    print(f"no problems: {report.facts['events']} events {'declared' if options.quick else 'read'}")
    return 0


def _make(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from bench.data.storms import make_sevir

    task = _sevir_task(options.task)
    frames = options.frames if options.frames is not None else round(240 / task.nominal_cadence) + 1
    size = options.size if options.size is not None else task.nominal_size
    events = {"train": options.train, "val": options.val, "test": options.test}
    with Progress(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as progress:
        bars = {split: progress.add_task(f"{split} storms", total=count) for split, count in events.items()}
        make_sevir(
            options.out.expanduser(), events=events, size=size, frames=frames, minutes=task.nominal_cadence,
            seed=options.seed, advance=lambda split, done, total: progress.update(bars[split], completed=done),
        )  # fmt: skip
    print(f"made {sum(events.values())} storms of {frames} frames of {size}x{size} in {options.out}")
    root = shlex.quote(f"data.root='{options.out}'" if " " in str(options.out) else f"data.root={options.out}")
    print(f"try: earthbench run task={options.task} model=unet {root}")
    return 0
