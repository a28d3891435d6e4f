"""Forecasts side by side: strips of pictures of stored samples, for the page's time slider."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.api import Palette
from bench.errors import DataError
from bench.logs import log
from bench.records.samples import Sample, read_sample
from bench.records.schema import RunRecord
from bench.tables.durations import TimeAxis
from bench.tables.look import Look, colouring, levels_of
from bench.tables.variants import comparable_key, variant_labels

Kept = TypeVar("Kept")
_SHARES = tuple(n / 10 for n in range(11))


@dataclass(frozen=True)
class Strip:
    """Frames of one kind, side by side in one picture."""

    label: str
    picture: str
    """Path within the site."""
    frames: tuple[str, ...]
    """Time of each frame relative to the start."""
    difference: str = ""
    """Picture of forecast minus target; empty for context and target."""
    scores: tuple[str, ...] = ()
    """Root mean squared error of each frame, over the pixels of the sample."""


@dataclass(frozen=True)
class Box:
    """A region that is outlined on every frame, in percent of its width and height."""

    name: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Scene:
    """One sequence: context, target and the forecast of every model."""

    anchor: str
    group: str
    """Task, data and split."""
    name: str
    """Number of the sequence within the group."""
    task: str
    units: str
    height: int
    width: int
    context: Strip
    target: Strip
    forecasts: tuple[Strip, ...]
    probabilities: tuple[Strip, ...]
    """For ensembles, the share of members with an event."""
    boxes: tuple[Box, ...]
    coast: str
    """Coastlines as an SVG path over the frame's pixels; empty if there are none."""
    colours: tuple[tuple[str, str], ...]
    """The legend: colours and their intervals of values, ascending."""
    difference_colours: tuple[tuple[str, str], ...]
    probability_colours: tuple[tuple[str, str], ...]


def read_kept(read: Callable[[RunRecord, Path], Kept | None], record: RunRecord, root: Path) -> Kept | None:
    """Returns the data stored with a record for pictures; None if there are none or, with a warning, if damaged."""
    try:
        return read(record, root)
    except DataError as error:
        log.warning("left out: %s", error)
        return None


def scenes(records: Sequence[RunRecord], root: Path, site: Path, colours: str | None = None) -> list[Scene]:
    """Writes the pictures of all samples to `SITE/pictures`; returns a scene per sequence of a data set and split.

    Args:
        records: All records.
        root: Results root.
        site: Folder of the site.
        colours: Name of a matplotlib colour map, instead of the tasks' own.

    Raises:
        ConfigError: no colour map has this name.
    """
    groups: dict[Any, list[tuple[RunRecord, Sample]]] = {}
    for record in sorted(records, key=lambda r: (r.scope == "full", r.run_id)):
        sample = read_kept(read_sample, record, root) if record.data is not None else None
        if sample is not None:
            groups.setdefault(comparable_key(record), []).append((record, sample))
    found: list[Scene] = []
    for group in sorted(groups.values(), key=lambda group: _group(group[0][0])):
        count = min(sample.count for _, sample in group)
        look = Look.of_record(group[0][0], colours)
        found += [_scene(len(found) + index + 1, index, count, group, look, site) for index in range(count)]
    return found


def _group(record: RunRecord) -> str:
    """Task, data and split of a record."""
    data = record.data
    assert data is not None
    return f"{record.task.name}: {data.described}, {data.split} split, data {data.fingerprint[:10]}"


