"""Facts about a tree in SEVIR's format, and all of its problems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from bench.api import Split, cadence_text
from bench.data.report import Advance, Report
from bench.data.sevir.catalogue import (
    SENSOR,
    Event,
    Part,
    cadence_minutes,
    duplicated_ids,
    read_catalogue,
    select_events,
    why_no_events,
)
from bench.data.sevir.files import HDF5_ERRORS, FileHeader, header_of
from bench.data.sevir.stored_events import check_vil, disagreements, read_headers, storage_of
from bench.data.transfer.manifest import check_manifest, origin
from bench.data.transfer.paths import open_hdf5
from bench.errors import DataError

_SHOWN_DAYS = 8


def describe(
    root: Path,
    splits: Mapping[Split, Part],
    *,
    window: int,
    stride: int,
    admit_missing: bool = False,
) -> Report:
    """Returns the facts of a tree and the problems that its catalogue and file headers show; reads no frames.

    Args:
        root: Folder with `CATALOG.csv`.
        splits: Conditions of `select_events` by split.
        window: Frames of one sequence.
        stride: Frames between the starts of an event's sequences.
        admit_missing: Events with missing pixels count, too.

    Raises:
        DataError: there is no catalogue, or a file is in use.
    """
    report = Report()
    try:
        catalogue = read_catalogue(root)
    except DataError as error:
        if not (isinstance(root, Path) and (root / "CATALOG.csv").is_file()):
            raise
        report.problems += [line.removeprefix("  - ") for line in str(error).splitlines()]
        return report
    events = select_events(catalogue, admit_missing=admit_missing)
    headers, report.problems = read_headers(root, events)
    if empty := why_no_events(catalogue, admit_missing=admit_missing):
        report.problems.append(f"no events: {empty}")
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
    for split, part in splits.items():
        chosen = select_events(catalogue, admit_missing=admit_missing, **part)
        report.facts["splits"][split] = {"events": len(chosen), "sequences": per_event * len(chosen)}
        if "days" in part:
            report.facts["splits"][split]["days"] = sorted({str(event.time.date()) for event in chosen})
    _add_lines(report)
    _add_remarks(report, catalogue, window)
    for split, part in splits.items():
        if empty := why_no_events(catalogue, admit_missing=admit_missing, **part):
            report.remarks.append(f"split {split} has no events: {empty}")
    names: dict[tuple[str, int], str] = {}
    for event, place in zip(events, storage_of(root, events), strict=True):
        if names.setdefault(place, event.id) != event.id:
            report.remarks.append(f"events {names[place]} and {event.id} are one stored event: {place[0]}, {place[1]}")
    return report


def _add_lines(report: Report) -> None:
    facts = report.facts
    size = "x".join(map(str, facts["frame_size"] or ["?"]))
    cadence = f"every {cadence_text(facts['cadence_minutes'])}" if facts["cadence_minutes"] else "cadence unknown"
    report.lines = [
        f"{facts['root']}  ({facts['origin']})",
        f"  {facts['events']} events of {facts['frames_per_event']} frames of {size}, {cadence}",
        f"  {facts['events_with_missing_pixels']} more events have missing pixels (task.admit_missing=true)",
    ]
    report.add_split_lines()
    for split, count in facts["splits"].items():
        if days := count.get("days"):
            report.lines.append(f"  days of {split}: {_listed(days)}")
    for name, file in facts["files"].items():
        packed = file["compression"] or "plain"
        report.lines.append(f"  {name}: {file['events']} events, {file['bytes'] / 1e6:.1f} MB, {packed}")


def _listed(days: list[str]) -> str:
    return ", ".join(days) if len(days) <= _SHOWN_DAYS else f"{len(days)} from {days[0]} to {days[-1]}"


def _add_remarks(report: Report, catalogue: Any, window: int) -> None:
    twice = duplicated_ids(catalogue)
    if twice:
        report.remarks.append(f"{len(twice)} ids stand in more than one row and are left out: {', '.join(twice[:5])}")
    frames = report.facts["frames_per_event"]
    if frames and frames < window:
        report.remarks.append(
            f"events have {frames} frames, fewer than the {window} of a sequence: set task.t_in and task.t_out, "
            "or use task=sevir_lr for 10-minute data"
        )


def read_everything(
    root: Path,
    report: Report,
    splits: Mapping[Split, Part],
    advance: Advance | None = None,
    *,
    admit_missing: bool = False,
) -> None:
    """Reads each event, and adds unreadable bytes, implausible codes and constant events to a report.

    Args:
        root: Folder with `CATALOG.csv`.
        report: From `describe`.
        splits: As for `describe`.
        advance: Called with `(done, total)` after each event.
        admit_missing: As for `describe`.
    """
    try:
        catalogue = read_catalogue(root)
    except DataError:
        return  # already among the problems
    events = select_events(catalogue, admit_missing=admit_missing)
    if isinstance(root, Path):
        check_manifest(root, report, advance)
    by_file: dict[str, list[Event]] = {}
    for event in events:
        by_file.setdefault(event.file_name, []).append(event)
    done = 0
    constant: set[str] = set()
    for name, wanted in sorted(by_file.items()):
        if name not in report.facts.get("files", {}):
            continue  # already among the problems
        path = root / "data" / name
        with open_hdf5(path) as file:
            header = header_of(path, file)
            for event in wanted:
                done += 1
                if _read_event(report, header, file[SENSOR], event):
                    constant.add(event.id)
                if advance:
                    advance(done, len(events))
    for split, part in splits.items():
        chosen = {event.id for event in select_events(catalogue, admit_missing=admit_missing, **part)}
        if chosen and chosen <= constant:
            report.problems.append(f"split {split}: each of its {len(chosen)} events is constant: nothing to forecast")


def _read_event(report: Report, header: FileHeader, array: h5py.Dataset, event: Event) -> bool:
    """Adds the problems of an event to a report, and returns whether it is constant."""
    if disagreements(header, [event]):
        return False  # already among the problems
    try:
        codes = array[event.file_index]
    except HDF5_ERRORS as error:
        report.problems.append(f"{header.path}: event {event.id} at index {event.file_index} cannot be read: {error}")
        return False
    is_constant = bool(codes.min() == codes.max())
    if wrong := check_vil(codes, event):
        report.problems.append(f"{header.path}: {wrong}")
    elif is_constant:
        report.remarks.append(f"{header.path}: event {event.id} is constant ({codes.flat[0]})")
    return is_constant
