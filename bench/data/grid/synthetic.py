"""A synthetic rain cube like that of a weather service: mm/h, NaN outside the radar's range, a gap in time."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from bench.config.overrides import literal
from bench.data.sevir.synthetic import storm_event
from bench.data.verbs import AdvanceLabel, DataVerb, Folder
from bench.errors import ConfigError, DataError
from bench.files import replacing

_DAY = np.datetime64("2024-06-01T00:00:00", "s")
_MAX_RATE = 60.0


class MakeRain(DataVerb):
    """A generated cube of rain rates."""

    summary: ClassVar[str] = "make a cube of synthetic rain rates, NetCDF or Zarr by the ending of its name"

    out: Folder = Field(description="file to make: NAME.nc or NAME.zarr")
    frames: int = Field(288, ge=2, description="frames, one every 5 minutes")
    height: int = Field(128, ge=8, description="rows")
    width: int = Field(128, ge=8, description="columns")
    gap: int = Field(6, ge=0, description="frames left out in the middle")
    seed: int = Field(0, ge=0, description="same seed, same values")

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Writes the cube and returns what was made and what to try with it."""
        if self.out.exists():
            raise DataError(f"{self.out} already exists; choose another name or delete it")
        dataset = rain_cube(self.frames, (self.height, self.width), gap=self.gap, seed=self.seed)
        write_cube(dataset, self.out)
        root = shlex.quote(f"data.root={literal(str(self.out))}")
        return [
            f"made {self.frames} frames of {self.height}x{self.width} in {self.out}",
            f"try: earthbench data info grid --root {shlex.quote(str(self.out))}",
            f"or:  earthbench run task=grid task.scale=log1p 'task.thresholds=[0.5,2,5,10]' model=unet {root}",
        ]


def rain_cube(frames: int, size: tuple[int, int], *, gap: int = 0, seed: int = 0) -> Any:
    """Returns an `xarray.Dataset` with `rain_rate` (time, y, x) in mm/h, float32, on a projected grid of 1 km.

    Args:
        frames: Number of frames, every 5 minutes.
        size: Rows and columns.
        gap: Frames left out in the middle of the time.
        seed: Same seed, same values.
    """
    import xarray

    height, width = size
    generator = np.random.default_rng(seed)
    square = max(size)
    pieces, left = [], frames
    while left > 0:
        length = min(left, 48)
        pieces.append(storm_event(generator, size=square, frames=max(length, 2), minutes=5.0)[..., :length])
        left -= length
    codes = np.concatenate(pieces, -1)[:height, :width].transpose(2, 0, 1).astype(np.float32)
    rates = (_MAX_RATE * (codes / 254.0) ** 2).round(2)
    rows, columns = np.ogrid[:height, :width]
    beyond = np.hypot((rows - height / 2) / height, (columns - width / 2) / width) > 0.55
    rates[:, beyond] = np.nan
    steps = np.arange(frames)
    steps[frames // 2 :] += gap
    return xarray.Dataset(
        {
            "rain_rate": (
                ("time", "y", "x"), rates,
                {"units": "mm/h", "long_name": "rain rate", "standard_name": "rainfall_rate", "grid_mapping": "crs"},
            ),
            "crs": ((), 0, {"grid_mapping_name": "lambert_azimuthal_equal_area", "latitude_of_projection_origin": 52.0,
                            "longitude_of_projection_origin": 10.0}),
        },
        {
            "time": ("time", _DAY + steps * np.timedelta64(300, "s"), {"standard_name": "time"}),
            "y": ("y", np.arange(height) * 1000.0, {"standard_name": "projection_y_coordinate", "units": "m"}),
            "x": ("x", np.arange(width) * 1000.0, {"standard_name": "projection_x_coordinate", "units": "m"}),
        },
        {"Conventions": "CF-1.11", "source": "earthbench data make grid: synthetic"},
    )  # fmt: skip


def write_cube(dataset: Any, path: Path, *, frames_per_chunk: int = 16) -> None:
    """Writes a data set whole or not at all, as Zarr if the name ends in `.zarr`, else as NetCDF 4.

    Raises:
        ConfigError: the name has another ending.
        DataError: it cannot be written.
    """
    names = [str(name) for name, found in dataset.data_vars.items() if found.ndim == 3]
    sizes = {name: (min(frames_per_chunk, dataset[name].shape[0]), *dataset[name].shape[1:]) for name in names}
    if path.suffix not in (".nc", ".nc4", ".zarr"):
        raise ConfigError(f"{path}: expected a name that ends in .nc or .zarr")
    with replacing(path) as part:
        try:
            if path.suffix == ".zarr":
                dataset.to_zarr(part, mode="w", encoding={name: {"chunks": size} for name, size in sizes.items()},
                                consolidated=False, zarr_format=3)  # fmt: skip
            else:
                packed = {name: {"zlib": True, "complevel": 1, "chunksizes": size} for name, size in sizes.items()}
                dataset.to_netcdf(part, engine="h5netcdf", encoding=packed)
        except BaseException:
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            raise
