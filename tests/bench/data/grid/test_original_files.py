"""Original files of every reader, if present: a cube and events made from them, and forecasts with times and places."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray
from pyproj import CRS, Transformer

from bench.cli.main import main
from bench.data.grid.radar_frames import read_frame
from bench.tasks import load_task

CONVERT = ("data", "convert", "radar_files")


@pytest.mark.parametrize(
    ("reader", "pattern", "size", "highest"),
    [
        ("knmi_hdf5", "radar/KNMI/2010/08/*26060*.h5", (765, 700), 30.0),
        ("odim_hdf5", "radar/OPERA/20180824/*1800*.hdf", (2200, 1900), 2000.0),  # clutter and all
        ("fmi_pgm", "radar/fmi/pgm/20160928/2016092817[05]0*.pgm.gz", (1226, 760), 100.0),
        ("mch_gif", "radar/mch/20150515/*13515[45]5*.gif", (640, 710), 200.0),
        ("mrms_grib", "mrms/2019/06/10/*.grib2", (3500, 7000), 200.0),
    ],
)
def test_rates_of_original_files(
    reader: str, pattern: str, size: tuple[int, int], highest: float, observed: Path
) -> None:
    files = sorted((observed / "radar_raw").glob(pattern))
    assert files
    frame = read_frame(files[0], reader)  # type: ignore[arg-type]
    assert frame.rates.shape == size == frame.lattice.shape
    known = frame.rates[np.isfinite(frame.rates)]
    assert known.min() == 0
    assert 0.1 < known.max() < highest
    assert np.allclose(np.diff(frame.lattice.x), np.diff(frame.lattice.x)[0])


@pytest.mark.parametrize(
    ("reader", "pattern", "flags", "minutes", "place"),
    [
        ("knmi_hdf5", "radar/KNMI/2010/08/*2010082600*.h5", (), 5, (51.9, 4.9)),
        ("odim_hdf5", "radar/OPERA/20180824/*201808241[89]*.hdf",
         ("--to-projection", "EPSG:3035", "--resolution", "4000", "--extent", "4000000,4400000,2800000,3200000"), 15,
         (49.9, 8.3)),
        ("fmi_pgm", "radar/fmi/pgm/20160928/2016092817*.pgm.gz", (), 5, (63.7, 24.4)),
        ("mch_gif", "radar/mch/20150515/AQC1513516*.gif", (), 5, (46.7, 8.3)),
        pytest.param("mrms_grib", "mrms/2019/06/10/*.grib2", ("--extent=-82.2,-78.2,33,37",), 2, (35.0, -80.2),
                     marks=pytest.mark.slow),
    ],
    ids=["knmi_hdf5", "odim_hdf5", "fmi_pgm", "mch_gif", "mrms_grib"],
)  # fmt: skip
def test_cubes_and_events_of_original_files(
    reader: str,
    pattern: str,
    flags: tuple[str, ...],
    minutes: float,
    place: tuple[float, float],
    observed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`place` is near the middle of the images: degrees north and east."""
    monkeypatch.chdir(tmp_path)
    words = ["--reader", reader, "--in", str(observed / "radar_raw" / pattern), *flags]
    assert main([*CONVERT, "grid", *words, "--out", "rain.zarr"]) == 0
    assert main([*CONVERT, "radar", *words, "--out", "tree", "--frames", "4", "--size", "64"]) == 0
    cube = load_task("grid", "rain.zarr", t_in=2, t_out=2, data_units="mm/h")
    assert cube.cadence_minutes == minutes and not len(cube.cube.axis.breaks)
    shared = ["task.t_in=2", "task.t_out=1", "model=persistence", "--latest"]
    assert main(["forecast", "task=grid", "data.root=rain.zarr", *shared, "--out", "grid.nc"]) == 0
    masked = ["task.admit_missing=true", "task.mask_missing=true"]
    assert main(["forecast", "task=radar", "data.root=tree", *masked, *shared, "--out", "radar.nc"]) == 0
    for name in ("grid.nc", "radar.nc"):
        with xarray.open_dataset(name) as found:
            assert (np.diff(found["time"]) == np.timedelta64(round(60 * minutes), "s")).all()
            crs = CRS.from_cf(found["crs"].attrs)
            to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
            east, north = to_degrees.transform(found["x"].values.mean(), found["y"].values.mean())
            assert (north, east) == pytest.approx(place, abs=1.0), name
            assert found["forecast"].attrs["grid_mapping"] == "crs"
    with xarray.open_dataset("grid.nc") as rates, xarray.open_dataset("radar.nc") as codes:
        crop = rates["context"].sel(y=codes["y"], x=codes["x"], method="nearest", tolerance=1e-2)
        used = int((len(cube.cube) - 4) % 4)  # frames after the last event
        first = np.flatnonzero(np.isin(rates["time_of_context"], codes["time_of_context"]))
        if not used and len(first):
            wet, echo = crop.values[first], codes["context"].values
            np.testing.assert_array_equal(np.isnan(wet), np.isnan(echo))
            assert ((wet[np.isfinite(wet)] > 0.2) <= (echo[np.isfinite(echo)] > 0)).all()


@pytest.mark.slow
def test_a_killed_conversion_resumes(observed: Path, tmp_path: Path) -> None:
    """With KNMI's files and two workers: blocks made before the process was killed are not made again."""
    pattern = str(observed / "radar_raw/radar/KNMI/2010/08/*201008260[0-2]*.h5")
    flags = ["--reader", "knmi_hdf5", "--in", pattern, "--extent=100000,200000,-4100000,-4000000", "--workers", "2"]
    for target, more in (("grid", []), ("radar", ["--frames", "12", "--size", "64"])):
        out = tmp_path / f"{target}.zarr"
        command = [sys.executable, "-m", "bench", *CONVERT, target, *flags, *more, "--out", str(out)]
        with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as process:
            done = out.with_name(f".{out.name}.part") / "earthbench-done.json"
            deadline = time.monotonic() + 240
            while not (done.is_file() and '"done": []' not in done.read_text()) and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.killpg(process.pid, signal.SIGKILL)
        assert not out.exists() and done.is_file()
        before = done.stat().st_mtime_ns
        assert main(command[3:]) == 0
        assert out.is_dir() and not done.exists() and before
        assert main([*CONVERT, target, *flags[:-2], *more, "--out", str(tmp_path / f"whole_{target}.zarr")]) == 0
    frames = [load_task("grid", tmp_path / f"{name}grid.zarr").cube.read(0, 36) for name in ("", "whole_")]
    np.testing.assert_array_equal(*frames)
    catalogues = [(tmp_path / f"{name}radar.zarr" / "CATALOG.csv").read_bytes() for name in ("", "whole_")]
    assert catalogues[0] == catalogues[1]
