"""`earthbench explain TABLE ROW [COLUMN]`: the receipt of one figure, or where a row's training settings come from."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.cli.flags import RESULTS, results_root
from bench.cli.printing import print, wrapped, wrapped_command
from bench.config import compose
from bench.errors import UsageError, counted
from bench.receipts import Receipt, receipts_of, run_values
from bench.tables.admission import read_store
from bench.tables.cells import NOT_RUN
from bench.tables.definitions import Table
from bench.tables.folds import run_name
from bench.tables.intervals import missing_interval_reason
from bench.tables.lines import number, ours_text
from bench.tables.render import load_table
from bench.tables.settings import is_trained, overrides_of, setting_lines, sourced_settings

_INDENT = 14
_RUN, _SWEPT = "earthbench run ", re.compile(r" (task\.fold|seed)=(\d+)(?=\s|$)")
EXAMPLES = (
    "earthbench explain earthformer/sevir convlstm csi_m",
    "earthbench explain earthformer/sevir convlstm",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("table", help="a registered table, e.g. earthformer/sevir")
    parser.add_argument("row", help="a row: the model's name, or the name or label of the row")
    parser.add_argument(
        "column", nargs="?", help="a column: its score, e.g. csi_m, or its label (default: the row's training settings)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="results root (default: results)")
    parser.add_argument("--format", choices=("text", "json"), default="text")


def run(options: argparse.Namespace) -> int:
    """Prints where a figure comes from, how it differs from the paper's, and what else it could have been."""
    root = results_root(options.results)
    table = load_table(options.table, root)
    if options.column is None:
        return _print_settings(table, options)
    records, unreadable = read_store(root, table.task)
    receipts = receipts_of(table, options.row, options.column, records, root, unreadable=unreadable)
    if options.format == "json":
        print(json.dumps([_as_json(receipt) for receipt in receipts], indent=1, allow_nan=False, default=str))
        return 0
    for number_, receipt in enumerate(receipts):
        print("\n" * bool(number_) + "\n".join(wrapped(line, _INDENT) for line in _lines(receipt)))
        if commands := _as_sweeps(receipt.commands):
            print("\n" + "\n".join(f"  again       {wrapped_command(command, _INDENT)}" for command in commands))
    return 0


def _print_settings(table: Table, options: argparse.Namespace) -> int:
    if not table.rows:
        raise UsageError(f"table {table.name!r} lists finished runs; name a column, e.g. csi_m, for a receipt")
    row = table.row(next((row.key for row in table.rows if options.row in (row.key, row.label)), options.row))
    settings = sourced_settings(table, row.key, compose(overrides_of(table, row, (), seed=0)))
    if options.format == "json":
        print(json.dumps([{**asdict(one), "kind": one.kind} for one in settings], indent=1, allow_nan=False))
        return 0
    print(f"{table.name}, {row.label}: " + ("how it is trained" if is_trained(table, row.key) else "nothing to train"))
    lines = [*setting_lines(settings), *(f"note: {note}" for note in (row.note, table.note) if note)]
    print("\n".join(wrapped(f"  {line}", 4) for line in lines))
    return 0


def _as_json(receipt: Receipt) -> dict[str, object]:
    return {
        "table": receipt.table.name,
        "block": receipt.block,
        "cell": asdict(receipt.cell),
        "records": [str(path) for path in receipt.paths],
        "published_sources": receipt.published_sources,
        "deviations": receipt.deviations,
        "convention": receipt.convention,
        "readings": [asdict(reading) for reading in receipt.alternative_values],
        "row_note": receipt.row_note,
        "settings": [{**asdict(one), "kind": one.kind} for one in receipt.settings],
        "commands": receipt.commands,
    }


