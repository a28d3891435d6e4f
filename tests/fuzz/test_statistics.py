"""Statistics beside a record: any changed file gives the same arrays or one error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.errors import DataError
from bench.records.reading import read_npz
from bench.records.statistics import packed

ARRAYS = {
    "skill.hits": np.arange(60, dtype=np.uint8).reshape(5, 12),
    "mse.error_sum": np.linspace(0, 1, 60).reshape(5, 12),
    "empty": np.zeros((5, 0)),
    "flags": np.array([True, False]),
    "half": np.float16(np.eye(3)),
    "columns": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
}
WHOLE = packed(ARRAYS)


def test_an_intact_file_is_read_as_by_numpy(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(WHOLE)
    found = read_npz(path, "statistics")
    assert list(found) == list(ARRAYS)
    for name, values in ARRAYS.items():
        assert found[name].dtype == values.dtype and found[name].shape == values.shape
        assert np.array_equal(found[name], values)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.integers(0, 8 * len(WHOLE) - 1), max_size=4),
    end=st.one_of(st.just(len(WHOLE)), st.integers(0, len(WHOLE))),
)
def test_flipped_and_truncated_arrays_are_refused_or_equal(tmp_path: Path, flips: list[int], end: int) -> None:
    content = bytearray(WHOLE)
    for bit in flips:
        content[bit // 8] ^= 1 << bit % 8
    path = tmp_path / "x.npz"
    path.write_bytes(bytes(content[:end]))
    try:
        found = read_npz(path, "statistics")
    except DataError as error:
        assert str(path) in str(error)
        return
    # a flip in a name, which no checksum covers, gives other names; none gives other numbers
    by_place = list(found.values())
    assert len(by_place) <= len(ARRAYS)
    for values in by_place:
        assert any(values.shape == own.shape and values.tobytes("A") == own.tobytes("A") for own in ARRAYS.values())
