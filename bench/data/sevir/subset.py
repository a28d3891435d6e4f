"""A subset of SEVIR's events as a small tree: locating and assembling them.

Files of a subset never have the published names, because their indices differ; its catalogue has the published rows of
the chosen events, with new file names and indices.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from bench.data.sevir.catalogue import SENSOR, Event
from bench.data.sevir.files import HDF5_ERRORS, FileHeader, header_of, read_header
from bench.data.sevir.times import as_iso
from bench.data.transfer.http import Remote, RetryPolicy, head
from bench.data.transfer.paths import RemoteFile
from bench.errors import DataError
from bench.files import replacing


@dataclass(frozen=True)
class EventFile:
    """A remote event file and its header."""

    remote: Remote
    header: FileHeader


def subset_name(name: str) -> str:
    """Returns the name of a file with a subset of another's events, which never is a published name."""
    return str(Path(name).with_name(f"{Path(name).stem}_SUBSET.h5"))


def open_event_file(url: str, policy: RetryPolicy) -> EventFile:
    """Returns a remote event file with its header, reading only headers.

    Raises:
        DataError: it is missing, or not an event file.
    """
    remote = head(url, policy)
    try:
        with h5py.File(RemoteFile(remote, policy), "r") as file:
            return EventFile(remote, header_of(Path(url), file))
    except HDF5_ERRORS as error:
        raise DataError(f"{url}: not readable as HDF5 ({remote.size} bytes): {error}") from error


def same_version(folder: Path, remote: Remote) -> None:
    """Deletes events of an earlier, different version of the remote file."""
    version = json.dumps([remote.url, remote.size, remote.validator])
    stamp = folder / "version.json"
    if folder.is_dir() and not (stamp.is_file() and stamp.read_text(encoding="utf-8") == version):
        shutil.rmtree(folder)
    with replacing(stamp) as part:
        part.write_text(version, encoding="utf-8")


def holds(path: Path, wanted: list[Event]) -> bool:
    """Returns whether a file is complete and has exactly these events."""
    return path.is_file() and read_header(path).ids == tuple(event.id for event in wanted)


def assemble(path: Path, folder: Path, wanted: list[Event], header: FileHeader) -> None:
    """Writes fetched events, `INDEX.raw` in a folder, as one event file in SEVIR's format."""
    shape = (header.height, header.width, header.frames)
    with replacing(path) as part, h5py.File(part, "w") as file:
        array = file.create_dataset(SENSOR, (len(wanted), *shape), np.uint8)
        for index, event in enumerate(wanted):
            array[index] = np.fromfile(folder / f"{event.file_index}.raw", np.uint8).reshape(shape)
        file["id"] = np.array([event.id.encode() for event in wanted])


def write_catalogue(source: Path, target: Path, by_file: dict[str, list[Event]]) -> None:
    """Writes the bucket's catalogue rows of some events, with their new files and indices."""
    rows = pd.read_csv(source, dtype=str, encoding="utf-8-sig", skipinitialspace=True, keep_default_na=False)
    rows["time_utc"] = as_iso(rows["time_utc"])
    now = {
        (event.id, name, event.file_index): (subset_name(name), index)
        for name, wanted in by_file.items()
        for index, event in enumerate(wanted)
    }
    of_sensor = rows[rows["img_type"] == SENSOR]
    keys = zip(of_sensor["id"], of_sensor["file_name"], of_sensor["file_index"].astype(float).astype(int), strict=True)
    places = [now.get(key) for key in keys]
    kept = of_sensor[[place is not None for place in places]]
    found = [place for place in places if place is not None]
    kept = kept.assign(file_name=[name for name, _ in found], file_index=[index for _, index in found])
    with replacing(target) as part:
        kept.to_csv(part, index=False)
