"""`earthbench compare A B`: whether two runs differ beyond chance, by the paired test of `bench.compare`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench import registry
from bench.cli.flags import RESULTS, results_root
from bench.cli.printing import print, wrapped
from bench.errors import ConfigError, UnknownNameError, UsageError, counted, did_you_mean
from bench.metrics.names import better_of
from bench.records import Comparison, compare
from bench.records.schema import RunRecord
from bench.records.store import read_records
from bench.tables.standings import SIGNIFICANCE
from bench.tables.terminal import main_columns
from bench.tables.variants import comparable_key

EXAMPLES = (
    "earthbench compare unet persistence --task radar",
    "earthbench compare unet persistence --task sevir --score csi_m --score mse --results quickstart/results",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("a", metavar="A", help="a run: the path of its record, the beginning of its id, or a model")
    parser.add_argument("b", metavar="B", help="the run to compare it with")
    parser.add_argument("--task", help="only runs of this task")
    parser.add_argument(
        "--score", action="append", help="a score to compare, also per lead time (repeatable; default: the main ones)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="results root (default: results)")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(options: argparse.Namespace) -> int:
    """Prints each score of both runs, the difference with its interval, and the p-value."""
    a, b, groups = _pair(options)
    main = dict.fromkeys(column.key for record in (a, b) for column in main_columns(record))
    lacking = [key for key in main if a.scores.get(key) is None or b.scores.get(key) is None]  # or undefined
    scores = options.score or [key for key in main if key not in lacking]
    for score in scores:
        for record in (a, b):
            if score.partition("_lead_")[0] not in record.scores:
                raise UnknownNameError(f"run {record.run_id} has no score {score!r}. "
                                       + did_you_mean(score, record.scores))  # fmt: skip
    found = [compare(a, b, score) for score in scores]
    if options.format == "json":
        runs = {name: {"run_id": r.run_id, "model": r.model.name, "seed": r.seed} for name, r in (("a", a), ("b", b))}
        print(json.dumps({**runs, "scores": [asdict(one) for one in found]}, indent=1, allow_nan=False))
        return 0
    assert a.data is not None and a.statistics is not None
    print(f"A  {a.model.name}, seed {a.seed}, {a.run_id}")
    print(f"B  {b.model.name}, seed {b.seed}, {b.run_id}")
    print(f"{a.task.name}, {a.data.split} split, {counted(a.statistics.unit_count, a.statistics.kind)}")
    if groups > 1:
        print(wrapped(f"the newest of {groups} data sets or task options that both have; run ids choose others", 2))
    if lacking and not options.score:
        print(wrapped(f"not compared, because one of the two lacks the score: {', '.join(lacking)}", 2))
    print()
    print("\n".join(_lines(found)))
    return 0


def _pair(options: argparse.Namespace) -> tuple[RunRecord, RunRecord, int]:
    """Returns the newest comparable runs of two names, and how many combinations of data and task options have both.

    Raises:
        UnknownNameError: no run has this name, or none is of this task.
        ConfigError: no run of A is comparable with a run of B.
        UsageError: A and B are comparable on several tasks.
    """
    root = results_root(options.results)
    records = [
        record for record in read_records(root, options.task)[0] if record.status == "ok" and record.data is not None
    ]
    if options.task is not None and not records:
        near = did_you_mean(options.task, registry.names("task"))
        raise UnknownNameError(f"no run of task {options.task!r} under {root}. {near}")
    of_a, of_b = (_named(name, records, options.results) for name in (options.a, options.b))
    pairs = [(a, b) for b in of_b for a in of_a if a.run_id != b.run_id and comparable_key(a) == comparable_key(b)]
    if not pairs:
        raise ConfigError(
            f"no run of {options.a!r} was scored on the same data as one of {options.b!r}: task, its options, data and "
            f"split must be equal ({counted(len(of_a), 'run')} and {counted(len(of_b), 'run')} under "
            f"{options.results})"
        )
    if len({a.task.name for a, _ in pairs}) > 1:
        tasks = ", ".join(sorted({a.task.name for a, _ in pairs}))
        raise UsageError(f"{options.a!r} and {options.b!r} have runs on several tasks: give --task, one of {tasks}")
    a, b = max(pairs, key=lambda pair: (pair[0].run_id, pair[1].run_id))
    return a, b, len({comparable_key(a) for a, _ in pairs})


def _named(name: str, records: Sequence[RunRecord], root: Path) -> list[RunRecord]:
    stem = Path(name).stem if name.endswith(".json") else name
    found = [r for r in records if r.model.name == name] or [r for r in records if r.run_id.startswith(stem)]
    if not found:
        known = {record.model.name for record in records}
        raise UnknownNameError(f"no run {name!r} under {root}. {did_you_mean(name, known)}")
    return found


def _lines(found: Sequence[Comparison]) -> list[str]:
    from tabulate import tabulate

    rows = []
    for one in found:
        better = better_of(one.score)
        ahead = "A" if (one.difference > 0) == (better == "higher") else "B"
        certain = one.p_value < SIGNIFICANCE and one.difference and isinstance(better, str)
        interval = f"[{one.low:+.3g}, {one.high:+.3g}]" if one.low is not None and one.high is not None else "-"
        rows.append([one.score, f"{one.a:.4g}", f"{one.b:.4g}", f"{one.difference:+.3g}", interval,
                     f"{one.p_value:.3g}", ahead if certain else "-"])  # fmt: skip
    head = ["score", "A", "B", "A - B", "95 % interval", "p", "better"]
    aligned = ("left", *["right"] * 5, "left")
    text = tabulate(rows, head, tablefmt="simple", colalign=aligned, disable_numparse=True)
    lines = [*text.splitlines(), ""]
    lines += sorted({f"no interval: {one.why_no_interval}" for one in found if one.why_no_interval})
    least = max(one.smallest_p for one in found)
    lines.append(f"p: permutation test over events; the smallest possible here is {least:.3g}")
    return lines
