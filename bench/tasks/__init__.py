"""Tasks: shapes, splits, units and metrics of each forecasting problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench import registry
from bench.config import explain
from bench.errors import BrokenPluginError, ConfigError, one_message
from bench.tasks.task import Task

__all__ = ["Task", "load_task"]


def load_task(name: str, data_root: str | Path | None = None, **overrides: Any) -> Task:
    """Returns the task registered as `name`.

    Args:
        name: Name of a registered task, e.g. `sevir`.
        data_root: Folder of its data; without it, the task has its nominal shapes.
        **overrides: Fields of the task, e.g. `t_in=7`, `t_out=6` (`earthbench show task NAME` lists them).

    Raises:
        UnknownNameError: no task has this name.
        ConfigError: an unknown field or a value out of range.
        DataError: `data_root` is not a folder.
    """
    entry = registry.find("task", name)
    task_class = entry.load()
    if not (isinstance(task_class, type) and issubclass(task_class, Task)):
        raise BrokenPluginError(f"task {name!r} from {entry.origin} is not a subclass of bench.tasks.Task")
    try:
        return task_class(data_root=data_root, **overrides)
    except ValidationError as error:
        lines = explain(error, task_class, prefix="task.")
        raise ConfigError(one_message(f"task {name!r} cannot be made with these options:", lines)) from error
