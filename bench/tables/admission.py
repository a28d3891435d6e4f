"""Admission of records to the rows of a table, and the reasons for leaving others out."""

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
from bench.tables.recipes import deviations, differing, of_length

PARTIAL = "partial runs"
OTHER_DATA = "other data"
OTHER_TRAINING_DATA = "trained on other data"
OTHER_OPTIONS = "other task options"
OTHER_CONVENTIONS = "other metric conventions than the task's"
OTHER_CONFIG = "trained with another config than the table's, which other runs have"
OTHER_HYPERPARAMETERS = "other hyperparameters"
WITHOUT_ROW = "models without a row"
OTHER_FILES = "made from other data than the newest run"
OTHER_ENSEMBLES = "another ensemble, or other metric conventions of it, than the newest run's"
_ADDED_FOR_ENSEMBLES = ("probabilistic", "frechet")
_OWN_DISTRIBUTION = "(earthbench "
_MAX_NAMED = 3  # run ids printed per reason; `earthbench verify` and the JSON form have them all
_PROBLEM = re.compile(r"^(?P<path>.+?\.json): (?P<reason>.*)$", re.DOTALL)


@dataclass(frozen=True)
class Excluded:
    """A record, or an unreadable file, that is left out of a table."""

    run_id: str
    task: str
    model: str
    reason: str
    detail: str = ""
    """Differences between this record and the row."""


def read_store(root: Path, task: str | None = None) -> tuple[list[RunRecord], list[Excluded]]:
    """Returns the readable records under a results root, oldest first, and the unreadable files.

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
    """Returns the records of each row of a published table, and the records of its task that are in no row."""
    by_row: dict[str, list[RunRecord]] = {row.key: [] for row in table.rows}
    wanted = {row.key: _hyperparameters(row, table.task) for row in table.rows if row.options}
    left_out = []
    of_task = [record for record in records if record.task.name == table.task]
    newest = max((record.task.version for record in of_task), default=0)
    tasks = _Tasks(table) if of_task else None
    for record in of_task:
        assert tasks is not None
        rows = [row for row in table.rows if _is_row(record, row, wanted.get(row.key))]
        row = next((row for row in rows if not tasks.other_options(row, record)), rows[0] if rows else None)
        reasons = _exclusion_reasons(table, row, record, newest, tasks)
        if not reasons and row is None:
            same_model = any(row.model == record.model.name for row in table.rows)
            reasons = [OTHER_HYPERPARAMETERS if same_model else WITHOUT_ROW]
        if not reasons and row is not None:
            by_row[row.key].append(record)
        else:
            left_out.append(_excluded(record, "; ".join(reasons), _detail(table, row, record, reasons, tasks)))
    for row in table.rows:
        mine = by_row[row.key]
        kept = [record for record in mine if not deviations(table, record, row)]
        if kept:  # runs with another config count only if no run has the table's
            left_out += [_excluded(record, OTHER_CONFIG) for record in mine if deviations(table, record, row)]
            mine[:] = kept
        if mine:
            newest_run = max(mine, key=lambda record: record.run_id)
            for reason, key in ((OTHER_FILES, _files), (OTHER_ENSEMBLES, _ensemble)):
                left_out += [_excluded(record, reason) for record in mine if key(record) != key(newest_run)]
                mine[:] = [record for record in mine if key(record) == key(newest_run)]
    return by_row, left_out


def _excluded(record: RunRecord, reason: str, detail: str = "") -> Excluded:
    return Excluded(record.run_id, record.task.name, record.model.name, reason, detail)


def of_ensembles(metric: str) -> bool:
    """Returns whether the evaluation of an ensemble adds a metric to the task's own."""
    return metric in _ADDED_FOR_ENSEMBLES or metric.endswith(MEMBERS)


def _files(record: RunRecord) -> str:
    """Returns the fingerprints of the data that a record was tested and trained on: seeds of others are no average."""
    tested = None if record.data is None else record.data.fingerprint
    return canonical_json([tested, record.training.data_fingerprint if record.training else None])


def _ensemble(record: RunRecord) -> str:
    """Returns a key of the scored ensemble and its conventions; only runs with equal keys are averaged over seeds."""
    added = {name: how for name, how in record.conventions.items() if of_ensembles(name)}
    return canonical_json([record.members.count if record.members else None, added])


def complete(table: Table, records: Iterable[RunRecord]) -> tuple[list[RunRecord], list[Excluded]]:
    """Returns the records admitted to a table of runs, on whatever data, and those left out."""
    good, left_out = [], []
    for record in records:
        if record.task.name != table.task:
            continue
        reason = _failed(record) or _partial(record)
        if reason is None:
            good.append(record)
        else:
            left_out.append(_excluded(record, reason))
    return good, left_out


def training_seed(record: RunRecord) -> int:
    """Returns the training seed of a record's weights; for a model without weights always 0."""
    if record.training is None and record.checkpoint_sha256 is None:
        return 0
    identity = record.training.identity if record.training else None
    return record.seed if identity is None else identity.seed


