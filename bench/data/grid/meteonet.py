"""Conversion of MeteoNet, Meteo-France's open archive of radar rainfall, to a cube of rain rates.

Source: Larvor et al. 2020, MeteoNet, https://meteofrance.github.io/meteonet/english/data/rain-radar/: one `.npz` file
per ten days with `data` (T,H,W) in hundredths of a millimetre per 5 minutes, -1 if missing, and `dates` and
`miss_dates`, datetimes; `radar_coords_ZONE.npz` has `lats` and `lons` of the pixel centres, EPSG:4326, 0.01 degrees.
"""

from __future__ import annotations

import glob
import pickle
import shlex
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.lib import format as npy
from pydantic import Field

from bench.data.grid.rain_store import FRAMES_PER_CHUNK, Lattice, Unfinished, empty_store, rain_rates
from bench.data.verbs import AdvanceLabel, DataVerb, Folder
from bench.errors import ConfigError, DataError, one_message

_MM_PER_HOUR = 0.12
"""mm/h for a hundredth of a millimetre in 5 minutes."""
_MISSING = -1
_IRREGULAR = 1e-4
"""Tolerance in degrees of a coordinate within its row or column: 1 % of a pixel."""
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)


class ConvertMeteonet(DataVerb):
    """MeteoNet's rainfall files to a Zarr cube of rain rates that task `grid` reads."""

    summary: ClassVar[str] = "read MeteoNet's rainfall (.npz) and write one Zarr cube of rain rates in mm/h"

    inputs: str = Field(alias="in", description="glob of the files: 'rainfall_NW_2016_*.npz'")
    coords: Folder = Field(description="file with lats and lons of the pixels: radar_coords_NW.npz")
    out: Folder = Field(description="store to make: NAME.zarr")
    extent: tuple[float, float, float, float] | None = Field(
        None, description="WEST,EAST,SOUTH,NORTH to keep, in degrees, as in --extent=-5,-1,47,50"
    )

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Converts the files in order, resuming a stopped conversion of the same files, and returns what was made.

        Raises:
            DataError: files are not MeteoNet's, have other pixels than the coordinates, or a time twice.
        """
        if self.out.suffix != ".zarr":
            raise ConfigError(f"--out {self.out}: expected a name that ends in .zarr")
        paths = [Path(path) for path in sorted(glob.glob(str(Path(self.inputs).expanduser()), recursive=True))]  # noqa: PTH207
        if not paths:
            raise DataError(f"--in {self.inputs}: no file; expected a glob in quotes, such as 'rainfall_NW_*.npz'")
        whole = read_lattice(self.coords)
        rows, columns = whole.cropped(self.extent)
        files = sorted(((read_dates(path), path) for path in paths), key=lambda file: file[0][0])
        times = np.concatenate([dates for dates, _ in files])
        if (wrong := np.flatnonzero(np.diff(times).astype(np.int64) <= 0)).size:
            lines = [str(times[at + 1]) for at in wrong]
            raise DataError(one_message(f"--in {self.inputs}: {len(wrong)} times are repeated or out of order:", lines))
        job = {"extent": self.extent, "files": [[path.name, path.stat().st_size] for _, path in files],
               "coords": self.coords.name}  # fmt: skip
        lattice = whole.part(rows, columns)
        work = Unfinished(
            self.out, job, lambda folder: empty_store(folder, lattice, times, "MeteoNet, Meteo-France, open licence")
        )
        array, first = rain_rates(work.folder), 0
        for number, (dates, path) in enumerate(files):
            if number not in work.done:
                at = first
                for raw in read_blocks(path, len(dates), whole.shape):
                    rates = raw[:, rows, columns].astype(np.float32) * np.float32(_MM_PER_HOUR)
                    array[at : at + len(raw)] = np.where(raw[:, rows, columns] == _MISSING, np.float32("nan"), rates)
                    at += len(raw)
                    advance("frames", at, len(times))
                work.mark(number)
            first += len(dates)
        work.finish()
        return [
            f"{len(times)} frames of {lattice.shape[0]}x{lattice.shape[1]}, {times[0]} to {times[-1]}, in {self.out}",
            f"try: earthbench data info grid --root {shlex.quote(str(self.out))} 'task.thresholds=[0.5,2,5,10]'",
        ]


def read_lattice(path: Path) -> Lattice:
    """Returns the pixel centres of a coordinate file.

    Raises:
        DataError: `lats` or `lons` are missing, or the grid is not regular.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            lats, lons = (np.asarray(file[name], np.float64) for name in ("lats", "lons"))
    except _BROKEN as error:
        raise DataError(f"--coords {path}: expected an npz file with lats and lons: {error}") from error
    if lats.ndim == lons.ndim == 2 and lats.shape == lons.shape:
        off = max(np.abs(lats - lats[:, :1]).max(initial=0), np.abs(lons - lons[:1]).max(initial=0))
        if off > _IRREGULAR:
            raise DataError(f"--coords {path}: expected a regular grid, found pixels {off:g} degrees off their row")
        lats, lons = lats[:, 0], lons[0]
    if lats.ndim != 1 or lons.ndim != 1 or min(len(lats), len(lons)) < 2:
        raise DataError(f"--coords {path}: expected lats and lons (H,W), found {lats.shape} and {lons.shape}")
    return Lattice(lats, lons, "EPSG:4326", "degree")


