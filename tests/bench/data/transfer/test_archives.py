from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.data.transfer.archives import Limits, archive_files, unpack
from bench.errors import DataError

LIMITS = Limits(files=5, bytes=10_000)
Entries = list[tuple[str | zipfile.ZipInfo, bytes]]


def _zip(path: Path, entries: Entries) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def _tar(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, content in entries:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def _special(name: str, kind: bytes, to: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info, b""


def _zip_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


HARMFUL: dict[str, Callable[[Path], Path]] = {
    "a parent": lambda to: _zip(to / "a.zip", [("ok", b"1"), ("a/../../x", b"1")]),
    "an absolute name": lambda to: _zip(to / "a.zip", [("/tmp/x", b"1")]),
    "a name of another system": lambda to: _zip(to / "a.zip", [("a\\..\\x", b"1")]),
    "a drive": lambda to: _zip(to / "a.zip", [("C:x", b"1")]),
    "a link": lambda to: _zip(to / "a.zip", [(_zip_link(), b"/etc/passwd")]),
    "a bomb": lambda to: _zip(to / "a.zip", [("zeros", bytes(10_001))]),
    "many bombs": lambda to: _zip(to / "a.zip", [(f"zeros{n}", bytes(2_001)) for n in range(5)]),
    "many files": lambda to: _zip(to / "a.zip", [(f"f{n}", b"") for n in range(6)]),
    "a parent in tar": lambda to: _tar(to / "a.tgz", [(tarfile.TarInfo("../x"), b"1")]),
    "an absolute name in tar": lambda to: _tar(to / "a.tgz", [(tarfile.TarInfo("/tmp/x"), b"1")]),
    "a symbolic link": lambda to: _tar(to / "a.tgz", [_special("l", tarfile.SYMTYPE, "/etc/passwd")]),
    "a hard link": lambda to: _tar(to / "a.tgz", [_special("l", tarfile.LNKTYPE, "../x")]),
    "a device": lambda to: _tar(to / "a.tgz", [_special("d", tarfile.CHRTYPE)]),
    "a pipe": lambda to: _tar(to / "a.tgz", [_special("p", tarfile.FIFOTYPE)]),
    "a name twice": lambda to: _tar(to / "a.tgz", [(tarfile.TarInfo("x"), b"1"), (tarfile.TarInfo("./x"), b"2")]),
    "a bomb in tar": lambda to: _tar(to / "a.tgz", [(tarfile.TarInfo("zeros"), bytes(10_001))]),
    "many files in tar": lambda to: _tar(to / "a.tgz", [(tarfile.TarInfo(f"f{n}"), b"") for n in range(6)]),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_a_harmful_archive_is_refused_and_writes_nothing(tmp_path: Path, harm: str) -> None:
    path = HARMFUL[harm](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for name in ("ok", "x", "link", "l", "zeros", "../x", "a/../../x"):
        with pytest.raises(DataError, match="is refused; nothing was written"):
            unpack(path, tmp_path / "in/side", {name: "x"}, LIMITS)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_duplicate_name_in_a_zip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'x' is repeated"):
        archive_files(_zip(tmp_path / "a.zip", [("x", b"1"), ("x", b"2")]), LIMITS)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", [("../x", b"1"), (_zip_link(), b"y"), ("zeros", bytes(20_000))])
    with pytest.raises(DataError) as caught:
        archive_files(path, LIMITS)
    for words in ("'../x' leaves", "'link' is a link or device", "unfolds to 20,002 bytes, expected 10,000 at most"):
        assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_requested_files_are_extracted_unchanged(tmp_path: Path, kind: str) -> None:
    content = {"top/a": b"1" * 3000, "top/deep/b": b"", "readme": b"words"}
    if kind == "zip":
        path = _zip(tmp_path / "a", [("top/", b""), *content.items()])
    else:
        path = _tar(tmp_path / "a", [(tarfile.TarInfo(name), part) for name, part in content.items()])
    assert archive_files(path, LIMITS) == {name: len(part) for name, part in content.items()}
    moved: list[tuple[int, int]] = []
    unpack(path, tmp_path / "out", {"top/a": "a", "top/deep/b": "new/b"}, LIMITS, lambda *at: moved.append(at))
    written = {path.relative_to(tmp_path / "out"): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {str(name): path.read_bytes() for name, path in written.items()} == {"a": b"1" * 3000, "new/b": b""}
    assert moved[-1] == (3000, 3000)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("fault", ["cut", "flipped", "none at all"])
def test_a_broken_archive_gives_one_error(tmp_path: Path, kind: str, fault: str) -> None:
    noise = bytes(range(256)) * 30
    path = (
        _zip(tmp_path / "a", [("x", noise)]) if kind == "zip" else _tar(tmp_path / "a", [(tarfile.TarInfo("x"), noise)])
    )
    content = bytearray(path.read_bytes())
    if fault == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "flipped": content, "none at all": b"<html>"}[fault])
    with pytest.raises(DataError, match=r"not a whole zip or tar archive|does not have the"):
        unpack(path, tmp_path / "out", {"x": "x"}, LIMITS)


def test_an_understated_size_in_a_header_is_not_trusted(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", [("x", bytes(5000))])
    content = path.read_bytes()
    assert content.count((5000).to_bytes(4, "little")) == 2, "in the member's header and in the table at the end"
    path.write_bytes(content.replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(DataError):
        unpack(path, tmp_path / "out", {"x": "x"}, LIMITS)
    assert sum(found.stat().st_size for found in (tmp_path / "out").rglob("*") if found.is_file()) <= 10