def latest_per_seed(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Returns one record per training, the newest, ordered by seed, because a repetition is not a second sample.

    Running the same seed again or evaluating the same checkpoint again repeats a training; running a model without
    weights under another seed repeats its forecast.
    """
    by_training: dict[int | str, RunRecord] = {}
    for record in sorted(records, key=lambda r: r.run_id):
        by_training[record.checkpoint_sha256 or training_seed(record)] = record
    latest = {training_seed(record): record for record in sorted(by_training.values(), key=lambda r: r.run_id)}
    return [latest[seed] for seed in sorted(latest)]


def of_a_plugin(record: RunRecord) -> bool:
    """Returns whether the model comes from another distribution; one that was made by hand comes from none."""
    return "(" in record.model.origin and _OWN_DISTRIBUTION not in record.model.origin


def summary(left_out: Sequence[Excluded]) -> list[str]:
    """Returns one line per reason, with the number and the ids of its records."""
    by_reason: dict[str, list[str]] = {}
    for one in left_out:
        detail = f" ({one.detail})" if one.detail else ""
        by_reason.setdefault(one.reason, []).append(f"{one.model}/{one.run_id}{detail}")
    lines = []
    for reason, names in sorted(by_reason.items()):
        named = ", ".join(sorted(names)[:_MAX_NAMED])
        more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
        lines.append(f"not shown: {reason} ({len(names)}): {named}{more}")
    return lines


def _failed(record: RunRecord) -> str | None:
    return "failed runs" if record.status != "ok" or record.data is None else None


def _partial(record: RunRecord) -> str | None:
    return PARTIAL if record.scope != "full" else None


class _Tasks:
    """The options and metrics of each row's task."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._made: dict[str, Any] = {}

    def _task(self, row: Row | None) -> Any:
        """Returns the task of a row; None for one of a plugin that is not installed or broken."""
        options = self.table.task_options if row is None else self.table.task_options_of(row)
        key = canonical_json(options)
        if key not in self._made:
            try:
                self._made[key] = registry.find("task", self.table.task).load()(**options)
            except Exception:  # a plugin may raise anything: its table then compares no options
                self._made[key] = None
        return self._made[key]

    def metrics(self, row: Row | None) -> Mapping[str, Mapping[str, Any]]:
        """Returns the metrics of a row's task, whose conventions its records must have."""
        try:
            return dict(self._task(row).metrics)
        except Exception:  # nothing to compare with
            return {}

    def other_options(self, row: Row | None, record: RunRecord) -> list[str]:
        """Returns the task's options in which a record differs from a row, as `task.KEY=VALUE (table: VALUE)`."""
        options = self.table.task_options if row is None else self.table.task_options_of(row)
        if not options and record.task.is_default:
            return []
        task = None if record.task.is_default else self._task(row)  # all options have their defaults
        wanted = options if task is None else task.fields()
        used = record.task.fields
        differ = [
            f"task.{key}={used[key]!r} (table: {value!r})"
            for key, value in wanted.items()
            if key in used and canonical_json(used[key]) != canonical_json(value)
        ]
        return differ or ([] if options else [OTHER_OPTIONS])


def _exclusion_reasons(
    table: Table, row: Row | None, record: RunRecord, newest_version: int, tasks: _Tasks
) -> list[str]:
    """Returns every reason for leaving a record out of a published table."""
    failed = _failed(record)
    if failed is not None:
        return [failed]
    assert record.data is not None
    given, conventions = record.conventions, tasks.metrics(row)
    training = record.training
    other_training = training is not None and (
        training.data_origin != table.data_origin
        or training.sequence_count not in (table.training_counts_of(row) if row else table.training_sequence_counts)
    )
    found = {
        PARTIAL: record.scope != "full",
        "other splits": record.data.split != table.split,
        OTHER_DATA: record.data.origin != table.data_origin or record.data.sequence_count not in table.sequence_counts,
        OTHER_OPTIONS: bool(tasks.other_options(row, record)),
        f"version {record.task.version} of the task": record.task.version != newest_version,
        OTHER_CONVENTIONS: any(
            canonical_json(given[name]) != canonical_json(own) for name, own in conventions.items() if name in given
        ),
        "weights of unknown training": bool(record.model.parameters) and training is None,
        OTHER_TRAINING_DATA: other_training,
    }
    return [reason for reason, applies in found.items() if applies]


def _detail(table: Table, row: Row | None, record: RunRecord, reasons: Sequence[str], tasks: _Tasks) -> str:
    """Returns the differences from the row: task options, or else only the amount of training and test data."""
    if row is None or record.data is None:
        return ""
    if OTHER_OPTIONS in reasons:
        return ", ".join(one for one in tasks.other_options(row, record) if one != OTHER_OPTIONS)
    if not set(reasons) <= {PARTIAL, OTHER_DATA, OTHER_TRAINING_DATA}:
        return ""
    deviating = differing(table, record, row)
    if not all(of_length(key) for key in deviating):
        return ", ".join(deviating.values())
    found = [_of(record.data.sequence_count, table.sequence_counts, "test", record.data.origin, table)]
    if record.training is not None:
        training = record.training
        counts = table.training_counts_of(row)
        found.append(_of(training.sequence_count, counts, "training", training.data_origin, table))
    length = ", ".join([*filter(None, found), *deviating.values()]) or record.scope_because or ""
    return f"settings as the row's, left out for its length only: {length}" if length else ""


def _of(count: int, wanted: tuple[int, ...], split: str, origin: str, table: Table) -> str:
    """Returns the number of sequences beside the expected one; an empty text if they are equal."""
    if count in wanted and origin == table.data_origin:
        return ""
    from_where = f" ({origin})" if origin != table.data_origin else ""
    return f"{count:,} {split} sequences{from_where} for {' or '.join(f'{one:,}' for one in wanted)}"


def _is_row(record: RunRecord, row: Row, wanted: Mapping[str, Any] | None) -> bool:
    if row.own_runs or record.model.name != row.model:
        return record.run_id in row.own_runs
    if not row.options:
        return record.model.is_preset
    return wanted is not None and canonical_json(record.model.hyperparameters) == canonical_json(wanted)


def _hyperparameters(row: Row, task: str) -> dict[str, Any] | None:
    """Returns the hyperparameters of a row with options: the model's preset for the task, and the options."""
    try:
        presets = registry.find("model", row.model).card().presets
    except (UnknownNameError, BrokenPluginError):
        return None  # no model, so no record of ours
    return {**presets.get(task, {}), **row.options}
