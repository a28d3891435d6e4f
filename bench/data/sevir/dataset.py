"""SEVIR sequences from disk: random access to windows of frames, by reading one event as uint8."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Unpack

import h5py
import numpy as np
import torch
from torch import Tensor

from bench.data.digests import event_digests
from bench.data.sequences import SequenceDataset, Units
from bench.data.sevir.catalogue import MISSING, SENSOR, Event, Part, read_catalogue, select_events, why_no_events
from bench.data.sevir.files import HDF5_ERRORS, header_of
from bench.data.sevir.stored_events import check_vil, read_headers, readable_events
from bench.data.transfer.manifest import origin
from bench.data.transfer.paths import as_os_errors, open_hdf5
from bench.errors import ConfigError, DataError, one_message

# Pixels read and transposed at a time: their frames fit the second-level cache, which makes moving the time axis to the
# front two to three times as fast as for a whole event.
_BLOCK_PIXELS = 8192
# Decompressed events kept per process, so that nearby accesses to an event's windows cost one decompression.
_CACHED_EVENTS = 4
_CHECK = "`earthbench data check` lists everything that is wrong."


@dataclass
class _OpenFile:
    """An event file opened by this process, and the offset of its array if that is contiguous."""

    array: h5py.Dataset
    raw: BinaryIO | None
    offset: int


class SevirSequences(SequenceDataset):
    """Windows of consecutive frames of SEVIR events, `(T,H,W,1)` uint8; window k of event e has index e*n + k.

    Args:
        root: Folder with `CATALOG.csv` and `data/`.
        t_in: Frames of the context.
        t_out: Frames of the target, right after the context.
        stride: Frames between the starts of an event's windows.
        admit_missing: Keep events with missing pixels (code 255).
        skip_missing: Leave out events whose files are missing, unreadable or disagree with the catalogue.
        **part: Conditions that select the events.

    Raises:
        DataError: lists every file that is missing, unreadable or disagrees with the catalogue.
        ConfigError: the events are shorter than one window.
    """

    why_empty: str | None = None
    """The condition that no row of the catalogue meets; None if there are events."""
    skipped_ids: tuple[str, ...] = ()
    """Events of the catalogue that `skip_missing` left out."""

    def __init__(
        self,
        root: Path,
        *,
        t_in: int,
        t_out: int,
        stride: int,
        admit_missing: bool = False,
        skip_missing: bool = False,
        **part: Unpack[Part],
    ) -> None:
        self.root, self.t_in, self.t_out, self.stride = root, t_in, t_out, stride
        catalogue = read_catalogue(root)
        self.events = select_events(catalogue, admit_missing=admit_missing, **part)
        self.why_empty = why_no_events(catalogue, admit_missing=admit_missing, **part)
        headers, problems = read_headers(root, self.events)
        chosen = self.events
        if problems and skip_missing:
            self.events = readable_events(headers, chosen)
            headers, problems = read_headers(root, self.events)
        if chosen and not self.events:
            self.why_empty = f"all {len(chosen)} events are left out by task.skip_missing"
        kept = {event.id for event in self.events}
        self.skipped_ids = tuple(event.id for event in chosen if event.id not in kept)
        if problems:
            advice = (
                f"run `earthbench data check sevir --root {root}` for everything, or set task.skip_missing=true for a "
                "partial run without these"
            )
            raise DataError(one_message(f"the data under {root} is incomplete ({advice}):", problems))
        header = next(iter(headers.values()), None)
        self.frame_size = (header.height, header.width) if header else None
        self.frames = header.frames if header else 0
        window = t_in + t_out
        if header and header.frames < window:
            raise ConfigError(
                f"events under {root} have {header.frames} frames; t_in={t_in} and t_out={t_out} need {window}. "
                "Set task.t_in and task.t_out (for 10-minute SEVIR-LR data use task=sevir_lr)."
            )
        self.windows_per_event = 1 + (self.frames - window) // stride if header else 0
        self._files: dict[str, _OpenFile] = {}
        self._events_read: OrderedDict[int, np.ndarray] = OrderedDict()
        self._block: np.ndarray | None = None  # reused, which avoids page faults
        self._process = os.getpid()

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns the id of every event."""
        return tuple(event.id for event in self.events)

    @property
    def times(self) -> tuple[tuple[datetime, datetime], ...]:
        """Returns the times of the first and the last frame of every event."""
        return tuple(event.span for event in self.events)

    @property
    def units(self) -> Units:
        """Returns the events, which have equally many windows."""
        return Units.events(self.ids, self.windows_per_event)

    def __len__(self) -> int:
        """Returns the number of windows."""
        return len(self.events) * self.windows_per_event

    def where(self, index: int) -> tuple[Event, int]:
        """Returns the event of a window and the number of the window's first frame in it."""
        number, window = divmod(index % len(self), self.windows_per_event)
        return self.events[number], window * self.stride

    def stored(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns context and target of one window as uint8 codes `(T,H,W,1)`: 0..254, 255 for missing.

        Raises:
            IndexError: the index is out of range.
            DataError: the event cannot be read.
        """
        frames = self._window(index)
        return frames[: self.t_in], frames[self.t_in :]

    def scaled(self, index: int, scale: float) -> tuple[Tensor, Tensor]:
        """Returns context and target of one window as float32 `codes x scale`, with one pass fewer than `stored`.

        Raises:
            IndexError: the index is out of range.
            DataError: the event cannot be read.
        """
        frames = self._window(index, np.float32(scale))
        return frames[: self.t_in], frames[self.t_in :]

    def _window(self, index: int, scale: np.float32 | None = None) -> Tensor:
        number, window = divmod(self.checked_index(index), self.windows_per_event)
        first, last = window * self.stride, window * self.stride + self.t_in + self.t_out
        assert self.frame_size is not None
        height, width = self.frame_size
        turned = np.empty((last - first, height * width), np.uint8 if scale is None else np.float32)
        low, high = 255, 0
        for at, pixels in self._blocks(number):
            turned[:, at : at + len(pixels)] = pixels[:, first:last].T
            if low >= high:  # constant so far, which the first block nearly always rules out
                low, high = min(low, int(pixels.min())), max(high, int(pixels.max()))
        if low == high:
            self._check_constant(number, low)
        if scale is not None:
            turned *= scale
        return torch.from_numpy(turned).view(last - first, height, width, 1)

    def _check_constant(self, number: int, code: int) -> None:
        """Refuses a constant event that contradicts the catalogue.

        HDF5 reads unwritten values as zeros, or as the fill value of the file.

        Raises:
            DataError: the event contradicts the catalogue.
        """
        event = self.events[number]
        if code != MISSING and (problem := check_vil(np.array([code], np.uint8), event)):
            raise DataError(f"{self.root / 'data' / event.file_name}: {problem}. {_CHECK}")

    def _blocks(self, number: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the pixels of an event, `(first pixel, codes (pixels, frames))`, a block at a time."""
        event = self.events[number]
        try:
            file = self._open(event.file_name)
            if file.raw is None:
                whole = self._whole(number, file).reshape(-1, self.frames)
                for at in range(0, len(whole), _BLOCK_PIXELS):
                    yield at, whole[at : at + _BLOCK_PIXELS]
                return
            pixels = file.array.shape[1] * file.array.shape[2]
            start = file.offset + event.file_index * pixels * self.frames
            if self._block is None:
                self._block = np.empty((_BLOCK_PIXELS, self.frames), np.uint8)
            for at in range(0, pixels, _BLOCK_PIXELS):
                part = self._block[: pixels - at]
                if os.preadv(file.raw.fileno(), [part.data], start + at * self.frames) != part.nbytes:
                    raise OSError("the file ends before the event does")
                yield at, part
        except HDF5_ERRORS as error:
            raise DataError(
                f"{self.root / 'data' / event.file_name}: event {event.id} at index {event.file_index} cannot be "
                f"read: {error}. {_CHECK}"
            ) from error

    def _open(self, name: str) -> _OpenFile:
        if self._process != os.getpid():  # h5py handles must not be used after a fork
            self._files, self._events_read, self._process = {}, OrderedDict(), os.getpid()
        if name not in self._files:
            path = self.root / "data" / name
            file = open_hdf5(path)
            offset = header_of(path, file).offset
            plain = offset is not None and hasattr(os, "preadv") and isinstance(path, Path)
            self._files[name] = _OpenFile(file[SENSOR], path.open("rb", buffering=0) if plain else None, offset or 0)
        return self._files[name]

    def _whole(self, number: int, file: _OpenFile) -> np.ndarray:
        if number in self._events_read:
            self._events_read.move_to_end(number)
            return self._events_read[number]
        # The array of the evicted event is reused, which avoids page faults.
        full = len(self._events_read) >= _CACHED_EVENTS
        into = self._events_read.popitem(last=False)[1] if full else np.empty(file.array.shape[1:], np.uint8)
        with as_os_errors(self.root):
            file.array.read_direct(into, np.s_[self.events[number].file_index])
        self._events_read[number] = into
        return into

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without open files: each worker process opens its own."""
        return {**self.__dict__, "_files": {}, "_events_read": OrderedDict(), "_block": None}

    @cached_property
    def contents(self) -> tuple[str, ...]:
        """Returns the SHA-256 of every event's pixels, independent of name and storage."""
        numbers: dict[str, dict[int, int]] = {}
        for number, event in enumerate(self.events):
            numbers.setdefault(event.file_name, {})[event.file_index] = number
        found: dict[tuple[str, int], str] = {}
        for name, by_index in numbers.items():

            def pixels(index: int, by_index: dict[int, int] = by_index) -> Iterator[np.ndarray]:
                yield from (np.ascontiguousarray(block) for _, block in self._blocks(by_index[index]))

            digests = event_digests(self.root / "data" / name, sorted(by_index), pixels)
            found |= {(name, index): digest for index, digest in digests.items()}
        return tuple(found[event.file_name, event.file_index] for event in self.events)

    def identity(self) -> dict[str, Any]:
        """Returns the identity of these data: the events in order, their shape, and every pixel."""
        listing = hashlib.sha256()
        for event, content in zip(self.events, self.contents, strict=True):
            listing.update(f"{event.id}|{event.time.isoformat()}|{content}\n".encode())
        return {
            "origin": origin(self.root),
            "event_count": len(self.events),
            "sequence_count": len(self),
            "event_shape": [*(self.frame_size or ()), self.frames],
            "window": [self.t_in, self.t_out, self.stride],
            "events_sha256": listing.hexdigest(),
            **({"skipped_ids": list(self.skipped_ids)} if self.skipped_ids else {}),
        }
