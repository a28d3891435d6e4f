"""Zarr stores of rain rates, as written by the converters, and resumable conversions."""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import ConfigError, DataError
from bench.files import replacing

FRAMES_PER_CHUNK = 16
_DONE = "earthbench-done.json"
_SAME_PLACE = 0.1
"""Tolerance of a projection, as a share of a pixel."""


@dataclass(frozen=True)
class Lattice:
    """Pixel centres and projection of an image, with the first row in the north."""

    y: np.ndarray
    """Middles of the rows, descending."""
    x: np.ndarray
    projection: str
    """PROJ string or the name of an authority, `EPSG:3035`."""
    units: str
    """Of y and x: `m`, `km` or `degree`."""

    @property
    def shape(self) -> tuple[int, int]:
        """Returns `(H, W)`."""
        return len(self.y), len(self.x)

    @property
    def key(self) -> tuple[Any, ...]:
        """Returns a key that is equal for all images of a cube; metres are rounded to centimetres."""
        corners = [round(float(value), 2) for value in (self.y[0], self.y[-1], self.x[0], self.x[-1])]
        return (self.shape, *corners, self.projection)

    def cropped(self, extent: tuple[float, float, float, float] | None) -> tuple[slice, slice]:
        """Returns the rows and columns inside X1, X2, Y1, Y2.

        Raises:
            ConfigError: no pixel is inside.
        """
        if extent is None:
            return slice(0, len(self.y)), slice(0, len(self.x))
        x1, x2, y1, y2 = extent
        rows = np.flatnonzero((self.y >= y1) & (self.y <= y2))
        columns = np.flatnonzero((self.x >= x1) & (self.x <= x2))
        if not len(rows) or not len(columns):
            raise ConfigError(
                f"--extent {','.join(map(str, extent))}: no pixel; the data have x {self.x[0]:g}..{self.x[-1]:g}, "
                f"y {self.y[-1]:g}..{self.y[0]:g}"
            )
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)

    def corners(self) -> dict[str, float]:
        """Returns the degrees of the lower left and the upper right corner, named as in SEVIR's catalogue."""
        from pyproj import Proj

        down, across = ((axis[1] - axis[0]) / 2 for axis in (self.y, self.x))
        x, y = (self.x[0] - across, self.x[-1] + across), (self.y[-1] + down, self.y[0] - down)
        longitude, latitude = (x, y) if self.units == "degree" else Proj(self.projection)(x, y, inverse=True)
        return {
            f"{corner}crnr{name}": float(values[at])
            for at, corner in enumerate(("ll", "ur"))
            for name, values in (("lat", latitude), ("lon", longitude))
        }

    def part(self, rows: slice, columns: slice) -> Lattice:
        """Returns the lattice of some rows and columns."""
        return Lattice(self.y[rows], self.x[columns], self.projection, self.units)


class Unfinished:
    """A store or tree in progress: a hidden folder beside its final name, with a list of finished blocks.

    A stopped conversion of the same job resumes; files of another job are deleted.

    Args:
        out: The final name.
        job: Files and settings, as JSON types.
        begin: Called with the folder when a conversion starts from scratch.

    Raises:
        DataError: the final name is taken.
    """

    def __init__(self, out: Path, job: dict[str, Any], begin: Callable[[Path], None]) -> None:
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise DataError(f"{out} already exists; choose another name or delete it")
        self.out, self.folder = out, out.with_name(f".{out.name}.part")
        self.job = json.loads(json.dumps(job))
        self.done: list[int] = []
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads((self.folder / _DONE).read_text(encoding="utf-8"))
            if said["job"] == self.job:
                self.done = list(said["done"])
                return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        begin(self.folder)
        self._write()

    def mark(self, block: int) -> None:
        """Records that a block is done."""
        self.done.append(block)
        self._write()

    def finish(self) -> None:
        """Gives the folder its final name."""
        (self.folder / _DONE).unlink()
        if self.out.is_dir():
            self.out.rmdir()
        self.folder.replace(self.out)

    def _write(self) -> None:
        with replacing(self.folder / _DONE) as part:
            part.write_text(json.dumps({"job": self.job, "done": self.done}), encoding="utf-8")


def empty_store(folder: Path, lattice: Lattice, times: np.ndarray, source: str) -> None:
    """Writes axes and header of a store of `rain_rate` in mm/h, whose frames are still NaN.

    Args:
        folder: The store.
        lattice: Its pixels.
        times: datetime64 `(T,)`.
        source: Where the data come from.
    """
    import xarray
    import zarr

    degrees = lattice.units == "degree"
    names = ("latitude", "longitude") if degrees else ("projection_y_coordinate", "projection_x_coordinate")
    units = ("degrees_north", "degrees_east") if degrees else (lattice.units, lattice.units)
    header = xarray.Dataset(
        {"crs": ((), 0, _mapping(lattice))},
        {
            "time": ("time", times.astype("datetime64[ns]"), {"standard_name": "time"}),
            "y": ("y", lattice.y, {"standard_name": names[0], "units": units[0]}),
            "x": ("x", lattice.x, {"standard_name": names[1], "units": units[1]}),
        },
        {"Conventions": "CF-1.11", "source": source},
    )
    header.to_zarr(folder, mode="w", consolidated=False, zarr_format=3)
    array = zarr.open_group(folder, mode="a").create_array(
        "rain_rate", shape=(len(times), *lattice.shape), dtype="float32", fill_value=float("nan"),
        chunks=(min(FRAMES_PER_CHUNK, len(times)), *lattice.shape), dimension_names=("time", "y", "x"),
    )  # fmt: skip
    array.attrs.update(
        {"units": "mm/h", "long_name": "rain rate", "standard_name": "rainfall_rate", "grid_mapping": "crs",
         "_FillValue": "AAAAAAAA+H8="}
    )  # fmt: skip


def rain_rates(folder: Path) -> Any:
    """Returns the array of a store, for writing."""
    import zarr

    return zarr.open_group(folder, mode="a")["rain_rate"]


def _mapping(lattice: Lattice) -> dict[str, Any]:
    """Returns the CF attributes of a projection, or its WKT if CF cannot express it, as for the Swiss and the Dutch."""
    from pyproj import CRS, Proj
    from pyproj.exceptions import ProjError

    try:
        with warnings.catch_warnings():  # `proj4` has what CF cannot express
            warnings.simplefilter("ignore", UserWarning)
            known = CRS.from_user_input(lattice.projection).to_cf()
    except ProjError:
        return {"proj4": lattice.projection}
    wkt, corner, pixel = known.pop("crs_wkt"), (lattice.x[0], lattice.y[0]), abs(lattice.x[1] - lattice.x[0])
    same = False
    with contextlib.suppress(ProjError, KeyError, ValueError):
        again = Proj(CRS.from_cf(known))(*Proj(lattice.projection)(*corner, inverse=True))
        same = np.allclose(again, corner, rtol=0, atol=_SAME_PLACE * pixel)
    return {"proj4": lattice.projection, **(known if same else {"crs_wkt": wkt})}
