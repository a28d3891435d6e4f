"""Sums per event, from which scores are resampled, as arrays in a compressed file beside the record."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping

import numpy as np

from bench.errors import DataError
from bench.records.reading import read_npz
from bench.records.schema import RunRecord

Arrays = Mapping[str, np.ndarray]


def compact(arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns the arrays with integers in the smallest type that holds them, and floats in float64."""
    found = {}
    for name, values in sorted(arrays.items()):
        if values.dtype.kind in "iu":
            ends = np.min_scalar_type(values.min(initial=0)), np.min_scalar_type(values.max(initial=0))
            found[name] = np.ascontiguousarray(values, np.promote_types(*ends))
        else:
            found[name] = np.ascontiguousarray(values, np.float64)
    return found


def content_sha256(arrays: Arrays) -> str:
    """Returns the SHA-256 of names, types, shapes and bytes, independent of compression."""
    content = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        content.update(f"{name}|{values.dtype.newbyteorder('<').str}|{values.shape}\n".encode())
        content.update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes())
    return content.hexdigest()


def packed(arrays: Arrays) -> bytes:
    """Returns the arrays as the content of an `.npz` file; the same arrays give the same bytes."""
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def read_arrays(record: RunRecord) -> Arrays | None:
    """Returns the statistics of a record; None if it has none or their file is missing.

    Raises:
        DataError: the file cannot be read, or has changed since the record was written.
    """
    if record.statistics is None or record.arrays is None:
        return None
    if isinstance(record.arrays, Mapping):
        return record.arrays
    path = record.arrays
    try:
        arrays = read_npz(path, "readable statistics")
    except FileNotFoundError:
        return None
    if content_sha256(arrays) != record.statistics.content_sha256:
        raise DataError(f"{path}: tampered: its content does not have the hash that record {record.run_id} names")
    known, units = record.statistics.metrics, record.statistics.unit_count
    for name, values in arrays.items():
        if name.partition(".")[0] not in known or values.shape[:1] != (units,):
            expected = f"statistics of {', '.join(known)} for each of {units} events"
            raise DataError(f"{path}: not readable statistics: {name} has shape {values.shape}; expected {expected}")
    return arrays
