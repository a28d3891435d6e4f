"""Released weights: downloaded once, then always compared with the digest of that download.

Weights are entry points of the group `earthbench.weights`: objects with a `url` and a `usage`, lines of Python that
load them (`{path}` is replaced).  If no link works, `url` is None and `missing_because` says why.  The authors publish
no digests, so that of the first download is kept in `NAME.sha256`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import ClassVar, Protocol
from urllib.parse import urlsplit

from pydantic import Field

from bench import registry
from bench.data.transfer.download import Downloaded, download
from bench.data.transfer.fetch import FetchVerb
from bench.data.transfer.http import RetryPolicy, https
from bench.data.verbs import AdvanceLabel, Folder
from bench.errors import BrokenPluginError, DataError
from bench.files import replacing


class ReleasedWeights(Protocol):
    """An object of the entry point group `earthbench.weights`."""

    url: str | None
    """URL of the file: https, http, or s3 for a public bucket; None with a `missing_because`."""
    usage: str
    """Python code that loads it; `{path}` stands for the file."""


class FetchWeights(FetchVerb):
    """One file of released weights; `fetch_verb` makes the subclass of a registered name."""

    summary: ClassVar[str] = "download released weights; their SHA-256 is recorded at first use and verified later"
    weights: ClassVar[str]

    out: Folder | None = Field(None, description="folder for the file (default: a cache folder)")

    def run(self, advance: AdvanceLabel) -> list[str]:
        """Returns the path of the file, and how to load it.

        Raises:
            DataError: the file cannot be downloaded, or differs from the first download.
        """
        import platformdirs

        entry = registry.find("weight", self.weights)
        released: ReleasedWeights = entry.load()
        missing = getattr(released, "missing_because", None)
        if missing is not None:
            lines = released.usage.replace("{path}", "FILE").splitlines()
            raise DataError("\n  ".join([f"weights {self.weights!r}: {missing}. With a file of your own:", *lines]))
        url = getattr(released, "url", None)
        if not (isinstance(url, str) and isinstance(getattr(released, "usage", None), str)):
            raise BrokenPluginError(f"weights {self.weights!r} from {entry.origin} have no `url` and `usage`")
        folder = self.out or Path(platformdirs.user_cache_dir("earthbench")) / "weights"
        found = fetch_weights(
            url, folder, moved=lambda done: advance(self.weights, done, 0),
            policy=self.policy,
        )  # fmt: skip
        usage = released.usage.replace("{path}", str(found.path))
        return [f"{found.path}", f"sha256 {found.sha256}", "to load them:", *(f"  {ln}" for ln in usage.splitlines())]


def fetch_verb(name: str) -> type[FetchWeights]:
    """Returns the verb that fetches the weights registered as `name`.

    Raises:
        UnknownNameError: no weights have this name.
    """
    registry.find("weight", name)

    class Fetch(FetchWeights):
        __doc__ = FetchWeights.__doc__
        weights: ClassVar[str] = name

    return Fetch


def fetch_weights(url: str, folder: Path, *, moved: object = None, policy: RetryPolicy | None = None) -> Downloaded:
    """Returns a file of weights, identical to the first download to this folder.

    Raises:
        DataError: it cannot be downloaded, is not a checkpoint, or differs from the recorded digest.
    """
    address = https(url)
    path = folder / Path(urlsplit(address).path).name
    record = path.with_name(path.name + ".sha256")
    known = _recorded(record)
    found = download(
        address, path, sha256=known, check=check_checkpoint, policy=policy,
        moved=moved if callable(moved) else None,
    )  # fmt: skip
    if known is None:
        with replacing(record) as part:
            part.write_text(f"{found.sha256}  {path.name}\n", encoding="utf-8")  # as sha256sum -c reads it
    return found


def _recorded(path: Path) -> str | None:
    try:
        digest = path.read_text(encoding="utf-8").split()[0]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, IndexError):
        digest = ""
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise DataError(f"{path}: expected the SHA-256 of the file beside it. Delete both to download again.")
    return digest


def check_checkpoint(path: Path) -> None:
    """Refuses a file that is not a checkpoint or whose checksums do not match, without executing it.

    Raises:
        DataError: it is not an intact checkpoint.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):  # torch.save since 1.6 writes a zip archive with a CRC for each member
        try:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError) as error:
            raise DataError(f"{path}: an incomplete checkpoint: {error}") from error
        if broken:
            raise DataError(f"{path}: {broken} in it has changed since it was written")
    elif not (start.startswith(b"\x80") or start[8:9] == b"{"):  # an older torch.save; safetensors
        raise DataError(f"{path}: not a checkpoint; it starts with {start[:40]!r}")
