"""`earthbench data fetch sevir_lr|nbody_mnist`: the authors' archives, by their addresses or from a file.

Source: the addresses are from the download scripts of the releases (repositories earth-forecasting-transformer of
amazon-science, and PreDiff of gaozhihan).  The authors publish no digests; `MANIFEST.json` keeps those of the download.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field

from bench.data.nbody_mnist.draws import DIGITS_FILE, read_digits, read_sequences
from bench.data.sevir.catalogue import read_catalogue, select_events
from bench.data.sevir.stored_events import read_headers
from bench.data.transfer.archives import Limits, archive_files, unpack
from bench.data.transfer.download import download
from bench.data.transfer.fetch import FetchVerb
from bench.data.transfer.http import head, https
from bench.data.transfer.manifest import read_manifest, write_manifest
from bench.data.verbs import AdvanceLabel, Folder, Plan
from bench.errors import DataError, counted, one_message
from bench.files import check_writable, sha256_of

_ASK_ABOVE_BYTES = 2e9


class FetchArchive(FetchVerb):
    """A data set in one archive: downloaded, checked, unpacked and verified before it gets its final name."""

    task: ClassVar[str]
    last: ClassVar[str]
    """The file without which the data set cannot be read; it is moved into place last."""
    limits: ClassVar[Limits]

    out: Folder = Field(description="folder of the data set; the same command resumes an interrupted one")
    url: str
    yes: bool = Field(False, description="do not ask before a large download")

    @abstractmethod
    def places(self, names: list[str]) -> dict[str, str]:
        """Returns the wanted members of the archive, and their paths in the data set."""

    @abstractmethod
    def problems(self, root: Path) -> list[str]:
        """Returns the problems of the unpacked data set."""

    def plan(self, advance: AdvanceLabel) -> Plan:
        """Returns how much there is to download."""
        if self._done_before or self._file is not None:
            return Plan()
        check_writable(self.out, "--out")
        size = head(https(self.url), self.policy).size
        if size is None:
            return Plan((f"{self.url}: the server does not say how long it is",), ask=not self.yes)
        free = shutil.disk_usage(self.out).free
        there = sum(path.stat().st_size for path in self._stage.glob("archive*") if path.is_file())
        line = f"{size / 1e9:.2f} GB, {there / 1e9:.2f} of it there, from {self.url} to {self.out}"
        if size - there > free:
            raise DataError(f"{line}: the disk has {free / 1e9:.2f} GB free. Choose another --out")
        return Plan((line,), ask=size - there > _ASK_ABOVE_BYTES and not self.yes)

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Downloads, unpacks, verifies, and returns a summary.

        Raises:
            DataError: the archive is unavailable, incomplete or harmful, or its content is not the data set.
        """
        if self._done_before:
            return [f"{self.out} holds that already"]
        check_writable(self.out, "--out")
        archive, made = self._archive(advance), self._stage / "files"
        shutil.rmtree(made, ignore_errors=True)
        try:
            places = self.places(list(archive_files(archive, self.limits)))
            unpack(archive, made, places, self.limits, lambda done, total: advance("unpacking", done, total))
            if found := self.problems(made):
                raise DataError(one_message(f"{self.url} is not the data of task {self.task}:", found))
        except OSError as error:
            raise DataError(f"{made} cannot be written: {error}") from error
        except DataError:
            shutil.rmtree(made, ignore_errors=True)
            if self._file is None:  # set aside, so that the next try downloads again
                archive.replace(archive.with_name(archive.name + ".bad"))
            raise
        names = sorted(set(places.values()), key=lambda name: (name == self.last, name))
        entries = {name: ((made / name).stat().st_size, sha256_of(made / name)) for name in names}
        write_manifest(self.out, self.url, entries, archive_sha256=sha256_of(archive))
        for name in names:
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).replace(self.out / name)
        shutil.rmtree(self._stage)
        total = sum(size for size, _ in entries.values())
        return [
            f"{counted(len(names), 'file')}, {total / 1e9:.2f} GB in {self.out}",
            f"next: earthbench data info {self.task} --root {self.out}",
        ]

    @cached_property
    def _done_before(self) -> bool:
        if not (self.out / self.last).exists():
            return False
        manifest = read_manifest(self.out)
        if manifest is not None and manifest["source"] == self.url:
            return True
        raise DataError(f"{self.out} already holds a data set ({self.last}) from elsewhere; choose another folder")

    @property
    def _file(self) -> Path | None:
        """Returns the archive if it is a local file."""
        return None if "://" in self.url else Path(self.url).expanduser()

    @property
    def _stage(self) -> Path:
        return self.out / ".fetch"

    def _archive(self, advance: AdvanceLabel) -> Path:
        if self._file is not None:
            if not self._file.is_file():
                raise DataError(f"--url {self.url}: no such file; expected an address or an archive on this machine")
            return self._file
        # under our own name, since an address need not end in a file name
        suffix = "".join(PurePosixPath(urlsplit(self.url).path).suffixes[-2:])
        path = self._stage / f"archive{suffix}"
        moved: Any = lambda done: advance("download", done, 0)  # noqa: E731
        return download(https(self.url), path, policy=self.policy, moved=moved).path


