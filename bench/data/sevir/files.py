"""Checks that an array's axes are `(N, H, W, T)`, using the catalogue's description of its events."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from bench.data.sevir.catalogue import SENSOR
from bench.data.transfer.paths import as_os_errors, open_hdf5
from bench.errors import DataError, first_line

_USUAL_FRAMES = (25, 49)
"""Frames of SEVIR-LR and SEVIR, the last resort if the catalogue has no information."""
_ORDERS = {"(N, H, W, T)": (0, 1, 2), "(N, T, H, W)": (1, 2, 0), "(N, H, T, W)": (0, 2, 1)}


@lru_cache(maxsize=64)
def other_order(shape: tuple[int, int, int], size: tuple[int, int] | None, frames: int | None) -> str | None:
    """Returns the order of an event's axes if it is apparently not `(H, W, T)`, else None.

    Args:
        shape: Shape of one event as stored.
        size: Height and width by the catalogue (`size_y`, `size_x`), or None.
        frames: Number of `minute_offsets` in the catalogue, or None.

    The authors' SEVIR-LR has the unchanged catalogue of SEVIR: a size that is an integer multiple and offsets that were
    thinned out regularly also agree, though less than equal ones.
    """
    fits = {}
    for name, (first, second, last) in _ORDERS.items():
        height, width = shape[first], shape[second]
        fits[name] = _size_fits(height, width, size) + _frames_fit(shape[last], frames)
    expected, *others = fits
    best = max(others, key=fits.__getitem__)
    if fits[best] > fits[expected]:
        return best
    if fits[expected]:
        return None
    first, second, last = shape
    if first != second and (second == last or first == last):  # frames are square, nearly always
        return "(N, T, H, W)" if second == last else "(N, H, T, W)"
    return "(N, T, H, W)" if first in _USUAL_FRAMES and last not in _USUAL_FRAMES else None


def _size_fits(height: int, width: int, size: tuple[int, int] | None) -> int:
    if size is None:
        return 0
    if (height, width) in (size, size[::-1]):
        return 2
    factor = round(size[0] / height) if height else 0
    return int(factor > 1 and (-(-size[0] // factor), -(-size[1] // factor)) == (height, width))


def _frames_fit(count: int, frames: int | None) -> int:
    if frames is None or frames < 2:
        return 0
    return 2 if count == frames else int(count > 1 and (frames - 1) % (count - 1) == 0)


HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError)
"""Errors of h5py for damaged files."""
# Limits far above any event file: SEVIR has 20,393 events of 7.2 MB in 15 files.
_MAX_EVENTS = 1_000_000
_MAX_EVENT_BYTES = 1 << 31
_MAX_ID_BYTES = 256
_COPY = "the events must lie in the file that the catalogue names: copy them into it"


class FileInUseError(DataError):
    """A file that may be intact but cannot be opened now."""


@dataclass(frozen=True)
class FileHeader:
    """The header of an event file."""

    path: Path
    event_count: int
    height: int
    width: int
    frames: int
    ids: tuple[str, ...] | None
    compression: str | None
    offset: int | None = None
    """Offset of the array in the file, if it is contiguous."""
    chunk_events: int = 1
    """Events in a chunk."""
    written_chunks: frozenset[int] | None = None
    """Numbers of the complete chunks along the first axis; None if all are complete."""

    @property
    def event_bytes(self) -> int:
        """Returns the size of one event's uint8 array in bytes."""
        return self.height * self.width * self.frames

    def is_written(self, index: int) -> bool:
        """Returns whether all bytes of an event were ever written."""
        return self.written_chunks is None or index // self.chunk_events in self.written_chunks


def read_header(path: Path) -> FileHeader:
    """Returns the header of an event file: sizes, ids and storage.

    Raises:
        FileInUseError: another program writes the file, or HDF5_USE_FILE_LOCKING requires an unavailable lock.
        DataError: missing, truncated, not HDF5, or not an `(N, H, W, T)` uint8 array under the sensor's name.
    """
    size = None
    try:
        with as_os_errors(path):
            if not path.is_file():
                raise DataError(f"{path}: file is missing")
            size = path.stat().st_size
            with open_hdf5(path) as file:
                return header_of(path, file)
    except HDF5_ERRORS as error:
        why = first_line(error)
        if "unable to lock" in why:
            cure = "HDF5_USE_FILE_LOCKING asks for locks, which this reader needs none of: unset that variable"
            raise FileInUseError(f"{path}: cannot be locked ({why}). {cure}") from error
        if "already open for write" in why:
            cure = "if none does, one was killed: `h5clear --status FILE` takes its mark away"
            raise FileInUseError(f"{path}: another program has the file open for writing; {cure}") from error
        raise DataError(f"{path}: not readable as HDF5 ({size} bytes): {why}") from error


