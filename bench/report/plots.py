"""A table as pictures to put on a slide: scores with how sure they are, forecasts, and how the rows were learnt."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.api import MONTH_MINUTES
from bench.errors import ConfigError
from bench.files import replacing
from bench.records.learning_curves import LearningCurve, read_learning_curve
from bench.records.samples import read_sample
from bench.records.schema import RunRecord
from bench.records.uncertainty import too_few
from bench.report.boards import charts
from bench.report.gallery import look_of, read_kept
from bench.tables.cells import Block, TableData
from bench.tables.definitions import Table
from bench.tables.pictures import draw_forecasts

_LEAD_SCORES = 2
_CHARTS_ABREAST = 4
_FAR_APART = 3  # losses that far above all validations are of another kind: sums, or with a term that forecasts lack
_MANY = "0.6"  # grey: of more than twenty rows, nobody could tell the colours apart


def draw_table(path: Path, table: Table, contents: TableData, records: Sequence[RunRecord]) -> Path:
    """Draws a row of charts per block of a table and returns the path of the picture.

    Args:
        path: Where to; a name that matplotlib knows how to write, such as `.png`, `.svg` or `.pdf`.
        table: The definition.
        contents: Its blocks.
        records: The runs that they were made from.

    Raises:
        ConfigError: no block has a score per lead time, or the name's ending is not known.
    """
    plt = _pyplot()
    by_id = {record.run_id: record for record in records}
    drawn = [(block, shown) for block in contents.blocks if (shown := _charts(table, block, by_id))]
    if not drawn:
        raise ConfigError(f"table {table.name}: no complete run with scores per lead time, so there is nothing to draw")
    _check_ending(path)
    columns = max(len(shown) for _, shown in drawn)
    figure, axes = plt.subplots(
        len(drawn), columns, figsize=(4.6 * columns, 3.9 * len(drawn)), squeeze=False, layout="constrained"
    )
    labels = dict.fromkeys(curve["label"] for _, shown in drawn for chart in shown for curve in chart["curves"])
    colours = dict(zip(labels, plt.get_cmap("tab20" if len(labels) > 10 else "tab10").colors, strict=False))
    for row, (block, shown) in zip(axes, drawn, strict=True):
        for axis in row[len(shown) :]:
            axis.set_axis_off()
        for axis, chart in zip(row, shown, strict=False):
            _draw(axis, chart, colours)
        row[0].set_title("\n".join(textwrap.wrap(block.title or table.title, 60)), fontsize=9, loc="left")
    handles = [plt.Line2D([], [], color=colours.get(label, _MANY), marker="o", markersize=3) for label in labels]
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, fontsize=8, title=_bands(drawn, records), title_fontsize=8
    )
    return _save(figure, path)


def _bands(drawn: Sequence[tuple[Block, list[dict[str, Any]]]], records: Sequence[RunRecord]) -> str:
    """Returns what the bands of the charts are, and why single runs have none."""
    rows = [cells[0].run_ids for block, _ in drawn for cells in block.rows]
    single = [record for record in records if (record.run_id,) in rows]
    lows = [low for _, shown in drawn for chart in shown for curve in chart["curves"] for low in curve["low"]]
    kinds = ["the range over seeds"] if any(len(run_ids) > 1 for run_ids in rows) else []
    if any(not too_few(record) for record in single):
        kinds.append("the 95 % interval over events of one run")
    bands = [f"Bands: {', or '.join(kinds)}."] if kinds and any(low is not None for low in lows) else []
    reasons = sorted({reason for record in single if (reason := too_few(record))})
    return " ".join([*bands, *(f"No interval of one run: {reason}." for reason in reasons)])


def draw_samples(path: Path, table: Table, contents: TableData, records: Sequence[RunRecord], root: Path) -> list[Path]:
    """Draws the stored forecast of each row's first run beside what was observed; returns the paths, one per block.

    Args:
        path: Where to: `.png`, or `.gif` and `.mp4`, which move; further blocks add `-2`, `-3` to the name.
        table: The definition.
        contents: Its blocks.
        records: The runs that they were made from.
        root: Results root, where the samples are.

    Raises:
        ConfigError: no run of the table has a readable sample, or the name's ending is not known.
    """
    by_id = {record.run_id: record for record in records}
    drawn: list[Path] = []
    for block in contents.blocks:
        runs = {cells[0].row: by_id[cells[0].run_ids[0]] for cells in block.rows if cells[0].run_ids}
        samples = {label: sample for label, record in runs.items() if (sample := read_kept(read_sample, record, root))}
        if not samples:
            continue
        first, observed = next((runs[label], sample) for label, sample in samples.items())
        assert first.data is not None
        palette, units = look_of(first)
        file = path if not drawn else path.with_stem(f"{path.stem}-{len(drawn) + 1}")
        drawn.append(
            draw_forecasts(
                file,
                context=observed.context,
                target=observed.target,
                forecasts={label: sample.forecast for label, sample in samples.items()},
                palette=palette,
                units=units,
                cadence_minutes=first.data.cadence_minutes,
                title=f"{block.title or table.title}\nfirst sequence",
            )
        )
    if not drawn:
        raise ConfigError(f"table {table.name}: no complete run with a stored forecast, so there is nothing to draw")
    return drawn


def draw_learning_curves(
    path: Path, table: Table, contents: TableData, records: Sequence[RunRecord], root: Path
) -> Path:
    """Draws a chart per trained row, of the loss of all its runs by optimiser step, and returns the picture's path.

    Args:
        path: Where to; a name that matplotlib knows how to write, such as `.png`, `.svg` or `.pdf`.
        table: The definition.
        contents: Its blocks.
        records: The runs that they were made from.
        root: Results root, where the learning curves are.

    Raises:
        ConfigError: no run of the table has a readable learning curve, or the name's ending is not known.
    """
    plt = _pyplot()
    by_id = {record.run_id: record for record in records}
    drawn: list[tuple[str, list[LearningCurve]]] = []
    for block in contents.blocks:
        for cells in block.rows:
            found = (read_kept(read_learning_curve, by_id[run_id], root) for run_id in cells[0].run_ids)
            if curves := [curve for curve in found if curve is not None]:
                drawn.append((cells[0].row, curves))
    if not drawn:
        raise ConfigError(f"table {table.name}: no complete run with a learning curve, so there is nothing to draw")
    _check_ending(path)
    columns = min(len(drawn), _CHARTS_ABREAST)
    rows = -(-len(drawn) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.5 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    for axis, (label, curves) in zip(axes.flat, drawn, strict=False):
        _draw_losses(axis, label, curves)
    figure.suptitle(table.title, fontsize=9)
    figure.supxlabel("optimiser steps", fontsize=8)
    figure.supylabel("loss: training (thin), validation (dots); a colour per run", fontsize=8)
    return _save(figure, path)


def _draw_losses(axis: Any, label: str, curves: Sequence[LearningCurve]) -> None:
    """Draws the runs of a row; training losses that are no squared error of the forecast get an axis of their own."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    highest = max((loss for curve in curves for _, loss in curve.val), default=math.inf)
    apart = min(loss for curve in curves for _, loss in curve.train) > _FAR_APART * highest
    training = axis.twinx() if apart else axis
    for number, curve in enumerate(curves):
        colour = f"C{number % 10}"
        training.plot(*zip(*curve.train, strict=True), color=colour, linewidth=0.8, alpha=0.5)
        if curve.val:
            axis.plot(*zip(*curve.val, strict=True), color=colour, linewidth=1.4, marker="o", markersize=2.5)
    axis.set_title("\n".join(textwrap.wrap(label, 36)), fontsize=8)
    axis.grid(alpha=0.3)
    if apart:
        training.set_ylabel("training loss", fontsize=7)
    for one in (axis, training):
        one.set_yscale("log")
        one.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        one.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        one.yaxis.set_minor_formatter(NullFormatter())
        one.tick_params(labelsize=7)


