"""Pictures of a board: skill by lead time, skill against training time, and each seed of each row."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.errors import ConfigError, DataError
from bench.protocols.board import BoardFile
from bench.records.schema import RunRecord
from bench.records.uncertainty import skill_interval
from bench.report.charts import styles
from bench.report.labels import name_of
from bench.report.plots import check_ending, digest_of, line_look, pyplot, save_picture
from bench.tables.admission import read_store
from bench.tables.cells import Block, TableData, table_data
from bench.tables.definitions import Column, Table, main_column
from bench.tables.durations import UNITS_IN_FULL, TimeAxis
from bench.tables.render import load_table
from bench.tables.skill import is_trivial, references, skill

_WIDTH = 6.4
_BAND, _MARGIN = 0.34, 0.6
_LOGARITHMIC = 3
"""The axis is logarithmic if training times differ by a larger factor."""
_LONG = 40
"""Length of labels from which a legend has two columns instead of three."""
_BELOW = 0.25
"""Lines are drawn down to this much skill below the learned rows."""
_WORST = -1.0
"""Learned rows are drawn down to this skill, twice the error of the reference: worse values are not informative."""
_MOST_COVERED = 0.5
"""A band that covers more of a cut axis than this is not drawn: it would hide the other rows."""
_CROWDED = 1.5
"""If bands together cover the axis more often than this, only the best reference and the best learned row have one."""


_Rows = Sequence[tuple[str, list[RunRecord]]]
"""Label and runs of each row that has runs, best first."""


@dataclass(frozen=True)
class ShownBoard:
    """The data of a board's pictures and page."""

    name: str
    title: str
    column: Column
    """The main score."""
    per_lead: str
    """The score by lead time."""
    lead_label: str
    reference: RunRecord
    """The best trivial reference in the main score."""
    reference_label: str
    blocks: Mapping[str, tuple[str, _Rows]]
    """Name and rows of each block except the references, by the block's title."""
    references: _Rows
    learned: _Rows
    """The rows of the first competing block."""
    units: str
    digest: str

    def skill_of(self, record: RunRecord) -> float | None:
        """Returns a run's skill in the main score."""
        ours, its = record.scores.get(self.column.key), self.reference.scores[self.column.key]
        return None if ours is None or its is None else skill(ours, its, self.column.better)


def draw_board(board: BoardFile, out: Path, ending: str = ".png") -> list[Path]:
    """Draws the pictures of a board into a folder and returns their paths.

    Args:
        board: Protocol of the board.
        out: Folder for the pictures.
        ending: Ending of the file names, one that matplotlib supports.

    Raises:
        ConfigError: no score, no trivial reference or no row was run yet, or the ending is unknown.
    """
    table = load_table(board.table, board.root)
    records, unreadable = read_store(board.root, table.task)
    shown = shown_board(board, table, table_data(table, None, records, unreadable), records)
    if shown is None:
        raise ConfigError(f"{board.path.name}: no trivial reference was run yet, so there is no skill to draw")
    return list(draw_shown(shown, out, ending))


def shown_board(board: BoardFile, table: Table, contents: TableData, records: Sequence[RunRecord]) -> ShownBoard | None:
    """Returns the data to show of a board, or None if no trivial reference was run yet.

    Args:
        board: Protocol of the board.
        table: Table of the board.
        contents: Contents of the table.
        records: Runs that the contents were made from.
    """
    by_id = contents.by_id(records)
    shown_ids = {run_id for block in contents.blocks for cell in block.cells for run_id in cell.run_ids}
    used = [record for run_id, record in by_id.items() if run_id in shown_ids]
    column = main_column(table)
    best = references(table, used[:1], used).get(column.key) if column is not None else None
    if column is None or best is None:
        return None
    reference = next(  # matched by score, too, because a board may have two references of one model
        record
        for record in used
        if record.model.name == best.model and (record.scores.get(column.key) or 0) * column.scale == best.value
    )
    titles = {group.name: group.title for group in table.groups}
    rows = {name: _rows(block, by_id) for name, block in zip(titles, contents.blocks, strict=True)}
    per_lead = board.board.per_lead or column.key
    return ShownBoard(
        name=board.name,
        title=table.title,
        column=column,
        per_lead=per_lead,
        lead_label=next(
            (name_of(one).removesuffix("-M") for one in table.columns if one.key.startswith(per_lead)), per_lead
        ),
        reference=reference,
        reference_label=_label_of(reference, rows),
        blocks={titles[name]: (name, mine) for name, mine in rows.items() if name != "references"},
        references=rows.get("references", []),
        learned=next((mine for name, mine in rows.items() if name != "references"), []),
        units=_units(board, reference),
        digest=digest_of(contents),
    )


