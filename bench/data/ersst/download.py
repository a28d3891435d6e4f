"""`earthbench data fetch enso_ersst`: NOAA's ERSST v5 as one NetCDF file."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field

from bench.data.transfer.download import download
from bench.data.transfer.fetch import FetchVerb
from bench.data.transfer.manifest import write_manifest
from bench.data.verbs import AdvanceLabel, Folder
from bench.errors import DataError

ERSST = "https://downloads.psl.noaa.gov/Datasets/noaa.ersst.v5/sst.mnmean.nc"
"""Monthly means from 1854 on, 2 degrees, by NOAA's Physical Sciences Laboratory; public domain, grows every month."""


class FetchErsst(FetchVerb):
    """The whole record, about 130 MB."""

    summary: ClassVar[str] = "download NOAA's ERSST v5, monthly sea-surface temperature since 1854"

    out: Folder = Field(description="folder of the data set; the same command resumes an interrupted one")
    url: str = Field(ERSST, description="a NetCDF file with sst (time, lat, lon): https or http")

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Downloads the file, reads it as a check, and returns a summary.

        Raises:
            DataError: the download is incomplete, or is not a record of temperatures.
        """
        name = Path(urlsplit(self.url).path).name
        found = download(
            self.url,
            self.out / name,
            check=_check_record,
            moved=lambda done: advance(name, done, 0),
            policy=self.policy,
        )
        write_manifest(self.out, self.url, {name: (found.bytes, found.sha256)})
        return [
            f"{found.bytes / 1e6:.1f} MB in {found.path}",
            f"next: earthbench data info enso_ersst --root {self.out}",
        ]


def _check_record(path: Path) -> None:
    from bench.data.ersst.files import read_file

    if read_file(path) is None:
        raise DataError(f"{path}: expected a NetCDF file with sst, time, lat and lon")
