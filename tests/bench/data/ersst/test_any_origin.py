"""SST from other sources: CMIP's `tos` on ocean grids, any calendar, any names; compared with closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import bench
from bench.cli.main import main
from bench.data.area_means import area_means, binned_means, cell_edges
from bench.data.ersst.anomalies import BasePeriod, anomalies_of, monthly_means
from bench.data.ersst.files import read_record
from bench.data.icar_enso.dataset import LATITUDES, LONGITUDES
from bench.errors import ConfigError, DataError

YEARS = BasePeriod.years(1960, 1961)
_EDGES = cell_edges(LATITUDES, what="lat"), cell_edges(LONGITUDES, what="lon")
_MONTHS = 24


def _times(calendar: str, months: int = _MONTHS) -> xr.DataArray:
    """The middle of each month from January 1960, as CMIP stamps it."""
    times = xr.date_range("1960-01-01", periods=months, freq="MS", calendar=calendar, use_cftime=True)
    return xr.DataArray(times, dims="time").assign_attrs(standard_name="time")


def _of_place(latitude: np.ndarray, longitude: np.ndarray, months: int = _MONTHS) -> np.ndarray:
    """Temperatures that are linear in latitude, of one wave around the globe and of one trend, degrees Celsius."""
    season = np.arange(months)[:, None, None] / 24
    return 15 + latitude / 6 + np.cos(np.deg2rad(longitude)) + season


def _tripolar(fine: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A curvilinear grid: rows bend towards the north and columns are turned; longitudes -180..180."""
    j, i = np.meshgrid(np.arange(-78.5, 87, fine), np.arange(0, 360, fine), indexing="ij")
    latitude = j + 2 * np.sin(np.deg2rad(2 * i)) * np.clip(j, 0, None) / 80
    longitude = (i + 75 + 3 * np.sin(np.deg2rad(j)) + 180) % 360 - 180
    return np.clip(latitude, -89.5, 89.5), longitude


def _tos(**changes: object) -> xr.Dataset:
    """A file in CMIP's form: `tos (time, j, i)` and two-dimensional `lat` and `lon`."""
    latitude, longitude = _tripolar()
    calendar = str(changes.get("calendar", "noleap"))
    field = _of_place(latitude, longitude)
    field[:, (latitude > 20) & (longitude > 60) & (longitude < 95)] = np.nan
    data = xr.Dataset(
        {
            "tos": (
                ("time", "j", "i"),
                field.astype("f4"),
                {"standard_name": "sea_surface_temperature", "units": "degC"},
            )
        },
        coords={
            "time": _times(calendar),
            "lat": (("j", "i"), latitude, {"standard_name": "latitude", "units": "degrees_north"}),
            "lon": (("j", "i"), longitude, {"standard_name": "longitude", "units": "degrees_east"}),
        },
    )
    data["tos"].encoding["coordinates"] = "lat lon"
    return data


