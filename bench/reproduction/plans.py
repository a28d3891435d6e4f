"""The rows of a published table as runs: which are missing, and the data, time and files of each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bench import registry
from bench.api import Split
from bench.config import Config, compose
from bench.cost.devices import Devices
from bench.engine.identity import expected_run, identify
from bench.errors import ConfigError, DataError, EarthbenchError, UnknownNameError, UsageError, did_you_mean
from bench.paths import local_folder
from bench.records.identity import newest_of_same_run, source_differences
from bench.records.schema import RunRecord
from bench.records.sources import registered_source
from bench.records.store import read_records
from bench.reproduction.estimates import Estimate, estimated, measured, measured_throughput
from bench.reproduction.projection import Projection, projected
from bench.tables.admission import admitted, training_seed
from bench.tables.definitions import Row, Table
from bench.tables.render import load_table
from bench.tables.settings import SourcedSetting, overrides_of, sourced_settings

if TYPE_CHECKING:
    from torch import nn

    from bench.tasks import Task


@dataclass(frozen=True)
class RowPlan:
    """One row and seed of a table: the run, its data and its cost."""

    table: str
    row: str
    seed: int
    overrides: tuple[str, ...]
    status: str
    """`to run`, `done`, or `cannot run`."""
    reason: str
    data: str
    """Description of the data that are needed and found."""
    parameters: int | None
    estimate: Estimate | None
    """Estimate for this device."""
    projection: Projection | None
    """Cost on other devices, if these were asked for instead."""
    settings: tuple[SourcedSetting, ...]
    """Training settings and their sources."""
    writes: tuple[str, ...]
    comparable: bool
    """Whether the record would be listed in the published table."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the plan as JSON types."""
        return {**asdict(self), "projection": self.projection.as_dict() if self.projection else None}


def find_rows(name: str) -> tuple[Table, list[Row]]:
    """Returns the table and rows of `TABLE` or `TABLE/ROW`.

    Raises:
        UnknownNameError: no such table or row.
        UsageError: the table has no rows of its own.
    """
    tables = registry.names("table")
    if name in tables:
        table = load_table(name)
        if not table.rows:
            raise UsageError(f"table {name!r} lists finished runs; `earthbench run` makes them")
        return table, list(table.rows)
    for known in tables:
        if name.startswith(f"{known}/"):
            table = load_table(known)
            return table, [table.row(name.removeprefix(f"{known}/"))]
    raise UnknownNameError(f"unknown table {name!r}. {did_you_mean(name, tables)}")


def plan(
    table: Table,
    row: Row,
    given: Sequence[str],
    seed: int,
    *,
    measure: bool = False,
    again: bool = False,
    throughput: Callable[[str], float] | None = None,
    on: Devices | None = None,
) -> RowPlan:
    """Returns the plan and cost of a row; nothing is trained or written.

    Args:
        table: Table of the row.
        row: Row to plan.
        given: The caller's overrides, e.g. `data.root=DIR`.
        seed: Seed of the run.
        measure: Whether to time a few training steps rather than estimating from multiply-adds.
        again: Whether to plan the row even if a record exists.
        throughput: Returns multiply-adds per second of a device; `measured_throughput` by default.
        on: Devices to plan for, which need not be present; no device is used then.
    """
    overrides = overrides_of(table, row, given, seed)
    try:
        return _plan(table, row, overrides, seed, measure, again, throughput or measured_throughput, on)
    except EarthbenchError as error:
        return RowPlan(
            table.name, row.key, seed, overrides, "cannot run", str(error), _data_needed(table, row),
            parameters=None, estimate=None, projection=None, settings=(), writes=(), comparable=False,
        )  # fmt: skip


def _plan(
    table: Table,
    row: Row,
    overrides: tuple[str, ...],
    seed: int,
    measure: bool,
    again: bool,
    throughput: Callable[[str], float],
    on: Devices | None,
) -> RowPlan:
    from bench.engine.evaluate import work_folder
    from bench.models import has_weights
    from bench.tasks import load_task

    config = compose(overrides)
    try:
        task, missing = load_task(table.task, config.data.root, **config.task.options), ""
    except DataError as error:
        task, missing = load_task(table.task, **config.task.options), str(error)
    if config.data.root is None:
        missing = "no data.root given"
    model = _model(task, config, with_values=measure)
    parameters = sum(p.numel() for p in model.parameters())
    trained = has_weights(model)
    counts, comparable, data = _data(table, row, task, trained)
    done = None if again else find_done(table, row, config, task, trained=trained)
    reason = f"record {done.run_id}" if done else missing
    status = "done" if done else "cannot run" if missing else "to run"
    lacking = _missing_device(config) if on is None else ""
    if lacking and status != "done":
        status, reason = "cannot run", "; ".join(part for part in (reason, lacking) if part)
    writes = [f"{config.results.root}/runs/{table.task}/{row.model}/RUN_ID.json"]
    if trained:
        named = "FINGERPRINT" if missing else identify(model, task, config).name
        folder = work_folder(local_folder(config.work, "work"), table.task, row.model, named)
        # best and last checkpoints, each with weights and Adam's two moments
        writes.append(f"{folder} (checkpoints of about {2 * 12 * parameters / 1e6:,.0f} MB, logs, pictures)")
    estimate, projection = None, None
    if status != "done" and on is not None:
        projection = projected(model, task, config, counts, on, trained=trained)
    elif status != "done" and not lacking:  # last: the model loses its values
        estimate = (
            measured(model, task, config, counts, trained=trained)
            if measure
            else estimated(table, row, model, task, config, counts, trained=trained, throughput=throughput)
        )
    return RowPlan(
        table.name, row.key, seed, overrides, status, reason, data, parameters, estimate, projection,
        tuple(sourced_settings(table, row.key, config)), tuple(writes), comparable,
    )  # fmt: skip


