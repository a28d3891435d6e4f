from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from servers import Faults, Server, serving

from bench.data.transfer.download import download, run_parallel
from bench.data.transfer.http import RetryPolicy, StoppedError, head, https, read_range
from bench.errors import DataError, UsageError

CONTENT = np.random.default_rng(0).integers(0, 256, 400_000, np.uint8).tobytes()


def _quick(faults: Faults) -> RetryPolicy:
    return RetryPolicy(tries=3, wait_s=0.01, timeout_s=faults.timeout_s)


QUICK = _quick(Faults())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www/file.h5").write_bytes(CONTENT)
    with serving(tmp_path / "www") as running:
        yield running


def _get(server: Server, target: Path, **more) -> bytes:
    found = download(f"{server.url}/file.h5", target, policy=_quick(server.faults), **more)
    assert found.path == target and found.bytes == len(CONTENT)
    assert found.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert [path.name for path in target.parent.iterdir()] == [target.name], "nothing else is left"
    return target.read_bytes()


@pytest.mark.parametrize(
    ("faults", "resumes"),
    [
        (Faults(), False),
        (Faults(redirect=True), False),
        (Faults(etag=None), False),
        (Faults(etag='W/"weak"', cut_after=150_000, times=1), True),
        (Faults(cut_after=100_000, times=3), True),
        (Faults(cut_after=100_000, times=2, etag=None), True),
        (Faults(stall_after=200_000, times=1), True),
        (Faults(cut_after=200_000, times=2, ranges=False), False),
        (Faults(status=503, times=2), False),
        (Faults(status=429, times=2), False),
        (Faults(announce_more=7, times=1), False),
    ],
)
def test_a_transient_fault_is_retried(server: Server, tmp_path: Path, faults: Faults, resumes: bool) -> None:
    server.faults = faults
    assert _get(server, tmp_path / "out/file.h5") == CONTENT
    starts = [int(asked.removeprefix("bytes=").split("-")[0]) for _, asked in server.requests if asked]
    assert any(starts) == resumes or faults.announce_more or not faults.ranges
    if resumes:
        assert server.sent < 1.5 * len(CONTENT), "what was there is not sent again"


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(status=404), "answers 404"),
        (Faults(status=403), "answers 403"),
        (Faults(status=503), "503 Service Unavailable; given up after 3 tries"),
        (Faults(cut_after=0), "broke off; given up after 3 tries"),
        (Faults(stall_after=1000, times=99, ranges=False), "no byte came for too long; given up after 3 tries"),
        (Faults(cut_after=200_000, ranges=False), "broke off; given up after 3 tries"),
        (Faults(announce_more=7, etag=None, ranges=False), "given up after 3 tries"),
        (Faults(flip=1234), "expected md5"),
    ],
)
def test_a_permanent_fault_gives_one_error_and_no_file(
    server: Server, tmp_path: Path, faults: Faults, message: str
) -> None:
    server.faults = faults
    target = tmp_path / "out/file.h5"
    with pytest.raises(DataError) as caught:
        _get(server, target)
    assert message in str(caught.value) and server.url in str(caught.value) and caught.value.exit_code == 2
    assert not target.exists()
    assert len(server.requests) <= 5
    server.faults = Faults()
    for bad in target.parent.glob("*.bad"):
        bad.unlink()
    assert _get(server, target) == CONTENT, "the same command goes on"


def test_a_corrupt_download_is_set_aside(server: Server, tmp_path: Path) -> None:
    server.faults = Faults(flip=399_999, etag=None)
    with pytest.raises(DataError, match="expected sha256"):
        download(f"{server.url}/file.h5", tmp_path / "o/f", sha256=hashlib.sha256(CONTENT).hexdigest(), policy=QUICK)
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["f.bad"]


def test_a_part_of_another_version_is_not_continued(server: Server, tmp_path: Path) -> None:
    server.faults = Faults(cut_after=100_000)
    with pytest.raises(DataError):
        download(f"{server.url}/file.h5", tmp_path / "f", policy=RetryPolicy(tries=1, wait_s=0))
    assert (tmp_path / "f.part").stat().st_size == 100_000
    newer = CONTENT[::-1]
    (server.root / "file.h5").write_bytes(newer)
    server.faults = Faults()
    assert download(f"{server.url}/file.h5", tmp_path / "f", policy=QUICK).path.read_bytes() == newer
    # and one that nobody can say anything of begins again
    (tmp_path / "g.part").write_bytes(b"?" * 100)
    assert download(f"{server.url}/file.h5", tmp_path / "g", policy=QUICK).path.read_bytes() == newer


