"""Decisions of a board before its runs: the data, the number of steps, and the point of the grid."""

from __future__ import annotations

from collections.abc import Sequence

from bench.ablation.records import tasks_of
from bench.ablation.tuning import Launch, best_of, run_grid
from bench.api import Split
from bench.config import compose, expand_sweep
from bench.errors import ConfigError, EarthbenchError, InterruptedRunError
from bench.logs import log
from bench.protocols.board import BoardFile, BoardRow
from bench.protocols.decided import Decided, Decision, Tried, read_decided, write_decided
from bench.protocols.entries import key_of, layered

_SAME_COST = ("train.lr", "train.weight_decay", "train.warmup_fraction", "train.min_lr_ratio")
"""Points of a grid that differ in these keys only get the same number of steps."""
_SPLITS: tuple[Split, ...] = ("train", "val", "test")


def decide(
    board: BoardFile, rows: Sequence[BoardRow], typed: Sequence[str], launch: Launch
) -> tuple[Decided, list[EarthbenchError]]:
    """Makes and writes the missing decisions of a board; returns all decisions, and the errors of rows without one.

    Args:
        board: The protocol.
        rows: Its rows.
        typed: Overrides of the command line, which change no number.
        launch: Trains the points of the grid.

    Raises:
        ConfigError: the data are not those that the board was decided on.
        InterruptedRunError: a signal arrived; decisions made so far are written.
    """
    failures: list[EarthbenchError] = []
    decided = read_decided(board)
    decided = decided.model_copy(update={"data": _data(board, rows[0], decided, typed)})
    write_decided(board, decided)
    for row in rows:
        if decided.is_settled(row):
            continue
        log.info(f"{row.label}: deciding the number of steps{' and the point of the grid' if row.grid else ''}")
        try:
            decision = _decision(row, typed, launch)
        except InterruptedRunError:
            raise
        except EarthbenchError as error:  # it does not stop the other rows
            log.warning(f"WARNING: {row.label} is left out: {error}")
            failures.append(error)
            continue
        decided = decided.model_copy(update={"rows": {**decided.rows, row.key: decision}})
        write_decided(board, decided)
    return decided, failures


def _data(board: BoardFile, row: BoardRow, decided: Decided, typed: Sequence[str]) -> dict[str, str]:
    """Returns the fingerprints of the splits, of every fold if there are folds."""
    found: dict[str, str] = {}
    for fold in row.folds or (None,):
        task, test_task = tasks_of(compose(layered(row.run_overrides(row.seeds[0], steps=1, fold=fold), typed)))
        for split in _SPLITS:
            data = test_task if split == "test" else task
            if len(data.dataset(split)):
                found[split if fold is None else f"{split}, {fold}"] = data.data_fingerprint(split)
    other = [split for split, name in decided.data.items() if found.get(split) != name]
    if other:
        raise ConfigError(
            f"data.root: the {' and '.join(other)} data are not those that {board.decided_path.name} was decided on. "
            f"Make them as {board.path.name} says:\n{board.board.data.strip()}\n"
            f"or copy {board.path.name} under another name, for a board of your own data"
        )
    return found


def _decision(row: BoardRow, typed: Sequence[str], launch: Launch) -> Decision:
    points = [tuple(point) for point in expand_sweep(row.grid)]  # without a grid, one point without settings
    counted = _steps(row, points, typed)
    if not row.grid:
        ((steps, where),) = counted
        return Decision(asked=row.asked, steps=steps, on=where)
    wanted = [
        layered(row.run_overrides(row.seeds[0], point, steps), typed)
        for point, (steps, _) in zip(points, counted, strict=True)
    ]
    trials = run_grid(wanted, launch)
    best = trials.index(best_of(trials))
    steps, where = counted[best]
    return Decision(
        asked=row.asked,
        steps=steps,
        chosen=points[best],
        monitor=trials[best].config.train.early_stopping.monitor,
        tried=tuple(
            Tried(settings=point, steps=steps, score=trial.score)
            for point, (steps, _), trial in zip(points, counted, trials, strict=True)
        ),
        on=where,
    )


def _steps(row: BoardRow, points: Sequence[Sequence[str]], typed: Sequence[str]) -> list[tuple[int, str]]:
    """Returns the steps of a row's training at each point of the grid, and what they were timed on, if they were."""
    assert row.budget is not None
    if row.budget.steps is not None:
        return [(row.budget.steps, "")] * len(points)
    from bench.engine.calibration import calibrated

    timed: dict[tuple[str, ...], tuple[int, str]] = {}
    counted = []
    for point in points:
        costly = tuple(one for one in point if key_of(one) not in _SAME_COST)
        if costly not in timed:
            timed[costly] = calibrated(compose(layered(row.run_overrides(row.seeds[0], point), typed)))
        counted.append(timed[costly])
    return counted
