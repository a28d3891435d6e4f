"""Observed SST: area means, anomalies, splits by time, files as NOAA publishes them, and NOAA's own index."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import xarray
from servers import serving

import bench
from bench.cli.main import main
from bench.data.area_means import area_means, box_weights, cell_edges
from bench.data.ersst.anomalies import BasePeriod, anomalies_of
from bench.errors import ConfigError, DataError
from bench.metrics.enso.metric import nino34_index

LATITUDES, LONGITUDES = np.arange(88.0, -89, -2), np.arange(0.0, 359, 2)
SPLITS = {"val_from": "1964-01-01", "test_from": "1967-01-01", "base_from": 1960, "base_to": 1967}


def _write(path: Path, months: int = 120, *, ascending: bool = False, packed: bool = False) -> np.ndarray:
    """Monthly means from January 1960 in the layout of `sst.mnmean.nc`, land around 0 E; returns `(T,89,180)`."""
    random = np.random.default_rng(0)
    field = (20 + random.normal(0, 1, (months, 89, 180))).round(2).astype(np.float32)
    field[:, :, :12] = np.nan
    stored = np.where(np.isnan(field), np.float32(-9.96921e36), field)
    days = (np.datetime64("1960-01", "M") + np.arange(months)).astype("datetime64[D]") - np.datetime64("1800-01-01")
    turn = slice(None, None, -1) if ascending else slice(None)
    with h5py.File(path, "w") as file:
        file["lat"], file["lon"], file["time"] = LATITUDES[turn], LONGITUDES, days.astype(float)
        file["time"].attrs["units"] = "days since 1800-1-1 00:00:00"
        if packed:
            file["sst"] = np.where(np.isnan(field), -999, np.rint(field * 100)).astype(np.int16)[:, None, turn]
            file["sst"].attrs.update({"_FillValue": np.int16(-999), "scale_factor": 0.01, "add_offset": 0.0})
        else:
            file["sst"] = stored[:, turn]
            file["sst"].attrs["missing_value"] = np.float32(-9.96921e36)
    return field


def _fine_mean(field: np.ndarray, south: float, north: float, west: float, east: float) -> tuple[np.ndarray, float]:
    """Mean of 2-degree cells over a box, and the known share of it, from points 0.05 degrees apart."""
    latitudes, longitudes = np.arange(south + 0.025, north, 0.05), np.arange(west + 0.025, east, 0.05) % 360
    rows = np.abs(LATITUDES[:, None] - latitudes).argmin(0)
    columns = np.abs((LONGITUDES[:, None] - longitudes + 180) % 360 - 180).argmin(0)
    weight = np.cos(np.deg2rad(latitudes))[:, None] * np.ones(len(longitudes))
    values = field[:, rows][:, :, columns]
    known = ~np.isnan(values[0])
    share = float((weight * known).sum() / weight.sum())
    return np.nansum(values * weight, (1, 2)) / max((weight * known).sum(), 1e-9), share


def test_area_means_match_a_fine_grid(tmp_path: Path) -> None:
    field = _write(tmp_path / "sst.mnmean.nc", 24)
    latitudes, longitudes = np.arange(-55, 61, 5), np.arange(0, 356, 5)
    edges = cell_edges(latitudes, what="lat"), cell_edges(longitudes, what="lon")
    means = area_means(field, LATITUDES, LONGITUDES, *edges)
    for row, column in ((0, 40), (11, 5), (12, 4), (23, 71), (10, 0), (3, 38)):
        centre = latitudes[row], longitudes[column]
        expected, share = _fine_mean(field, centre[0] - 2.5, centre[0] + 2.5, centre[1] - 2.5, centre[1] + 2.5)
        if share >= 0.5:
            np.testing.assert_allclose(means[:, row, column], expected, atol=1e-3)
        else:
            assert np.isnan(means[:, row, column]).all()
    np.testing.assert_allclose(area_means(means, latitudes, longitudes, *edges), means, atol=1e-12)
    assert np.allclose(box_weights(latitudes, longitudes, (-5, 5), (190, 240)).sum(), 1)


def test_anomalies_and_index_of_a_record(tmp_path: Path) -> None:
    field = _write(tmp_path / "sst.mnmean.nc")
    found = anomalies_of(tmp_path, BasePeriod.years(1961, 1967))
    box, _ = _fine_mean(field, -5, 5, 190, 240)
    years = box.reshape(10, 12)
    np.testing.assert_allclose(found.nino34["exact"].reshape(10, 12), years - years[1:8].mean(0), atol=1e-3)
    assert found.nino34["papers"] == pytest.approx(found.sst[:, 10:13, 38:49].mean((1, 2)), abs=1e-6)
    base = found.sst.reshape(10, 12, 24, 72)[1:8].mean(0)
    assert np.abs(base).max() < 1e-6 and (found.sst[:, ~found.sea] == 0).all() and not found.sea[:, 1].any()


@pytest.mark.parametrize("form", ["ascending", "packed", "monthly"])
def test_equivalent_forms_of_a_record_read_the_same(tmp_path: Path, form: str) -> None:
    (tmp_path / "one").mkdir(), (tmp_path / "other").mkdir()
    _write(tmp_path / "one" / "sst.mnmean.nc", 24)
    if form == "monthly":
        with h5py.File(tmp_path / "one" / "sst.mnmean.nc") as source:
            for month in range(24):
                with h5py.File(tmp_path / "other" / f"ersst.v5.{month:06d}.nc", "w") as part:
                    part["lat"], part["lon"] = source["lat"][:], source["lon"][:]
                    part["time"], part["sst"] = source["time"][[month]], source["sst"][[month]][:, None]
                    part["time"].attrs.update(source["time"].attrs)
                    part["sst"].attrs.update(source["sst"].attrs)
    else:
        _write(tmp_path / "other" / "x.nc", 24, **{form: True})
    one, other = (anomalies_of(tmp_path / name, BasePeriod.years(1960, 1961)) for name in ("one", "other"))
    np.testing.assert_allclose(other.sst, one.sst, atol=1e-4)
    assert np.array_equal(one.months, other.months)


class TestTask:
    def test_no_month_is_in_two_splits(self, tmp_path: Path) -> None:
        _write(tmp_path / "sst.mnmean.nc")
        task = bench.load_task("enso_ersst", tmp_path, **SPLITS)
        parts = {split: task.dataset(split) for split in ("train", "val", "test")}
        assert {split: len(part) for split, part in parts.items()} == {"train": 48 - 25, "val": 11, "test": 11}
        months = [month for part in parts.values() for month in part.ids]
        assert len(months) == len(set(months)) == 120 and months[0] == "1960-01" and months[-1] == "1969-12"

    def test_windows_have_their_labels(self, tmp_path: Path) -> None:
        _write(tmp_path / "sst.mnmean.nc")
        whole = anomalies_of(tmp_path, BasePeriod.years(1960, 1967))
        for box in ("exact", "papers"):
            task = bench.load_task("enso_ersst", tmp_path, **SPLITS, nino34_box=box, eval_gap=2)
            data = task.dataset("val")
            assert len(data) == 6
            context, target, label = data.stored(3)
            first = 48 + 6
            assert np.array_equal(torch.cat([context, target])[..., 0], whole.sst[first : first + 26, :, 19:67])
            index = whole.nino34[box][first + 12 : first + 26]
            np.testing.assert_allclose(label, [index[k : k + 3].mean() for k in range(12)], atol=1e-6)
            if box == "papers":
                np.testing.assert_allclose(nino34_index(target[None], box)[0], label, atol=1e-6)

    @pytest.mark.parametrize(
        "wrong", [{"val_from": "1999-01-01", "test_from": "1990-01-01"}, {"test_to": "2020-01-15"}]
    )
    def test_dates_out_of_order_are_refused(self, wrong: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match="in this order"):
            bench.load_task("enso_ersst", **wrong)

    def test_a_base_period_outside_the_record_is_refused(self, tmp_path: Path) -> None:
        _write(tmp_path / "sst.mnmean.nc")
        with pytest.raises(DataError, match=r"base period 1961..1990: the record has 1960-01..1969-12"):
            bench.load_task("enso_ersst", tmp_path).dataset("train")

    def test_files_without_a_record_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="expected NetCDF files with sst"):
            bench.load_task("enso_ersst", tmp_path).dataset("train")
        _write(tmp_path / "sst.mnmean.nc")
        with h5py.File(tmp_path / "sst.mnmean.nc", "r+") as file:
            file["time"][5] = file["time"][4]
        with pytest.raises(DataError, match="expected every month once, found 1960-05 right after 1960-05"):
            bench.load_task("enso_ersst", tmp_path).dataset("train")


class TestFetch:
    def test_a_download_is_checked_and_read(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "www").mkdir()
        _write(tmp_path / "www" / "sst.mnmean.nc", 24)
        out = tmp_path / "out"
        base = {"base_from": 1960, "base_to": 1961}
        with serving(tmp_path / "www") as server:
            command = ["data", "fetch", "enso_ersst", "--out", str(out), "--url", f"{server.url}/sst.mnmean.nc"]
            assert main(command) == main(command) == 0
        task = bench.load_task("enso_ersst", out, **base)
        report = task.describe_data(read_everything=True)
        assert not report.problems and report.facts["months"] == ["1960-01", "1961-12"]
        with (out / "sst.mnmean.nc").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"x")
        assert any(
            "its bytes are not those" in problem for problem in task.describe_data(read_everything=True).problems
        )

    def test_an_invalid_download_gets_no_final_name(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "www").mkdir()
        (tmp_path / "www" / "sst.mnmean.nc").write_bytes(b"<html>moved</html>")
        with serving(tmp_path / "www") as server:
            url = f"{server.url}/sst.mnmean.nc"
            assert main(["data", "fetch", "enso_ersst", "--out", str(tmp_path / "out"), "--url", url]) == 2
        assert not (tmp_path / "out" / "sst.mnmean.nc").exists()


class TestObserved:
    @pytest.mark.parametrize(
        ("box", "least", "rmse", "most"), [("papers", 0.9925, 0.184, 0.63), ("exact", 0.995, 0.13, 0.4)]
    )
    def test_the_index_agrees_with_noaas(
        self, observed: Path, box: str, least: float, rmse: float, most: float
    ) -> None:
        found = anomalies_of(observed / "enso", BasePeriod.years(1961, 1990))
        index = found.nino34[box]
        path = observed / "enso" / "ersst5.nino.mth.81-10.195001-199912.ascii"
        table = np.loadtxt(path, skiprows=1)
        absolute = table[table[:, 0] >= 1960, 8].reshape(40, 12)
        noaa = (absolute - absolute[1:31].mean(0)).ravel()
        assert np.corrcoef(index, noaa)[0, 1] > least
        assert np.sqrt(np.square(index - noaa).mean()) < rmse and np.abs(index - noaa).max() < most
        with (observed / "enso" / "nino34_check_196001-199912.csv").open() as file:
            theirs = np.array([float(row["v3b_5deg_upstream_box_anom"]) for row in csv.DictReader(file)])
        assert np.abs(found.nino34["papers"] - theirs).max() < 1e-4  # the table has four decimals

    def test_fields_have_the_icar_layout(self, observed: Path) -> None:
        found = anomalies_of(observed / "enso", BasePeriod.years(1961, 1990))
        icar = bench.load_task("icar_enso", observed / "enso").dataset("all").source
        np.testing.assert_allclose(found.sst[:, :, 19:67], icar.sst[0], atol=1e-6)
        assert found.sea.sum() == 1294

    def test_the_scale_changes_model_inputs_and_no_score(self, observed: Path) -> None:
        options = {"val_from": "1985-01-01", "test_from": "1990-01-01"}
        tasks = [bench.load_task("enso_ersst", observed / "enso", scale=s, **options) for s in ("icar_enso", "kelvin")]
        (papers, _), (kelvin, target) = (task.dataset("test")[7] for task in tasks)
        assert kelvin.std() > 20 * papers.std() and kelvin.dtype == torch.float32
        torch.testing.assert_close(tasks[0].denormalise(papers), kelvin, atol=2e-6, rtol=0)
        assert torch.equal(tasks[1].normalise(tasks[1].denormalise(target)), target)
        scores = [bench.evaluate("persistence", task, device="cpu").scores for task in tasks]
        for name, value in scores[0].items():
            assert scores[1][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name

    def test_persistence_on_observed_years(self, observed: Path) -> None:
        options = {"val_from": "1985-01-01", "test_from": "1990-01-01"}
        task = bench.load_task("enso_ersst", observed / "enso", **options)
        record = bench.evaluate("persistence", task, device="cpu")
        assert record.data is not None and record.data.sequence_count == 95
        monthly = anomalies_of(observed / "enso", BasePeriod.years(1961, 1990)).nino34["exact"][
            360:
        ]  # from January 1990
        now = monthly[11 : 11 + 95]
        observed_index = np.stack([[monthly[k + 12 + m : k + 15 + m].mean() for m in range(12)] for k in range(95)])
        expected = [np.corrcoef(now, observed_index[:, lead])[0, 1] for lead in range(12)]
        np.testing.assert_allclose(record.scores_per_lead["c_nino34"], expected, atol=1e-6)
        assert expected[0] > 0.8 > 0.3 > expected[11]
        assert record.scores["nino34_label_difference"] < 1e-6, "the metric's box is the labels' box"

    @pytest.mark.slow
    def test_public_downloads_reproduce_the_recorded_data(
        self, observed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Years cut from the packed record replace the originals, from which they differ by rounding."""
        theirs = observed / "sst" / "ersst_v3b_196001-201612.nc"
        (tmp_path / "www").mkdir()
        with xarray.open_dataset(theirs) as whole:
            for year in range(1960, 2017):
                part = whole.sel(time=str(year)).drop_encoding()
                part.to_netcdf(tmp_path / "www" / f"NOAA_NCDC_ERSST_v3b_SST-{year}.nc", engine="h5netcdf")
        words = ["data", "fetch", "ersst", "--out", str(tmp_path / "out")]
        with serving(tmp_path / "www") as server:
            assert main([*words, "--mirror", server.url]) == 0
            assert main([*words, "--mirror", server.url]) == 0
        said = capsys.readouterr().out
        assert "684 months" in said and "1612.nc, equal to the data of the committed records" in said
        fields = {"val_from": "1983-01-01", "test_from": "1988-01-01", "base_to": 1982}
        identities = [
            bench.load_task("enso_ersst", root, **fields).dataset("test").source.identity()
            for root in (tmp_path / "out" / "sst", observed / "sst")
        ]
        assert identities[0] == identities[1]
        name = "enso/ersst_v3b_5deg_196001-199912.nc"
        with xarray.open_dataset(tmp_path / "out" / name) as made, xarray.open_dataset(observed / name) as stored:
            np.testing.assert_allclose(made["sst_anomaly"], stored["sst_anomaly"], atol=5e-4)
