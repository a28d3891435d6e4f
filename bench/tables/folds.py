"""Cross-validation in a table of runs: the folds of a training pooled into one record, as on a board."""

from __future__ import annotations

from collections.abc import Iterable

from bench.config import canonical_json, numbers_of
from bench.errors import UsageError
from bench.records.pooling import as_one_record
from bench.records.schema import RunRecord
from bench.tables.admission import training_seed


def pool_folds(records: Iterable[RunRecord]) -> tuple[list[RunRecord], dict[str, list[RunRecord]]]:
    """Returns records with the folds of each training pooled into one, and the newest record of each fold by its id.

    Runs belong together if their configs differ in `task.fold` only. They stay separate while a fold is missing, or if
    a record has no statistics.

    Args:
        records: Complete runs of a task, oldest first.
    """
    found: list[RunRecord] = []
    by_training: dict[str, dict[int, list[RunRecord]]] = {}
    for record in records:
        if (name := _without_fold(record)) is None:
            found.append(record)
        else:
            by_training.setdefault(name, {}).setdefault(record.task.fields["fold"], []).append(record)
    parts: dict[str, list[RunRecord]] = {}
    for by_fold in by_training.values():
        every = [record for of_fold in by_fold.values() for record in of_fold]
        newest = [by_fold[fold][-1] for fold in sorted(by_fold)]
        if len(newest) > 1 and len(newest) == newest[0].task.fields["folds"]:
            try:
                one = as_one_record(newest)
            except UsageError:  # statistics are missing or damaged, which `earthbench verify` reports
                pass
            else:
                found.append(one)
                parts[one.run_id] = newest
                continue
        found += every
    return sorted(found, key=lambda record: record.run_id), parts


def run_name(record: RunRecord) -> str:
    """Returns the name of a run within its row: its seed, and its fold if there are several."""
    fold = record.task.fields.get("fold")
    return f"seed {training_seed(record)}" + ("" if fold is None else f", fold {fold}")


def _without_fold(record: RunRecord) -> str | None:
    """Returns a key common to all folds of a training; None without folds, or without a full config (from Python)."""
    if record.task.fields.get("folds") is None or record.task.fields.get("fold") is None:
        return None
    try:
        shared = numbers_of(record.config)
        del shared["task"]["fold"]
    except KeyError:
        return None
    assert record.data is not None
    return canonical_json([shared, record.task.version, record.data.origin, record.conventions])
