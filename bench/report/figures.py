"""A table as pictures to put on a slide: scores by lead time and by threshold with how sure they are, and forecasts."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.api import MONTH_MINUTES
from bench.errors import ConfigError
from bench.files import replacing
from bench.records.samples import read_sample
from bench.records.schema import RunRecord
from bench.report.boards import charts
from bench.report.gallery import look_of
from bench.tables.cells import Block, Contents, Interval
from bench.tables.definitions import Table
from bench.tables.pictures import draw_forecasts

_LEAD_SCORES = 2
_MANY = "0.6"  # grey: of more than twenty rows, nobody could tell the colours apart
_BAND = "Bands: the range over seeds, or the 95 % bootstrap interval over events of one run."


def draw_table(
    path: Path, table: Table, contents: Contents, records: Sequence[RunRecord], interval: Interval | None
) -> Path:
    """Draws a row of charts per block of a table and returns the path of the picture.

    Args:
        path: Where to; a name that matplotlib knows how to write, such as `.png`, `.svg` or `.pdf`.
        table: The definition.
        contents: Its blocks.
        records: The runs that they were made from.
        interval: See `bench.tables.cells.Interval`.

    Raises:
        ConfigError: no block has a score per lead time, or the name's ending is not known.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    by_id = {record.run_id: record for record in records}
    drawn = [(block, shown) for block in contents.blocks if (shown := _charts(table, block, by_id, interval))]
    if not drawn:
        raise ConfigError(f"table {table.name}: no complete run with scores per lead time, so there is nothing to draw")
    known = plt.figure().canvas.get_supported_filetypes()
    plt.close()
    if path.suffix.lstrip(".") not in known:
        raise ConfigError(f"picture {path.name!r}: expected a name that ends in .{', .'.join(sorted(known))}")
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
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, title=_BAND, title_fontsize=8)
    with replacing(path) as part:
        figure.savefig(part, dpi=130, format=path.suffix.lstrip("."))
    plt.close(figure)
    return path


def draw_samples(path: Path, table: Table, contents: Contents, records: Sequence[RunRecord], root: Path) -> list[Path]:
    """Draws the stored forecast of each row's first run beside what was observed; returns the paths, one per block.

    Args:
        path: Where to: `.png`, or `.gif` and `.mp4`, which move; further blocks add `-2`, `-3` to the name.
        table: The definition.
        contents: Its blocks.
        records: The runs that they were made from.
        root: Results root, where the samples are.

    Raises:
        ConfigError: no run of the table has a sample, or the name's ending is not known.
        DataError: a file is no sample.
    """
    by_id = {record.run_id: record for record in records}
    drawn: list[Path] = []
    for block in contents.blocks:
        runs = {cells[0].row: by_id[cells[0].run_ids[0]] for cells in block.rows if cells[0].run_ids}
        samples = {label: sample for label, record in runs.items() if (sample := read_sample(record, root))}
        if not samples:
            continue
        first, observed = next((runs[label], sample) for label, sample in samples.items())
        assert first.data is not None
        palette, units = look_of(first.task.name)
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


def _charts(
    table: Table, block: Block, records: dict[str, RunRecord], interval: Interval | None
) -> list[dict[str, Any]]:
    """Returns what is drawn of a block: the first scores that have a better side by lead time, and CSI by threshold."""
    found = charts(table, block, records, interval)
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
