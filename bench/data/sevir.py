"""SEVIR sequences from disk: random access that reads one event, as uint8, and cuts a window of frames out of it."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from bench.data.sevir_catalogue import Event, origin, read_catalogue, read_headers, select_events
from bench.errors import ConfigError, DataError, one_message

# Pixels per block when frames are brought to the front.  A block of 49-frame pixels stays in the second-level cache,
# which makes the transposition 2 to 3 times as fast as in one go.
_BLOCK_PIXELS = 2048
# Event arrays kept per process: the windows of an event cost one read when they are asked for near each other.
_CACHED_EVENTS = 4


class SevirSequences:
    """Windows of consecutive frames of SEVIR events, `(T,H,W,1)` uint8; window k of event e has index e*n + k.

    Args:
        root: Folder with `CATALOG.csv` and `data/`.
        t_in: Frames of the context.
        t_out: Frames of the target, right after the context.
        stride: Frames between the starts of an event's windows.
        start: Exclusive lower bound of the event's centre time.
        end: Inclusive upper bound.
        admit_missing: Keep events with missing pixels (code 255).

    Raises:
        DataError: lists every file that is missing, unreadable or disagrees with the catalogue.
        ConfigError: the events are shorter than one window.
    """

    def __init__(
        self,
        root: Path,
        *,
        t_in: int,
        t_out: int,
        stride: int,
        start: datetime | None = None,
        end: datetime | None = None,
        admit_missing: bool = False,
    ) -> None:
        self.root, self.t_in, self.t_out, self.stride = root, t_in, t_out, stride
        self.events = select_events(read_catalogue(root), start=start, end=end, admit_missing=admit_missing)
        headers, problems = read_headers(root, self.events)
        if problems:
            raise DataError(one_message(f"the data under {root} has {len(problems)} problems:", problems))
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
        self._bytes = sum(h.path.stat().st_size for h in headers.values())
        self._files: dict[str, h5py.File] = {}
        self._events_read: OrderedDict[int, np.ndarray] = OrderedDict()
        self._process = os.getpid()

    @property
    def ids(self) -> tuple[str, ...]:
        """Returns the id of every event."""
        return tuple(event.id for event in self.events)

    def __len__(self) -> int:
        """Returns the number of windows."""
        return len(self.events) * self.windows_per_event

    def stored(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns context and target of one window as uint8 codes `(T,H,W,1)`: 0..254, 255 for missing.

        Raises:
            IndexError: the index is out of range.
            DataError: the event cannot be read.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        event, window = divmod(index % len(self), self.windows_per_event)
        first = window * self.stride
        frames = self._frames_first(self._event(event), first, first + self.t_in + self.t_out)
        return frames[: self.t_in], frames[self.t_in :]

    @staticmethod
    def _frames_first(event: np.ndarray, first: int, last: int) -> Tensor:
        height, width, frames = event.shape
        pixels = event.reshape(-1, frames)[:, first:last]
        turned = np.empty((last - first, height * width), np.uint8)
        for at in range(0, height * width, _BLOCK_PIXELS):
            turned[:, at : at + _BLOCK_PIXELS] = pixels[at : at + _BLOCK_PIXELS].T
        return torch.from_numpy(turned).view(last - first, height, width, 1)

    def _event(self, number: int) -> np.ndarray:
        if self._process != os.getpid():  # an h5py handle must not be used on the far side of a fork
            self._files, self._events_read, self._process = {}, OrderedDict(), os.getpid()
        if number in self._events_read:
            self._events_read.move_to_end(number)
            return self._events_read[number]
        event = self.events[number]
        # The array of the event that falls out of the cache is read into again: no new pages to fault in.
        spare = self._events_read.popitem(last=False)[1] if len(self._events_read) >= _CACHED_EVENTS else None
        self._events_read[number] = self._read(event, spare)
        return self._events_read[number]

    def _read(self, event: Event, spare: np.ndarray | None) -> np.ndarray:
        path = self.root / "data" / event.file_name
        try:
            if event.file_name not in self._files:
                self._files[event.file_name] = h5py.File(path, "r")
            array = self._files[event.file_name]["vil"]
            into = np.empty(array.shape[1:], np.uint8) if spare is None else spare
            array.read_direct(into, np.s_[event.file_index])
            return into
        except (OSError, KeyError, ValueError) as error:
            raise DataError(
                f"{path}: event {event.id} at index {event.file_index} cannot be read: {error}. "
                "Run `earthbench data check sevir --root DIR`."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without open files: each worker process opens its own."""
        return {**self.__dict__, "_files": {}, "_events_read": OrderedDict()}

    def identity(self) -> dict[str, Any]:
        """Returns what identifies these data: the events in order, their shape, and the bytes of three of them.

        Hashing 150 GB would take minutes of every run, so the content enters by its first, middle and last event.
        """
        listing = hashlib.sha256()
        for event in self.events:
            listing.update(f"{event.id}|{event.file_name}|{event.file_index}|{event.time.isoformat()}\n".encode())
        sample = hashlib.sha256()
        for number in sorted({0, len(self.events) // 2, len(self.events) - 1} if self.events else set()):
            sample.update(self._event(number).tobytes())
        return {
            "origin": origin(self.root),
            "event_count": len(self.events),
            "sequence_count": len(self),
            "event_shape": [*(self.frame_size or ()), self.frames],
            "window": [self.t_in, self.t_out, self.stride],
            "file_bytes": self._bytes,
            "events_sha256": listing.hexdigest(),
            "sample_sha256": sample.hexdigest(),
        }
