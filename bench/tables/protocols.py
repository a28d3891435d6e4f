"""The table of a board: its protocol's rows, and the records that were made as it says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.errors import UnknownNameError, did_you_mean
from bench.paths import AnyPath
from bench.protocols.board import TABLES, BoardFile, BoardRow, board_names, read_board, run_names
from bench.protocols.decided import Decided, read_decided
from bench.records.schema import RunRecord
from bench.tables.admission import OTHER_DATA, OTHER_TRAINING_DATA, Excluded, complete, latest_per_seed
from bench.tables.columns import BOARD_COST, skill_columns
from bench.tables.definitions import COSTS, Column, Group, Row, Table

_RULE = (
    "Skill: 1 - score / score of the best trivial reference for errors, (score - reference) / (1 - reference) for "
    "scores whose best is 1. A row that does not beat that reference is unranked. From the best down, a row shares "
    "the rank of the first row of its rank unless it is worse than that one beyond chance: p < 0.05 both in Welch's "
    "t-test over seeds and, where the units allow one, in a permutation test over the independent units."
)


def board_tables(root: AnyPath) -> list[str]:
    """Returns the names of the tables of the boards under a results root."""
    return [TABLES + name for name in board_names(root)]


def board_of(name: str, root: AnyPath) -> BoardFile:
    """Returns the board of a table `boards/NAME`.

    Raises:
        UnknownNameError: there is no such file under the results root; the message offers the nearest.
        ConfigError: the file is not valid.
    """
    known = board_tables(root)
    if name not in known:
        raise UnknownNameError(f"unknown board {name!r} under {root}. {did_you_mean(name, known)}")
    from pathlib import Path

    return read_board(Path(str(root)) / f"{name}.yaml")


def board_table(board: BoardFile, of_runs: Sequence[Column]) -> Table:
    """Returns the definition of a board's table.

    Args:
        board: The protocol.
        of_runs: The columns of its task's table of runs, which say how scores are printed.

    Raises:
        ConfigError: a row's config is not valid, or decisions that are not.
    """
    protocol, decided = board.board, read_decided(board)
    known = {column.key: column for column in of_runs if column.key not in COSTS and column.skill_of is None}
    scores = [known.get(key) or Column(key=key, label=key) for key in protocol.columns or known]
    main = [column for column in scores if column.better][:1]  # what `main_column` will find
    ranks = [Column(key="rank", label="Rank", digits=0, better=None, rank_of=column.key) for column in main]
    return Table(
        name=board.table,
        title=protocol.title,
        task=protocol.task,
        columns=(*ranks, *scores, *skill_columns(*main), *BOARD_COST),
        groups=_groups(board, decided),
        data=decided.data,
        note=" ".join(filter(None, (protocol.note, f"Independent units: {protocol.units}.", _RULE))),
    )


def _groups(board: BoardFile, decided: Decided) -> tuple[Group, ...]:
    titles = {"references": "References", "rows": "Learned models"}
    titles |= {name: ablation.title for name, ablation in board.board.ablations.items()}
    by_block: dict[str, list[Row]] = {}
    for row in board.rows():
        by_block.setdefault(row.block, []).append(_row(row, decided))
    return tuple(
        Group(name=block, title=titles[block], rows=tuple(rows), ranked=block != "references")
        for block, rows in by_block.items()
    )


def _row(row: BoardRow, decided: Decided) -> Row:
    found, steps = decided.of(row), decided.steps_of(row)
    names = run_names(row, () if found is None else found.chosen, steps) if decided.is_settled(row) else {}
    chosen = f"chosen on validation: {', '.join(found.chosen)}" if found is not None and found.chosen else ""
    return Row(model=row.model, name=row.key, label=row.label, configs=tuple(names.values()), note=chosen)


def members(table: Table, records: Iterable[RunRecord]) -> tuple[dict[str, list[RunRecord]], list[Excluded]]:
    """Returns the records of each row of a board by the row's key, one per seed, and those of its runs left out."""
    rows: dict[str, list[str]] = {}  # a run may stand in several blocks
    for row in (row for group in table.groups for row in group.rows):
        for name in row.configs:
            rows.setdefault(name, []).append(row.key)
    mine = [record for record in records if record.config_fingerprint in rows]
    good, left_out = complete(table, mine)
    by_row: dict[str, list[RunRecord]] = {row.key: [] for group in table.groups for row in group.rows}
    newest = max((record.task.version for record in good), default=0)
    for record in good:
        reason = _why_not(record, table.data, newest)
        if reason:
            left_out.append(Excluded(record.run_id, record.task.name, record.model.name, reason))
        else:
            for key in rows[record.config_fingerprint]:
                by_row[key].append(record)
    return {key: latest_per_seed(of_row) for key, of_row in by_row.items()}, left_out


def _why_not(record: RunRecord, data: dict[str, str], newest_version: int) -> str:
    assert record.data is not None
    if record.data.fingerprint != data.get(record.data.split, record.data.fingerprint):
        return OTHER_DATA
    trained_on = None if record.training is None else record.training.data_fingerprint
    if trained_on is not None and trained_on != data.get("train", trained_on):
        return OTHER_TRAINING_DATA
    return f"version {record.task.version} of the task" if record.task.version != newest_version else ""