def test_the_callers_check_runs_before_the_final_rename(server: Server, tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        assert path.name == "f.part"
        raise DataError("no such storms")

    with pytest.raises(DataError, match="no such storms"):
        download(f"{server.url}/file.h5", tmp_path / "f", check=refuse, policy=QUICK)
    assert not (tmp_path / "f").exists()


def test_an_existing_file_is_verified_instead(server: Server, tmp_path: Path) -> None:
    download(f"{server.url}/file.h5", tmp_path / "f", policy=QUICK)
    sent = server.sent
    assert download(f"{server.url}/file.h5", tmp_path / "f", policy=QUICK).checked_by == "md5"
    assert server.sent == sent + 1, "one byte to look"
    (tmp_path / "f").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match="has 399999 bytes"):
        download(f"{server.url}/file.h5", tmp_path / "f", policy=QUICK)
    (tmp_path / "f").write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DataError, match="expected md5"):
        download(f"{server.url}/file.h5", tmp_path / "f", policy=QUICK)
    assert not (tmp_path / "f").exists()


def test_concurrent_downloads_of_one_file_do_not_mix(server: Server, tmp_path: Path) -> None:
    server.faults = Faults(stall_after=1000, times=1)
    first = threading.Thread(target=lambda: download(f"{server.url}/file.h5", tmp_path / "f"), daemon=True)
    first.start()
    while not (tmp_path / "f.part").exists():
        pass
    with pytest.raises(DataError, match="another process"):
        download(f"{server.url}/file.h5", tmp_path / "f", policy=QUICK)
    server.released.set()
    first.join(10)
    assert (tmp_path / "f").read_bytes() == CONTENT


@pytest.mark.parametrize("faults", [Faults(), Faults(cut_after=10, times=2), Faults(status=500, times=1)])
def test_ranges_return_the_requested_bytes(server: Server, faults: Faults) -> None:
    remote = head(f"{server.url}/file.h5", QUICK)
    assert (remote.size, remote.ranges) == (len(CONTENT), True)
    server.faults = faults
    assert read_range(remote, 1000, 3000, QUICK) == CONTENT[1000:3000]
    assert read_range(remote, 7, 7, QUICK) == b""


def test_a_wrong_range_in_the_response_is_refused(server: Server) -> None:
    remote = head(f"{server.url}/file.h5", QUICK)
    server.faults = Faults(ranges=False)
    with pytest.raises(DataError, match="a server that gives ranges"):
        read_range(remote, 0, 10, QUICK)
    server.faults = Faults(etag='"another"')
    with pytest.raises(DataError, match="changed on the server"):
        read_range(remote, 0, 10, QUICK)


def test_an_unreachable_server_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"refused; given up after 3 tries.*download the file yourself"):
        download("http://127.0.0.1:9/x", tmp_path / "x", policy=QUICK)


def test_the_first_failure_stops_the_other_downloads() -> None:
    started = threading.Event()

    def fails(stop: threading.Event) -> None:
        started.wait(5)
        raise DataError("first")

    def waits(stop: threading.Event) -> None:
        started.set()
        assert stop.wait(5)
        raise StoppedError

    with pytest.raises(DataError, match="first"):
        run_parallel([waits, fails, waits, waits], workers=2)
    assert run_parallel([lambda stop: 1, lambda stop: 2], workers=2) == [1, 2]


def test_downloads_begun_after_a_failure_see_the_stop_event() -> None:
    begun = []

    def fails(stop: threading.Event) -> None:
        raise DataError("first")

    def notes(stop: threading.Event) -> None:
        begun.append(stop.is_set())

    for _ in range(50):
        with pytest.raises(DataError, match="first"):
            run_parallel([fails, notes, notes], workers=1)
    assert all(begun)


def test_an_s3_url_becomes_https() -> None:
    assert https("s3://sevir/data/x.h5") == "https://sevir.s3.amazonaws.com/data/x.h5"
    assert https("http://host:1/x") == "http://host:1/x"
    for wrong in ("ftp://host/x", "/folder", "s3:///x"):
        with pytest.raises(UsageError, match="not a download URL"):
            https(wrong)
