"""The table of an ablation: one line per variant with its cost, its speed here and its scores."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench import registry
from bench.ablation.variants import Ablation, Variant, varied_keys
from bench.config import Config
from bench.errors import EarthbenchError
from bench.records.schema import RunRecord
from bench.safe_text import for_csv, for_markdown
from bench.tables import load_table
from bench.tables.definitions import COSTS, Column

FORMATS = ("md", "csv", "json")
_MIB = 1 << 20

# Printed heading -> key of what `cost_of` returns, scale and digits.
_COST_COLUMNS = (
    Column(key="parameters", label="Params M", scale=1e-6, digits=3),
    Column(key="gmacs", label="GMACs", digits=2),
    Column(key="latency_s", label="latency ms", scale=1e3, digits=1),
    Column(key="peak_memory_bytes", label="memory MiB", scale=1 / _MIB, digits=0),
)
_NOTE = (
    "GMACs: fvcore on the plain formulation, batch 1, multiply-add = 1 (what the papers print as GFLOPS). Latency: "
    "median of one forecast at batch 1, measured now with untrained weights on {where}; memory: what it adds to the "
    "process's peak."
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


def _quiet() -> None:
    # Of timm's imports, as in the command line itself.
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)


def costs(runs: Sequence[Variant], advance: Callable[[str], None]) -> list[dict[str, Any]]:
    """Returns the cost of each run, or `{"problem": why}`; each is measured in a process of its own, one by one.

    Args:
        runs: The variants.
        advance: Called with a line of text before each measurement.
    """
    found: list[dict[str, Any]] = []
    # A peak of resident memory never falls again, and a process forked from one with torch would start at its peak.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, _quiet, max_tasks_per_child=1) as pool:
        for number, run in enumerate(runs, start=1):
            advance(f"measuring variant {number} of {len(runs)}")
            try:
                found.append(pool.submit(cost_of, run.config).result())
            except EarthbenchError as error:
                found.append({"problem": str(error)})
    return found


def score_columns(task: str, records: Sequence[RunRecord | None]) -> list[Column]:
    """Returns the columns of the scores: those of the task's table of runs, else every score that a record has."""
    if f"runs/{task}" in registry.names("table"):
        columns = load_table(f"runs/{task}").columns
        return [column for column in columns if column.key not in COSTS]
    keys = dict.fromkeys(key for record in records if record is not None for key in record.scores)
    return [Column(key=key, label=key) for key in keys]


def lines(
    ablation: Ablation,
    runs: Sequence[Variant],
    measured: Sequence[dict[str, Any]],
    records: Sequence[RunRecord | None] | None,
) -> list[dict[str, Any]]:
    """Returns one dict per run: what is varied, costs, and scores unless `records` is None, all in printed units."""
    scores = [] if records is None else score_columns(runs[0].config.task.name, records)
    keys = varied_keys(runs)
    table = []
    for index, run in enumerate(runs):
        line: dict[str, Any] = {ablation.labels.get(key, key): run.settings.get(key) for key in keys}
        line |= {column.label: _printed(measured[index].get(column.key), column) for column in _COST_COLUMNS}
        if records is not None:
            record = records[index]
            line |= {c.label: _printed(record.scores.get(c.key) if record else None, c) for c in scores}
            line["run"] = "not run" if record is None else f"{record.run_id} ({record.scope})"
        if "problem" in measured[index]:
            line["problem"] = " ".join(str(measured[index]["problem"]).split())
        table.append(line)
    return table


def _printed(value: float | None, column: Column) -> float | None:
    return None if value is None else round(value * column.scale, column.digits)


def _cell(value: Any, digits: int | None) -> Any:
    if isinstance(value, str):
        return for_markdown(value)
    return f"{value:.{digits}f}" if isinstance(value, float) and digits is not None else value


def render(
    ablation: Ablation, task: str, table: Sequence[dict[str, Any]], measured: Sequence[dict[str, Any]], form: str
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
    shown = [
        [_cell(value, digits.get(str(key))) for key, value in line.items()]
        for line in data.astype(object).where(data.notna(), None).to_dict("records")
    ]
    body = tabulate(
        shown, [for_markdown(str(key)) for key in data.columns], tablefmt="pipe", missingval="-", disable_numparse=True
    )
    where = sorted({f"{m['device']} ({m['threads']} threads)" for m in measured if "device" in m}) or ["nothing"]
    return f"# {ablation.title}: {task}\n\n{body}\n\n{_NOTE.format(where=', '.join(where))}\n"
