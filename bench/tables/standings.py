"""The best rows of a column, tested against chance.

A row is worse than another beyond chance if neither of two sources of chance explains it: the choice of test events (a
permutation test that swaps the two models in random events, see `bench.records.compare`) and, if one of the two has
several runs, the choice of seeds (Welch's t-test; Student's if the other is a single run).  The larger p decides.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.errors import DataError
from bench.records.schema import RunRecord
from bench.records.statistics import Arrays, read_arrays
from bench.records.uncertainty import has_statistics, paired_p_values, smallest_p
from bench.tables.definitions import Column, Table

if TYPE_CHECKING:
    from bench.tables.cells import Cell

DEVIATES = "config deviates"
UNRANKED = "unranked"
SIGNIFICANCE = 0.05
"""What comes up by chance more often than this is not a difference."""
PERMUTATIONS = 2000
"""As many as are wanted to tell the best from the fourteenth, see `corrected_level`."""
_SEEDS_ALONE = 2


def ranked(table: Table, cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Returns the cells with the best two of each column ranked: ties as printed share a rank.

    A column needs a direction and two different values; runs that deviate from the paper's config, and those that do
    not beat the best trivial reference, are excluded.
    """
    ranks: dict[tuple[str, str], int] = {}
    for column in table.columns:
        for place, tied in enumerate(_places(column, cells)[:2], start=1):
            ranks |= {(cell.row_key, column.key): place for cell in tied}
    return tuple(replace(cell, rank=ranks.get((cell.row_key, cell.column))) for cell in cells)


def _places(column: Column, cells: Sequence[Cell], *, alone: bool = False) -> list[list[Cell]]:
    """Returns the cells of a column from best to worst, grouped by printed value; none for a single group.

    Args:
        column: The column.
        cells: Cells of a block.
        alone: Also return a single group.
    """
    if not column.better:
        return []
    sign = -1 if column.better == "higher" else 1
    takes_part = [
        cell
        for cell in cells
        if cell.column == column.key and DEVIATES not in cell.status and cell.beats_reference is not False
    ]
    by_printed: dict[float, list[Cell]] = {}
    for cell in takes_part:
        if cell.ours is not None:
            by_printed.setdefault(sign * round(cell.ours, column.digits), []).append(cell)
    places = [
        sorted(by_printed[value], key=lambda cell: (sign * (cell.ours or 0.0), cell.row_key))
        for value in sorted(by_printed)
    ]
    return places if alone or len(places) > 1 else []


def marked(table: Table, cells: Sequence[Cell], tests: Tests) -> tuple[Cell, ...]:
    """Returns the cells with their marks: 1 for the best and rows that are not worse beyond chance, 2 for the next.

    From the best down, the group of the best ends at the first row that is significantly worse than the best, i.e. with
    a p below the `corrected_level` of its place.  If no row is, or a row before it cannot be tested, the column has no
    marks.

    Args:
        table: The definition.
        cells: Cells of one block.
        tests: Tests of the block.
    """
    marks: dict[tuple[str, str], int] = {}
    for column in table.columns:
        places = _places(column, cells)
        for places_above in range(1, len(places)):
            p_values = [tests.p_value(column.key, places[0][0], cell) for cell in places[places_above]]
            if any(p_value is None for p_value in p_values):
                break
            if max(p_value for p_value in p_values if p_value is not None) < corrected_level(places_above):
                marks |= {(cell.row_key, column.key): 1 for tied in places[:places_above] for cell in tied}
                marks |= {(cell.row_key, column.key): 2 for cell in places[places_above]}
                break
    return tuple(replace(cell, mark=marks.get((cell.row_key, cell.column))) for cell in cells)


def corrected_level(places_above: int) -> float:
    """Returns the threshold of p below which a row is worse than the best beyond chance.

    The first and the last of many equal models are far apart by chance.  So it is 0.05 divided by the number of pairs
    among the row and those above (Bonferroni): 0.05 for the second place, 0.017 for the third, 0.008 for the fourth.

    Args:
        places_above: Number of places above the row, including the best.
    """
    return SIGNIFICANCE / math.comb(places_above + 1, 2)


class Tests:
    """The tests of a table's rows: reads each record's statistics once, and tests two rows in all columns at once.

    Args:
        table: Gives the scores.
        records: By run id.
    """

    def __init__(self, table: Table, records: Mapping[str, RunRecord]) -> None:
        self.records, self.scores = records, [column.key for column in table.columns if column.better]
        self._arrays: dict[str, Arrays | None] = {}
        self._over_events: dict[tuple[tuple[str, ...], tuple[str, ...]], dict[str, float]] = {}

    def p_value(self, score: str, best: Cell, cell: Cell) -> float | None:
        """Returns the larger of the p-values over events and over seeds; None if they cannot be tested."""
        a, b = self._scored(best, score), self._scored(cell, score)
        if not a or not b:  # a cost, which cannot be tested
            return None
        over_seeds = seeds_p_value(a, b, score)
        try:
            over_events = self._of_events(a, b).get(score)
            kept = any(has_statistics(record, score, self._read(record)) for record in (*a, *b))
        except DataError:  # invalid statistics, which `earthbench verify` reports
            return None
        if over_events is not None:
            return max(over_events, over_seeds or 0.0)
        # a score without statistics per event, e.g. a distance of distributions, can be tested over seeds only
        return None if kept or min(len(a), len(b)) < _SEEDS_ALONE else over_seeds

    def _scored(self, cell: Cell, score: str) -> list[RunRecord]:
        mine = (self.records[run_id] for run_id in cell.run_ids)
        return [record for record in mine if record.scores.get(score) is not None]

    def _of_events(self, a: Sequence[RunRecord], b: Sequence[RunRecord]) -> dict[str, float]:
        key = tuple(record.run_id for record in a), tuple(record.run_id for record in b)
        if key not in self._over_events:
            self._over_events[key] = paired_p_values(a, b, self.scores, replicates=PERMUTATIONS, read=self._read)
        return self._over_events[key]

    def _read(self, record: RunRecord) -> Arrays | None:
        if record.run_id not in self._arrays:
            try:
                self._arrays[record.run_id] = read_arrays(record)
            except DataError:  # `earthbench verify` reports it; a table renders without it
                self._arrays[record.run_id] = None
        return self._arrays[record.run_id]


