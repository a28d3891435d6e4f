"""The table of a board: the rows of its protocol, and the records of their runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.errors import UnknownNameError, UsageError, did_you_mean
from bench.paths import AnyPath
from bench.protocols.board import TABLES, Board, BoardFile, BoardRow, board_names, read_board, run_names
from bench.protocols.decided import Decided, read_decided
from bench.records.pooling import as_one_record
from bench.records.schema import RunRecord
from bench.tables.admission import OTHER_DATA, OTHER_TRAINING_DATA, Excluded, complete
from bench.tables.columns import BOARD_COST, skill_columns
from bench.tables.definitions import COSTS, Column, Group, Row, Table
from bench.tables.runs import score_column

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
        of_runs: The columns of its task's table of runs, which define the format of scores.

    Raises:
        ConfigError: a row's config or a decision is not valid.
    """
    protocol, decided = board.board, read_decided(board)
    known = {column.key: column for column in of_runs if column.key not in COSTS and column.skill_of is None}
    scores = [known.get(key) or score_column(key) for key in protocol.columns or known]
    main = [column for column in scores if column.better][:1]  # what `main_column` will find
    ranks = [Column(key="rank", label="Rank", digits=0, better=None, rank_of=column.key) for column in main]
    return Table(
        name=board.table,
        title=protocol.title,
        task=protocol.task,
        columns=(*ranks, *scores, *skill_columns(*main), *BOARD_COST),
        groups=_groups(board, decided),
        data=decided.data,
        note=" ".join(filter(None, (protocol.note, _folds(protocol), f"Independent units: {protocol.units}.", _RULE))),
    )


def _folds(protocol: Board) -> str:
    if not protocol.folds:
        return ""
    return f"Scores are of all forecasts of {len(protocol.folds)} folds together ({', '.join(protocol.folds)})."


def _groups(board: BoardFile, decided: Decided) -> tuple[Group, ...]:
    titles = {"references": "References", "rows": "Learned models"}
    titles |= {name: ablation.title for name, ablation in board.board.ablations.items()}
    by_block: dict[str, list[Row]] = {}
    for row in board.rows():
        by_block.setdefault(row.block, []).append(_row(row, decided))
    groups = [
        Group(name=block, title=titles[block], rows=tuple(rows), ranked=block != "references")
        for block, rows in by_block.items()
    ]
    return tuple(sorted(groups, key=lambda group: not group.ranked))  # a leaderboard begins with its ranking


def _row(row: BoardRow, decided: Decided) -> Row:
    found, steps = decided.of(row), decided.steps_of(row)
    names = run_names(row, () if found is None else found.chosen, steps) if decided.is_settled(row) else {}
    chosen = f"chosen on validation: {', '.join(found.chosen)}" if found is not None and found.chosen else ""
    return Row(model=row.model, name=row.key, label=row.label, configs=tuple(names.values()), note=chosen)


@dataclass(frozen=True)
class Members:
    """The records of a board."""

    by_row: dict[str, list[RunRecord]]
    """One record per seed by the row's key; with folds, their scores are pooled."""
    left_out: list[Excluded]
    made: frozenset[str]
    """Fingerprints of the configs that have a record."""
    parts: dict[str, list[RunRecord]]
    """With folds: the records of the folds by the id of the pooled record."""


def members(table: Table, records: Iterable[RunRecord]) -> Members:
    """Returns the records of each row of a board, and those of its runs that are left out.

    Args:
        table: The board's table.
        records: Records of any task, oldest first.
    """
    rows = [row for group in table.groups for row in group.rows]
    names = {name for row in rows for of_seed in row.configs for name in of_seed}
    good, left_out = complete(table, [record for record in records if record.config_fingerprint in names])
    newest_version = max((record.task.version for record in good), default=0)
    newest: dict[str, RunRecord] = {}
    for record in good:
        if reason := _exclusion_reason(record, table.data, newest_version):
            left_out.append(Excluded(record.run_id, record.task.name, record.model.name, reason))
        else:
            newest[record.config_fingerprint] = record
    by_row: dict[str, list[RunRecord]] = {}
    parts: dict[str, list[RunRecord]] = {}
    for row in rows:
        by_row[row.key] = []
        for of_seed in row.configs:
            mine = [newest[name] for name in of_seed if name in newest]
            if not mine or len(mine) < len(of_seed):
                continue  # not run, or only some of its folds
            try:
                one = mine[0] if len(mine) == 1 else as_one_record(mine)
            except UsageError as error:  # statistics that are not there
                left_out.append(Excluded(mine[0].run_id, table.task, mine[0].model.name, str(error)))
                continue
            by_row[row.key].append(one)
            if len(mine) > 1:
                parts[one.run_id] = mine
    return Members(by_row, left_out, frozenset(newest), parts)


def _exclusion_reason(record: RunRecord, data: dict[str, str], newest_version: int) -> str:
    assert record.data is not None
    if not _is_on(record.data.fingerprint, record.data.split, data):
        return OTHER_DATA
    if record.training is not None and not _is_on(record.training.data_fingerprint, "train", data):
        return OTHER_TRAINING_DATA
    return f"version {record.task.version} of the task" if record.task.version != newest_version else ""


def _is_on(name: str, split: str, data: dict[str, str]) -> bool:
    """Returns whether data are a board's, by their fingerprint; true if the split is not decided yet."""
    known = {value for key, value in data.items() if key.partition(",")[0] == split}
    return not known or name in known
