"""Pictures of a table: scores with intervals, forecasts, and learning curves."""

from __future__ import annotations

import hashlib
import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.errors import ConfigError
from bench.files import replacing
from bench.records.learning_curves import LearningCurve, read_learning_curve
from bench.records.samples import read_sample
from bench.records.schema import RunRecord
from bench.records.uncertainty import too_few
from bench.report.charts import charts, styles
from bench.report.gallery import read_kept
from bench.tables.cells import Block, TableData
from bench.tables.definitions import Table
from bench.tables.look import Look
from bench.tables.pictures import PRINT, PRINT_DPI, PRINT_WIDTH, draw_forecasts

_LEAD_SCORES = 2
_CHARTS_ABREAST = 3
_TICKS = 12  # with more lead times than this, every second one is labelled
_LONG = 32  # length of labels from which a legend has two columns instead of three
_MANY_TICKS = 30  # axes of losses over a larger range have two ticks per decade, which would overlap otherwise
_FAR_APART = 3  # losses above all validations by this factor are another quantity: sums, or with additional terms
_BANDS_OF_ALL = 6  # with more rows, only the first three have bands, which would otherwise hide the lines
INPUTS = "earthbench-inputs"
"""Name of the entry in a PNG's metadata with the digest of its inputs."""
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "x": "X", "star": "*"}
_LINES: Mapping[str, Any] = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}


def inputs_digest(blocks: Sequence[Any]) -> str:
    """Returns a digest of a table's blocks in its JSON rendering; a picture with another digest is stale."""
    return hashlib.sha256(json.dumps(blocks).encode()).hexdigest()[:16]


def digest_of(contents: TableData) -> str:
    """Returns the same digest for contents that are not rendered yet."""
    return inputs_digest([asdict(block) for block in contents.blocks])