def _scene(number: int, index: int, count: int, group: list[tuple[RunRecord, Sample]], look: Look, site: Path) -> Scene:
    records = [record for record, _ in group]
    first, shown = group[0][0], group[0][1].sequence(index)
    # one forecast per model and variant: the newest, of complete runs if there are any
    last = dict(zip(variant_labels(records), group, strict=True))
    newest = {
        label if record.scope == "full" else f"{label} ({record.scope}: {record.scope_because})": sample.sequence(index)
        for label, (record, sample) in last.items()
    }
    drawn = [one.forecast for one in newest.values()]
    levels = look.palette.levels or levels_of([shown.context, shown.target, *drawn])
    apart = [frames - shown.target for frames in drawn]
    symmetric = Palette("RdBu_r", _symmetric(apart, levels), look.palette.first_row)
    data = first.data
    assert data is not None
    times = TimeAxis.of_record(first)
    shares = replace(look.palette, colours="Blues", levels=_SHARES)
    _, *within, (all_members, _) = _legend(shares, _SHARES)
    before = times.leads(1 - len(shown.context), len(shown.context))
    after = times.leads(1, len(shown.target))

    def picture(frames: np.ndarray, name: str, palette: Palette, levels: tuple[float, ...]) -> str:
        relative = f"pictures/scene{number}-{name}.png"
        _write(site / relative, frames, palette, levels)
        return relative

    def forecast(position: int, label: str, frames: np.ndarray) -> Strip:
        error = frames - shown.target
        return Strip(
            label=label,
            picture=picture(frames, f"forecast{position}", look.palette, levels),
            frames=after,
            difference=picture(error, f"difference{position}", symmetric, symmetric.levels),
            scores=tuple(f"RMSE {np.sqrt(np.nanmean(frame**2)):.3g}" for frame in error),
        )

    height, width = shown.target.shape[1:]
    return Scene(
        anchor=f"{first.task.name}-{data.fingerprint[:10]}-{data.split}-{index + 1}",
        group=_group(first),
        name=f"sequence {index + 1} of {count}" if count > 1 else "first sequence",
        task=first.task.name,
        units=look.units,
        height=height,
        width=width,
        context=Strip("context", picture(shown.context, "context", look.palette, levels), before),
        target=Strip("target", picture(shown.target, "target", look.palette, levels), after),
        forecasts=tuple(forecast(k, label, newest[label].forecast) for k, label in enumerate(sorted(newest))),
        probabilities=tuple(
            Strip(
                f"{label}: P(≥ {look.event_threshold:g})",
                picture(chance, f"chance{k}", shares, _SHARES),
                after,
            )
            for k, label in enumerate(sorted(newest))
            if (chance := newest[label].probability) is not None and look.event_threshold is not None
        ),
        boxes=tuple(_box(name, cells, (height, width), look.palette) for name, cells in (look.regions or {}).items()),
        coast=_path(look.coast if shown.coast is None else shown.coast, height, look.palette),
        colours=_legend(look.palette, levels),
        difference_colours=_legend(symmetric, symmetric.levels),
        probability_colours=(*within, (all_members, "1")),
    )


def _symmetric(errors: Sequence[np.ndarray], levels: tuple[float, ...]) -> tuple[float, ...]:
    """Returns levels around 0 that span the 99th percentile of the errors."""
    known = np.concatenate([np.abs(error[np.isfinite(error)]) for error in errors])
    most = float(np.percentile(known, 99)) if known.size else 0.0
    most = float(f"{most:.1g}") or (levels[-1] - levels[0]) / 10
    return tuple(float(f"{most * part / 10:.3g}") for part in range(-9, 10, 2))


def _box(name: str, cells: tuple[float, float, float, float], size: tuple[int, int], palette: Palette) -> Box:
    (top, bottom, left, right), (height, width) = cells, size
    if palette.first_row == "lower":
        top, bottom = height - 1 - bottom, height - 1 - top
    return Box(
        name,
        left=100 * (left + 0.5) / width,
        top=100 * (top + 0.5) / height,
        width=100 * (right - left) / width,
        height=100 * (bottom - top) / height,
    )


def _path(coast: np.ndarray | None, height: int, palette: Palette) -> str:
    """Returns coastlines as an SVG path, in pixels from the upper left corner of a frame."""
    if coast is None:
        return ""
    rows = height - 1 - coast[:, 1] if palette.first_row == "lower" else coast[:, 1]
    path, before = [], np.nan
    for x, y in zip(coast[:, 0] + 0.5, rows + 0.5, strict=True):
        if not np.isnan(x):
            path.append(f"{'M' if np.isnan(before) else 'L'}{x:.2f} {y:.2f}")
        before = x
    return "".join(path)


def _write(path: Path, frames: np.ndarray, palette: Palette, levels: tuple[float, ...]) -> None:
    from matplotlib.image import imsave

    colours, norm = colouring(palette, levels)
    downwards = frames[:, ::-1] if palette.first_row == "lower" else frames
    strip = np.ma.masked_invalid(np.concatenate(list(downwards), axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    imsave(path, colours(norm(strip)))


def _legend(palette: Palette, levels: tuple[float, ...]) -> tuple[tuple[str, str], ...]:
    from matplotlib.colors import to_hex

    colours, norm = colouring(palette, levels)
    between = [((low + high) / 2, f"{low:g} to {high:g}") for low, high in pairwise(levels)]
    span = levels[-1] - levels[0]
    ends = [(levels[0] - span, f"below {levels[0]:g}"), (levels[-1] + span, f"{levels[-1]:g} and above")]
    named = isinstance(palette.colours, str)
    shown = [*(ends[:1] if named and palette.levels else []), *between, *(ends[1:] if palette.levels else [])]
    return tuple((to_hex(colours(norm(value))), text) for value, text in shown)
