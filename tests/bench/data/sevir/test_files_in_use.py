"""Event files that other programs have open, and the number of open files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from sevir_files import NAME, create, made_codes, write_events

import bench
from bench.data.sevir.files import FileInUseError, read_header
from bench.errors import DataError


def _other_process(code: str, path: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, env={**os.environ, **environment}
    )


_READ_HEADER = (
    "import sys, pathlib\nfrom bench.data.sevir.files import read_header\n"
    "try: print(read_header(pathlib.Path(sys.argv[1])).event_count)\n"
    "except Exception as error: print(type(error).__name__, error)"
)


def test_a_locked_file_is_read(tmp_path: Path) -> None:
    path = write_events(tmp_path, create()) / "data" / NAME
    with h5py.File(path, "r+") as held:
        held.flush()
        assert _other_process(_READ_HEADER, path).stdout == "4\n"
        asked_for = _other_process(_READ_HEADER, path, HDF5_USE_FILE_LOCKING="TRUE").stdout
        assert asked_for.startswith("FileInUseError") and "unset that variable" in asked_for


def test_a_file_marked_as_open_for_writing_is_not_called_damaged(tmp_path: Path) -> None:
    """HDF5's latest format marks files in use; `task.skip_missing` must not skip files that will be available later."""
    root = write_events(tmp_path, create(), libver="latest")
    code = "import sys, bench; bench.load_task('sevir', sys.argv[1], skip_missing=True).dataset('test')"
    with h5py.File(root / "data" / NAME, "r+", libver="latest") as held:
        held.flush()
        said = _other_process(code, root).stderr
    assert "FileInUseError" in said and "h5clear --status" in said


def test_users_can_open_files_in_use_by_a_data_set(tmp_path: Path) -> None:
    root = write_events(tmp_path, create(compression="gzip"))
    data = bench.load_task("sevir", root).dataset("test")
    data.stored(0)
    with h5py.File(root / "data" / NAME) as file:  # with locks, h5py's default
        assert np.array_equal(file["vil"][0], made_codes()[0])
        data.stored(4)
    with h5py.File(root / "data" / NAME, "r+") as file:
        file.attrs["note"] = 1


def test_an_unreadable_header_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(b"no HDF5 at all")
    with pytest.raises(DataError, match=r"a.h5: not readable as HDF5 \(14 bytes\)") as caught:
        read_header(path)
    assert not isinstance(caught.value, FileInUseError)
