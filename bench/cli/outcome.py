"""The summary at the end of a run: main scores beside persistence's, cost, files and the next commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench import registry
from bench.cli.printing import print, wrapped, wrapped_command
from bench.config.overrides import literal
from bench.engine.runfolder import duration
from bench.errors import counted
from bench.records.schema import RunRecord, TrainingSummary
from bench.records.store import read_records
from bench.tables.lines import number
from bench.tables.runs import task_of_runs
from bench.tables.terminal import is_reference, main_columns
from bench.tables.variants import comparable_key
from bench.tasks import Task

if TYPE_CHECKING:
    from bench.engine.run import Outcome
    from bench.tables.definitions import Column

_BASELINE = "persistence"
_NEARLY_CONSTANT = 0.1
"""A forecast with less than this share of the observed standard deviation says almost nothing."""
FAR_TOO_VARIED = 10.0
"""A forecast with more than this multiple of the observed standard deviation has unphysical outliers."""


def print_outcome(outcome: Outcome) -> None:
    """Prints the summary of a finished run."""
    record = outcome.record
    assert record.data is not None
    convention = ", ".join(sorted({str(o["convention"]) for o in record.conventions.values() if "convention" in o}))
    print(
        f"\n{record.model.name} on {record.task.name}, {record.data.split} split: "
        + f"{counted(record.data.sequence_count, 'sequence')} ({record.scope}"
        + (f": {record.scope_because})" if record.scope_because else ")")
        + (f"; convention {convention}" if convention else "")
    )
    baseline = _baseline(outcome)
    print("\n".join(_scores(record, baseline)))
    for warning in _warnings(outcome, baseline):
        print(wrapped(f"  WARNING: {warning}", 4))
    facts = [
        ("training", _training(record)),
        ("evaluation", _evaluation(record)),
        ("memory", _memory(outcome)),
        ("record", str(outcome.record_path)),
        ("picture", str(outcome.picture_path or "")),
        ("folder", str(outcome.folder or "")),
        *(("next", command) for command in _next(outcome, baseline)),
    ]
    before = ""
    for name, text in facts:
        if text:
            fitted = wrapped_command if name == "next" else wrapped
            print(f"{'' if name == before else name + ':':>11} {fitted(text, 12)}")
            before = name


def _baseline(outcome: Outcome) -> RunRecord | None:
    """Returns the newest run of persistence on the same data, if any."""
    record = outcome.record
    if record.model.name == _BASELINE:
        return None
    root = outcome.record_path.parents[3]
    records = [one for one in read_records(root, record.task.name)[0] if one.model.name == _BASELINE]
    alike = [one for one in records if one.status == "ok" and one.data is not None]
    key = comparable_key(record), _count(record)
    return next((one for one in reversed(alike) if (comparable_key(one), _count(one)) == key), None)


def _count(record: RunRecord) -> int:
    return record.data.sequence_count if record.data is not None else 0


def _scores(record: RunRecord, baseline: RunRecord | None) -> Iterator[str]:
    """Yields a line per main score, in the units of the task's table."""
    columns = main_columns(record)
    width = max((len(column.label) for column in columns), default=0)
    name = max(len(record.model.name), 10)
    if baseline is not None:
        yield f"  {'':<{width}}  {record.model.name:>{name}}  {_BASELINE:>11}"
    for column in columns:
        line = f"  {column.label:<{width}}  {_printed(record, column):>{name}}"
        if baseline is not None:
            line += f"  {_printed(baseline, column):>11}  {_verdict(record, baseline, column)}"
        if (why := record.undefined.get(column.key)) is not None:
            line += f"  ({why})"
        yield line.rstrip()


def _printed(record: RunRecord, column: Column) -> str:
    if column.key not in record.scores:
        return "-"  # e.g. a score of ensembles only
    value = record.scores[column.key]
    return "undefined" if value is None else number(value * column.scale, column)


def _verdict(record: RunRecord, baseline: RunRecord, column: Column) -> str:
    a, b = record.scores.get(column.key), baseline.scores.get(column.key)
    if a is None or b is None or a == b or column.better is None:
        return ""
    return "better" if (a > b) == (column.better == "higher") else "worse"


def _warnings(outcome: Outcome, baseline: RunRecord | None) -> Iterator[str]:
    record = outcome.record
    if is_reference(record.model.name, [record]):
        return
    share = _share_of_spread(outcome)
    if share is not None and share < _NEARLY_CONSTANT:
        cure = "train longer"
        known = registry.entries("model").get(record.model.name, [])
        if any("norm_momentum" in entry.card().parameters for entry in known):
            cure += ", or set model.norm_momentum=0.1: running statistics of batch norm take thousands of steps to form"
        yield (
            f"the forecast of the first sequence is almost constant: its standard deviation is {share:.1%} of the "
            f"observed one; {cure}"
        )
    if share is not None and share > FAR_TOO_VARIED:
        yield far_too_varied("the forecast of the first sequence", share, "observed")
    columns = [column for column in main_columns(record) if record.scores.get(column.key) is not None]
    if baseline is not None and columns and _verdict(record, baseline, columns[0]) == "worse":
        yield f"{columns[0].label} is worse than that of persistence, which needs no training"