def seeds_p_value(a: Sequence[RunRecord], b: Sequence[RunRecord], score: str) -> float | None:
    """Returns the two-sided p-value of the means over seeds; None if both are single runs.

    Welch's t-test of two samples.  A single trained run is assumed to vary over seeds like the other model (Student's
    t-test); a model without parameters does not vary over seeds.
    """
    from scipy.special import stdtr  # imported here to keep `earthbench list` fast

    samples = [[float(record.scores[score] or 0.0) for record in side] for side in (a, b)]
    several = [sample for sample in samples if len(sample) > 1]
    if not several:
        return None
    variances = [statistics.variance(sample) if len(sample) > 1 else None for sample in samples]
    if None in variances:
        single, known = (a, variances[1]) if variances[0] is None else (b, variances[0])
        variances = [(0.0 if not single[0].model.parameters else known) if v is None else v for v in variances]
    parts = [(variance or 0.0) / len(sample) for variance, sample in zip(variances, samples, strict=True)]
    difference = abs(statistics.fmean(samples[0]) - statistics.fmean(samples[1]))
    if not sum(parts):
        return 0.0 if difference else 1.0
    if len(several) == len(samples):
        freedom = sum(parts) ** 2 / sum(p**2 / (len(s) - 1) for p, s in zip(parts, samples, strict=True))
    else:
        freedom = len(several[0]) - 1
    return float(2 * stdtr(freedom, -difference / math.sqrt(sum(parts))))


def with_ranks(table: Table, cells: Sequence[Cell], tests: Tests) -> tuple[Cell, ...]:
    """Returns the cells with the columns of ranks filled; rows that do not differ beyond chance share a rank.

    From the best down, a row shares the rank of the first row of its rank, unless it is worse than that one beyond
    chance, see `Tests.p_value`. A row that does not beat the best trivial reference has no rank.
    """
    ranked_by = [(column, column.rank_of) for column in table.columns if column.rank_of is not None]
    of_column = {column.key: _shared_ranks(table.column(score), cells, tests) for column, score in ranked_by}
    scores = {(cell.row_key, cell.column): cell for cell in cells}
    filled = []
    for cell in cells:
        column = table.column(cell.column)
        if column.rank_of is not None:
            rank, score = of_column[column.key].get(cell.row_key), scores[cell.row_key, column.rank_of]
            status = score.status if score.ours is None else UNRANKED if rank is None else "measured"
            cell = replace(cell, ours=None if rank is None else float(rank), status=status)
        filled.append(cell)
    return tuple(filled)


def _shared_ranks(column: Column, cells: Sequence[Cell], tests: Tests) -> dict[str, int]:
    """Returns the rank of each row that has one."""
    ranks: dict[str, int] = {}
    rank, first = 0, None
    for place, cell in enumerate((cell for tied in _places(column, cells, alone=True) for cell in tied), start=1):
        if first is None or (
            (p_value := tests.p_value(column.key, first, cell)) is not None and p_value < SIGNIFICANCE
        ):
            rank, first = place, cell
        ranks[cell.row_key] = rank
    return ranks


def why_no_mark(cells: Sequence[Cell], records: Sequence[RunRecord]) -> str:
    """Returns why no cell of a block is marked; an empty text if one is, or there is nothing to compare.

    Args:
        cells: Cells of the block, ranked and marked.
        records: The runs behind them.
    """
    if any(cell.mark for cell in cells) or not any(cell.rank for cell in cells):
        return ""
    beaten = any(cell.beats_reference is False for cell in cells)
    apart = "; rows that do not beat the best trivial reference take no part" if beaten else ""
    units = {(r.statistics.unit_count, r.statistics.kind) for r in records if r.statistics is not None}
    if units and all(smallest_p(count, PERMUTATIONS) >= SIGNIFICANCE for count, _ in units):
        count, kind = max(units)
        return (
            f"no best is marked: with {count} {kind}s no p-value of a permutation test is below "
            f"{smallest_p(count, PERMUTATIONS):.3g}, and one below {SIGNIFICANCE:g} is asked for{apart}"
        )
    return f"no best is marked: no row is worse than the best beyond chance, or that cannot be tested{apart}"
