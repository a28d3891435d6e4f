"""MeteoNet's rainfall, in files made as Meteo-France's are: a pickled array of datetimes, -1 for missing."""

from __future__ import annotations

import os
import pickle
import zipfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.cli.main import main
from bench.data.grid import meteonet
from bench.data.grid.meteonet import ConvertMeteonet, read_blocks, read_dates
from bench.errors import DataError
from bench.tasks import load_task

SIZE = (7, 9)


def frames_of(seed: int, count: int) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 400, (count, *SIZE)).astype(np.int16)
    values[:, 0, :3] = -1
    return values


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two files, 20 and 25 frames, the second with a frame missing after its tenth."""
    folder = tmp_path / "meteonet"
    folder.mkdir()
    start = datetime(2016, 8, 21)
    first = [start + timedelta(minutes=5 * n) for n in range(20)]
    second = [start + timedelta(minutes=5 * (n + (n >= 30))) for n in range(20, 45)]
    missing = [start + timedelta(minutes=150)]
    for name, dates, miss, seed in (("2.npz", first, [], 0), ("3.npz", second, missing, 1)):
        np.savez_compressed(
            folder / f"rainfall_NW_2016_08.{name}", data=frames_of(seed, len(dates)),
            dates=np.array(dates, object), miss_dates=np.array(miss, object),
        )  # fmt: skip
    lats, lons = np.meshgrid(51.895 - 0.01 * np.arange(SIZE[0]), -5.842 + 0.01 * np.arange(SIZE[1]), indexing="ij")
    np.savez(folder / "radar_coords_NW.npz", lats=lats, lons=lons)
    return folder


def words_of(archive: Path, out: Path) -> list[str]:
    return ["data", "convert", "meteonet", "grid", "--in", f"{archive}/rainfall_NW_*.npz", "--coords",
            f"{archive}/radar_coords_NW.npz", "--out", str(out)]  # fmt: skip


def test_files_are_converted_to_a_cube_that_keeps_the_gap(archive: Path, tmp_path: Path) -> None:
    assert main(words_of(archive, tmp_path / "rain.zarr")) == 0
    task = load_task("grid", tmp_path / "rain.zarr", t_in=2, t_out=2, data_units="mm/h")
    assert (len(task.cube), task.cadence_minutes, task.cube.axis.breaks.tolist()) == (45, 5, [30])
    raw = np.concatenate([frames_of(0, 20), frames_of(1, 25)])
    expected = np.where(raw == -1, np.nan, raw * 12 / 100)  # hundredths of a millimetre in 5 minutes
    np.testing.assert_allclose(task.cube.read(0, 45)[..., 0], expected, rtol=1e-6)
    y, x = task.cube.grid.coordinates
    assert y is not None and x is not None
    assert (y[0], x[-1]) == (pytest.approx(51.895), pytest.approx(-5.762))
    assert task.cube.grid.attributes[0]["units"] == "degrees_north"
    assert not task.inspect_data(read_everything=True).problems
    assert main(words_of(archive, tmp_path / "rain.zarr")) == 2


def test_a_region_is_cropped_and_a_stopped_conversion_resumes(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb = ConvertMeteonet(
        inputs=f"{archive}/rainfall*", coords=archive / "radar_coords_NW.npz", out=tmp_path / "rain.zarr",
        extent=(-5.825, -5.795, 51.85, 51.88),
    )  # fmt: skip
    read: list[str] = []

    def counted(path: Path, *rest: Any) -> Any:
        read.append(path.name)
        if len(read) == 2:
            raise KeyboardInterrupt
        return read_blocks(path, *rest)

    monkeypatch.setattr(meteonet, "read_blocks", counted)
    with pytest.raises(KeyboardInterrupt):
        verb.run(lambda *_: None)
    verb.run(lambda *_: None)
    assert [name[-5] for name in read] == ["2", "3", "3"]
    found = load_task("grid", tmp_path / "rain.zarr", t_in=2, t_out=2).cube.read(0, 45)[..., 0]
    raw = np.concatenate([frames_of(0, 20), frames_of(1, 25)])[:, 2:5, 2:5]
    np.testing.assert_allclose(found, raw * 0.12, rtol=1e-6)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "rainfall.npz"
    np.savez(path, data=frames_of(0, 1), dates=np.array([Harmful(tmp_path / "run")], object))
    with pytest.raises(DataError, match=r"system; only datetimes are read"):
        read_dates(path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_datetimes_of_every_pickle_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    dates = np.array([datetime(2016, 8, 21, 0, 5), datetime(2016, 8, 21, 0, 10)], object)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("dates.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (2,)})
        file.write(pickle.dumps(dates, protocol).replace(b"numpy._core", b"numpy.core") if protocol < 4 else
                   pickle.dumps(dates, protocol))  # fmt: skip
    assert read_dates(tmp_path / "a.npz").tolist() == dates.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": frames_of(0, 19)}, "as many as dates"),
        ({"data": frames_of(0, 20)[:, :-1]}, "as many as dates"),
        ({"data": frames_of(0, 20).astype(float)}, "expected whole numbers"),
        ({"dates": np.array(["2016-08-21"] * 20, object)}, "expected datetimes, found str"),
        ({"dates": np.array([datetime(2016, 8, 21)] * 20, object)}, "are repeated"),
        ({"dates": None}, "expected MeteoNet's npz with `dates`"),
    ],
)
def test_files_of_another_layout_are_refused(
    change: dict[str, Any], said: str, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = archive / "rainfall_NW_2016_08.2.npz"
    with np.load(path, allow_pickle=True) as file:
        content = {**file, **change}
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    assert main(words_of(archive, tmp_path / "rain.zarr")) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "rain.zarr").exists()


def test_coordinates_are_checked(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.savez(archive / "radar_coords_NW.npz", lats=np.random.default_rng(0).random(SIZE), lons=np.zeros(SIZE))
    assert main(words_of(archive, tmp_path / "rain.zarr")) == 2
    assert "expected a regular grid" in capsys.readouterr().err
    np.savez(archive / "radar_coords_NW.npz", lat=np.zeros(3))
    assert main(words_of(archive, tmp_path / "rain.zarr")) == 2
    assert "lats and lons" in capsys.readouterr().err