def draw_shown(shown: ShownBoard, out: Path, ending: str) -> dict[Path, str]:
    """Draws the pictures of a board into a folder and returns their paths and captions.

    Args:
        shown: Data to draw.
        out: Folder for the pictures.
        ending: Ending of the file names, one that matplotlib supports.

    Raises:
        ConfigError: the ending is unknown.
    """
    check_ending(Path(f"x{ending}"))
    out.mkdir(parents=True, exist_ok=True)
    score, drawn = name_of(shown.column), {}
    if shown.reference.scores_per_lead.get(shown.per_lead):
        drawn[_draw_leads(out / f"{shown.name}_lead{ending}", shown)] = f"Skill in {shown.lead_label} by lead time"
    compute = _draw_compute(out / f"{shown.name}_compute{ending}", shown)
    drawn[compute] = f"Skill in {score} against the time of training"
    for title, (name, rows) in shown.blocks.items():
        if rows:
            path = out / f"{shown.name}_{'seeds' if name == 'rows' else name}{ending}"
            drawn[_draw_seeds(path, shown, title, rows)] = f"{title}: skill in {score} of each seed"
    return drawn


def _rows(block: Block, records: Mapping[str, RunRecord]) -> _Rows:
    return [(row[0].row, [records[run_id] for run_id in row[0].run_ids]) for row in block.rows if row[0].run_ids]


def _label_of(record: RunRecord, blocks: Mapping[str, _Rows]) -> str:
    every = [row for rows in blocks.values() for row in rows]
    return next((label for label, mine in every if record.run_id in {one.run_id for one in mine}), record.model.name)


def _units(board: BoardFile, record: RunRecord) -> str:
    count = "" if record.statistics is None else f"{record.statistics.unit_count} "
    return f"{count}independent units: {board.board.units}"


