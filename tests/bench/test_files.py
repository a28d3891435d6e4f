from __future__ import annotations

import errno
from pathlib import Path

import pytest

from bench.errors import DataError
from bench.files import replacing


def test_a_full_disk_gives_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cube.h5"
    text = "Can't synchronously write data (file write failed: time = Fri Nov 27\n, buf = 0x5635)"
    with pytest.raises(DataError) as refused, replacing(path) as part:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, text)
    assert str(refused.value) == f"{path} cannot be written: No space left on device"
    assert not list(tmp_path.iterdir())
