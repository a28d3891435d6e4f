"""Headings of the blocks of a table of runs: how they differ."""

from __future__ import annotations

from bench.records.schema import RunRecord
from bench.tables import load_table
from bench.tables.cells import table_data
from bench.tables.runs import runs_table
from bench.tables.variants import differing_options


def other(record: RunRecord, run_id: str, given: dict | None = None, **conventions: dict) -> RunRecord:
    task = record.task.model_copy(update={"fields": {**record.task.fields, **(given or {})}})
    conventions = {name: {**how, **conventions.get(name, {})} for name, how in record.conventions.items()}
    config = {"task": {"name": record.task.name, **(given or {})}}
    return record.model_copy(update={"run_id": run_id, "task": task, "conventions": conventions, "config": config})


def test_headings_name_the_options_and_conventions_that_differ(measured: RunRecord) -> None:
    records = [
        other(measured, "2026-1", skill={"thresholds": [16, 74]}),
        other(measured, "2026-2", {"stride": 6}, skill={"thresholds": [16, 74]}),
        other(measured, "2026-3", skill={"thresholds": [1, 2.5]}),
    ]
    titles = [block.title for block in table_data(load_table("runs/sevir"), None, records).blocks]
    assert [title.partition(", task.")[2] for title in titles] == [
        "stride=12, skill.thresholds=[16,74]",
        "stride=6, skill.thresholds=[16,74]",
        "stride=12, skill.thresholds=[1,2.5]",
    ]


def test_an_implied_convention_is_named_once(measured: RunRecord) -> None:
    groups = [[other(measured, "1", {"stride": n}, mse={"stride": n})] for n in (1, 2)]
    assert differing_options(groups) == [", task.stride=1", ", task.stride=2"]


def test_unset_options_are_not_named(measured: RunRecord) -> None:
    groups = [[other(measured, "1", {"fold": fold, "stride": 1})] for fold in (None, 0)]
    assert differing_options(groups) == ["", ", task.fold=0"]


def test_versions_of_a_task_are_distinguished(measured: RunRecord) -> None:
    newer = measured.model_copy(update={"task": measured.task.model_copy(update={"version": 9})})
    assert differing_options([[measured], [newer]]) == [f", task version={measured.task.version}", ", task version=9"]


def test_a_single_block_is_titled_by_its_data(measured: RunRecord) -> None:
    (block,) = table_data(runs_table("sevir", [measured]), None, [other(measured, "1", {"stride": 6})]).blocks
    assert "stride" not in block.title
