"""Forecasts side by side: frames of stored samples as strips of pictures, for the page's time slider."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench import registry
from bench.api import Palette
from bench.errors import DataError, EarthbenchError
from bench.logs import log
from bench.records.samples import Sample, read_sample
from bench.records.schema import RunRecord
from bench.tables.durations import duration
from bench.tables.pictures import colouring, levels_of
from bench.tables.variants import comparable_key, variant_labels

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Strip:
    """Frames of one kind beside one another in one picture."""

    label: str
    picture: str
    """Relative to the site."""
    frames: tuple[str, ...]
    """Time of each frame against the start."""


@dataclass(frozen=True)
class Scene:
    """One sequence: what was known, what came, and what every model said."""

    title: str
    task: str
    units: str
    height: int
    width: int
    context: Strip
    target: Strip
    forecasts: tuple[Strip, ...]
    colours: tuple[tuple[str, str], ...]
    """Colour and level, ascending: the legend."""


def read_kept(read: Callable[[RunRecord, Path], Kept | None], record: RunRecord, root: Path) -> Kept | None:
    """Returns what is kept beside a record for pictures; None, with a warning where it is damaged, if there is none."""
    try:
        return read(record, root)
    except DataError as error:
        log.warning("left out: %s", error)
        return None


def scenes(records: Sequence[RunRecord], root: Path, site: Path) -> list[Scene]:
    """Returns a scene per data set and split that has samples, and writes its pictures under `SITE/pictures`."""
    groups: dict[Any, list[tuple[RunRecord, Sample]]] = {}
    for record in sorted(records, key=lambda r: r.run_id):
        sample = read_kept(read_sample, record, root) if record.data is not None else None
        if sample is not None:
            groups.setdefault(comparable_key(record), []).append((record, sample))
    return [_scene(number, group, site) for number, group in enumerate(groups.values(), start=1)]


def _scene(number: int, group: list[tuple[RunRecord, Sample]], site: Path) -> Scene:
    records = [record for record, _ in group]
    first, shown = group[0]
    palette, units = look_of(first)
    # one forecast per model and variant: the newest
    newest = dict(zip(variant_labels(records), (sample.forecast for _, sample in group), strict=True))
    levels = palette.levels or levels_of([shown.context, shown.target, *newest.values()])
    data = first.data
    assert data is not None
    cadence = data.cadence_minutes
    before = tuple(duration((1 + i - len(shown.context)) * cadence, sign=True) for i in range(len(shown.context)))
    after = tuple(duration((1 + i) * cadence, sign=True) for i in range(len(shown.target)))

    def strip(label: str, frames: np.ndarray, name: str, times: tuple[str, ...]) -> Strip:
        relative = f"pictures/scene{number}-{name}.png"
        _write(site / relative, frames, palette, levels)
        return Strip(label, relative, times)

    return Scene(
        title=f"{first.task.name}: {data.origin}, {data.split} split, first sequence, data {data.fingerprint[:10]}",
        task=first.task.name,
        units=units,
        height=shown.target.shape[1],
        width=shown.target.shape[2],
        context=strip("context", shown.context, "context", before),
        target=strip("target", shown.target, "target", after),
        forecasts=tuple(
            strip(label, frames, f"forecast{index}", after)
            for index, (label, frames) in enumerate(sorted(newest.items()))
        ),
        colours=_legend(palette, levels),
    )


def look_of(record: RunRecord) -> tuple[Palette, str]:
    """Returns the colours and the units of a record's frames: of its data, where these have units of their own."""
    own = record.data.identity.get("units") if record.data is not None else None
    try:
        found = registry.find("task", record.task.name).load()
    except EarthbenchError:
        return Palette(), ""  # its distribution is not installed here; the records still stand
    return found.palette, str(own[0]) if own else found.units


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
    return tuple((to_hex(colours(norm(level))), f"{level:g}") for level in levels)
