"""Which records may stand in a table, in which row, and why the others may not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import registry
from bench.config import canonical_json
from bench.errors import BrokenPluginError, UnknownNameError
from bench.metrics.names import MEMBERS
from bench.records.schema import RunRecord
from bench.records.store import read_records
from bench.tables.definitions import Row, Table

PARTIAL = "partial runs"
OTHER_CONVENTIONS = "other metric conventions than the task's"
OTHER_CONFIG = "trained with another config than the table's, which other runs have"
OTHER_ENSEMBLES = "another ensemble, or other metric conventions of it, than the newest run's"
_ADDED_FOR_ENSEMBLES = ("probabilistic", "frechet")
_NAMED_MOST = 3  # run ids printed per reason; `earthbench verify` and the JSON form have them all
_PROBLEM = re.compile(r"^(?P<path>.+?\.json): (?P<reason>.*)$", re.DOTALL)


@dataclass(frozen=True)
class Excluded:
    """A record, or a file that is none, that may not stand in a table."""

    run_id: str
    task: str
    model: str
    reason: str


def read_store(root: Path, task: str | None = None) -> tuple[list[RunRecord], list[Excluded]]:
    """Returns the readable records under a results root, oldest first, and the files that are not.

    Args:
        root: Results root.
        task: Only this task's records.
    """
    records, problems = read_records(root, task)
    unreadable = []
    for problem in problems:
        match = _PROBLEM.match(problem)
        path, reason = (Path(match["path"]), match["reason"]) if match else (Path("unknown.json"), problem)
        # runs/TASK/MODEL/RUN_ID.json
        unreadable.append(Excluded(path.stem, path.parent.parent.name, path.parent.name, reason))
    return records, unreadable


def admitted(table: Table, records: Iterable[RunRecord]) -> tuple[dict[str, list[RunRecord]], list[Excluded]]:
    """Returns the records of each row of a published table, and the records of its task that stand in none."""
    by_row: dict[str, list[RunRecord]] = {row.key: [] for row in table.rows}
    wanted = {row.key: _hyperparameters(row, table.task) for row in table.rows if row.options}
    left_out = []
    of_task = [record for record in records if record.task.name == table.task]
    newest = max((record.task.version for record in of_task), default=0)
    conventions = _conventions(table.task) if of_task else {}
    for record in of_task:
        reason = _why_not(table, record, newest, conventions)
        row = next((row for row in table.rows if _is_row(record, row, wanted.get(row.key))), None)
        if reason is None and row is None:
            same_model = any(row.model == record.model.name for row in table.rows)
            reason = "other hyperparameters" if same_model else "models without a row"
        if reason is None and row is not None:
            by_row[row.key].append(record)
        else:
            left_out.append(Excluded(record.run_id, record.task.name, record.model.name, str(reason)))
    for mine in by_row.values():
        kept = [record for record in mine if not deviations(table, record)]
        if kept:  # a longer trial of a row takes the place of nothing
            left_out += [
                Excluded(r.run_id, r.task.name, r.model.name, OTHER_CONFIG) for r in mine if deviations(table, r)
            ]
            mine[:] = kept
        if mine:
            newest_run = max(mine, key=lambda record: record.run_id)
            alike = [record for record in mine if _ensemble(record) == _ensemble(newest_run)]
            left_out += [
                Excluded(r.run_id, r.task.name, r.model.name, OTHER_ENSEMBLES)
                for r in mine
                if _ensemble(r) != _ensemble(newest_run)
            ]
            mine[:] = alike
    return by_row, left_out


def of_ensembles(metric: str) -> bool:
    """Returns whether a metric is one that an evaluation of an ensemble adds to the task's own."""
    return metric in _ADDED_FOR_ENSEMBLES or metric.endswith(MEMBERS)


def _ensemble(record: RunRecord) -> str:
    """Returns the members that were scored and how, equal for equal ones: nothing else may be averaged over seeds."""
    added = {name: how for name, how in record.conventions.items() if of_ensembles(name)}
    return canonical_json([record.members.count if record.members else None, added])


def complete(table: Table, records: Iterable[RunRecord]) -> tuple[list[RunRecord], list[Excluded]]:
    """Returns the records that may stand in a table of runs, whatever the data, and those that may not."""
    good, left_out = [], []
    for record in records:
        if record.task.name != table.task:
            continue
        reason = _incomplete(record)
        if reason is None:
            good.append(record)
        else:
            left_out.append(Excluded(record.run_id, record.task.name, record.model.name, reason))
    return good, left_out