def header_of(path: Path, file: h5py.File) -> FileHeader:
    """Returns the header of an open event file.

    Raises:
        DataError: there is no `(N, H, W, T)` uint8 array of plausible size under the sensor's name in this file.
    """
    array = own_dataset(path, file, SENSOR)
    if array.ndim != 4 or array.dtype != np.uint8:
        found = f"{array.dtype} with shape {array.shape}"
        raise DataError(f"{path}: {SENSOR!r} is {found}; expected uint8 (N, H, W, T), codes 0..255")
    count, height, width, frames = array.shape
    event_bytes = height * width * frames
    if not event_bytes or count > _MAX_EVENTS or event_bytes > _MAX_EVENT_BYTES:
        raise DataError(
            f"{path}: {SENSOR!r} declares {count} events of {height}x{width}x{frames} (H x W x T) in a file of "
            f"{file.id.get_filesize()} bytes; expected up to {_MAX_EVENTS} of 1 to {_MAX_EVENT_BYTES} bytes"
        )
    _check_filters(path, array)
    written = _written_chunks(path, file, array)
    offset = array.id.get_offset()  # None for a chunked, e.g. compressed, array
    plain = any(array.id.get_type().equal(kind) for kind in (h5py.h5t.STD_U8LE, h5py.h5t.STD_U8BE))
    return FileHeader(
        path, count, height, width, frames, _ids(path, file, count), array.compression,
        offset=offset if plain else None, chunk_events=array.chunks[0] if array.chunks else 1, written_chunks=written,
    )  # fmt: skip


def own_dataset(path: Path, file: h5py.File, name: str) -> h5py.Dataset:
    """Returns a dataset that is stored in this file.

    Raises:
        DataError: the name is missing, a group, or a link, virtual dataset or storage in other files.
    """
    if name not in file:
        raise DataError(f"{path}: no dataset {name!r}; found {', '.join(file) or 'nothing'}")
    link = file.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise DataError(f"{path}: {name!r} is a link to {link.path} in {link.filename}; {_COPY}")
    if isinstance(link, h5py.SoftLink) and file.get(name) is None:
        raise DataError(f"{path}: {name!r} is a link to {link.path}, which is not there")
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{path}: {name!r} is a {type(found).__name__.lower()}; expected a dataset")
    if h5py.h5o.get_info(found.id).fileno != h5py.h5o.get_info(file.id).fileno:
        raise DataError(f"{path}: {name!r} lies in {found.file.filename}; {_COPY}")
    if found.is_virtual:
        sources = sorted({source.file_name for source in found.virtual_sources()})
        absent = [source for source in sources if source != "." and not (path.parent / source).exists()]
        missing = f", of which {', '.join(absent)} is missing" if absent else ""
        listing = ", ".join(sources) or "nothing"
        raise DataError(f"{path}: {name!r} is a virtual dataset, made of {listing}{missing}; {_COPY}")
    if found.external:
        listing = ", ".join(part[0] for part in found.external)
        raise DataError(f"{path}: the bytes of {name!r} lie in {listing}; {_COPY}")
    return found


def _check_filters(path: Path, array: h5py.Dataset) -> None:
    properties = array.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            raise DataError(
                f"{path}: {array.name[1:]!r} is packed with HDF5 filter {code} ({label.decode(errors='replace')}), "
                "which is not here. Pack it with gzip (h5repack -f GZIP=4), or set HDF5_PLUGIN_PATH to the folder of "
                "the filter (that of hdf5plugin, say)"
            )


def _written_chunks(path: Path, file: h5py.File, array: h5py.Dataset) -> frozenset[int] | None:
    """Returns the complete chunks along the first axis, None for all; a contiguous array has one per event."""
    if not array.size:
        return None
    if array.chunks is None:
        size, offset = array.id.get_storage_size(), array.id.get_offset()
        if not size:
            return frozenset()
        if size < array.nbytes or (offset or 0) + size > file.id.get_filesize():
            raise DataError(
                f"{path}: {array.name[1:]!r} declares {array.nbytes} bytes, of which the file of "
                f"{file.id.get_filesize()} bytes has not all"
            )
        return None
    chunk_bytes = math.prod(array.chunks) * array.dtype.itemsize
    if chunk_bytes > _MAX_EVENT_BYTES:  # HDF5 always allocates a whole chunk
        raise DataError(
            f"{path}: {array.name[1:]!r} has chunks of {chunk_bytes} bytes; expected {_MAX_EVENT_BYTES} at most"
        )
    across = [math.ceil(length / chunk) for length, chunk in zip(array.shape, array.chunks, strict=True)]
    if array.id.get_num_chunks() >= math.prod(across):
        return None
    found: Counter[int] = Counter()

    def note(chunk: Any) -> None:
        found[chunk.chunk_offset[0] // array.chunks[0]] += 1

    array.id.chunk_iter(note)
    return frozenset(number for number, count in found.items() if count == math.prod(across[1:]))


def _ids(path: Path, file: h5py.File, count: int) -> tuple[str, ...] | None:
    if "id" not in file:
        return None
    ids = own_dataset(path, file, "id")
    is_text = h5py.check_string_dtype(ids.dtype) is not None
    if ids.shape != (count,) or not (is_text or ids.dtype.kind in "iu") or ids.dtype.itemsize > _MAX_ID_BYTES:
        raise DataError(
            f"{path}: 'id' is {ids.dtype} with shape {ids.shape}; expected a text for each of {count} events"
        )
    _check_filters(path, ids)
    if _written_chunks(path, file, ids) is not None:
        raise DataError(f"{path}: 'id' was declared but never, or only partly, written")
    return tuple(_text(value) for value in ids[:])


def _text(value: Any) -> str:
    # HDF5 pads fixed-length text with zeros, as C does, or with spaces, as Fortran does.
    return value.decode("utf-8", "replace").rstrip("\x00 ") if isinstance(value, bytes) else str(value)
