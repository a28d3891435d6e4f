"""Radar archives of weather services, one file per time, to one cube of rain rates: pySTEPS' importers read them.

Source: Pulkkinen et al. 2019, Geosci. Model Dev. 12, 4185-4219 (pySTEPS), its importers and conversions; rain rates of
reflectivities by Z = a R^b with the a and b that the importer gives, else 200 and 1.6 (Marshall and Palmer 1948).
"""

from __future__ import annotations

import contextlib
import glob
import io
import itertools
import json
import re
import shlex
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bench.data.verbs import AdvanceLabel, DataVerb, Folder
from bench.errors import ConfigError, DataError, UsageError, one_message
from bench.files import replacing

Reader = Literal["knmi_hdf5", "odim_hdf5", "fmi_pgm", "mch_gif", "bom_netcdf", "mrms_grib"]
_IMPORTERS = {"bom_netcdf": "import_bom_rf3"}
_FRAMES_PER_CHUNK = 16
_DATES = (
    (re.compile(r"(\d{8})[-_T]?(\d{6})(?!\d)"), "%Y%m%d%H%M%S"),
    (re.compile(r"(\d{8})[-_T]?(\d{4})(?!\d)"), "%Y%m%d%H%M"),
)
_DAY_OF_YEAR = re.compile(r"^[A-Z]{3}(\d{2})(\d{3})(\d{2})(\d{2})")
"""MeteoSwiss: product, year, day of the year, hour, minute."""
_DONE = "earthbench-done.json"


class ConvertRadarFiles(DataVerb):
    """Original radar files to a Zarr cube of rain rates that task `grid` reads."""

    summary: ClassVar[str] = "read a radar archive with pySTEPS and write one Zarr cube of rain rates in mm/h"

    reader: Reader = Field(description="format: knmi_hdf5, odim_hdf5, fmi_pgm, mch_gif, bom_netcdf or mrms_grib")
    inputs: str = Field(alias="in", description="glob of the files, one per time: 'dir/*'")
    out: Folder = Field(description="store to make: NAME.zarr")
    extent: tuple[float, float, float, float] | None = Field(
        None, description="X1,X2,Y1,Y2 to keep, in the units of the projection, as in --extent=-5,5,50,60"
    )
    workers: int = Field(1, ge=1, description="processes that read")
    accutime: float = Field(5.0, gt=0, description="minutes that mch_gif files accumulate over; others say it")

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Converts the files, resumes a stopped conversion of the same ones, and returns what was made."""
        if self.out.suffix != ".zarr":
            raise ConfigError(f"--out {self.out}: expected a name that ends in .zarr")
        if self.out.exists():
            raise DataError(f"{self.out} is there already; choose another name or delete it")
        files = dated_files(self.inputs)
        times = np.array([time for time, _ in files], "datetime64[s]")
        job = {"reader": self.reader, "extent": self.extent, "accutime": self.accutime,
               "files": [[str(time), path.name, path.stat().st_size] for time, path in files]}  # fmt: skip
        part = self.out.with_name(f".{self.out.name}.part")
        first = self._read(files[0][1])
        array, done = _opened(part, job, first, times)
        blocks = [range(at, min(at + _FRAMES_PER_CHUNK, len(files))) for at in range(0, len(files), _FRAMES_PER_CHUNK)]
        missing = [block for block in blocks if block.start not in done]
        problems: list[str] = []
        with _pool(self.workers) as pool:
            for block in missing:
                paths = [files[at][1] for at in block]
                read = pool.map(self._read_or_say, paths) if pool else map(self._read_or_say, paths)
                frames = np.full((len(block), *first.rates.shape), np.nan, np.float32)
                failed = False
                for number, (found, path) in enumerate(zip(read, paths, strict=True)):
                    if isinstance(found, str) or found.grid != first.grid:
                        problems.append(found if isinstance(found, str) else f"{path}: another grid than {files[0][1]}")
                        failed = True
                    else:
                        frames[number] = found.rates
                    advance("radar files", block.start + number + 1, len(files))
                if not failed:
                    array[block.start : block.stop] = frames
                    done.append(block.start)
                    _write_json(part / _DONE, {"job": job, "done": done})
        if problems:
            raise DataError(
                one_message(f"{len(problems)} of {len(files)} files cannot be used; what was read is kept:", problems)
            )
        (part / _DONE).unlink()
        part.replace(self.out)
        root = shlex.quote(str(self.out))
        return [
            f"{len(files)} frames of {first.rates.shape[0]}x{first.rates.shape[1]}, {times[0]} to {times[-1]}, in "
            f"{self.out}",
            f"try: earthbench data info grid --root {root} 'task.thresholds=[0.5,2,5,10]'",
        ]

    def _read_or_say(self, path: Path) -> Frame | str:
        try:
            return self._read(path)
        except DataError as error:
            return str(error)

    def _read(self, path: Path) -> Frame:
        return read_frame(path, self.reader, extent=self.extent, accutime=self.accutime)


class Frame:
    """One radar image: rain rates and where they are."""

    def __init__(self, rates: np.ndarray, y: np.ndarray, x: np.ndarray, projection: str, units: str) -> None:
        self.rates, self.y, self.x, self.projection, self.units = rates, y, x, projection, units

    @property
    def grid(self) -> tuple[Any, ...]:
        """Returns what two frames of one cube have alike; metres are compared to the centimetre."""
        corners = [round(float(value), 2) for value in (self.y[0], self.y[-1], self.x[0], self.x[-1])]
        return (self.rates.shape, *corners, self.projection)


def dated_files(pattern: str) -> list[tuple[np.datetime64, Path]]:
    """Returns the files of a glob in the order of the times in their names.

    Raises:
        DataError: none, a name without a time, or a time that two files have.
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