def draw_table(path: Path, table: Table, contents: TableData, records: Sequence[RunRecord]) -> Path:
    """Draws a row of charts per block of a table and returns the path of the picture.

    Args:
        path: File of the picture, with an ending that matplotlib supports, such as `.png`, `.svg` or `.pdf`.
        table: Definition of the table.
        contents: Contents of the table.
        records: Runs that the contents were made from.

    Raises:
        ConfigError: no block has a score per lead time, or the file's ending is unknown.
    """
    plt = pyplot()
    by_id = contents.by_id(records)
    drawn = [(block, shown) for block in contents.blocks if (shown := _charts(table, block, by_id))]
    if not drawn:
        raise ConfigError(f"table {table.name}: no complete run with scores per lead time, so there is nothing to draw")
    check_ending(path)
    columns = max(len(shown) for _, shown in drawn)
    figure, axes = plt.subplots(
        len(drawn), columns, figsize=(max(4.6, PRINT_WIDTH / 2 * columns), 3 * len(drawn)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    labels = dict.fromkeys(curve["label"] for _, shown in drawn for chart in shown for curve in chart["curves"])
    references = {label: one["reference"] for _, shown in drawn for label, one in shown[0]["styles"].items()}
    # of all blocks together, for they share the legend
    looks = {k: line_look(asdict(one)) for k, one in styles([(label, references[label]) for label in labels]).items()}
    for row, (block, shown) in zip(axes, drawn, strict=True):
        for axis in row[len(shown) :]:
            axis.set_axis_off()
        for axis, chart in zip(row, shown, strict=False):
            _draw(axis, chart, looks)
        row[0].set_title("\n".join(textwrap.wrap(block.title or table.title, 56)), fontsize=7, loc="left")
    handles = [plt.Line2D([], [], **looks[label]) for label in labels]
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3 if max(map(len, labels)) < _LONG else 2, fontsize=7,
        title=textwrap.fill(_bands(drawn, records), 90), title_fontsize=7,
    )  # fmt: skip
    return save_picture(figure, path, digest_of(contents))


def line_look(style: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a row's style on the page as matplotlib keywords."""
    shape = {"marker": _MARKERS[style["symbol"]], "linestyle": _LINES[style["dash"]]}
    return {"color": style["colour"], "markersize": 3.5, "linewidth": 1.4, **shape}


def _bands(drawn: Sequence[tuple[Block, list[dict[str, Any]]]], records: Sequence[RunRecord]) -> str:
    """Returns a description of the bands, and why single runs have none."""
    rows = [cells[0].run_ids for block, _ in drawn for cells in block.rows]
    single = [record for record in records if (record.run_id,) in rows]
    lows = [low for _, shown in drawn for chart in shown for curve in chart["curves"] for low in curve["low"]]
    kinds = ["the range over seeds"] if any(len(run_ids) > 1 for run_ids in rows) else []
    if any(not too_few(record) for record in single):
        kinds.append("the 95 % interval over events of one run")
    most = max(len(chart["curves"]) for _, shown in drawn for chart in shown)
    of_which = "Bands" if most <= _BANDS_OF_ALL else "Bands of the first three rows"
    bands = [f"{of_which}: {', or '.join(kinds)}."] if kinds and any(low is not None for low in lows) else []
    reasons = sorted({reason for record in single if (reason := too_few(record))})
    return " ".join([*bands, *(f"No interval of one run: {reason}." for reason in reasons)])


def draw_samples(
    path: Path,
    table: Table,
    contents: TableData,
    records: Sequence[RunRecord],
    root: Path,
    colours: str | None = None,
) -> list[Path]:
    """Draws the stored forecast of each row's first run next to the observation; returns the paths, one per block.

    Args:
        path: File of the picture: `.png`, `.svg`, `.pdf`, or animated as `.gif` or `.mp4`; further blocks add `-2`,
            `-3` to the name.
        table: Definition of the table.
        contents: Contents of the table.
        records: Runs that the contents were made from.
        root: Results root with the samples.
        colours: Name of a matplotlib colour map, instead of the task's own.

    Raises:
        ConfigError: no run of the table has a readable sample, or the file's ending is unknown.
    """
    by_id = contents.by_id(records)
    drawn: list[Path] = []
    for block in contents.blocks:
        runs = {cells[0].row: by_id[contents.run_ids(cells[0])[0]] for cells in block.rows if cells[0].run_ids}
        samples = {label: sample for label, record in runs.items() if (sample := read_kept(read_sample, record, root))}
        if not samples:
            continue
        first, observed = next((runs[label], sample) for label, sample in samples.items())
        assert first.data is not None
        look = Look.of_record(first, colours)
        file = path if not drawn else path.with_stem(f"{path.stem}-{len(drawn) + 1}")
        drawn.append(
            draw_forecasts(
                file,
                context=observed.context,
                target=observed.target,
                forecasts={label: sample.forecast for label, sample in samples.items()},
                look=look if observed.coast is None else replace(look, coast=observed.coast),
                cadence_minutes=first.data.cadence_minutes,
                title=f"{block.title or table.title}\nfirst sequence",
            )
        )
    if not drawn:
        raise ConfigError(
            f"table {table.name}: no complete run with a stored forecast, so there is nothing to draw: "
            f"`earthbench run` and `evaluate` keep them under {root / 'samples'}, on the machine where they ran"
        )
    return drawn


def draw_learning_curves(
    path: Path, table: Table, contents: TableData, records: Sequence[RunRecord], root: Path
) -> Path:
    """Draws a chart per trained row with the losses of all its runs by optimiser step; returns the picture's path.

    Args:
        path: File of the picture, with an ending that matplotlib supports, such as `.png`, `.svg` or `.pdf`.
        table: Definition of the table.
        contents: Contents of the table.
        records: Runs that the contents were made from.
        root: Results root with the learning curves.

    Raises:
        ConfigError: no run of the table has a readable learning curve, or the file's ending is unknown.
    """
    plt = pyplot()
    by_id = contents.by_id(records)
    drawn: list[tuple[str, list[LearningCurve]]] = []
    for block in contents.blocks:
        for cells in block.rows:
            run_ids = contents.run_ids(cells[0])
            found = (read_kept(read_learning_curve, by_id[run_id], root) for run_id in run_ids)
            if curves := [curve for curve in found if curve is not None]:
                data = by_id[run_ids[0]].data if len(contents.blocks) > 1 and not table.groups else None
                drawn.append((f"{cells[0].row}, {data.described}" if data is not None else cells[0].row, curves))
    if not drawn:
        raise ConfigError(f"table {table.name}: no complete run with a learning curve, so there is nothing to draw")
    check_ending(path)
    columns = min(len(drawn), _CHARTS_ABREAST)
    rows = -(-len(drawn) // columns)
    size = max(4.6, PRINT_WIDTH / _CHARTS_ABREAST * columns), 2 * rows + 0.9
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(drawn) :]:
        axis.set_axis_off()
    for axis, (label, curves) in zip(axes.flat, drawn, strict=False):
        _draw_losses(axis, label, curves)
    figure.suptitle(textwrap.fill(table.title, int(size[0] * 14)), fontsize=8)
    figure.supylabel("loss", fontsize=7)
    for axis in axes.flat[max(0, len(drawn) - columns) : len(drawn)]:  # the last of each column
        axis.set_xlabel("optimiser steps", fontsize=6)
    handles = [
        plt.Line2D([], [], color="0.3", linewidth=0.8, alpha=0.6, label="training"),
        plt.Line2D([], [], color="0.3", linewidth=1.4, marker="o", markersize=2.5, label="validation"),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        fontsize=7,
        title="A colour per run",
        title_fontsize=7,
    )
    return save_picture(figure, path, digest_of(contents))


def _draw_losses(axis: Any, label: str, curves: Sequence[LearningCurve]) -> None:
    """Draws the runs of a row; training losses other than the forecast's squared error get a separate axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    highest = max((loss for curve in curves for _, loss in curve.val), default=math.inf)
    apart = min(loss for curve in curves for _, loss in curve.train) > _FAR_APART * highest
    training = axis.twinx() if apart else axis
    for number, curve in enumerate(curves):
        colour = f"C{number % 10}"
        training.plot(*zip(*curve.train, strict=True), color=colour, linewidth=0.8, alpha=0.5)
        if curve.val:
            axis.plot(*zip(*curve.val, strict=True), color=colour, linewidth=1.4, marker="o", markersize=2.5)
    axis.set_title("\n".join(textwrap.wrap(label, 36)), fontsize=7)
    axis.grid(alpha=0.3)
    if apart:
        training.set_ylabel("training loss", fontsize=6)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for one in (axis, training):
        one.set_yscale("log")
        low, high = one.get_ylim()
        one.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if high < _MANY_TICKS * low else (1, 3)))
        one.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        one.yaxis.set_minor_formatter(NullFormatter())
        one.tick_params(labelsize=6)


def pyplot() -> Any:
    """Returns matplotlib's pyplot, imported on first use, with a backend that needs no screen."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt


def check_ending(path: Path) -> None:
    """Refuses a file name with an ending that matplotlib does not support.

    Raises:
        ConfigError: it does not; the message lists the supported ones.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix.lstrip(".") not in known:
        raise ConfigError(f"picture {path.name!r}: expected a name that ends in .{', .'.join(sorted(known))}")


def save_picture(figure: Any, path: Path, digest: str) -> Path:
    """Saves a figure at 300 dots per inch, with the digest of its inputs if the format supports it."""
    ending = path.suffix.lstrip(".")
    told = {"png": {INPUTS: digest}, "svg": {"Keywords": digest}, "pdf": {"Keywords": digest}}
    with replacing(path) as part, pyplot().rc_context(PRINT):
        figure.savefig(part, dpi=PRINT_DPI, format=ending, metadata=told.get(ending))
    pyplot().close(figure)
    return path


def _charts(table: Table, block: Block, records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    """Returns the charts of a block: its first scores with a better direction by lead time, and CSI by threshold."""
    found = charts(table, block, records)
    better = {column.key: column.better for column in table.columns}
    common = {"styles": found["styles"]}
    chosen = [
        {**chart, **common, "axis": f"lead time, {chart['curves'][0]['unit']}", "better": better[chart["key"]]}
        for chart in found["lead"]
        if better[chart["key"]]
    ][:_LEAD_SCORES]
    by_threshold = [
        {**chart, **common, "axis": "threshold, VIL code", "better": "higher"}
        for chart in found["threshold"]
        if chart["key"] == "csi"
    ]
    return [*chosen[: _LEAD_SCORES - len(by_threshold)], *by_threshold]


def _draw(axis: Any, chart: dict[str, Any], looks: Mapping[str, dict[str, Any]]) -> None:
    with_band = len(chart["curves"]) if len(chart["curves"]) <= _BANDS_OF_ALL else 3
    for number, curve in enumerate(chart["curves"]):
        look, x = looks[curve["label"]], curve["x"]
        axis.plot(x, [math.nan if value is None else value for value in curve["y"]], **look)
        known = [k for k, low in enumerate(curve["low"]) if low is not None and number < with_band]
        low, high = ([curve[side][k] for k in known] for side in ("low", "high"))
        axis.fill_between([x[k] for k in known], low, high, color=look["color"], alpha=0.15, linewidth=0)
    ticks = max((curve["x"] for curve in chart["curves"]), key=len)
    axis.set_xticks(ticks if len(ticks) <= _TICKS else ticks[1::2])
    axis.set_xlabel(chart["axis"], fontsize=7)
    axis.set_ylabel(f"{chart['label']} ({chart['better']} is better)", fontsize=7)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=6)
