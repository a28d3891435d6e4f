"""Radar images of weather services, one file per time, read by the importers of pySTEPS.

Source: Pulkkinen et al. 2019, Geosci. Model Dev. 12, 4185-4219 (pySTEPS), its importers and conversions; rain rates
from reflectivities by Z = a R^b with the importer's a and b, else 200 and 1.6 (Marshall and Palmer 1948).
"""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.data.grid.rain_store import Lattice
from bench.errors import DataError, UsageError, one_message

Reader = Literal["knmi_hdf5", "odim_hdf5", "fmi_pgm", "mch_gif", "bom_netcdf", "mrms_grib"]
_IMPORTERS = {"bom_netcdf": "import_bom_rf3"}
_DATES = (
    (re.compile(r"(\d{8})[-_T]?(\d{6})(?!\d)"), "%Y%m%d%H%M%S"),
    (re.compile(r"(\d{8})[-_T]?(\d{4})(?!\d)"), "%Y%m%d%H%M"),
)
_DAY_OF_YEAR = re.compile(r"^[A-Z]{3}(\d{2})(\d{3})(\d{2})(\d{2})")
"""MeteoSwiss: product, year, day of the year, hour, minute."""
_MIN_RADIUS = 1e5
"""A smaller radius of the Earth is in kilometres."""


@dataclass(frozen=True)
class Frame:
    """One radar image, the first row in the north."""

    rates: np.ndarray
    """`(H,W)`, float32 mm/h, NaN outside the radar's coverage."""
    lattice: Lattice
    z_r: tuple[float, float] = (200.0, 1.6)
    """a and b of Z = a R^b, from the importer if it has any."""


def dated_files(pattern: str) -> list[tuple[np.datetime64, Path]]:
    """Returns the files of a glob in the order of the times in their names.

    Raises:
        DataError: there is no file, a name has no time, or two files have the same time.
    """
    paths = [Path(path) for path in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]  # noqa: PTH207
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise DataError(f"--in {pattern}: no file; expected a glob in quotes, such as 'archive/*.h5'")
    found = [(time_in_name(path.name), path) for path in paths]
    undated = [path.name for time, path in found if time is None]
    if undated:
        raise DataError(
            f"--in {pattern}: {len(undated)} names have no time such as 202405310005 in them: {', '.join(undated[:3])}"
        )
    dated = sorted((time, path) for time, path in found if time is not None)
    twice = [
        f"{time}: {path.name} and {other.name}"
        for (time, path), (again, other) in itertools.pairwise(dated)
        if time == again
    ]
    if twice:
        raise DataError(one_message(f"--in {pattern}: {len(twice)} times have two files; name one product:", twice))
    return dated


def time_in_name(name: str) -> np.datetime64 | None:
    """Returns the time in the name of a radar file: the last `YYYYMMDDhhmm[ss]`, or MeteoSwiss's day of the year."""
    if match := _DAY_OF_YEAR.match(name):
        year, day, hour, minute = map(int, match.groups())
        if 1 <= day <= 366 and hour < 24 and minute < 60:
            return np.datetime64(datetime(2000 + year, 1, 1) + timedelta(days=day - 1, hours=hour, minutes=minute), "s")
    for pattern, form in _DATES:
        for match in reversed(list(pattern.finditer(name))):
            with contextlib.suppress(ValueError):
                return np.datetime64(datetime.strptime("".join(match.groups()), form), "s")
    return None


def read_original(path: Path, reader: Reader, *, accutime: float = 5.0) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns the values of one file from its importer, `(H,W)`, NaN where missing, and its metadata.

    Args:
        path: The file.
        reader: Its format.
        accutime: Accumulation time in minutes, for formats that do not contain it.

    Raises:
        UsageError: pySTEPS, or a library that its importer needs, is not installed.
        DataError: the file is not of this format.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pysteps prints the path of its configuration
        try:
            from pysteps.io import importers
        except ImportError as error:
            raise UsageError(f"--reader {reader} needs pySTEPS: pip install 'earthbench[pysteps]' ({error})") from error
    options: dict[str, Any] = {}
    if reader == "fmi_pgm":
        options = {"gzipped": path.suffix == ".gz"}
    elif reader == "mch_gif":
        options = {"product": path.name[:3], "unit": "mm", "accutime": accutime}
    elif reader == "mrms_grib":
        options = {"window_size": 1}
    try:
        values, _, metadata = getattr(importers, _IMPORTERS.get(reader, f"import_{reader}"))(str(path), **options)
        return np.asarray(values), dict(metadata)
    except Exception as error:  # each importer has its own errors
        said = " ".join(str(error).split()) or type(error).__name__
        if type(error).__name__ in ("MissingOptionalDependency", "ModuleNotFoundError"):
            raise UsageError(f"--reader {reader}: {said}: pip install 'earthbench[pysteps]'") from error
        raise DataError(f"{path}: not a file that {reader} reads: {said}") from error


def read_frame(path: Path, reader: Reader, *, accutime: float = 5.0) -> Frame:
    """Returns the rain rates and the lattice of one file; arguments and errors are those of `read_original`."""
    values, metadata = read_original(path, reader, accutime=accutime)
    try:
        from pysteps.utils.conversion import to_rainrate

        metadata = {"zr_a": 200.0, "zr_b": 1.6, **metadata}
        z_r = float(metadata["zr_a"]), float(metadata["zr_b"])
        rates, metadata = to_rainrate(values, metadata)
        rates = np.asarray(rates, np.float32)
        rates = rates[::-1] if metadata.get("yorigin") == "lower" else rates
        return Frame(rates, lattice_of(rates.shape, metadata), z_r)
    except Exception as error:  # as above
        said = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a file that {reader} reads: {said}") from error


def lattice_of(shape: tuple[int, ...], metadata: dict[str, Any]) -> Lattice:
    """Returns the lattice of an image from the metadata of pySTEPS' importers."""
    height, width = shape
    x = np.linspace(metadata["x1"], metadata["x2"], 2 * width + 1)[1::2]
    y = np.linspace(metadata["y2"], metadata["y1"], 2 * height + 1)[1::2]
    units = str(metadata.get("cartesian_unit", "m"))
    projection = " ".join(str(metadata["projection"]).split())
    if units == "km":  # CF, PROJ and the other readers have metres
        return Lattice(1000 * y, 1000 * x, _in_metres(projection), "m")
    return Lattice(y, x, projection, "degree" if units.startswith("degree") else units)


def _in_metres(projection: str) -> str:
    """Returns a PROJ string in metres, e.g. for KNMI's, whose Earth has a radius of 6378.137 kilometres."""
    found = re.sub(r"\+units=km\b", "+units=m", projection)
    radius = re.search(r"\+[aR]=([\d.]+)", found)
    if radius is None or float(radius[1]) > _MIN_RADIUS:
        return found
    return re.sub(r"\+(a|b|R|x_0|y_0)=([-+\d.]+)", lambda said: f"+{said[1]}={1000 * float(said[2]):.10g}", found)