def _lines(receipt: Receipt) -> list[str]:
    cell, column = receipt.cell, receipt.table.column(receipt.cell.column)
    lines = [f"{receipt.table.name}, {cell.row}, {cell.label}" + (f" ({receipt.block})" if receipt.block else "")]
    lines += [f"  published   {cell.published_text or 'nothing'}"]
    lines += [f"    {source}" for source in receipt.published_sources]
    lines += [f"  ours        {ours_text(cell, column)}"]
    if len(receipt.records) > 1:
        values = ", ".join(f"{number(value, column) or 'undefined'} ({name})" for name, value in run_values(receipt))
        lines.append(f"    {values}")
    elif (
        receipt.records and cell.ours is not None and column.key in receipt.records[0].scores and cell.interval is None
    ):
        lines.append(f"  interval    none: {missing_interval_reason(receipt.records[0], column.key)}")
    if cell.difference is not None:
        lines.append(f"  difference  {number(cell.difference, column, signed=True)}")
    lines.append(f"  status      {cell.status}")
    lines += [f"  note        {note}" for note in (cell.note, receipt.row_note) if note]
    for record, path in zip(receipt.records, receipt.paths, strict=True):
        lines += ["", f"  record      {path}"]
        lines.append(f"    sha256    {record.sha256}")
        lines.append(f"    made      {record.created_utc}, {run_name(record)}, {record.model.origin}")
        commit = record.code.commit[:10] if record.code.commit else "no commit"
        changed = ", with uncommitted changes" if record.code.dirty else ""
        lines.append(f"    code      earthbench {record.code.version}, {commit}{changed}")
        if record.environment is not None:
            others = ", ".join(record.environment) or "exactly the versions of constraints.txt"
            lines.append(f"    packages  {others}")
        if record.data is not None:
            data = record.data
            lines.append(
                f"    data      {data.origin}, {data.split} split, {data.sequence_count} of "
                f"{data.sequence_count_available} sequences, fingerprint {data.fingerprint[:16]}"
            )
        if record.training is not None:
            training = record.training
            lines.append(
                f"    trained   on {counted(training.sequence_count, 'sequence')}, fingerprint "
                f"{training.data_fingerprint[:16]}, {counted(training.epochs, 'epoch')}, "
                f"{counted(training.steps, 'step')}, {training.weights} weights"
            )
    if receipt.records:
        settings = receipt.deviations or (["as the paper's"] if receipt.table.training else ["no published config"])
        lines += ["", *(f"  config      {setting}" for setting in settings)]
    lines += [f"  convention  {receipt.convention}"] if receipt.convention else []
    if receipt.settings:
        lines += ["", "  settings", *(f"    {line}" for line in setting_lines(list(receipt.settings)))]
    elif cell.status == NOT_RUN and receipt.table.rows and not is_trained(receipt.table, cell.row_key):
        lines += ["", "  settings    none: there is nothing to train"]
    if receipt.alternative_values:
        lines.append(
            "  the same forecasts under other conventions" + (" (newest seed)" if len(receipt.records) > 1 else "")
        )
        width = max(len(reading.convention) for reading in receipt.alternative_values)
        for reading in receipt.alternative_values:
            shown = "undefined" if reading.value is None else f"{reading.value:.6g}"
            lines.append(
                f"    {reading.convention:<{width}}  {shown}" + (f"  ({reading.remark})" if reading.remark else "")
            )
    return lines


def _as_sweeps(commands: Sequence[str]) -> list[str]:
    """Returns the commands of a row's runs: those that differ in seed and fold alone as one sweep."""
    alike: dict[str, list[str]] = {}
    for command in commands:
        alike.setdefault(_SWEPT.sub(r" \1=", command), []).append(command)
    found = []
    for same in alike.values():
        values: dict[str, dict[str, None]] = {}
        for match in (match for command in same for match in _SWEPT.finditer(command)):
            values.setdefault(match[1], {})[match[2]] = None
        if len(same) == 1 or not same[0].startswith(_RUN) or len(same) < math.prod(map(len, values.values())):
            found += same
            continue
        sweep = same[0]
        for key, given in values.items():
            sweep = re.sub(rf" {re.escape(key)}=\d+(?=\s|$)", f" {key}={','.join(given)}", sweep)
        found.append(sweep.replace(_RUN, f"{_RUN}-m ", 1))
    return found
