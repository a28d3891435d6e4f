"""SEVIR from its public bucket: whole files, or single events by ranges of bytes, so that a subset needs no 150 GB.

The bucket is read over https, which needs neither an account nor Amazon's library.  Unfinished files are in
`OUT/.fetch`; `CATALOG.csv`, without which the tree cannot be read, is written last.

Source: Veillette et al. 2020; layout of the bucket as in https://registry.opendata.aws/sevir.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import quote

import h5py
import pandas as pd
from pydantic import Field, PrivateAttr

from bench.data.sevir.catalogue import SENSOR, Event, read_catalogue, select_events
from bench.data.sevir.files import read_header
from bench.data.sevir.splits import TEST_FROM, VAL_FROM, split_dates
from bench.data.sevir.stored_events import disagreements, read_headers
from bench.data.sevir.subset import (
    EventFile,
    assemble,
    holds,
    open_event_file,
    same_version,
    subset_name,
    write_catalogue,
)
from bench.data.transfer.download import Downloaded, download, run_parallel
from bench.data.transfer.fetch import FetchVerb
from bench.data.transfer.http import Remote, head, https, read_range
from bench.data.transfer.manifest import read_manifest, write_manifest
from bench.data.transfer.paths import RemoteFile
from bench.data.verbs import AdvanceLabel, Folder, Plan
from bench.errors import DataError, UsageError, did_you_mean, one_message
from bench.files import check_writable, replacing, sha256_of

BUCKET = "https://sevir.s3.amazonaws.com"
_ASK_ABOVE_BYTES = 2e9


@dataclass(frozen=True)
class _Work:
    """The whole files, or the events of each file, to download."""

    done_before: bool
    whole: dict[str, Remote]
    events: dict[str, list[Event]]
    sources: dict[str, EventFile]

    @property
    def bytes(self) -> int:
        """Returns the total bytes, including those that exist already."""
        parts = sum(len(wanted) * self.sources[name].header.event_bytes for name, wanted in self.events.items())
        return parts + sum(remote.size or 0 for remote in self.whole.values())


class FetchSevir(FetchVerb):
    """SEVIR's VIL files from the public bucket, or any server with the same layout."""

    summary: ClassVar[str] = "download SEVIR's VIL, whole or single events, from the public bucket"

    out: Folder = Field(description="folder of the data set; the same command resumes an interrupted one")
    events: tuple[str, ...] = Field((), description="only these ids")
    split: Literal["train", "val", "test", "all"] | None = Field(None, description="only train, val or test, by date")
    limit: int | None = Field(None, ge=1, description="only the first so many events, sorted by id")
    url: str = Field(BUCKET, description="where CATALOG.csv and data/ lie: https, http or s3 (a public bucket)")
    workers: int = Field(4, ge=1, le=64, description="parts downloaded at the same time")
    yes: bool = Field(False, description="do not ask before a large download")

    _prepared: _Work | None = PrivateAttr(None)

    def plan(self, advance: AdvanceLabel) -> Plan:
        """Returns how much there is to download, after reading the catalogue and the headers of the files."""
        work = self._work(advance)
        if work.done_before:
            return Plan()
        there = sum(_bytes_below(self.out / part) for part in ("data", ".fetch/data"))
        missing = max(0, work.bytes - there)
        count = sum(map(len, work.events.values()))
        what = f"{count} events of {len(work.events)} files" if work.events else f"{len(work.whole)} files"
        rest = f", {_gigabytes(there)} of it there already" if there else ""
        free = shutil.disk_usage(self.out).free
        lines = [f"{what}, {_gigabytes(work.bytes)}{rest}, from {self.url} to {self.out} ({_gigabytes(free)} free)"]
        if missing > free:
            raise DataError(f"{lines[0]}: the disk is too small. Choose --events, --split or --limit, or another --out")
        return Plan(tuple(lines), ask=missing > _ASK_ABOVE_BYTES and not self.yes)

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Downloads and verifies the files, and returns a summary.

        Raises:
            DataError: the download is incomplete, or disagrees with the catalogue.
            UsageError: the catalogue lacks an id, or the selection has no events.
        """
        work = self._work(advance)
        if work.done_before:
            return [f"{self.out} holds that already"]
        files = self._whole(work, advance) if work.whole else self._parts(work, advance)
        entries = {f"data/{name}": entry for name, entry in files.items()}
        entries["CATALOG.csv"] = (self._catalogue.stat().st_size, sha256_of(self._catalogue))
        write_manifest(self.out, self.url, entries, selection=self._selection)
        self._catalogue.replace(self.out / "CATALOG.csv")
        shutil.rmtree(self._stage)
        return [f"{_gigabytes(work.bytes)} in {self.out}", f"next: earthbench data info sevir --root {self.out}"]

    @property
    def _stage(self) -> Path:
        return self.out / ".fetch"

    @property
    def _catalogue(self) -> Path:
        """Returns the path of the catalogue until all of its files exist."""
        return self._stage / "CATALOG.csv"

    @property
    def _selection(self) -> dict[str, Any]:
        return {"events": sorted(self.events), "split": self.split, "limit": self.limit}

    def _work(self, advance: AdvanceLabel) -> _Work:
        if self._prepared is None:
            self._prepared = self._prepare(advance)
        return self._prepared

    def _prepare(self, advance: AdvanceLabel) -> _Work:
        base = https(self.url).rstrip("/")
        if (self.out / "CATALOG.csv").exists():
            manifest = read_manifest(self.out)
            if manifest is not None and (manifest["source"], manifest.get("selection")) == (self.url, self._selection):
                return _Work(True, {}, {}, {})
            raise DataError(
                f"{self.out} already holds a data set (CATALOG.csv) of another selection; choose another folder"
            )
        check_writable(self.out, "--out")
        fetched = self._stage / "bucket" / "CATALOG.csv"
        download(
            f"{base}/CATALOG.csv", fetched, policy=self.policy, moved=lambda done: advance("catalogue", done, 0),
            check=_check_catalogue,
        )  # fmt: skip
        catalogue = read_catalogue(fetched.parent)
        if not (self.events or self.split or self.limit):
            names = sorted(set(catalogue.loc[catalogue["img_type"] == SENSOR, "file_name"]))
            if not names:
                raise DataError(f"{base}/CATALOG.csv names no files of {SENSOR}")
            remotes = run_parallel([partial(head, _address(base, name), self.policy) for name in names], self.workers)
            shutil.copyfile(fetched, self._catalogue)
            return _Work(False, dict(zip(names, remotes, strict=True)), {}, {})
        chosen = self._choose(catalogue)
        by_file: dict[str, list[Event]] = {}
        for event in chosen:
            by_file.setdefault(event.file_name, []).append(event)
        sources = {}
        for done, name in enumerate(by_file, start=1):
            sources[name] = open_event_file(_address(base, name), self.policy)
            advance("file headers", done, len(by_file))
        problems = [p for name, wanted in by_file.items() for p in disagreements(sources[name].header, wanted)]
        if problems:
            raise DataError(one_message(f"the files at {base} are not what CATALOG.csv there says:", problems))
        write_catalogue(fetched, self._catalogue, by_file)
        return _Work(False, {}, by_file, sources)

    def _choose(self, catalogue: pd.DataFrame) -> list[Event]:
        """Returns the events that the flags select: those that a task reads, or any that are named by id."""
        start, end = split_dates(VAL_FROM, TEST_FROM)[self.split or "all"]
        named = bool(self.events)
        events = select_events(catalogue, start=start, end=end, admit_missing=named)
        if named:
            known = {event.id for event in events}
            absent = [name for name in self.events if name not in known]
            if absent:
                where = f"split {self.split}" if self.split else "the catalogue"
                lines = [f"{name!r}. {did_you_mean(name, known)}"[:200] for name in absent]
                raise UsageError(one_message(f"{where} has not exactly one {SENSOR} row of these ids:", lines))
            events = [event for event in events if event.id in set(self.events)]
        events = events[: self.limit]
        if not events:
            raise UsageError(f"split {self.split} of {self.url} has no events")
        return events

    def _whole(self, work: _Work, advance: AdvanceLabel) -> dict[str, tuple[int, str]]:
        """Downloads whole files, and returns bytes and SHA-256 of each."""
        moved = _Sum(advance, work.bytes)

        def job(name: str, stop: threading.Event) -> Downloaded:
            return download(
                work.whole[name].url, self.out / "data" / name, check=_check_events, policy=self.policy, stop=stop,
                moved=partial(moved, name),
            )  # fmt: skip

        files = dict(
            zip(work.whole, run_parallel([partial(job, name) for name in work.whole], self.workers), strict=True)
        )
        _, problems = read_headers(self.out, select_events(read_catalogue(self._stage)))
        if problems:
            raise DataError(one_message(f"the files from {self.url} are not what CATALOG.csv says:", problems))
        return {name: (file.bytes, file.sha256) for name, file in files.items()}

    def _parts(self, work: _Work, advance: AdvanceLabel) -> dict[str, tuple[int, str]]:
        """Downloads events, assembles them into files, and returns bytes and SHA-256 of each file."""
        jobs: list[Callable[[threading.Event], None]] = []
        moved = _Sum(advance, work.bytes)
        for name, wanted in work.events.items():
            source, folder = work.sources[name], self._stage / "data" / name
            if holds(self.out / "data" / subset_name(name), wanted):
                continue
            same_version(folder, source.remote)
            jobs += [partial(self._event, source, folder, event, moved) for event in wanted]
        run_parallel(jobs, self.workers)
        files = {}
        for name, wanted in work.events.items():
            path, folder = self.out / "data" / subset_name(name), self._stage / "data" / name
            if not holds(path, wanted):
                assemble(path, folder, wanted, work.sources[name].header)
            shutil.rmtree(folder, ignore_errors=True)
            files[subset_name(name)] = (path.stat().st_size, sha256_of(path))
        return files

    def _event(self, source: EventFile, folder: Path, event: Event, moved: _Sum, stop: threading.Event) -> None:
        path, size = folder / f"{event.file_index}.raw", source.header.event_bytes
        if not (path.is_file() and path.stat().st_size == size):
            if source.header.offset is not None:
                start = source.header.offset + event.file_index * size
                content = read_range(source.remote, start, start + size, self.policy, stop)
            else:  # compressed, unlike the bucket's: the HDF5 library reads its chunks, one thread at a time
                with h5py.File(RemoteFile(source.remote, self.policy), "r") as file:
                    content = file[SENSOR][event.file_index].tobytes()
            with replacing(path) as part:
                part.write_bytes(content)
        moved(str(path), size)


class _Sum:
    """Adds up the progress of several downloads."""

    def __init__(self, advance: AdvanceLabel, total: int) -> None:
        self.advance, self.total, self.parts, self.lock = advance, total, dict[str, int](), threading.Lock()

    def __call__(self, name: str, done: int) -> None:
        with self.lock:
            self.parts[name] = done
            self.advance("download", sum(self.parts.values()), self.total)


def _address(base: str, name: str) -> str:
    return f"{base}/data/{quote(name)}"


def _check_catalogue(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4096)
    if b"file_index" not in start.split(b"\n")[0]:
        raise DataError(f"{path}: not a catalogue of SEVIR; it starts with {start[:60]!r}")


def _check_events(path: Path) -> None:
    read_header(path)


def _bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
