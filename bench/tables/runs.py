"""`runs/TASK` of a task without a table of its own: its columns are the scores of its records."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bench import registry
from bench.metrics.names import OWN
from bench.records.schema import RunRecord
from bench.tables.columns import OWN_COST, TRAINING_CPU
from bench.tables.definitions import Column, Table

_PREFIX = "runs/"
_NAME = re.compile(rf"{_PREFIX}([a-z0-9_]+)")
# Further scores of the contingency table, means of per-lead scores, and counts: in records, but too many for a table.
_NOT_SHOWN = re.compile(rf"^(pod|sucr|far|bias|hss)_|_per_lead_mean|_count(_|$)|_{OWN}$")
_UPPER = ("csi", "fss", "mse", "mae", "rmse", "crps", "ssim", "psnr", "bss")

_LABELS = {"crps_fair": "CRPS, fair", "spread_skill_ratio": "spread / skill"}


def task_of_runs(name: str, recorded: Iterable[str] = ()) -> str | None:
    """Returns the task of a table `runs/TASK`, or None if the task is neither registered nor recorded.

    Args:
        name: Name of the table.
        recorded: Tasks with records, possibly of a plugin that is not installed.
    """
    task = match[1] if (match := _NAME.fullmatch(name)) else None
    return task if task in {*registry.names("task"), *recorded} else None


def runs_table(task: str, records: Iterable[RunRecord]) -> Table:
    """Returns the table of every complete run of a task, with the scores that its records have.

    Args:
        task: A registered name.
        records: Of any task.
    """
    keys: dict[str, None] = {}
    cost: tuple[Column, ...] = OWN_COST
    for record in records:
        if record.task.name == task:
            added = _added(record)
            keys |= {key: None for key in record.scores if not (_NOT_SHOWN.search(key) or key.endswith(added))}
            if record.training is not None and record.training.cpu_s is not None:  # older code did not record it
                cost = (*OWN_COST, TRAINING_CPU)
    return Table(
        name=f"{_PREFIX}{task}",
        title=f"Every complete run of task {task}",
        task=task,
        columns=(*cost, *(score_column(key) for key in keys)),
        note="Measured here; one block per data set, split and task options. Scores are in the data's units.",
    )


def with_scores_there(table: Table, records: Iterable[RunRecord]) -> Table:
    """Returns a table without optional columns whose scores no record of its task has."""
    if not any(column.optional for column in table.columns):
        return table
    there = {score for record in records if record.task.name == table.task for score in record.scores}
    columns = [one for one in table.columns if not one.optional or (one.skill_of or one.key) in there]
    return table.model_copy(update={"columns": tuple(columns)})


def tables_without_entry(records: Iterable[RunRecord]) -> list[Table]:
    """Returns the tables of the tasks that have records and no registered table `runs/TASK`."""
    records, known = list(records), registry.names("table")
    tasks = sorted({record.task.name for record in records if _PREFIX + record.task.name not in known})
    return [runs_table(task, records) for task in tasks if task_of_runs(_PREFIX + task, tasks)]


def added_columns(record: RunRecord) -> list[Column]:
    """Returns the scores of metrics that the command line added to a run."""
    added = (*_added(record), f"_{OWN}") if _added(record) else ()
    keys = [key for key in record.scores if key.endswith(added) and not _NOT_SHOWN.search(key.removesuffix(f"_{OWN}"))]
    return [Column(key=key, label=_label(key)) for key in keys]


def _added(record: RunRecord) -> tuple[str, ...]:
    given = record.config.get("evaluate") or {}
    return tuple(f"_{key}" for key in given.get("metrics", ()))


def score_column(key: str) -> Column:
    """Returns a column for a score that no table defines."""
    return Column(key=key, label=_label(key), group=_group(key))


def _label(key: str) -> str:
    if key in _LABELS:
        return _LABELS[key]
    first, _, rest = key.partition("_")
    if first not in _UPPER:
        return f"{key.removesuffix(f'_{OWN}')} {OWN}" if key.endswith(f"_{OWN}") else key
    level, *more = rest.split("_")
    return " ".join([f"{first.upper()}-{'M' if level == 'm' else level}", *more]) if rest else first.upper()


def _group(key: str) -> str:
    return {"csi": "CSI", "fss": "FSS", "mse": "Error", "mae": "Error"}.get(key.partition("_")[0], "")