def read_frame(path: Path, reader: Reader, *, extent: Sequence[float] | None = None, accutime: float = 5.0) -> Frame:
    """Returns the rain rates of one file, float32 `(H,W)` in mm/h, NaN where the radar saw nothing.

    Args:
        path: The file.
        reader: Its format.
        extent: X1, X2, Y1, Y2 to keep, in the units of the projection.
        accutime: Minutes, for readers whose files do not say.

    Raises:
        UsageError: pySTEPS, or a library that its importer needs, is not installed.
        DataError: the file is not of this format.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # pysteps prints where its configuration is
        try:
            from pysteps.io import importers
            from pysteps.utils.conversion import to_rainrate
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
        if metadata["unit"] == "dBZ":
            metadata = {"zr_a": 200.0, "zr_b": 1.6, **metadata}
        rates, metadata = to_rainrate(values, metadata)
        return _framed(np.asarray(rates, np.float32), metadata, extent)
    except (ConfigError, UsageError):
        raise
    except Exception as error:  # each importer raises what it stumbles over
        said = " ".join(str(error).split()) or type(error).__name__
        if type(error).__name__ in ("MissingOptionalDependency", "ModuleNotFoundError"):
            raise UsageError(f"--reader {reader}: {said}: pip install 'earthbench[pysteps]'") from error
        raise DataError(f"{path}: not a file that {reader} reads: {said}") from error


def _framed(rates: np.ndarray, metadata: dict[str, Any], extent: Sequence[float] | None) -> Frame:
    """Returns a frame whose first row is the northernmost, cropped."""
    height, width = rates.shape
    x = np.linspace(metadata["x1"], metadata["x2"], 2 * width + 1)[1::2]
    y = np.linspace(metadata["y2"], metadata["y1"], 2 * height + 1)[1::2]
    if metadata.get("yorigin") == "lower":
        rates = rates[::-1]
    if extent is not None:
        x1, x2, y1, y2 = extent
        rows, columns = np.flatnonzero((y >= y1) & (y <= y2)), np.flatnonzero((x >= x1) & (x <= x2))
        if not len(rows) or not len(columns):
            raise ConfigError(
                f"--extent {','.join(map(str, extent))}: no pixel; the data have x {x[0]:g}..{x[-1]:g}, "
                f"y {y[-1]:g}..{y[0]:g}"
            )
        rates, y, x = rates[np.ix_(rows, columns)], y[rows], x[columns]
    units = "degree" if str(metadata.get("cartesian_unit", "m")).startswith("degree") else metadata["cartesian_unit"]
    return Frame(rates, y, x, " ".join(str(metadata["projection"]).split()), units)


def _opened(part: Path, job: dict[str, Any], first: Frame, times: np.ndarray) -> tuple[Any, list[int]]:
    """Returns the array of the store under work, and the first frames of the blocks that are there already."""
    import zarr

    with contextlib.suppress(OSError, ValueError, KeyError):
        said = json.loads((part / _DONE).read_text(encoding="utf-8"))
        if said["job"] == json.loads(json.dumps(job)):
            return zarr.open_group(part, mode="a")["rain_rate"], list(said["done"])
    shutil.rmtree(part, ignore_errors=True)
    _empty_store(part, first, times)
    _write_json(part / _DONE, {"job": job, "done": []})
    return zarr.open_group(part, mode="a")["rain_rate"], []


def _empty_store(part: Path, first: Frame, times: np.ndarray) -> None:
    import xarray
    import zarr

    degrees = first.units == "degree"
    names = ("latitude", "longitude") if degrees else ("projection_y_coordinate", "projection_x_coordinate")
    units = ("degrees_north", "degrees_east") if degrees else (first.units, first.units)
    part.parent.mkdir(parents=True, exist_ok=True)
    header = xarray.Dataset(
        {"crs": ((), 0, _mapping(first.projection))},
        {
            "time": ("time", times.astype("datetime64[ns]"), {"standard_name": "time"}),
            "y": ("y", first.y, {"standard_name": names[0], "units": units[0]}),
            "x": ("x", first.x, {"standard_name": names[1], "units": units[1]}),
        },
        {"Conventions": "CF-1.11", "source": "radar files read by pySTEPS"},
    )
    header.to_zarr(part, mode="w", consolidated=False, zarr_format=3)
    array = zarr.open_group(part, mode="a").create_array(
        "rain_rate", shape=(len(times), *first.rates.shape), dtype="float32", fill_value=float("nan"),
        chunks=(min(_FRAMES_PER_CHUNK, len(times)), *first.rates.shape), dimension_names=("time", "y", "x"),
    )  # fmt: skip
    array.attrs.update(
        {"units": "mm/h", "long_name": "rain rate", "standard_name": "rainfall_rate", "grid_mapping": "crs",
         "_FillValue": "AAAAAAAA+H8="}
    )  # fmt: skip


def _mapping(projection: str) -> dict[str, Any]:
    """Returns the CF attributes of a PROJ string, as far as pyproj knows them."""
    found: dict[str, Any] = {"proj4": projection}
    try:
        from pyproj import CRS

        with warnings.catch_warnings():  # what of it CF cannot say stands in proj4
            warnings.simplefilter("ignore", UserWarning)
            known = CRS.from_user_input(projection).to_cf()
        found |= {key: value for key, value in known.items() if key != "crs_wkt"}
    except Exception:  # no pyproj, or a projection that CF has not
        pass
    return found


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    if workers == 1:
        yield None
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield pool


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(content), encoding="utf-8")
