"""The user's models beside the rows of a published table: `earthbench table NAME --with MODEL`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench import registry
from bench.errors import DataError, UsageError, one_message
from bench.records.schema import RunRecord
from bench.tables.admission import OTHER_HYPERPARAMETERS, WITHOUT_ROW, admitted, summary
from bench.tables.definitions import Row, Table
from bench.tables.variants import listed, shared_choices, variant_labels


def with_own(table: Table, models: Iterable[str], records: Sequence[RunRecord]) -> Table:
    """Returns a published table with a row for each further model, or each variant of it.

    Its runs must meet all conditions of the paper's rows except model and training: complete splits of the table's
    data, and its task's options, version and conventions.

    Args:
        table: A table with rows.
        models: Names of models that are not in the paper.
        records: Records of any task.

    Raises:
        UsageError: the table shows the runs of every model already.
        UnknownNameError: there is neither such a model nor a run of it.
        DataError: no run of a model is admitted to the table; lists why.
    """
    models = tuple(dict.fromkeys(models))
    if models and not table.rows:
        raise UsageError(f"--with is for tables of a paper's rows: {table.name} has the complete runs of every model")
    records = sorted(records, key=lambda record: record.run_id)
    left_out = admitted(table, records)[1] if models else []
    reasons = {one.run_id: one.reason for one in left_out if one.reason in (WITHOUT_ROW, OTHER_HYPERPARAMETERS)}
    rows: list[Row] = []
    for model in models:
        mine = [record for record in records if record.model.name == model and record.run_id in reasons]
        if not mine:
            of_model = [one for one in left_out if one.model == model]
            if not of_model:
                registry.find("model", model)
            raise DataError(_no_run_message(table, model, summary(of_model)))
        shared = listed(shared_choices(mine)[model])
        note = "not of the paper" + (f"; hyperparameters: {shared}" if shared else "")
        runs: dict[str, list[str]] = {}
        for record, label in zip(mine, variant_labels(mine), strict=True):
            runs.setdefault(label, []).append(record.run_id)
        rows += [
            Row(model=model, name=f"own {label}", label=label, own_runs=tuple(run_ids), note=note)
            for label, run_ids in sorted(runs.items())
        ]
    return table.model_copy(update={"rows": (*table.rows, *rows)})


def _no_run_message(table: Table, model: str, reasons: list[str]) -> str:
    has_row = any(row.model == model for row in table.rows)
    if not reasons:
        found = "its runs are in the row of the table" if has_row else "no run of the task"
        reasons = [f"{found}: earthbench run task={table.task} model={model} data.root=DIR makes one"]
    wanted = f"a complete run on {' or '.join(f'{count:,}' for count in table.sequence_counts)} {table.split} sequences"
    return one_message(f"table {table.name}: no run of model {model!r} for --with; expected {wanted}, found:", reasons)