class FetchSevirLR(FetchArchive):
    """The authors' SEVIR-LR: event files of 25 frames of 128x128, with SEVIR's catalogue."""

    summary: ClassVar[str] = "download the authors' SEVIR-LR, one zip archive"
    task: ClassVar[str] = "sevir_lr"
    last: ClassVar[str] = "CATALOG.csv"
    limits: ClassVar[Limits] = Limits(files=10_000, bytes=40 * 10**9)
    """20,393 events of 0.41 MB are 8.4 GB."""

    url: str = Field(
        "https://deep-earth.s3.amazonaws.com/datasets/sevir_lr.zip",
        description="the zip or tar archive: https, http or s3 (a public bucket), or a file of this machine",
    )

    def places(self, names: list[str]) -> dict[str, str]:
        """Returns the catalogue and all below `data/`, from whichever folder of the archive the catalogue is in."""
        found = [PurePosixPath(name).parent for name in names if PurePosixPath(name).name == self.last]
        if len(found) != 1:
            raise DataError(f"{self.url}: expected one {self.last} in the archive, found {len(found)}")
        inside = {name: PurePosixPath(name) for name in names if PurePosixPath(name).is_relative_to(found[0])}
        below = {name: path.relative_to(found[0]) for name, path in inside.items()}
        return {name: str(path) for name, path in below.items() if str(path) == self.last or path.parts[0] == "data"}

    def problems(self, root: Path) -> list[str]:
        """Returns where the files of the archive and its catalogue disagree."""
        events = select_events(read_catalogue(root))
        return read_headers(root, events)[1] if events else ["the catalogue has no events of vil"]


class FetchNBody(FetchArchive):
    """The authors' N-body MNIST: draws of 22,000 sequences, and the digits that they are of."""

    summary: ClassVar[str] = "download the paper's N-body MNIST, one zip archive of draws"
    task: ClassVar[str] = "nbody_mnist"
    last: ClassVar[str] = DIGITS_FILE
    limits: ClassVar[Limits] = Limits(files=1_000, bytes=10 * 10**9)
    _wanted: ClassVar[tuple[str, ...]] = ("nbody_train.npz", "nbody_val.npz", "nbody_test.npz", DIGITS_FILE)

    url: str = Field(
        "https://earthformer.s3.amazonaws.com/nbody/nbody_paper.zip",
        description="the zip or tar archive: https, http or s3 (a public bucket), or a file of this machine",
    )

    def places(self, names: list[str]) -> dict[str, str]:
        """Returns the files of draws and digits, whichever folders of the archive they are in."""
        found = {name: PurePosixPath(name).name for name in names if PurePosixPath(name).name in self._wanted}
        if sorted(found.values()) != sorted(self._wanted):
            listing = ", ".join(sorted(found)) or "none"
            raise DataError(f"{self.url}: expected {', '.join(self._wanted)} once each, found {listing}")
        return found

    def problems(self, root: Path) -> list[str]:
        """Returns the problems of the draws or the digits."""
        found = []
        try:
            images = read_digits(root)
            for name in self._wanted[:-1]:
                draws = read_sequences(root / name).draws
                if len(draws) and not 0 <= draws.digit_indices.min() <= draws.digit_indices.max() < len(images):
                    found.append(f"{name}: draws digits that {DIGITS_FILE} does not have ({len(images)} there)")
        except DataError as error:
            found.append(str(error))
        return found