def _pyplot() -> Any:
    """Returns matplotlib's pyplot, told that there is no screen; imported when first drawn."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt


def _check_ending(path: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".") not in known:
        raise ConfigError(f"picture {path.name!r}: expected a name that ends in .{', .'.join(sorted(known))}")


def _save(figure: Any, path: Path) -> Path:
    with replacing(path) as part:
        figure.savefig(part, dpi=130, format=path.suffix.lstrip("."))
    _pyplot().close(figure)
    return path


def _charts(table: Table, block: Block, records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    """Returns what is drawn of a block: the first scores that have a better side by lead time, and CSI by threshold."""
    found = charts(table, block, records)
    better = {column.key: column.better for column in table.columns}
    chosen = [
        {**chart, "axis": "lead", "better": better[chart["key"]]} for chart in found["lead"] if better[chart["key"]]
    ][:_LEAD_SCORES]
    by_threshold = [
        {**chart, "axis": "threshold", "better": "higher"} for chart in found["threshold"] if chart["key"] == "csi"
    ]
    return [*chosen[: _LEAD_SCORES - len(by_threshold)], *by_threshold]


def _draw(axis: Any, chart: dict[str, Any], colours: dict[str, Any]) -> None:
    for curve in chart["curves"]:
        colour = colours.get(curve["label"], _MANY)
        x, unit = (curve["x"], "") if chart["axis"] == "threshold" else _leads(curve["minutes"])
        y = [float("nan") if value is None else value for value in curve["y"]]
        axis.plot(x, y, color=colour, marker="o", markersize=3, linewidth=1.4)
        known = [k for k, low in enumerate(curve["low"]) if low is not None]
        axis.fill_between(
            [x[k] for k in known],
            [curve["low"][k] for k in known],
            [curve["high"][k] for k in known],
            color=colour,
            alpha=min(0.15, 0.5 / len(chart["curves"])),
            linewidth=0,
        )
        axis.set_xlabel("threshold, VIL code" if chart["axis"] == "threshold" else f"lead time, {unit}", fontsize=9)
    axis.set_ylabel(f"{chart['label']} ({chart['better']} is better)", fontsize=9)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)


def _leads(minutes: Sequence[float]) -> tuple[list[float], str]:
    if minutes and minutes[0] >= MONTH_MINUTES:
        return [value / MONTH_MINUTES for value in minutes], "months"
    return list(minutes), "minutes"
