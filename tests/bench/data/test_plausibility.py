"""Implausible values are refused wherever they are read: ICAR-ENSO, contexts of forecasts, constant splits."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from enso_trees import write_tree
from scipy.io import netcdf_file

import bench
from bench.cli.main import main
from bench.engine.forecast import case_from_file
from bench.errors import DataError


class TestIcarEnso:
    """Packing, fill values and implausible numbers in the competition's layout."""

    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        write_tree(tmp_path / "plain", "SODA", [5])
        return tmp_path

    def _changed(self, tree: Path, change) -> Path:
        (tree / "other").mkdir()
        for name, key in (("SODA_train.nc", "sst"), ("SODA_label.nc", "nino")):
            with h5py.File(tree / "plain" / name) as plain, h5py.File(tree / "other" / name, "w") as other:
                for axis in ("lat", "lon"):
                    if axis in plain:
                        other[axis] = plain[axis][:]
                stored, attributes = change(plain[key][:])
                other[key] = stored
                other[key].attrs.update(attributes)
        return tree / "other"

    @pytest.mark.parametrize(
        "change",
        [
            lambda values: (np.rint(values / 0.001).astype("i2"), {"scale_factor": 0.001}),
            lambda values: (np.rint((values - 2) / 0.001).astype(">i2"), {"scale_factor": 0.001, "add_offset": 2.0}),
            lambda values: (values.astype("f8"), {"_FillValue": np.float64("nan")}),
            lambda values: (values, {"missing_value": 1e20}),
        ],
        ids=["packed", "with offset, big-endian", "double", "fill value"],
    )
    def test_equivalent_files_read_the_same(self, tree: Path, change) -> None:
        roots = tree / "plain", self._changed(tree, change)
        first, second = (bench.load_task("icar_enso", root).dataset("all") for root in roots)
        for one, other in zip(first.stored(3), second.stored(3), strict=True):
            np.testing.assert_allclose(one, other, atol=6e-4)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda values: (np.rint(values / 0.001).astype("i2"), {}), r"sst: expected .* within -20\.\.20 K, found"),
            (lambda values: (values + 300, {}), r"at month \d+ of record SODA, lat -?\d+, lon \d+"),
            (lambda values: (np.where(values == values.max(), 1e20, values).astype("f4"), {"missing_value": 1e20}),
             "expected finite sst, found 1 others in record SODA, the first at month"),
            (lambda values: (values, {"scale_factor": [1.0, 2.0]}), "scale_factor: expected one finite number"),
        ],
        ids=["its scale lost", "kelvin", "missing", "two scales"],
    )  # fmt: skip
    def test_implausible_anomalies_are_refused(self, tree: Path, capsys, change, message: str) -> None:
        root = self._changed(tree, change)
        with pytest.raises(DataError, match=message):
            bench.load_task("icar_enso", root).dataset("all")
        assert main(["data", "check", "icar_enso", "--root", str(root)]) == 2
        assert "Traceback" not in capsys.readouterr().err

    def test_labels_in_another_unit_are_refused(self, tree: Path) -> None:
        root = self._changed(tree, lambda values: (values if values.ndim == 4 else values * 100, {}))
        with pytest.raises(DataError, match=r"SODA_label.nc: nino: expected .* within -20\.\.20 K.* of record SODA \("):
            bench.load_task("icar_enso", root).dataset("all")


@pytest.mark.parametrize("verb", ["evaluate", "run"])
def test_a_split_of_one_value_is_refused(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat").mkdir()
    write_tree(tmp_path / "flat", "SODA", [5])
    with h5py.File(tmp_path / "flat" / "SODA_train.nc", "r+") as file:
        file["sst"][:] = 0
    words = [verb, "task=icar_enso", "model=persistence", "split=all", f"data.root={tmp_path / 'flat'}", "device=cpu"]
    assert main([*words, "progress=false"]) == 2
    assert "expected targets that vary, found 0 everywhere in 59 sequences" in capsys.readouterr().err
    assert not list(tmp_path.rglob("results/**/*.json"))


class TestForecast:
    """`earthbench forecast --input`: a context from a user's NetCDF file."""

    def _write(self, path: Path, context: np.ndarray, **attributes: object) -> Path:
        with h5py.File(path, "w") as file:
            file["context"] = context
            file["context"].attrs.update(attributes)
        return path

    @pytest.fixture
    def context(self) -> np.ndarray:
        return np.random.default_rng(0).normal(0, 1, (12, 24, 48)).round(3).astype("f4")

    def test_packed_and_classic_contexts_are_read(self, tmp_path: Path, context: np.ndarray) -> None:
        task = bench.load_task("icar_enso")
        codes = np.rint(context * 1000).astype("i2")
        packed = case_from_file(task, self._write(tmp_path / "packed.nc", codes, scale_factor=0.001))
        np.testing.assert_allclose(packed.context[..., 0], context, atol=1e-5)
        with netcdf_file(tmp_path / "classic.nc", "w") as file:
            for name, size in zip("tyx", context.shape, strict=True):
                file.createDimension(name, size)
            file.createVariable("context", "f4", ("t", "y", "x"))[:] = context
        assert np.array_equal(case_from_file(task, tmp_path / "classic.nc").context[..., 0], context)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda values: values + 300,
                r"expected .* within -20\.\.20 K, found .* at frame \d+, row \d+, column \d+",
            ),
            (lambda values: np.where(values > 3, np.nan, values), "missing values, at frame"),
        ],
        ids=["kelvin", "missing"],
    )
    def test_invalid_contexts_are_refused(self, tmp_path: Path, context: np.ndarray, change, message: str) -> None:
        with pytest.raises(DataError, match=message):
            case_from_file(bench.load_task("icar_enso"), self._write(tmp_path / "x.nc", change(context)))