def deviations(table: Table, record: RunRecord) -> list[str]:
    """Returns how a record's training differs from the table's, as `train.KEY=VALUE (table: VALUE)`."""
    if record.training is None:
        return []
    used = record.training.settings
    return [
        f"train.{key}={used.get(key)!r} (table: {value!r})"
        for key, value in table.training.items()
        if used.get(key) != value
    ]


def training_seed(record: RunRecord) -> int:
    """Returns the seed that the weights of a record came from; for a model without weights always 0."""
    if record.training is None and record.checkpoint_sha256 is None:
        return 0
    identity = record.training.identity if record.training else None
    return record.seed if identity is None else identity.seed


def latest_per_seed(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Returns one record per training, the newest, ordered by seed: what was repeated is not a second sample.

    A training is repeated by running its seed again, and by evaluating its checkpoint again; a model without weights
    by running it under another seed.
    """
    by_training: dict[int | str, RunRecord] = {}
    for record in sorted(records, key=lambda r: r.run_id):
        by_training[record.checkpoint_sha256 or training_seed(record)] = record
    latest = {training_seed(record): record for record in sorted(by_training.values(), key=lambda r: r.run_id)}
    return [latest[seed] for seed in sorted(latest)]


def summary(left_out: Sequence[Excluded]) -> list[str]:
    """Returns one line per reason, with how many records it concerns and which."""
    by_reason: dict[str, list[str]] = {}
    for one in left_out:
        by_reason.setdefault(one.reason, []).append(f"{one.model}/{one.run_id}")
    lines = []
    for reason, names in sorted(by_reason.items()):
        named = ", ".join(sorted(names)[:_NAMED_MOST])
        more = f" and {len(names) - _NAMED_MOST} more" if len(names) > _NAMED_MOST else ""
        lines.append(f"not shown: {reason} ({len(names)}): {named}{more}")
    return lines


def _incomplete(record: RunRecord) -> str | None:
    if record.status != "ok" or record.data is None:
        return "failed runs"
    return PARTIAL if record.scope != "full" else None


def _why_not(
    table: Table, record: RunRecord, newest_version: int, conventions: Mapping[str, Mapping[str, Any]]
) -> str | None:
    """Returns why a record may not stand in a published table, or None."""
    reason = _incomplete(record)
    if reason is not None:
        return reason
    assert record.data is not None
    if record.data.split != table.split:
        return "other splits"
    if record.data.origin != table.data_origin or record.data.sequence_count not in table.sequence_counts:
        return "other data"
    if not record.task.is_default:
        return "other task options"
    if record.task.version != newest_version:
        return f"version {record.task.version} of the task"
    given = record.conventions
    if any(canonical_json(given[name]) != canonical_json(own) for name, own in conventions.items() if name in given):
        return OTHER_CONVENTIONS
    if record.model.parameters and record.training is None:
        return "weights of unknown training"
    if record.training is not None and (
        record.training.data_origin != table.data_origin
        or record.training.sequence_count not in table.training_sequence_counts
    ):
        return "trained on other data"
    return None


def _conventions(task: str) -> Mapping[str, Mapping[str, Any]]:
    """Returns the metrics of a task with its default options, which are those of a published table."""
    try:
        found: Mapping[str, Mapping[str, Any]] = registry.find("task", task).load()().metrics
    except Exception:  # of a plugin that is not installed or broken: nothing to compare with
        return {}
    return found


def _is_row(record: RunRecord, row: Row, wanted: Mapping[str, Any] | None) -> bool:
    if record.model.name != row.model:
        return False
    if not row.options:
        return record.model.is_preset
    return wanted is not None and canonical_json(record.model.hyperparameters) == canonical_json(wanted)


def _hyperparameters(row: Row, task: str) -> dict[str, Any] | None:
    """Returns what a record of a row with options was made from: the model's preset for the task and the options."""
    try:
        presets = registry.find("model", row.model).card().presets
    except (UnknownNameError, BrokenPluginError):
        return None  # no model, so no record of ours
    return {**presets.get(task, {}), **row.options}
