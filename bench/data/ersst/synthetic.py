"""`earthbench data make enso_ersst`: a synthetic SST record in the format of NOAA or of an ocean model."""

from __future__ import annotations

import shlex
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bench.data.verbs import AdvanceLabel, DataVerb, Folder
from bench.errors import DataError
from bench.files import replacing

_MONTHS = 12
_FREEZING = -1.8
"""Freezing point of sea water, degrees Celsius."""
_MEMORY, _PERIOD_MONTHS = 0.95, 48
"""Damping factor per month and period of the oscillation."""


class MakeSst(DataVerb):
    """A synthetic record: a season, a randomly forced oscillation of the tropical Pacific, land and noise."""

    summary: ClassVar[str] = (
        "make a record of sea-surface temperatures, as NOAA has it or on the grid of an ocean model"
    )

    out: Folder = Field(description="folder to make")
    years: int = Field(40, ge=3, description="years of months")
    first_year: int = Field(1960, ge=1, le=9000, description="the first one")
    form: Literal["sst", "tos"] = Field(
        "sst", description="sst: 4 degrees, standard calendar; tos: as CMIP has it, a curvilinear grid and no leap days"
    )
    seed: int = Field(0, ge=0, description="same seed, same values")

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Writes one NetCDF file and returns what was made and what to try with it.

        Raises:
            DataError: there is a record already.
        """
        path = self.out / f"{self.form}_made.nc"
        if path.exists():
            raise DataError(f"{path} already exists; choose another folder or delete it")
        self.out.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            sst_record(self.years, self.first_year, self.form, self.seed).to_netcdf(part, engine="h5netcdf")
        years = f"task.base_from={self.first_year} task.base_to={self.first_year + self.years - 1}"
        return [
            f"made {self.years * _MONTHS} months of {self.form} in {path}",
            f"try: earthbench data info enso_ersst --root {shlex.quote(str(self.out))} {years}",
        ]


def sst_record(years: int, first_year: int, form: Literal["sst", "tos"], seed: int = 0) -> Any:
    """Returns an `xarray.Dataset` of monthly temperatures in degrees Celsius, NaN on land.

    Args:
        years: How many.
        first_year: The first one.
        form: `sst` (time, lat, lon), or `tos` (time, j, i) with two-dimensional `lat` and `lon`.
        seed: Same seed, same values.
    """
    import xarray

    random = np.random.default_rng(seed)
    months = np.arange(years * _MONTHS)
    if form == "sst":
        rows, columns = np.arange(-88.0, 89, 4), np.arange(0.0, 360, 4)
        latitudes, longitudes = np.meshgrid(rows, columns, indexing="ij")
    else:  # rows bend towards the north, and columns are turned
        j, i = np.meshgrid(np.arange(-77.0, 88, 2), np.arange(0.0, 360, 2), indexing="ij")
        latitudes = j + 3 * np.sin(np.deg2rad(2 * i)) * np.clip(j, 0, None) / 90
        longitudes = (i + 75 + 3 * np.sin(np.deg2rad(j))) % 360
    turn = _MEMORY * np.exp(2j * np.pi / _PERIOD_MONTHS)
    state, index = 0j, np.empty(len(months))
    for month in months:
        state = turn * state + complex(*random.normal(0, 0.3, 2))
        index[month] = state.real
    pattern = np.exp(-((latitudes / 10) ** 2) - (((longitudes - 220) / 40) ** 2))
    season = np.cos(2 * np.pi * (months - 1) / _MONTHS)[:, None, None] * -6 * np.sin(np.deg2rad(latitudes))
    field = 27 * np.cos(np.deg2rad(latitudes)) ** 2 + season + index[:, None, None] * pattern
    field = np.maximum(field + random.normal(0, 0.2, field.shape), _FREEZING)
    field[:, (np.abs(longitudes - 25) < 20) & (latitudes > -35)] = np.nan
    dates = xarray.date_range(
        f"{first_year:04d}-01-01", periods=len(months), freq="MS", use_cftime=True,
        calendar="standard" if form == "sst" else "noleap",
    )  # fmt: skip
    north, east = ({"standard_name": f"{name}itude", "units": f"degrees_{way}"} for name, way in
                   (("lat", "north"), ("long", "east")))  # fmt: skip
    attributes = {"standard_name": "sea_surface_temperature", "units": "degC"}
    if form == "sst":
        axes = {"time": dates, "lat": ("lat", rows, north), "lon": ("lon", columns, east)}
        return xarray.Dataset({"sst": (("time", "lat", "lon"), field.astype("f4"), attributes)}, axes)
    axes = {"time": dates, "lat": (("j", "i"), latitudes, north), "lon": (("j", "i"), longitudes, east)}
    areas = np.cos(np.deg2rad(latitudes)) * (222.4e3**2)
    variables = {
        "tos": (("time", "j", "i"), field.astype("f4"), attributes),
        "areacello": (("j", "i"), areas, {"standard_name": "cell_area", "units": "m2"}),
    }
    return xarray.Dataset(variables, axes)
