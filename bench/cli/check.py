"""`earthbench check NAME`: whether a model, task, metric or constraint keeps its contract."""

from __future__ import annotations

import argparse
import traceback
from pathlib import Path
from typing import Any

from bench import registry
from bench.api import model_traits
from bench.cli.printing import print
from bench.errors import ContractError, EarthbenchError, UnknownNameError, UsageError, did_you_mean

_KINDS = ("model", "task", "metric", "constraint")
EXAMPLES = (
    "earthbench check unet",
    "earthbench check unet --task sevir",
    "earthbench check sevir --root DIR",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("name", help="a registered model, task, metric or constraint")
    parser.add_argument("--kind", choices=_KINDS, help="which kind, if two have this name")
    parser.add_argument("--task", help="check a model on this task's shapes with its preset (default: small shapes)")
    parser.add_argument("--root", type=Path, help="also check a task on this data")


def run(options: argparse.Namespace) -> int:
    """Checks every object of this name, and prints those that keep their contract."""
    asked: list[Any] = [kind for kind in _KINDS if options.kind in (None, kind)]
    kinds = [kind for kind in asked if options.name in registry.names(kind)]
    if not kinds:
        if options.name in registry.names("table"):
            raise UsageError(f"{options.name!r} is a table: `earthbench table {options.name}` prints it")
        known = [name for kind in asked for name in registry.names(kind)]
        raise UnknownNameError(
            f"no model, task, metric or constraint {options.name!r}. {did_you_mean(options.name, known)}"
        )
    for kind in kinds:
        thing = registry.find(kind, options.name).load()
        try:
            {"model": _model, "task": _task, "metric": _metric, "constraint": _constraint}[kind](thing, options)
        except EarthbenchError:
            raise
        except Exception as error:  # raised by the code under check
            frame = traceback.extract_tb(error.__traceback__)[-1]
            raise ContractError(
                f"{kind} {options.name} does not keep its contract: {type(error).__name__}: {error} "
                f"({frame.filename}:{frame.lineno} in {frame.name})"
            ) from error
        print(f"{kind} {options.name} keeps its contract")
    return 0


def _model(thing: Any, options: argparse.Namespace) -> None:
    from bench.tasks import load_task
    from bench.testing import check_model

    presets = model_traits(thing).presets
    if options.task is None:
        check_model(thing, **presets.get("tiny", {}))
        return
    task = load_task(options.task)
    check_model(thing, input_shape=task.input_shape, target_shape=task.target_shape, **presets.get(options.task, {}))


def _task(thing: Any, options: argparse.Namespace) -> None:
    from bench.testing import check_task

    check_task(thing, data_root=options.root)


def _metric(thing: Any, options: argparse.Namespace) -> None:
    from bench.testing import check_metric

    check_metric(thing)


def _constraint(thing: Any, options: argparse.Namespace) -> None:
    from bench.testing import check_constraint

    if check_constraint(thing).name != options.name:
        raise ContractError(
            f"constraint {thing.__name__}: registered as {options.name!r}, but its name is {thing.name!r}"
        )
