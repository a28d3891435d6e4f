"""`earthbench data fetch ersst`: NOAA's ERSST v3b 1960-2016 from public files, in the two forms that boards use.

Source: Smith et al. 2008, J. Climate 21, 2283-2296 (ERSST v3b), monthly means of 2 degrees through the IRI/LDEO Data
Library, in github.com/pangeo-data/tutorial-data (MIT; NOAA's data are in the public domain), a file a year.
"""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from bench.data.area_means import area_means, cell_edges
from bench.data.ersst.files import Record, read_file, read_record
from bench.data.icar_enso.dataset import LATITUDES, LONGITUDES
from bench.data.transfer.download import download, run_parallel
from bench.data.transfer.fetch import FetchVerb
from bench.data.transfer.manifest import write_manifest
from bench.data.verbs import AdvanceLabel, Folder
from bench.errors import DataError
from bench.files import replacing, sha256_of

MIRROR = "https://raw.githubusercontent.com/pangeo-data/tutorial-data/08740d82/sst"
YEARS = range(1960, 2017)
_COARSE_YEARS = range(1960, 2000)
_BASE = (1961, 1990)
_SCALE, _OFFSET, _FILL = 0.001, 15.0, -32768
_HALF = 0.5
"""A 5-degree cell is sea if at least half of its area has temperatures."""
_PACKED_SHA256 = "18e5a1133fbd4756d03f7f723d6d153ec0385fbe42399fd5eebc643d6acd1d0f"
_COARSE_SHA256 = "f066ce1851d03d30b042c1c1b66245912557105c113cae60298ecfcbdb661165"
"""Digests of the values behind the committed records, int16 and float32, little-endian."""


class FetchErsstV3b(FetchVerb):
    """The record at 2 degrees, 1960-2016, and its anomalies at 5 degrees, 1960-1999."""

    summary: ClassVar[str] = "download NOAA's ERSST v3b, 1960-2016, and make the data of the committed records of it"

    out: Folder = Field(description="folder for sst/, enso/ and the originals in sst_raw/; the same command resumes")
    mirror: str = Field(MIRROR, description="address with NOAA_NCDC_ERSST_v3b_SST-YYYY.nc")
    workers: int = Field(4, ge=1, le=64, description="downloads at a time")

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Downloads the years, joins and averages them, and returns what was made.

        Raises:
            DataError: a file cannot be downloaded, or the files are not a record of these months.
        """
        raw = self.out / "sst_raw"

        def one(year: int, stop: threading.Event) -> None:
            name = f"NOAA_NCDC_ERSST_v3b_SST-{year}.nc"
            check = partial(_check_year, year=year)
            download(f"{self.mirror.rstrip('/')}/{name}", raw / name, check=check, policy=self.policy, stop=stop)

        run_parallel([partial(one, year) for year in YEARS], self.workers, ended=partial(advance, "years"))
        record = read_record(raw)
        whole = self._write("sst", "ersst_v3b_196001-201612.nc", *_packed(record), _PACKED_SHA256)
        coarse = self._write("enso", "ersst_v3b_5deg_196001-199912.nc", *_five_degrees(record), _COARSE_SHA256)
        return [whole, coarse, f"next: earthbench data info enso_ersst --root {self.out / 'sst'}"]

    def _write(self, folder: str, name: str, dataset: Any, values: np.ndarray, sha256: str) -> str:
        root = self.out / folder
        with replacing(root / name) as part:
            dataset.to_netcdf(part, engine="h5netcdf")
        write_manifest(root, self.mirror, {name: ((root / name).stat().st_size, sha256_of(root / name))})
        same = hashlib.sha256(values.astype(values.dtype.newbyteorder("<")).tobytes()).hexdigest() == sha256
        what = "equal to" if same else "NOT equal bit for bit to"
        return f"{len(values)} months in {root / name}, {what} the data of the committed records"


def _check_year(path: Path, *, year: int) -> None:
    found = read_file(path)
    if found is None or [str(month) for month in found.months] != [f"{year}-{month:02d}" for month in range(1, 13)]:
        raise DataError(f"{path}: expected the 12 months of sst of {year}")


def _packed(record: Record) -> tuple[Any, np.ndarray]:
    """Returns the record as packed int16, 0.001 K, and the values as they are stored."""
    import xarray

    steps = np.rint((record.field.astype(np.float64) - _OFFSET) / _SCALE)
    packed = np.where(np.isnan(steps), _FILL, steps).astype(np.int16)
    days = (record.months.astype("datetime64[D]") - np.datetime64("1960-01-01")).astype(np.int32)
    dataset = xarray.Dataset(
        {
            "sst": (("time", "lat", "lon"), packed, {
                "standard_name": "sea_surface_temperature", "long_name": "Monthly mean sea surface temperature",
                "units": "degC", "scale_factor": _SCALE, "add_offset": _OFFSET, "_FillValue": np.int16(_FILL),
            })
        },
        _axes(days, record.latitudes, record.longitudes),
        {"Conventions": "CF-1.7", "title": "NOAA ERSST v3b, monthly means, 2 degrees, 1960-2016"},
    )  # fmt: skip
    dataset["sst"].encoding = {"zlib": True, "complevel": 9, "shuffle": True}
    return dataset, packed


def _five_degrees(record: Record) -> tuple[Any, np.ndarray]:
    """Returns anomalies of area means of 5 degrees from the monthly means of the base, NaN on land, and the values."""
    import xarray

    years = record.months.astype("datetime64[Y]").astype(int) + 1970
    chosen = (years >= _COARSE_YEARS.start) & (years < _COARSE_YEARS.stop)
    edges = cell_edges(LATITUDES, what="lat"), cell_edges(LONGITUDES, what="lon")
    means = area_means(record.field[chosen], record.latitudes, record.longitudes, *edges, least_share=_HALF)
    by_year = means.reshape(-1, 12, *means.shape[1:])
    first, last = (year - _COARSE_YEARS.start for year in _BASE)
    anomalies = (by_year - by_year[first : last + 1].mean(0)).reshape(means.shape).astype(np.float32)
    days = (record.months[chosen].astype("datetime64[D]") - np.datetime64("1960-01-01")).astype(np.int32)
    dataset = xarray.Dataset(
        {"sst_anomaly": (("time", "lat", "lon"), anomalies, {"units": "degC"})},
        _axes(days, LATITUDES, LONGITUDES),
        {"Conventions": "CF-1.7", "title": "NOAA ERSST v3b, 5 degrees, anomalies from 1961-1990"},
    )
    dataset["sst_anomaly"].encoding = {"zlib": True, "complevel": 6, "shuffle": True}
    return dataset, anomalies


def _axes(days: np.ndarray, latitudes: np.ndarray, longitudes: np.ndarray) -> dict[str, Any]:
    time = {"standard_name": "time", "units": "days since 1960-01-01", "calendar": "proleptic_gregorian"}
    return {
        "time": ("time", days, time),
        "lat": ("lat", np.asarray(latitudes, np.float32), {"standard_name": "latitude", "units": "degrees_north"}),
        "lon": ("lon", np.asarray(longitudes, np.float32), {"standard_name": "longitude", "units": "degrees_east"}),
    }