def far_too_varied(forecast: str, share: float, compared: str) -> str:
    """Returns the warning about a forecast whose standard deviation is `share` times that of what was `compared`."""
    return (
        f"{forecast} varies {share:.3g} times as much as what was {compared}: outliers dominate its errors. Train "
        "longer; task.scale=log1p and dbz amplify them, linear and zscore do not"
    )


def _share_of_spread(outcome: Outcome) -> float | None:
    """Returns the standard deviation of the first forecast over that of its target; None if that is 0."""
    if not outcome.sample:
        return None
    target = float(np.nanstd(outcome.sample["target"]))
    return float(np.std(outcome.sample["forecast"])) / target if target > 0 else None


def _training(record: RunRecord) -> str:
    training = record.training
    if training is None:
        return ""
    if not training.steps:
        return f"{duration(training.wall_s)}, {training.stopped_because}"
    best = f"; best {training.monitor} {training.best_score:.4g}" if training.best_score is not None else ""
    speed = _sequences(record, training) / training.wall_s if training.wall_s > 0 else 0.0
    return (
        f"{counted(training.epochs, 'epoch')}, {counted(training.steps, 'step')} in {duration(training.wall_s)} "
        f"({speed:.3g} sequences/s with validation){best}"
    )


def _sequences(record: RunRecord, training: TrainingSummary) -> int:
    batch = int(record.config.get("data", {}).get("batch_size", 1))
    return min(training.steps * batch, max(training.epochs, 1) * training.sequence_count)


def _evaluation(record: RunRecord) -> str:
    seconds = record.time.evaluation_s
    return f"{duration(seconds)}" + (f" ({_count(record) / seconds:.3g} sequences/s)" if seconds > 0 else "")


def _memory(outcome: Outcome) -> str:
    return f"at most {outcome.peak_memory_bytes / 1e9:.1f} GB" if outcome.peak_memory_bytes else ""


def _next(outcome: Outcome, baseline: RunRecord | None) -> Iterator[str]:
    """Yields the commands that a user is likely to need next."""
    record, root = outcome.record, str(outcome.record_path.parents[3])
    results = "" if root == "results" else f" --results {shlex.quote(root)}"
    data = record.config.get("data", {})
    split = [f"split={record.data.split}"] if record.data is not None and record.data.split != "test" else []
    if baseline is None and record.model.name != _BASELINE:
        given = [*_given(record, "task"), f"model={_BASELINE}"]
        given += [f"data.{key}={literal(data[key])}" for key in ("root", "test_root") if data.get(key)]
        given += [*split, *([f"limit={record.config['limit']}"] if record.config.get("limit") else [])]
        given += [f"results.root={literal(root)}"] if results else []
        yield f"earthbench evaluate {' '.join(map(shlex.quote, given))}"
    if (weights := _weights(outcome)) is not None:
        continues = registry.find("task", record.task.name).load().latest is not Task.latest
        given = [*_given(record, "task"), *_given(record, "model"), *([] if continues else split)]
        if evaluated := data.get("test_root") or data.get("root"):
            given.append(f"data.root={literal(evaluated)}")
        given.append(f"checkpoint={literal(str(weights))}")
        yield f"earthbench forecast {' '.join(map(shlex.quote, given))}{' --latest' * continues}"
    table = f"runs/{record.task.name}"
    if task_of_runs(table) is None or record.scope != "full":
        return
    yield f"earthbench table {table}{results}"
    if baseline is not None:
        yield f"earthbench compare {record.model.name} {_BASELINE} --task {record.task.name}{results}"


def _given(record: RunRecord, section: str) -> list[str]:
    """Returns a task or a model and its options, as they were given on the command line."""
    options = record.config.get(section) or {}
    name = {"task": record.task.name, "model": record.model.name}[section]
    return [f"{section}={name}", *(f"{section}.{key}={literal(v)}" for key, v in options.items() if key != "name")]


def _weights(outcome: Outcome) -> Path | None:
    """Returns the checkpoint that was evaluated, if it is in the run's folder."""
    if outcome.folder is None or outcome.record.training is None:
        return None
    path = outcome.folder / "checkpoints" / f"{outcome.record.training.weights}.ckpt"
    return path if path.is_file() else None