def _draw_leads(path: Path, shown: ShownBoard) -> Path:
    """Draws the skill of references and learned rows by lead time."""
    plt = pyplot()
    rows = [row for row in [*shown.references, *shown.learned] if shown.reference not in row[1]]
    looks = {
        label: line_look(asdict(style))
        for label, style in styles([(label, is_trivial(mine[0].model.name)) for label, mine in rows]).items()
    }
    figure, axis = plt.subplots(figsize=(_WIDTH, 4.2), layout="constrained")
    axis.axhline(0, color="0.4", linewidth=0.8)
    times = TimeAxis.of_record(shown.reference)
    leads = range(len(shown.reference.scores_per_lead[shown.per_lead]))
    x = times.values(len(leads))
    curves = {label: [_at_lead(shown, mine, lead) for lead in leads] for label, mine in rows}
    learned = {label for label, _ in shown.learned}
    known = [(label in learned, p.value) for label, curve in curves.items() for p in curve if not math.isnan(p.value)]
    lowest = min([0.0, *(value for _, value in known)])
    highest = max([0.0, *(value for _, value in known)]) + _BELOW / 4
    floor = max(min([0.0, *(value for is_learned, value in known if is_learned)]), _WORST) - _BELOW
    is_cut = lowest < floor  # else the other lines were pressed together
    if is_cut:
        axis.set_ylim(floor, highest)
    banded = {label: [p for p in curve if not math.isnan(p.low)] for label, curve in curves.items()}
    covered = {
        label: _covered(points, floor if is_cut else lowest, highest) for label, points in banded.items() if points
    }
    wide = [label for label, share in covered.items() if is_cut and share > _MOST_COVERED]
    is_crowded = sum(share for label, share in covered.items() if label not in wide) > _CROWDED
    firsts = [block[0][0] for block in (shown.references, shown.learned) if block]
    kinds: set[str] = set()
    for label, curve in curves.items():
        axis.plot(x, [point.value for point in curve], label=label, **looks[label])
        if label not in covered or label in wide or (is_crowded and label not in firsts):
            continue
        kinds |= {point.kind for point in banded[label]}
        axis.fill_between(
            [at for at, point in zip(x, curve, strict=True) if not math.isnan(point.low)],
            [point.low for point in banded[label]],
            [point.high for point in banded[label]],
            color=looks[label]["color"],
            alpha=0.15,
            linewidth=0,
        )
    axis.set_xlabel(f"lead time, {UNITS_IN_FULL[times.unit]}", fontsize=9)
    axis.set_ylabel(_axis_label(shown, shown.lead_label), fontsize=9)
    of_which = " of the best reference and the best learned row" if is_crowded else ""
    bands = f"Bands{of_which}: {', or '.join(sorted(kinds))}. " if kinds else ""
    bands += f"Wider than half the axis, and not drawn: that of {' and '.join(wide)}. " if wide else ""
    cut = f" The axis is cut: lines go down to {lowest:.2f}." if is_cut else ""
    _finish(figure, axis, shown, f"{bands}{shown.units}.{cut}")
    axis.set_xticks(x)
    figure.legend(loc="outside lower center", ncols=3 if max(map(len, looks)) < _LONG else 2, fontsize=8)
    return save_picture(figure, path, shown.digest)


def _covered(points: Sequence[_Point], low: float, high: float) -> float:
    """Returns the share of an axis that a band covers, the mean over its points."""
    return statistics.fmean(max(0.0, min(p.high, high) - max(p.low, low)) / (high - low) for p in points)


@dataclass(frozen=True)
class _Point:
    """Skill at a lead time; NaN if it is undefined."""

    value: float
    low: float = math.nan
    high: float = math.nan
    kind: str = ""


def _at_lead(shown: ShownBoard, mine: Sequence[RunRecord], lead: int) -> _Point:
    """Returns a row's skill at a lead time, with its interval over units if it has one, else the range over seeds."""
    better = shown.column.better
    its = shown.reference.scores_per_lead[shown.per_lead][lead]
    scores = [(record.scores_per_lead.get(shown.per_lead) or [None] * (lead + 1))[lead] for record in mine]
    skills = [skill(score, its, better) for score in scores if score is not None and its is not None]
    known = [value for value in skills if value is not None]
    if not known:
        return _Point(math.nan)
    value, formula = statistics.fmean(known), _formula(better)
    try:
        bounds = skill_interval(mine, shown.reference, f"{shown.per_lead}_lead_{lead + 1}", formula)
    except DataError:  # `earthbench verify` reports it
        bounds = None
    if bounds is not None:
        return _Point(value, *bounds, "the 95 % interval over units")
    return _Point(value, min(known), max(known), "the range over seeds") if len(known) > 1 else _Point(value)


def _formula(better: str | None) -> Callable[[Any, Any], Any]:
    """Returns `bench.tables.skill.skill` for arrays."""
    return (lambda a, b: 1 - a / b) if better == "lower" else (lambda a, b: (a - b) / (1 - b))


