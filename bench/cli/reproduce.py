"""`earthbench reproduce TABLE[/ROW]`: the rows of a published table, with the paper's configuration."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import TextIO

from bench.cli.flags import add_overrides
from bench.cli.printing import print, wrapped
from bench.engine.runfolder import duration
from bench.errors import RunFailedError, UsageError, counted
from bench.logs import shown_on
from bench.reproduction import RowPlan, RowResult, find_rows, plan, run_rows, seeds_of

EXAMPLES = (
    "earthbench reproduce earthformer/sevir --dry-run",
    "earthbench reproduce earthformer/sevir/convlstm data.root=DIR --seeds 0,1,2",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("name", help="TABLE or TABLE/ROW, e.g. earthformer/sevir or earthformer/sevir/convlstm")
    add_overrides(parser, "Hydra overrides, e.g. data.root=DIR data.micro_batch=4")
    parser.add_argument("--dry-run", action="store_true", help="print the plan only")
    parser.add_argument("--measure", action="store_true", help="time a few steps of each row instead of estimating")
    parser.add_argument(
        "--on",
        metavar="DEVICES",
        help="with --dry-run: hours, memory and batches on other devices, e.g. 8xH100, a100-80g, or "
        "NAME:TFLOPS,GIB,COUNT",
    )
    parser.add_argument("--seeds", help="e.g. 0,1,2 (default: the override seed=N, else 0)")
    parser.add_argument("--again", action="store_true", help="also run rows that have a record")
    parser.add_argument("--format", choices=("text", "json", "md"), default="text", help="of the plan (md: with --on)")


def run(options: argparse.Namespace) -> int:
    """Prints the plan, then runs the missing rows; a failed row does not stop the others."""
    from bench.cost.devices import parse_devices
    from bench.reproduction.estimates import measured_throughput
    from bench.reproduction.projection import markdown

    devices = parse_devices(options.on) if options.on is not None else None
    if devices is not None and (not options.dry_run or options.measure):
        raise UsageError("--on plans for other devices: use it with --dry-run and without --measure")
    if options.format == "md" and devices is None:
        raise UsageError("--format md prints the plan for other devices: give --on, e.g. --dry-run --on 8xH100")
    table, rows = find_rows(options.name)
    throughput = lru_cache(measured_throughput)  # one measurement serves all rows
    plans = []
    for row in rows:
        for seed in seeds_of(options.overrides, options.seeds):
            if sys.stderr.isatty():
                print(f"planning {table.name}/{row.key} ...", file=sys.stderr)
            plans.append(
                plan(
                    table, row, options.overrides, seed, measure=options.measure, again=options.again,
                    throughput=throughput, on=devices,
                )
            )  # fmt: skip
    if options.format == "md":
        print(markdown([(one.row, one.projection) for one in plans]))
        return 0
    if options.format == "json":
        print(json.dumps([one.as_dict() for one in plans], indent=1))
    else:
        print("\n".join(wrapped(line, 11) for one in plans for line in _lines(one)))
        print(wrapped(_total(plans), 2))
    if options.dry_run:
        return 0
    if not any(one.status != "cannot run" for one in plans):
        raise UsageError(f"nothing of {options.name} can be run: {plans[0].reason}")
    to_stderr = options.format == "json"
    with shown_on("stderr" if to_stderr else "stdout"):
        results = run_rows(plans)
    return _report(results, sys.stderr if to_stderr else sys.stdout)


def _report(results: Sequence[RowResult], stream: TextIO) -> int:
    print(file=stream)
    for result in results:
        print(f"{result.status:<8} {result.row} seed {result.seed}: {result.message.splitlines()[0]}", file=stream)
    failed = [result for result in results if result.exit_code]
    if any(result.status == "failed" for result in failed):
        names = ", ".join(f"{r.row} seed {r.seed}" for r in failed)
        raise RunFailedError(
            f"{len(failed)} of {counted(len(results), 'row')} failed: {names}. The same command tries them again"
        )
    return UsageError.exit_code if failed else 0


def _lines(one: RowPlan) -> list[str]:
    from bench.reproduction.projection import text_lines
    from bench.tables.settings import summary_lines

    lines = [f"{one.table}/{one.row} seed {one.seed}: {one.status}" + (f" ({one.reason})" if one.reason else "")]
    lines.append(f"  config   {' '.join(one.overrides)}")
    lines.append(f"  data     {one.data}")
    if one.estimate is not None:
        estimate = one.estimate
        known = estimate.total_s is not None
        times = f"epoch {duration(estimate.epoch_s)}, total {duration(estimate.total_s or 0)}; " if known else ""
        lines.append(f"  time     {times}{estimate.basis}" + ("" if known else "; --measure runs a few"))
        lines.append(f"  memory   {estimate.memory_bytes / 1e9:.2f} GB ({estimate.memory_basis})")
    lines += [f"  {line}" for line in text_lines(one.projection)] if one.projection is not None else []
    lines += [f"  setting  {line}" for line in summary_lines(list(one.settings))]
    lines += [f"  writes   {path}" for path in one.writes] if one.status != "done" else []
    return lines


def _total(plans: Sequence[RowPlan]) -> str:
    counts = {status: sum(one.status == status for one in plans) for status in ("to run", "done", "cannot run")}
    text = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    waiting = [one.estimate.total_s for one in plans if one.status != "done" and one.estimate is not None]
    if known := [total_s for total_s in waiting if total_s is not None]:
        text += f"; {duration(sum(known))} in total on this device"
        text += f", without {counted(len(waiting) - len(known), 'row')} of unknown time" * (len(known) < len(waiting))
    projections = [one.projection for one in plans if one.projection is not None]
    if projections:
        hours, gpu_hours = (sum(getattr(one, key) for one in projections) for key in ("hours", "gpu_hours"))
        text += (
            f"; {gpu_hours:,.1f} GPU-hours, {hours:,.1f} h in total on {projections[0].devices} at "
            f"{projections[0].utilisation:.0%} (assumed) of their peak, without the exchange of gradients and reading; "
            "early stopping usually ends a training sooner"
        )
    return text
