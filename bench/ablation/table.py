"""The table of an ablation: one line per variant with its cost, its speed here, its scores and their skill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench import registry
from bench.config import Config
from bench.errors import EarthbenchError
from bench.protocols.variants import Ablation, Variant, runs_by_variant, varied_keys
from bench.records.schema import RunRecord
from bench.safe_text import for_csv, for_markdown
from bench.tables import load_table
from bench.tables.cells import Cell, table_data
from bench.tables.definitions import COSTS, Column, Table
from bench.tables.runs import runs_table
from bench.worker_pool import worker_pool

FORMATS = ("md", "csv", "json")
_MIB = 1 << 20

# Keys of what `cost_of` returns, with printed heading, scale and digits.
_COST_COLUMNS = (
    Column(key="parameters", label="Params M", scale=1e-6, digits=3),
    Column(key="gmacs", label="GMACs", digits=2),
    Column(key="latency_s", label="latency ms", scale=1e3, digits=1),
    Column(key="peak_memory_bytes", label="memory MiB", scale=1 / _MIB, digits=0),
)
_NOTE = (
    "GMACs: fvcore on the plain formulation, batch 1, multiply-add = 1 (what the papers print as GFLOPS). Latency: "
    "median of one forecast at batch 1, measured now with untrained weights on {where}; memory: its increase of "
    "the process's peak."
)


def cost_of(config: Config) -> dict[str, Any]:
    """Returns parameters, GMACs, latency and peak memory of the config's model on its task; needs no data.

    Raises:
        EarthbenchError: the model cannot be made or counted.
    """
    from bench.cost import count_model, measure_speed
    from bench.models import load_model
    from bench.tasks import load_task

    task = load_task(config.task.name, config.data.root, **config.task.options)
    model = load_model(config.model.name, task, **config.model.options)
    # Speed first: counting runs the plain formulation, whose larger peak would hide this one's.
    speed = measure_speed(model, task.input_shape)
    return {**speed.as_dict(), **count_model(model, task.input_shape).as_dict()}


def costs(runs: Sequence[Variant], advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """Returns the cost of each run, or `{"problem": why}`; each is measured in a process of its own, one by one.

    Args:
        runs: The variants.
        advance: Called with a line of text before each measurement.
    """
    found: list[dict[str, Any]] = []
    # Peak resident memory never falls.
    with worker_pool(1, tasks_of_each=1) as pool:
        for number, run in enumerate(runs, start=1):
            advance(f"measuring variant {number} of {len(runs)}")
            try:
                found.append(pool.submit(cost_of, run.config).result())
            except EarthbenchError as error:
                found.append({"problem": str(error)})
    return found


def score_columns(task: str, records: Sequence[RunRecord | None]) -> list[Column]:
    """Returns the columns of the scores: those of the task's table of runs, registered or made from the records."""
    name = f"runs/{task}"
    known = name in registry.names("table")
    table = load_table(name) if known else runs_table(task, [record for record in records if record is not None])
    return [column for column in table.columns if column.key not in COSTS]


@dataclass(frozen=True)
class Results:
    """The scores of an ablation's variants beside the trivial references on the same data."""

    columns: list[Column]
    cells: dict[str, list[Cell]]
    """Cells of a line of the table of runs, by the id of each of its runs."""
    remarks: list[str]


def results_of(task: str, records: Sequence[RunRecord | None], references: Sequence[RunRecord] = ()) -> Results:
    """Returns the scores of complete runs as in a table of runs: over seeds, and with skill and ranks if there is any.

    Args:
        task: The task's name.
        records: Records of the variants; None where a run is missing.
        references: Records of the trivial references.
    """
    columns = score_columns(task, records)
    known = {record.run_id: record for record in [*records, *references] if record is not None}
    board = Table(name="ablation", title="", task=task, columns=tuple(columns))
    mine = {record.run_id for record in records if record is not None}
    cells: dict[str, list[Cell]] = {}
    remarks: list[str] = []
    for block in table_data(board, None, list(known.values())).blocks:
        for line in block.rows:
            cells |= {run_id: line for run_id in line[0].run_ids if run_id in mine}
        about = ("skill in ", "no skill")
        remarks += [*(remark for remark in block.remarks if remark.startswith(about)), *block.absences]
    return Results(columns, cells, remarks)