def _model(task: Task, config: Config, *, with_values: bool) -> nn.Module:
    """Returns the model of a run; without values, it needs neither memory nor initialisation time."""
    import torch

    from bench.models import load_model

    if not with_values:
        # A plugin's constructor may look at its values: then it is made with them.
        with contextlib.suppress(Exception), torch.device("meta"):
            return load_model(config.model.name, task, **config.model.options)
    return load_model(config.model.name, task, **config.model.options)


def _missing_device(config: Config) -> str:
    """Returns which device of a config is missing; empty if all are present."""
    from bench.engine.trainer import trainer_device

    try:
        trainer_device(config.device, config.devices, config.nodes, config.strategy)
    except ConfigError as error:
        return f"{error}, or plan for devices that are not here: --dry-run --on 8xH100"
    return ""


def _data_needed(table: Table, row: Row) -> str:
    training = " or ".join(f"{count:,}" for count in table.training_counts_of(row))
    test = " or ".join(f"{count:,}" for count in table.sequence_counts)
    return f"needs {table.task}: {training} training and {test} test sequences"


def _data(table: Table, row: Row, task: Task, trained: bool) -> tuple[dict[str, int], bool, str]:
    """Returns sequences per split (official ones without data), whether they are the paper's, and a description."""
    needed, wanted = _data_needed(table, row), table.training_counts_of(row)
    if task.data_root is None:
        official = {
            "train": wanted[0] if wanted else 0,
            "val": task.published_sequences.get("val", 0),
            "test": table.sequence_counts[0] if table.sequence_counts else 0,
        }
        return official, False, f"not there: {needed}"
    splits: tuple[Split, ...] = ("train", "val", "test")
    counts = {str(split): len(task.dataset(split)) for split in splits}
    synthetic = str(task.dataset("test").identity().get("origin", "files")) != "files"
    same = not synthetic and counts["test"] in table.sequence_counts and (not trained or counts["train"] in wanted)
    found = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    verdict = "the paper's" if same else f"other data than the paper's ({needed}): kept out of {table.name}"
    return counts, same, f"{task.data_root}: {found} sequences; {verdict}"


def find_done(table: Table, row: Row, config: Config, task: Task, *, trained: bool) -> RunRecord | None:
    """Returns a record that makes a run unnecessary: one listed in the row with this seed, or one of this config.

    The second applies if the data are not the paper's, so that a table made from other data can be resumed, too.
    """
    records, _ = read_records(config.results.root, table.task)
    standing = [record for record in admitted(table, records)[0][row.key] if training_seed(record) == config.seed]
    model = {"model": registered_source("model", registry.find("model", row.model).load())}
    # Records of schemas 1 and 2 have no source digests.
    standing = [r for r in standing if not r.code.sources or not source_differences(r.code.sources, model)]
    if standing:
        return standing[-1]
    if task.data_root is None:
        return None
    return newest_of_same_run(records, config, expected_run(config, task, task, trained=trained))


def seeds_of(given: Sequence[str], seeds: str | None) -> list[int]:
    """Returns the seeds to run: from `--seeds 0,1,2`, else from an override `seed=N`, else 0.

    Raises:
        ConfigError: both are given, or one is not a number.
    """
    named = [word.partition("=")[2] for word in given if word.startswith("seed=")]
    if named and seeds:
        raise ConfigError(f"seed={named[-1]} and --seeds {seeds}: give one of the two")
    try:
        found = [int(seed) for seed in (seeds.split(",") if seeds else named[-1:] or ["0"])]
    except ValueError as error:
        raise ConfigError(f"seeds {seeds or named[-1]!r}: expected whole numbers, e.g. --seeds 0,1,2") from error
    return list(dict.fromkeys(found))