def _write(data: xr.Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_netcdf(path, engine="h5netcdf")
    return path


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day", "julian"])
def test_means_of_a_curvilinear_ocean_grid_match_the_closed_form(tmp_path: Path, calendar: str) -> None:
    _write(_tos(calendar=calendar), tmp_path / "tos_Omon_MODEL_historical_gn_196001-196112.nc")
    found = monthly_means(tmp_path)
    assert [str(month) for month in found.months[[0, -1]]] == ["1960-01", "1961-12"]
    expected = _of_place(LATITUDES[:, None], LONGITUDES[None])
    known = np.isfinite(found.cells)
    assert known[0].mean() > 0.9 and not known[:, 20, 15].any()
    # in a box that is half land, the centre of the sea is up to 1.25 degrees off; otherwise a fraction of a cell
    assert np.abs(found.cells - expected)[known].max() < 1.25 / 6 + 0.05
    assert np.abs((found.cells - expected)[:, 9:14, 19:67]).mean() < 0.05
    linear = 15 + np.cos(np.deg2rad(np.arange(190.25, 240, 0.5))).mean() + np.arange(_MONTHS) / 24
    np.testing.assert_allclose(found.box, linear, atol=0.05)
    trend = anomalies_of(tmp_path, YEARS)
    np.testing.assert_allclose(trend.nino34["exact"], np.repeat([-0.25, 0.25], 12), atol=1e-5)
    np.testing.assert_allclose(trend.nino34["papers"], trend.nino34["exact"], atol=1e-5)


def test_cell_areas_from_a_separate_file_weight_the_means(tmp_path: Path) -> None:
    data = _tos()
    latitude = data["lat"].to_numpy()
    _write(data, tmp_path / "by_cosine" / "tos.nc")
    _write(data, tmp_path / "by_area" / "tos.nc")
    areas = np.cos(np.deg2rad(latitude)) * np.where(latitude > 0, 3, 1)
    attributes = {"standard_name": "cell_area", "units": "m2"}
    _write(xr.Dataset({"areacello": (("j", "i"), areas, attributes)}), tmp_path / "by_area" / "areacello_Ofx.nc")
    cosine, area = (monthly_means(tmp_path / name) for name in ("by_cosine", "by_area"))
    assert read_record(tmp_path / "by_area").areas is not None
    flat = data["tos"].to_numpy().reshape(_MONTHS, -1), latitude.ravel(), data["lon"].to_numpy().ravel()
    inside = (np.abs(flat[1]) < 5) & (flat[2] % 360 >= 190) & (flat[2] % 360 < 240)
    by_hand = (flat[0][:, inside].astype("f8") * areas.ravel()[inside]).sum(1) / areas.ravel()[inside].sum()
    np.testing.assert_allclose(area.box, by_hand, rtol=1e-12)
    assert 0.1 < np.abs(area.box - cosine.box).max() < 0.5
    data["areacello"] = (("j", "i"), np.where(inside.reshape(areas.shape), np.nan, areas), attributes)
    _write(data, tmp_path / "holes" / "tos.nc")
    with pytest.raises(DataError, match=r"areas of all cells with temperatures, found \d+ cells without"):
        read_record(tmp_path / "holes")
    wrong = xr.Dataset({"areacello": (("j", "i"), areas[:-1], attributes)})
    _write(wrong, tmp_path / "by_cosine" / "areacello.nc")
    with pytest.raises(DataError, match=r"areacello\.nc: areacello: expected the areas of \(166, 360\) cells"):
        read_record(tmp_path / "by_cosine")


def test_binning_averages_cells_and_counts_halos_once() -> None:
    latitude, longitude = (part.ravel() for part in np.meshgrid(LATITUDES - 1.0, LONGITUDES + 1.0, indexing="ij"))
    field = np.random.default_rng(0).normal(size=(3, latitude.size))
    one = binned_means(field, latitude, longitude, *_EDGES)
    np.testing.assert_allclose(one.reshape(3, -1), field, rtol=1e-12)
    corners = binned_means(field, latitude + 3.5, longitude + 1.5, *_EDGES)[:, 1:]  # each is of four boxes
    rows = field.reshape(3, 24, 72) * np.cos(np.deg2rad(LATITUDES + 2.5))[:, None]
    weights = np.cos(np.deg2rad(LATITUDES + 2.5))
    pairs = rows + np.roll(rows, 1, -1)
    expected = (pairs[:, 1:] + pairs[:, :-1]) / 2 / (weights[1:] + weights[:-1])[:, None]
    np.testing.assert_allclose(corners, expected, rtol=1e-9)
    twice = [np.concatenate([part, part[..., :500]], -1) for part in (field, latitude, longitude)]
    twice[0][:, -500:] += 1
    np.testing.assert_allclose(binned_means(*twice, *_EDGES), one, rtol=1e-12)
    unknown = np.where(latitude > 40, np.nan, latitude)  # land without degrees
    assert np.isnan(binned_means(field, unknown, longitude, *_EDGES)[:, -4:]).all()
    shifted = binned_means(field, latitude, longitude - 360, *_EDGES)
    np.testing.assert_allclose(shifted, one, rtol=1e-12)


def test_uneven_latitudes_are_weighted_by_their_edges() -> None:
    gaussian = np.rad2deg(np.arcsin(np.polynomial.legendre.leggauss(64)[0]))
    finer = np.concatenate([np.arange(-88, -10, 2), np.arange(-9.5, 10, 0.5), np.arange(11, 89, 2)])
    longitudes = np.arange(0, 360, 2.5)
    for latitudes in (gaussian, finer[::-1]):
        edges = cell_edges(latitudes, what="lat")
        assert (np.sort(edges.min(1))[1:] == np.sort(edges.max(1))[:-1]).all(), "no gap and no overlap"
        ones = area_means(np.ones((1, len(latitudes), len(longitudes))), latitudes, longitudes, *_EDGES)
        np.testing.assert_allclose(ones, 1, rtol=1e-12)
        sine = np.broadcast_to(np.sin(np.deg2rad(latitudes))[:, None], (1, len(latitudes), len(longitudes)))
        whole = area_means(sine, latitudes, longitudes, np.array([[-90.0, 90]]), np.array([[0.0, 360]]))
        assert abs(whole[0, 0, 0]) < 2e-3
        south_north = np.deg2rad(_EDGES[0])
        expected = (np.sin(south_north) ** 2 / 2).T[::-1]
        expected = (expected[0] - expected[1]) / np.diff(np.sin(south_north))[:, 0]
        assert np.abs(area_means(sine, latitudes, longitudes, *_EDGES)[0, :, 0] - expected).max() < 0.02


FORMS = {
    "as it is": lambda data: data,
    "a level of depth": lambda data: data.expand_dims({"olevel": [0.5]}, axis=1),
    "kelvin": lambda data: data.assign(tos=(data["tos"] + 273.15).assign_attrs(data["tos"].attrs, units="K")),
    "longitudes of 0 to 360": lambda data: data.assign_coords(lon=(data["lon"] % 360).assign_attrs(data["lon"].attrs)),
    "NEMO's names": lambda data: data.rename(lat="nav_lat", lon="nav_lon", time="time_counter", j="y", i="x"),
    "names that say nothing": lambda data: data.rename(lat="a", lon="b", j="y", i="x", tos="c"),
    "north first": lambda data: data.isel(j=slice(None, None, -1)),
    "cells without rows": lambda data: data.stack(cell=("j", "i"), create_index=False),
    "axes of cells": lambda data: data.assign_coords(j=np.arange(data.sizes["j"]), i=np.arange(data.sizes["i"])),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_equivalent_forms_of_a_file_read_the_same(tmp_path: Path, form) -> None:
    _write(_tos(), tmp_path / "one" / "tos.nc")
    changed = form(_tos())
    names = {"nav_lat", "lat", "a"} & set(changed.variables), {"nav_lon", "lon", "b"} & set(changed.variables)
    field = next(iter(changed.data_vars))
    changed[field].encoding["coordinates"] = " ".join(sorted(names[0] | names[1]))
    _write(changed, tmp_path / "other" / "tos.nc")
    one, other = (anomalies_of(tmp_path / name, YEARS) for name in ("one", "other"))
    np.testing.assert_allclose(other.sst, one.sst, atol=2e-5)
    np.testing.assert_allclose(other.nino34["exact"], one.nino34["exact"], atol=1e-5)


def test_packed_values_of_a_global_analysis_are_read(tmp_path: Path) -> None:
    """`analysed_sst` of GHRSST in kelvin, packed, beside its error and the ice."""
    latitude, longitude = np.arange(-89.0, 90, 2), np.arange(-179.0, 180, 2)
    kelvin = _of_place(latitude[:, None], longitude[None]) + 273.15
    kelvin[:, 80:] = np.nan
    axes = {"time": _times("standard"), "lat": latitude, "lon": longitude}
    data = xr.Dataset(
        {
            "analysed_sst": (("time", "lat", "lon"), kelvin, {"standard_name": "sea_surface_foundation_temperature"}),
            "analysis_error": (("time", "lat", "lon"), np.full_like(kelvin, 0.3), {"units": "kelvin"}),
            "mask": (("lat", "lon"), np.ones((90, 180), "i1")),
        },
        coords=axes,
    )
    data["analysed_sst"].attrs["units"] = "kelvin"
    data["analysed_sst"].encoding = {
        "dtype": "i2", "scale_factor": 0.001, "add_offset": 293.15, "_FillValue": np.int16(-32768)
    }  # fmt: skip
    _write(data, tmp_path / "sst.nc")
    found = anomalies_of(tmp_path, YEARS)
    np.testing.assert_allclose(found.nino34["exact"], np.repeat([-0.25, 0.25], 12), atol=1e-3)
    chosen = anomalies_of(tmp_path, YEARS, "analysed_sst")
    np.testing.assert_array_equal(chosen.sst, found.sst)


class TestVariable:
    def test_a_variable_is_chosen_by_name(self, tmp_path: Path) -> None:
        data = _tos()
        data["surface"] = data["tos"] + 1
        data["surface"].attrs = {"units": "degC"}
        _write(data, tmp_path / "tos.nc")
        task = bench.load_task("enso_ersst", tmp_path, variable="surface", base_from=1960, base_to=1961)
        plain = bench.load_task("enso_ersst", tmp_path, base_from=1960, base_to=1961)
        np.testing.assert_allclose(monthly_means(tmp_path, "surface").cells, monthly_means(tmp_path).cells + 1)
        assert task.fields()["variable"] == "surface" and "variable" not in plain.fields()
        assert plain.fields().keys() == {key for key in task.fields() if key != "variable"}

    @pytest.mark.parametrize("verb", ["info", "check"])
    def test_a_missing_variable_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
        _write(_tos(), tmp_path / "tos.nc")
        command = ["data", verb, "enso_ersst", "--root", str(tmp_path), "task.variable=tas"]
        assert main(command) == 2
        assert "expected a variable 'tas' (task.variable)" in (said := capsys.readouterr().err) and "'tos'" in said

    def test_an_ocean_model_works_from_the_command_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _write(_tos(), tmp_path / "tos.nc")
        years = ["task.base_from=1960", "task.base_to=1961", "task.train_from=1960-01-01", "task.val_from=1961-01-01"]
        assert main(["data", "info", "enso_ersst", "--root", str(tmp_path), "task.variable=tos", *years]) == 0
        assert "24 months 1960-01..1961-12" in capsys.readouterr().out


class TestFolds:
    """A record of 12 years, cut into folds."""

    @pytest.fixture(scope="class")
    @classmethod
    def root(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("folds")
        latitude, longitude, months = np.arange(-88.0, 89, 4), np.arange(0.0, 360, 4), 144
        random = np.random.default_rng(0).normal(size=(months, len(latitude), len(longitude)))
        field = _of_place(latitude[:, None], longitude[None], months) + random
        axes = {"time": _times("standard", months), "lat": latitude, "lon": longitude}
        _write(xr.Dataset({"sst": (("time", "lat", "lon"), field.astype("f4"))}, coords=axes), root / "sst.nc")
        return root

    def _task(self, root: Path, fold: int, folds: int = 4, **options: object) -> bench.Task:
        return bench.load_task("enso_ersst", root, folds=folds, fold=fold, scale="kelvin", **options)

    def test_folds_test_every_month_once_and_share_none(self, root: Path) -> None:
        tested: list[str] = []
        for fold in range(4):
            task = self._task(root, fold)
            assert not task.leaks
            splits = {split: task.dataset(split) for split in ("train", "val", "test")}
            months = [month for part in splits.values() for month in part.ids]
            assert len(months) == len(set(months)) == 144
            tested += splits["test"].ids
            assert splits["val"].ids[0] == f"{1960 + 3 * ((fold + 1) % 4)}-01"
        assert sorted(tested) == sorted(set(tested)) and len(tested) == 144

    def test_no_window_crosses_a_fold_border(self, root: Path) -> None:
        whole = anomalies_of(root, BasePeriod.years(1960, 1971)).months
        task = self._task(root, 1, t_in=4, t_out=3)
        data = task.dataset("train")  # 1960-1962 and 1969-1971
        source = data.source
        assert source.units.ids == ("1960-01..1962-12", "1969-01..1971-12") and source.units.counts == (30, 30)
        starts = [
            int(np.flatnonzero((source.sst == data.stored(k)[0][0, ..., 0].numpy()).all((1, 2)))[0])
            for k in (0, 29, 30)
        ]
        assert starts == [0, 29, 36] and whole[0] == source.months[0]
        with pytest.raises(IndexError):
            data.stored(60)

    def test_a_shorter_validation_block_extends_the_training(self, root: Path) -> None:
        found = self._task(root, 3, t_in=4, t_out=3, val_years=1).stretches()
        said = {split: [f"{a}..{b - 1}" for a, b in found[split]] for split in ("train", "val", "test")}
        assert said == {"train": ["1961-01..1968-12"], "val": ["1960-01..1960-12"], "test": ["1969-01..1971-12"]}
        found = self._task(root, 1, val_years=1).stretches()["train"]
        assert [f"{a}..{b - 1}" for a, b in found] == ["1960-01..1962-12", "1967-01..1971-12"]
        with pytest.raises(ConfigError, match="val_years=4 needs folds"):
            bench.load_task("enso_ersst", val_years=4)

    def test_anomalies_use_the_training_months_only(self, root: Path) -> None:
        data = self._task(root, 2).dataset("train").source
        by_month = data.sst.reshape(-1, 12, 24, 48)
        assert np.abs(by_month.mean(0)).max() < 1e-5 and len(by_month) == 6
        assert self._task(root, 2).dataset("test").identity()["base"] == [1960, 1965]

    def test_folds_are_part_of_the_identity(self, root: Path) -> None:
        tasks = [self._task(root, fold) for fold in (0, 1)]
        assert tasks[0].data_fingerprint("test") != tasks[1].data_fingerprint("test")
        assert not tasks[0].fields().items() <= tasks[0].defaults().items()
        plain = bench.load_task("enso_ersst")
        assert not {"folds", "fold", "calendar", "variable"} & plain.fields().keys()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"folds": 6}, "expected both, or neither"),
            ({"folds": 2, "fold": 0}, "expected 3 folds or more"),
            ({"folds": 6, "fold": 6}, r"a fold of 0\.\.5"),
            ({"folds": 6, "fold": 0, "val_from": "1990-01-01"}, "val_from: folds replace them"),
        ],
    )
    def test_invalid_fold_options_are_refused(self, options: dict[str, object], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            bench.load_task("enso_ersst", **options)

    def test_more_folds_than_years_are_refused(self, root: Path) -> None:
        with pytest.raises(ConfigError, match=r"task.folds=5: 12 of the data make 4 blocks of 3"):
            self._task(root, 0, folds=5).dataset("test")

    def test_the_season_is_a_context_channel_and_changes_no_data(self, root: Path) -> None:
        plain, seasonal = (self._task(root, 0, calendar=calendar) for calendar in (False, True))
        context, target = seasonal.dataset("test")[5]  # from June
        assert tuple(context.shape) == seasonal.input_shape == (12, 24, 48, 3) and target.shape == (14, 24, 48, 1)
        angle = 2 * np.pi * ((5 + np.arange(12)) % 12) / 12
        np.testing.assert_allclose(context[:, 3, 7, 1:], np.stack([np.sin(angle), np.cos(angle)], -1), atol=1e-6)
        np.testing.assert_array_equal(context[..., :1], plain.dataset("test")[5][0])
        assert plain.data_fingerprint("test") == seasonal.data_fingerprint("test")
        scaled = bench.load_task("enso_ersst", root, folds=4, fold=0, calendar=True).dataset("test")[5][0]
        np.testing.assert_allclose(scaled[..., 1:], context[..., 1:], atol=1e-7)

    def test_ocean_cells_have_a_known_temperature(self, root: Path) -> None:
        weights = self._task(root, 0).cell_weights()
        assert weights["ocean"].shape == (24, 48) and weights["ocean"].min() == 1
        np.testing.assert_allclose(weights["area"][:, 0], np.cos(np.deg2rad(LATITUDES)))

    def test_forecasts_start_from_the_latest_months(
        self, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        words = ["task=enso_ersst", f"data.root={root}", "task.folds=4", "task.fold=0"]
        assert main(["forecast", *words, "model=persistence", "--latest", "--picture", "months.png"]) == 0
        newest = monthly_means(root).months[-1]
        with xr.open_dataset("forecast.nc") as found:
            assert found["forecast"].dims == ("member", "lead_time", "lat", "lon")
            assert found["forecast"].attrs["units"] == "K"
            months = (newest + np.arange(-11, 15)).astype("M8[ns]")
            np.testing.assert_array_equal(found["time_of_context"], months[:12])
            np.testing.assert_array_equal(found["time"], months[12:])
            sst = anomalies_of(root, self._task(root, 0)._base).sst[-1]
            np.testing.assert_allclose(found["context"][-1], sst[:, 19:67], rtol=1e-5, atol=1e-5)
        seasonal = self._task(root, 0, calendar=True).latest()[0]
        assert tuple(seasonal.shape) == (12, 24, 48, 3)
        where = self._task(root, 0).coordinates("test", 1)
        assert where.start == np.datetime64(self._task(root, 0).dataset("test").source.months[12], "s")