def lines(
    ablation: Ablation,
    runs: Sequence[Variant],
    measured: Sequence[dict[str, Any]],
    records: Sequence[RunRecord | None] | None,
    references: Sequence[RunRecord] = (),
) -> list[dict[str, Any]]:
    """Returns one dict per variant: its settings, costs, and scores unless `records` is None, all in printed units.

    Args:
        ablation: Names the columns.
        runs: Every variant and seed.
        measured: Cost of each variant, see `runs_by_variant`.
        records: Record of each run; None if it is missing.
        references: Records of the trivial references on the same data.
    """
    results = None if records is None else results_of(runs[0].config.task.name, records, references)
    keys = [key for key in varied_keys(runs) if key != "seed"]
    table = []
    for seeds, cost in zip(runs_by_variant(runs), measured, strict=True):
        run = runs[seeds[0]]
        line: dict[str, Any] = {ablation.labels.get(key, key): run.settings.get(key) for key in keys}
        line |= {column.label: _printed(cost.get(column.key), column) for column in _COST_COLUMNS}
        if results is not None and records is not None:
            line |= _scores(results, [records[index] for index in seeds])
        if "problem" in cost:
            line["problem"] = " ".join(str(cost["problem"]).split())
        table.append(line)
    return table


def _scores(results: Results, records: Sequence[RunRecord | None]) -> dict[str, Any]:
    """Returns the scores of a variant over its seeds, and the ids of its runs."""
    found = [record for record in records if record is not None]
    cells = {cell.column: cell for cell in results.cells.get(found[-1].run_id, ())} if found else {}
    line: dict[str, Any] = {}
    for column in results.columns:
        cell = cells.get(column.key)
        if cell is None:  # not run, or on part of the data: not comparable
            line[column.label] = _printed(found[-1].scores.get(column.key) if found else None, column)
            continue
        line[column.label] = None if cell.ours is None else round(cell.ours, column.digits)
        if cell.spread is not None:
            line[f"{column.label} spread"] = round(cell.spread, column.digits)
        if cell.interval is not None:
            line[f"{column.label} interval"] = [round(bound, column.digits) for bound in cell.interval]
        if cell.mark is not None:
            line[f"{column.label} mark"] = cell.mark
    if len(records) > 1:
        line["seeds"] = f"{len(found)} of {len(records)}"
    line["run"] = ", ".join(f"{record.run_id} ({record.scope})" for record in found) or "not run"
    return line


def _printed(value: float | None, column: Column) -> float | None:
    return None if value is None else round(value * column.scale, column.digits)


_PARTS = (" spread", " interval", " mark")


def _cell(line: dict[str, Any], key: str, digits: int | None) -> Any:
    """Returns a value with its digits and its spread or interval, bold or in italics if it is marked."""
    value = line.get(key)
    if isinstance(value, str):
        return for_markdown(value)
    if not isinstance(value, float) or digits is None:
        return value
    text = f"{value:.{digits}f}"
    if (spread := line.get(f"{key} spread")) is not None:
        text += f" ± {spread:.{digits}f}"
    elif (interval := line.get(f"{key} interval")) is not None:
        text += f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    around = {1: "**", 2: "*"}.get(line.get(f"{key} mark", 0), "")
    return f"{around}{text}{around}"


def render(
    ablation: Ablation,
    task: str,
    table: Sequence[dict[str, Any]],
    measured: Sequence[dict[str, Any]],
    form: str,
    remarks: Sequence[str] = (),
) -> str:
    """Returns the text of the table in one of `FORMATS`, ending in a newline."""
    data = pd.DataFrame(table, dtype=object)
    if form == "csv":
        return data.map(lambda value: for_csv(value) if isinstance(value, str) else value).to_csv(
            index=False, lineterminator="\n"
        )
    if form == "json":
        return data.to_json(orient="records", indent=1, force_ascii=False) + "\n"
    digits = {column.label: column.digits for column in [*_COST_COLUMNS, *score_columns(task, [])]}
    head = [key for key in dict.fromkeys(key for line in table for key in line) if not key.endswith(_PARTS)]
    shown = [[_cell(line, key, digits.get(key)) for key in head] for line in table]
    body = tabulate(shown, [for_markdown(key) for key in head], tablefmt="pipe", missingval="-", disable_numparse=True)
    said = "".join(f"- {for_markdown(remark)}\n" for remark in remarks) + ("\n" if remarks else "")
    where = sorted({f"{m['device']} ({m['threads']} threads)" for m in measured if "device" in m}) or ["nothing"]
    return f"# {ablation.title}: {task}\n\n{body}\n\n{said}{_NOTE.format(where=', '.join(where))}\n"
