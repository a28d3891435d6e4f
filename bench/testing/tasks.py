"""The contract that any task must keep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from bench.api import SPLITS
from bench.config import fingerprint
from bench.errors import ContractError, EarthbenchError, counted, one_message
from bench.metrics import load_metric
from bench.metrics.names import metric_of
from bench.tasks import Task

# Relative tolerance of a float32 round trip.
_RELATIVE = 1e-4


def check_task(task_class: type[Task], *, data_root: str | Path | None = None, **fields: Any) -> Task:
    """Returns a task that passed every check of the contract.

    Checked: name, version and units; shapes `(T,H,W,C)` with equal H and W; options are plain JSON; metrics exist and
    can be made; `denormalise` and `normalise` are inverses; importing its module does not import torch.  With data:
    every split can be opened; sequences have the task's shapes, float32, finite contexts; training, validation and test
    share no event; the identity of the data is plain JSON and the same when opened again.

    Args:
        task_class: Class of the task.
        data_root: Folder of its data; without it, checks that need data are skipped.
        **fields: Options of the task.

    Raises:
        ContractError: checks failed; the message lists all of them.
    """
    if not (isinstance(task_class, type) and issubclass(task_class, Task)):
        raise ContractError(f"{task_class!r} is not a subclass of bench.tasks.Task")
    task = task_class(data_root=data_root, **fields)
    problems: list[str] = []
    for check in (_description, _metrics, _units, _light_import, *([_data] if data_root is not None else [])):
        try:
            check(task, problems)
        except EarthbenchError as error:
            problems.append(str(error))
    if problems:
        raise ContractError(one_message(f"task {task_class.__name__} does not keep the task contract:", problems))
    return task


def _description(task: Task, problems: list[str]) -> None:
    for name in ("name", "units"):
        if not isinstance(getattr(type(task), name, None), str):
            problems.append(f"class attribute {name}: expected a text")
    for name in ("input_shape", "target_shape"):
        shape = getattr(task, name)
        if len(shape) != 4 or not all(isinstance(size, int) and size > 0 for size in shape):
            problems.append(f"{name}: expected four sizes (T, H, W, C), found {shape!r}")
    if task.input_shape[1:3] != task.target_shape[1:3]:
        problems.append(f"H, W of contexts {task.input_shape[1:3]} and of targets {task.target_shape[1:3]} differ")
    if not task.cadence_minutes > 0:
        problems.append(f"cadence_minutes: expected more than 0, found {task.cadence_minutes!r}")
    try:
        json.dumps({"fields": task.fields(), "metrics": task.metrics}, allow_nan=False)
    except (TypeError, ValueError) as error:
        problems.append(f"options and metrics: expected JSON types: {error}")


def _metrics(task: Task, problems: list[str]) -> None:
    if not task.metrics:
        problems.append("metrics: expected at least one")
    for name, options in task.metrics.items():
        load_metric(metric_of(name), **options)


def _units(task: Task, problems: list[str]) -> None:
    normalised = torch.rand((1, *task.input_shape))
    again = task.normalise(task.denormalise(normalised))
    if again.dtype != torch.float32 or task.denormalise(normalised).dtype != torch.float32:
        problems.append("normalise and denormalise: expected float32")
    if not torch.allclose(again, normalised, rtol=_RELATIVE, atol=_RELATIVE):
        problems.append(f"normalise does not undo denormalise: off by {float((again - normalised).abs().max()):.2g}")


def _light_import(task: Task, problems: list[str]) -> None:
    module = type(task).__module__
    # An import of torch fails immediately, so the check is fast.
    program = f"import importlib, sys; sys.path[:] = {sys.path!r}; sys.modules['torch'] = None; " + (
        f"importlib.import_module({module!r})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if "import of torch" in done.stderr:
        problems.append(f"importing {module} imports torch, so that listings are slow: import it inside methods")


def _data(task: Task, problems: list[str]) -> None:
    ids: dict[str, set[str]] = {}
    for split in SPLITS:
        data = task.dataset(split)
        ids[split] = set(data.ids)
        identity = dict(data.identity())
        if fingerprint(identity) != fingerprint(json.loads(json.dumps(identity))):
            problems.append(f"split {split}: identity() is not plain JSON")
        if type(task)(**_given(task)).data_fingerprint(split) != task.data_fingerprint(split):
            problems.append(f"split {split}: identity() differs when the data is opened again")
        if not len(data):
            continue
        for index in {0, len(data) - 1}:
            context, target = data[index]
            for name, part, shape in (
                ("context", context, task.input_shape),
                ("target", target, task.target_shape),
            ):
                if tuple(part.shape) != tuple(shape) or part.dtype != torch.float32:
                    found = f"{tuple(part.shape)}, {part.dtype}"
                    problems.append(f"split {split}[{index}]: {name}: expected {tuple(shape)}, float32, found {found}")
            if not torch.isfinite(context).all():
                problems.append(f"split {split}[{index}]: the context has NaN or infinite values")
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = sorted(ids[a] & ids[b])
        if shared:
            problems.append(f"{a} and {b} share {counted(len(shared), 'event')}: {', '.join(shared[:5])}")


def _given(task: Task) -> dict[str, Any]:
    """Returns the options that a task was made with, without values computed since."""
    return {name: getattr(task, name) for name in type(task).model_fields}
