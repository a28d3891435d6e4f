"""What a tree in SEVIR's format holds, and everything that is wrong with it, in one go."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bench.api import Split
from bench.data.manifest import check_manifest
from bench.data.origin import origin
from bench.data.places import open_hdf5
from bench.data.report import Advance, Report
from bench.data.sevir_catalogue import (
    Event,
    cadence_minutes,
    duplicated_ids,
    read_catalogue,
    read_headers,
    select_events,
)
from bench.errors import DataError

_MISSING = 255


def describe(
    root: Path, splits: Mapping[Split, tuple[datetime | None, datetime | None]], *, window: int, stride: int
) -> Report:
    """Returns the facts of a tree and the problems that its catalogue and file headers show; reads no frames.

    Args:
        root: Folder with `CATALOG.csv`.
        splits: Name to `(after, up to and including)`.
        window: Frames of one sequence.
        stride: Frames between the starts of an event's sequences.

    Raises:
        DataError: there is no catalogue.
    """
    report = Report()
    try:
        catalogue = read_catalogue(root)
    except DataError as error:
        if not (isinstance(root, Path) and (root / "CATALOG.csv").is_file()):
            raise
        report.problems += [line.removeprefix("  - ") for line in str(error).splitlines()]
        return report
    events = select_events(catalogue)
    headers, report.problems = read_headers(root, events)
    admissible = select_events(catalogue, admit_missing=True)
    shapes = sorted({(h.height, h.width, h.frames) for h in headers.values()})
    frames = shapes[0][2] if shapes else 0
    per_event = max(0, 1 + (frames - window) // stride) if frames >= window else 0
    report.facts = {
        "root": str(root),
        "origin": origin(root),
        "catalogue_rows": len(catalogue),
        "events": len(events),
        "events_with_missing_pixels": len(admissible) - len(events),
        "files": {
            name: {"events": h.event_count, "compression": h.compression, "bytes": h.path.stat().st_size}
            for name, h in sorted(headers.items())
        },
        "frame_size": list(shapes[0][:2]) if shapes else None,
        "frames_per_event": frames,
        "cadence_minutes": cadence_minutes(catalogue, frames or None),
        "sequences_per_event": per_event,
        "splits": {},
    }
    for split, (start, end) in splits.items():
        chosen = select_events(catalogue, start=start, end=end)
        report.facts["splits"][split] = {"events": len(chosen), "sequences": per_event * len(chosen)}
    _say(report)
    _remark(report, catalogue, window)
    return report


def _say(report: Report) -> None:
    facts = report.facts
    size = "x".join(map(str, facts["frame_size"] or ["?"]))
    cadence = f"every {facts['cadence_minutes']:g} min" if facts["cadence_minutes"] else "cadence unknown"
    report.lines = [
        f"{facts['root']}  ({facts['origin']})",
        f"  {facts['events']} events of {facts['frames_per_event']} frames of {size}, {cadence}",
        f"  {facts['events_with_missing_pixels']} more events have missing pixels (task.admit_missing=true)",
    ]
    report.add_split_lines()
    for name, file in facts["files"].items():
        packed = file["compression"] or "plain"
        report.lines.append(f"  {name}: {file['events']} events, {file['bytes'] / 1e6:.1f} MB, {packed}")


def _remark(report: Report, catalogue: Any, window: int) -> None:
    twice = duplicated_ids(catalogue)
    if twice:
        report.remarks.append(f"{len(twice)} ids stand in more than one row and are left out: {', '.join(twice[:5])}")
    frames = report.facts["frames_per_event"]
    if frames and frames < window:
        report.remarks.append(
            f"events have {frames} frames, fewer than the {window} of a sequence: set task.t_in and task.t_out, "
            "or use task=sevir_lr for 10-minute data"
        )
    for split, count in report.facts["splits"].items():
        if not count["events"]:
            report.remarks.append(f"split {split} has no events")


def read_everything(root: Path, report: Report, advance: Advance | None = None) -> None:
    """Adds to a report what only reading each event shows: unreadable bytes, missing pixels, empty events.

    Args:
        root: Folder with `CATALOG.csv`.
        report: As `describe` returned it.
        advance: Called with `(done, total)` after each event.
    """
    try:
        events = select_events(read_catalogue(root))
    except DataError:
        return  # already among the problems
    if isinstance(root, Path):
        check_manifest(root, report, advance)
    by_file: dict[str, list[Event]] = {}
    for event in events:
        by_file.setdefault(event.file_name, []).append(event)
    done = 0
    for name, wanted in sorted(by_file.items()):
        if name not in report.facts.get("files", {}):
            continue  # already among the problems
        with open_hdf5(root / "data" / name) as file:
            for event in wanted:
                done += 1
                _read_event(report, root / "data" / name, file["vil"], event)
                if advance:
                    advance(done, len(events))


def _read_event(report: Report, path: Path, array: h5py.Dataset, event: Event) -> None:
    if event.file_index >= array.shape[0]:
        return
    try:
        codes = array[event.file_index]
    except OSError as error:
        report.problems.append(f"{path}: event {event.id} at index {event.file_index} cannot be read: {error}")
        return
    missing = int(np.count_nonzero(codes == _MISSING))
    if missing:
        report.problems.append(
            f"{path}: event {event.id} has {missing} missing pixels (255), but the catalogue says pct_missing = 0"
        )
    elif codes.min() == codes.max():
        report.remarks.append(f"{path}: event {event.id} is constant ({codes.flat[0]})")