def _draw_compute(path: Path, shown: ShownBoard) -> Path:
    """Draws each learned row's skill against its training time, and references as lines."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(_WIDTH, 4.2), layout="constrained")
    axis.axhline(0, color="0.4", linewidth=0.8)
    greys = styles([(label, True) for label, _ in shown.references])
    for label, mine in shown.references:
        value = shown.skill_of(mine[0])
        if value is not None and value > 0:  # the best trivial reference is the axis, worse ones are below it
            look = line_look(asdict(greys[label])) | {"marker": None}
            axis.axhline(value, label=label, **look)
    spent = []
    looks = styles([(label, False) for label, _ in shown.learned])
    for label, mine in shown.learned:
        skills = [value for record in mine if (value := shown.skill_of(record)) is not None]
        seconds = [value for record in mine if (value := _seconds(record)) is not None]
        if not skills or not seconds:
            continue
        spent.append(statistics.fmean(seconds))
        look = line_look(asdict(looks[label])) | {"linestyle": "none", "markersize": 6}
        spread = statistics.stdev(skills) if len(skills) > 1 else 0.0
        axis.errorbar(spent[-1], statistics.fmean(skills), yerr=spread, capsize=2, label=label, **look)
    if spent and max(spent) > _LOGARITHMIC * min(spent):
        axis.set_xscale("log")
    else:
        axis.set_xlim(0.9 * min(spent, default=0), 1.1 * max(spent, default=1))
    axis.set_xlabel("processor seconds of the training's steps, mean over seeds", fontsize=9)
    axis.set_ylabel(_axis_label(shown, name_of(shown.column)), fontsize=9)
    _finish(figure, axis, shown, f"Bars: one standard deviation over seeds to either side. {shown.units}.")
    longest = max(map(len, axis.get_legend_handles_labels()[1]), default=0)
    figure.legend(loc="outside lower center", ncols=3 if longest < _LONG else 2, fontsize=8)
    return save_picture(figure, path, shown.digest)


def _seconds(record: RunRecord) -> float | None:
    trained = record.training
    if trained is None:
        return None
    return trained.cpu_s if trained.device_s is None else trained.device_s


def _draw_seeds(path: Path, shown: ShownBoard, title: str, rows: _Rows) -> Path:
    """Draws a dot per seed, the mean, and the standard deviation over seeds of each row of a block."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(_WIDTH, 1.4 + _BAND * len(rows)), layout="constrained")
    axis.use_sticky_edges = False  # before the first limits are computed, or a bar's end is the axis' end
    axis.axvline(0, color="0.4", linewidth=0.8)
    for place, (_, mine) in enumerate(rows):
        skills = [value for record in mine if (value := shown.skill_of(record)) is not None]
        mean = statistics.fmean(skills)
        if len(skills) > 1:
            spread = statistics.stdev(skills)
            axis.barh(place, 2 * spread, _MARGIN, mean - spread, color="0.88")
        axis.plot([mean, mean], [place - _MARGIN / 2, place + _MARGIN / 2], color="C0", linewidth=2)
        axis.plot(skills, [place] * len(skills), "o", color="C0", markersize=4, alpha=0.7)
    axis.set_yticks(range(len(rows)), [textwrap.fill(label, 40) for label, _ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(_axis_label(shown, name_of(shown.column), 48), fontsize=9)
    _finish(
        figure, axis, shown,
        f"{title}. Dots: seeds; bar: their mean; grey: their standard deviation to either side. {shown.units}.",
        characters=60,  # the labels of rows take a third of the width
    )  # fmt: skip
    return save_picture(figure, path, shown.digest)


def _axis_label(shown: ShownBoard, score: str, characters: int = 38) -> str:
    return f"skill in {score}\n{textwrap.fill(f'against {shown.reference_label}', characters)}"


def _finish(figure: Any, axis: Any, shown: ShownBoard, said: str, characters: int = 84) -> None:
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)
    figure.suptitle(textwrap.fill(shown.title, 92), fontsize=9.5)
    axis.set_title(textwrap.fill(said, characters), fontsize=7.5, color="0.35", loc="left")
