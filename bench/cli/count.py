"""`earthbench count`: parameters and multiply-adds of registered models, beside the published figures."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from bench import registry
from bench.api import model_traits
from bench.cards import TARGET
from bench.cli.printing import print
from bench.errors import (
    EarthbenchError,
    NotCountableError,
    RunFailedError,
    UnknownNameError,
    UsageError,
    VerificationError,
    counted,
    one_message,
)
from bench.worker_pool import worker_pool

_COST_COLUMNS = ("parameters", "gmacs")
_DIGITS_OF_A_MAC = 9
"""Of GMACs, which resolves a single multiply-add."""
_MAX_PROCESSES = 4
"""Each process holds a model and its forecast, up to 3 GB for the models of the tables."""
EXAMPLES = (
    "earthbench count --model unet --task sevir",
    "earthbench count --table earthformer/sevir",
    "earthbench count --task sevir_lr --target-params 350000",
    "earthbench count --check",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("--table", help="the rows of this table, compared with its published figures")
    parser.add_argument("--model", action="append", help="this model (may be repeated; default: all registered)")
    parser.add_argument("--task", default="sevir", help="shapes of this task (default sevir)")
    parser.add_argument(
        "--target-params", type=int, metavar="N", help="scale the widths so that each model has about N parameters"
    )
    parser.add_argument("--speed", action="store_true", help="also measure latency and peak memory of one forecast")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="count the rows of all tables, write results/counts.json")
    action.add_argument("--check", action="store_true", help="fail (exit 4) when these counts differ from fresh ones")


def run(options: argparse.Namespace) -> int:
    """Prints the counts; a model that is missing or not countable gets a line with the reason."""
    if options.write or options.check:
        return _committed(options)
    if options.table and options.target_params:
        raise UsageError("--target-params: the rows of a table have fixed sizes; give --model instead of --table")
    lines = _table_lines(options) if options.table else _model_lines(options)
    if options.format == "json":
        print(json.dumps(lines, indent=1, allow_nan=False))
        return 0
    from tabulate import tabulate

    left_out = {"by_operator", "uncounted", "note", "gflops", "torch_gmacs", "trainable_parameters"}
    left_out |= {"task"} if options.table else set()
    published = {key for line in lines for key in line if key.startswith("published_")}
    unknown = {key for key in published if all(line[key] is None for line in lines)}
    left_out |= unknown
    shown = [{key: value for key, value in line.items() if key not in left_out} for line in lines]
    heads = {key: key.replace("_", "\n") for line in shown for key in line}  # on several lines, to fit a terminal
    print(tabulate(shown, headers=heads, floatfmt=".3f", intfmt=",", missingval="-"))
    for line in lines:
        if line.get("note"):
            print(f"{line['model']}: {line['note']}")
    if options.table and unknown == published:
        print("No published size of these rows could be confirmed from a source, so none is compared.")
    print("GMACs: fvcore, batch 1, multiply-add = 1 (what the papers print as GFLOPS). GFLOPs = 2 x GMACs.")
    print("--format json has more: trainable parameters, PyTorch's own count, counts per operator.")
    return 0


def _model_lines(options: argparse.Namespace) -> list[dict[str, Any]]:
    registry.find("task", options.task)
    for name in options.model or []:
        registry.find("model", name)
    models = options.model or registry.names("model")
    if options.target_params is None:
        return list(_counted([(options.task, model, {}) for model in models], options.speed))
    able = [model for model in models if registry.find("model", model).card().widths]
    if other := [model for model in options.model or [] if model not in able]:
        raise UsageError(f"--target-params: {', '.join(other)}: no widths to scale (earthbench show model NAME)")
    return list(_counted([(options.task, model, {TARGET: options.target_params}) for model in able], options.speed))


def _committed(options: argparse.Namespace) -> int:
    """Counts the rows of all tables, and writes the counts or compares them with the committed ones.

    Raises:
        UsageError: combined with a flag that selects models or measures speed.
        RunFailedError: a row cannot be counted.
        VerificationError: a count differs.
    """
    from bench.tables.counts import CountedSize, counts_path, load_counts, rows_to_count, write_counts
    from bench.tables.render import tables_with_rows

    if options.table or options.model or options.speed or options.target_params:
        others = "--table, --model, --speed and --target-params"
        raise UsageError(f"--write and --check count the rows of all tables: leave {others} out")
    rows = list(rows_to_count(tables_with_rows()).values())
    fresh = []
    for (task, model, hyperparameters), line in zip(rows, _counted(rows, speed=False), strict=True):
        if "parameters" not in line:
            raise RunFailedError(f"{model} on {task} {hyperparameters or ''}: {line['note']}")
        gmacs = line.get("gmacs")
        fresh.append(
            CountedSize(
                task=task,
                model=model,
                hyperparameters=hyperparameters,
                parameters=line["parameters"],
                gmacs=None if gmacs is None else round(gmacs, _DIGITS_OF_A_MAC),
                gmacs_missing_because=line.get("note", ""),
            )
        )
    if options.write:
        print(write_counts(fresh))
        return 0
    known = {one.key: one for one in load_counts().sizes}
    differ = [f"{one.model} on {one.task}: {one}" for one in fresh if known.pop(one.key, None) != one]
    differ += [f"{one.model} on {one.task}: no table has this row" for one in known.values()]
    if differ:
        raise VerificationError(one_message(f"{counts_path()} is stale; write it: earthbench count --write", differ))
    print(f"{counts_path()}: {counted(len(fresh), 'count')} equal to fresh ones")
    return 0


def _counted(models: Sequence[tuple[str, str, dict[str, Any]]], speed: bool) -> Iterator[dict[str, Any]]:
    """Yields a line per model (task, name, hyperparameters), in order, and reports each on stderr as it is counted.

    On several cores, models are counted in parallel processes, because most of the work is in Python, where more
    threads do not help. Speed is measured in one process, with the machine to itself.

    Raises:
        RunFailedError: a process was killed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = 1 if speed else min(cores, len(models), _MAX_PROCESSES)
    if processes <= 1:
        lines = (_count(*one, speed) for one in models)
        yield from _with_progress(lines, len(models))
        return
    with worker_pool(processes, partial(_set_threads, cores // processes)) as pool:
        try:
            counts = pool.map(_count, *zip(*models, strict=True), [speed] * len(models))
            yield from _with_progress(counts, len(models))
        except BrokenProcessPool as error:
            raise RunFailedError("a counting process was killed, perhaps for lack of memory") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _with_progress(lines: Iterator[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        print(f"{number}/{count} {line['model']} on {line['task']}: {line['status']}", file=sys.stderr)
        yield line


def _count(task_name: str, model: str, options: dict[str, Any], speed: bool) -> dict[str, Any]:
    from bench.config import canonical_json
    from bench.cost import count_model, measure_speed
    from bench.models import load_model, made_from
    from bench.tasks import load_task

    line: dict[str, Any] = {"model": model, "task": task_name}
    try:
        task = load_task(task_name)
        made = load_model(model, task, **options)
        cost = count_model(made, task.input_shape)
    except UnknownNameError as error:
        return {**line, "status": "not available", "note": str(error)}
    except NotCountableError as error:
        parameters = sum(parameter.numel() for parameter in made.parameters())
        return {**line, "status": "not countable", "parameters": parameters, "note": str(error)}
    except EarthbenchError as error:
        return {**line, "status": "failed", "note": str(error)}
    line |= {"status": "counted", **cost.as_dict()}
    if TARGET in options:
        found = made_from(made).hyperparameters
        widths = {key: found.get(key) for key in model_traits(made).widths}
        line["note"] = " ".join(f"model.{key}={canonical_json(value)}" for key, value in widths.items() if value)
    if speed:
        measured = measure_speed(made, task.input_shape)
        line |= {
            "latency_s": measured.latency_s,
            "peak_memory_bytes": measured.peak_memory_bytes,
            "device": measured.device,
        }
    return line


def _table_lines(options: argparse.Namespace) -> list[dict[str, Any]]:
    from bench.tables import load_table
    from bench.tables.definitions import load_published
    from bench.tables.values import compare

    table = load_table(options.table)
    if not table.rows:
        raise UsageError(
            f"table {options.table!r} lists finished runs and has no rows of its own to count; count models of its "
            f"task instead: earthbench count --task {table.task} --model NAME"
        )
    published = load_published(table.published) if table.published else None
    columns = {column.key: column for column in table.columns if column.key in _COST_COLUMNS}
    lines = []
    named = any(row.key != row.model for row in table.rows)
    rows = [(table.task, row.model, row.options) for row in table.rows]
    for row, line in zip(table.rows, _counted(rows, options.speed), strict=True):
        line = {"row": row.key, **line} if named else line
        verdicts, notes = [], [line.get("note")]
        for key, column in columns.items():
            figure = published.rows.get(row.key, {}).get(key) if published else None
            line[f"published_{key}"] = figure.value if figure else None
            notes += [row.notes.get(key)] if figure else []
            if figure and key in line:
                verdicts.append(compare(row, column, figure, line[key] * column.scale)[1])
        if line["status"] == "counted" and verdicts:
            line["status"] = "match" if all(verdict == "match" for verdict in verdicts) else "differs"
        line["note"] = "; ".join(note for note in notes if note)
        lines.append(line)
    return lines
