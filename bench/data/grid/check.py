"""Facts about a cube as the harness interprets it, and its problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bench.api import Split, cadence_text
from bench.data.grid.cube import Cube
from bench.data.grid.dataset import GridWindows
from bench.data.report import Advance, Report
from bench.errors import DataError, counted

_FRAMES_LOOKED_AT = 64
_SHOWN = 5
_MANY_WINDOWS = 4
_MANY_FRAMES = 32
"""Chunks of at least this many frames make reading a window mostly unpack unwanted frames."""


def describe(
    cube: Cube,
    splits: Mapping[Split, GridWindows],
    thresholds: Sequence[float],
    scale: str,
    *,
    read_everything: bool,
    advance: Advance | None,
) -> Report:
    """Returns the facts of a cube: time, gaps, missing values, range, share above each threshold, windows per split.

    Args:
        cube: The data.
        splits: Its windows by split.
        thresholds: Thresholds of the first variable.
        scale: Scale of the task.
        read_everything: Read every frame instead of 64, evenly in time.
        advance: Called with `(done, total)` after each frame.
    """
    times, axis, grid = cube.axis.times, cube.axis, cube.grid
    report = Report(
        {
            "root": str(cube.root),
            "files": len(cube.parts),
            "variables": list(cube.names),
            "units": list(cube.units),
            "static": list(cube.static_names),
            "frames": len(cube),
            "frame_size": list(grid.size),
            "dimensions": list(grid.names),
            "times": [str(times[0]), str(times[-1])],
            "cadence_minutes": axis.cadence_minutes,
            "gaps": axis.gaps,
            "events": len(splits["all"].frames),
            "splits": {},
        },
        unit="frame",
    )
    size = "x".join(map(str, grid.size))
    report.lines = [
        f"{cube.root}  ({len(cube.parts)} file{'s' * (len(cube.parts) > 1)})",
        f"  {', '.join(map('{} [{}]'.format, cube.names, cube.units))} on (time, {', '.join(grid.names)}): "
        f"{len(cube)} frames of {size}, every {cadence_text(axis.cadence_minutes)}",
        f"  time: {times[0]} to {times[-1]}, {counted(len(axis.breaks), 'gap')}"
        + (f": {'; '.join(axis.gaps[:_SHOWN])}{' ...' if len(axis.gaps) > _SHOWN else ''}" if axis.gaps else ""),
    ]
    window = splits["all"].cut.window
    if len(cube.parts) == 1 and cube.chunk >= max(_MANY_WINDOWS * window, _MANY_FRAMES):
        chunks = {cube.names[0]: {"chunks": (window, *grid.size)}}
        report.remarks.append(
            f"{cube.chunk} frames are stored together, and each window of {window} unpacks them all. Faster, "
            f"in xarray: load_dataset({str(cube.root)!r}).drop_encoding().to_zarr('other.zarr', encoding={chunks})"
        )
    known = _scan(report, cube, thresholds, scale, read_everything, advance)
    for split, windows in splits.items():
        used, count = windows.frames, len(windows)
        seen = [known[at] for at in used.tolist() if at in known]
        if seen and any(known.values()) and not any(seen):
            report.problems.append(f"{cube.root}: split {split}: {cube.names[0]} is NaN in all of {len(seen)} frames")
        report.facts["splits"][split] = {"events": len(used), "sequences": count}
        span = f", {times[used[0]]} to {times[used[-1]]}" if len(used) else ""
        report.lines.append(f"  {split:<5} {count:>7} windows of {len(used)} frames{span}")
        if windows.why_empty:
            report.remarks.append(f"split {split} has no windows: {windows.why_empty}")
    return report


def _readable(cube: Cube, chosen: Sequence[int], report: Report) -> Iterator[tuple[int, np.ndarray]]:
    """Yields number and values of each readable frame; errors are added to the report, once per chunk."""
    for first in range(0, len(chosen), cube.chunk):
        block = chosen[first : first + cube.chunk]
        try:
            yield from zip(block, cube.frames(block), strict=True)
        except DataError as error:
            report.problems.append(str(error))


def _scan(
    report: Report,
    cube: Cube,
    thresholds: Sequence[float],
    scale: str,
    read_everything: bool,
    advance: Advance | None,
) -> dict[int, bool]:
    """Adds ranges, missing values and shares; returns for each frame read whether the first variable has any value."""
    chosen = np.arange(len(cube))
    if not read_everything and len(chosen) > _FRAMES_LOOKED_AT:
        chosen = np.unique(np.linspace(0, len(cube) - 1, _FRAMES_LOOKED_AT).round().astype(int))
    channels = len(cube.names)
    missing, low, high = np.zeros(channels), np.full(channels, np.inf), np.full(channels, -np.inf)
    above, known_first, found = np.zeros(len(thresholds)), 0, {}
    for done, (at, values) in enumerate(_readable(cube, chosen.tolist(), report)):
        known = np.isfinite(values)
        missing += 1 - known.mean((0, 1))
        low = np.minimum(low, np.where(known, values, np.inf).min((0, 1)))
        high = np.maximum(high, np.where(known, values, -np.inf).max((0, 1)))
        first = values[..., 0][known[..., 0]]
        known_first += first.size
        above += [(first >= threshold).sum() for threshold in thresholds]
        found[at] = bool(first.size)
        if advance:
            advance(done + 1, len(chosen))
    looked = "all frames" if len(chosen) == len(cube) else f"{len(chosen)} frames, evenly in time"
    report.facts["looked_at"] = looked
    report.facts["ranges"] = {}
    for number, (name, units) in enumerate(zip(cube.names, cube.units, strict=True)):
        if not np.isfinite(low[number]):
            report.problems.append(f"{cube.root}: {name}: all values are NaN in {looked}")
            continue
        share = float(missing[number] / len(chosen))
        report.facts["ranges"][name] = {"low": float(low[number]), "high": float(high[number]), "missing": share}
        report.lines.append(f"  {name}: {low[number]:.4g} to {high[number]:.4g} {units}, {share:.1%} NaN (of {looked})")
        if low[number] == high[number]:
            report.problems.append(f"{cube.root}: {name}: {low[number]:g} everywhere in {looked}: nothing to forecast")
        if scale == "log1p" and low[number] < 0:
            report.problems.append(
                f"{cube.root}: {name}: task.scale=log1p takes values >= 0, found {low[number]:g}: check the units"
            )
    shares = above / max(known_first, 1)
    report.facts["share_at_or_above"] = {f"{t:g}": float(s) for t, s in zip(thresholds, shares, strict=True)}
    if len(thresholds):
        listed = ", ".join(f"{t:g}: {s:.3%}" for t, s in zip(thresholds, shares, strict=True))
        report.lines.append(f"  {cube.names[0]} at or above, of known pixels: {listed}")
        if known_first and not above.any():
            report.problems.append(
                f"{cube.root}: {cube.names[0]}: no value of {looked} reaches a threshold (the lowest is "
                f"{min(thresholds):g} {cube.units[0]}, the highest value {high[0]:.4g}): check the units"
            )
    empty = [at for at, known_there in found.items() if not known_there]
    if empty and len(empty) < len(chosen):
        some = ", ".join(str(cube.axis.times[at]) for at in empty[:_SHOWN])
        report.remarks.append(f"{counted(len(empty), 'frame')} without any known value: {some}")
    return found