def read_dates(path: Path) -> np.ndarray:
    """Returns the times of a file's frames, datetime64[s] `(T,)` in UTC, without executing its pickle.

    Raises:
        DataError: there are none, or they are not datetimes.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("dates.npy") as file:
            shape, _, dtype = _header(file)
            found = _DatesUnpickler(file).load() if dtype.hasobject else np.frombuffer(file.read(), dtype)
            dates = np.array([_utc(date) for date in np.ravel(found)], "datetime64[s]")
    except _BROKEN as error:
        raise DataError(f"{path}: expected MeteoNet's npz with `dates`: {' '.join(str(error).split())}") from error
    if not len(dates) or dates.shape != shape:
        raise DataError(f"{path}: expected dates (T,), found {shape}")
    return dates


def read_blocks(path: Path, count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yields the integer values of a file `(n,H,W)`, some frames at a time, because a file unpacks to gigabytes.

    Args:
        path: The file.
        count: Number of frames.
        size: `(H, W)`.

    Raises:
        DataError: `data` is truncated, or has another shape or type.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("data.npy") as file:
            shape, fortran, dtype = _header(file)
            if dtype.kind not in "iu" or fortran or shape != (count, *size):
                raise DataError(
                    f"{path}: data: expected whole numbers {(count, *size)}, as many as dates and coordinates; found "
                    f"{dtype} {shape}"
                )
            frame = size[0] * size[1] * dtype.itemsize
            for first in range(0, count, FRAMES_PER_CHUNK):
                frames = min(FRAMES_PER_CHUNK, count - first)
                content = file.read(frames * frame)
                if len(content) != frames * frame:
                    raise DataError(f"{path}: data ends after {first + len(content) // frame} of {count} frames")
                yield np.frombuffer(content, dtype).reshape(frames, *size)
    except _BROKEN as error:
        raise DataError(f"{path}: data cannot be read: {' '.join(str(error).split())}") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(file)
    return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)


def _utc(date: Any) -> np.datetime64:
    if isinstance(date, datetime):
        return np.datetime64(date.astimezone(UTC).replace(tzinfo=None) if date.tzinfo else date, "s")
    if isinstance(date, np.datetime64):
        return date.astype("datetime64[s]")
    raise ValueError(f"expected datetimes, found {type(date).__name__}")


def _rebuilt(kind: type, shape: tuple[int, ...], type_: Any) -> np.ndarray:
    """Replaces numpy's function for pickled arrays, and accepts plain arrays only."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"{kind!r} is not an array")
    return np.ndarray(shape, type_)


class _DatesUnpickler(pickle.Unpickler):
    """Reads arrays of datetimes; every other name in a pickle, which could run code, is refused."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("datetime", "datetime"): datetime,
        ("datetime", "timedelta"): timedelta,
        ("datetime", "timezone"): timezone,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): _rebuilt,
        ("numpy._core.multiarray", "_reconstruct"): _rebuilt,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Returns an allowed object.

        Raises:
            UnpicklingError: it is not allowed.
        """
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        if (module, name) == ("_codecs", "encode"):  # protocol 2 writes the bytes of a datetime so
            return lambda text, encoding="latin1": str(text).encode("latin1")
        raise pickle.UnpicklingError(f"its pickle wants {module}.{name}; only datetimes are read, nothing is run")
