"""ICAR-ENSO: files of other formats, wrong files, their reports by `data info`, and the observed record."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from enso_trees import LAT, ROWS, changed_copy, small_task, write_arrays, write_tree
from scipy.io import netcdf_file

import bench
from bench.cli.main import main
from bench.errors import ConfigError, DataError
from bench.metrics.enso.metric import nino34_index
from bench.tasks.task import Task


@pytest.fixture(scope="module")
def cmip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[np.ndarray, np.ndarray]]]:
    root = tmp_path_factory.mktemp("enso") / "cmip"
    return root, write_tree(root, "CMIP", [ROWS["cmip6_rows"]] * 15 + [ROWS["cmip5_rows"]] * 17)


class TestObservedNames:
    def test_a_single_record_has_split_all_only(self, tmp_path: Path) -> None:
        ((months, labels),) = write_tree(tmp_path, "SODA", [5])
        task = small_task(tmp_path)
        data = task.dataset("all")
        assert data.ids == ("SODA",) and len(data) == 84 - 25
        assert np.array_equal(data.stored(58)[1].numpy(), months[-14:, :, 19:67, None])
        assert np.array_equal(data.stored(58)[2].numpy(), labels[-14:-2])
        assert data.identity()["origin"] != "files", "no row of a published table is made of observations"
        for split in ("train", "val", "test"):
            with pytest.raises(DataError, match=r"CMIP_train\.nc.*split=all"):
                task.dataset(split)

    def test_the_classic_format_is_read(self, tmp_path: Path) -> None:
        write_tree(tmp_path / "new", "SODA", [3])
        (tmp_path / "old").mkdir()
        for name, axes in {"train": ("year", "month", "lat", "lon"), "label": ("year", "month")}.items():
            with (
                h5py.File(tmp_path / "new" / f"SODA_{name}.nc") as new,
                netcdf_file(tmp_path / "old" / f"SODA_{name}.nc", "w") as old,
            ):
                variable = "sst" if name == "train" else "nino"
                for axis, size in zip(axes, new[variable].shape, strict=True):
                    old.createDimension(axis, size)
                for key in new:
                    own = axes if key == variable else (key,)
                    old.createVariable(key, "f4", own)[:] = new[key][:]
        new, old = (small_task(tmp_path / root).dataset("all") for root in ("new", "old"))
        assert new.identity() == old.identity()
        assert torch.equal(new.stored(7)[0], old.stored(7)[0])


class TestWrongData:
    def test_an_empty_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "CATALOG.csv").touch()
        with pytest.raises(DataError, match=r"expected CMIP_train.nc.*found CATALOG.csv"):
            small_task(tmp_path).dataset("test")

    def test_missing_labels_are_refused(self, tmp_path: Path) -> None:
        write_tree(tmp_path, "SODA", [2])
        (tmp_path / "SODA_label.nc").unlink()
        with pytest.raises(DataError, match=r"SODA_label.nc: file is missing"):
            small_task(tmp_path).dataset("all")

    @pytest.mark.parametrize("content", [b"", b"id,file_name\n", b"CDF\x01garbage", b"\x89HDF\r\n\x1a\n", "cut"])
    @pytest.mark.parametrize("name", ["SODA_train.nc", "SODA_label.nc"])
    def test_files_of_another_format_are_refused(self, tmp_path: Path, name: str, content: bytes | str) -> None:
        write_tree(tmp_path, "SODA", [2])
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if isinstance(content, str) else content)
        with pytest.raises(DataError, match=rf"{name}.*not readable"):
            small_task(tmp_path).dataset("all")

    def test_wrong_row_counts_are_refused(self, cmip) -> None:
        with pytest.raises(DataError) as caught:
            bench.load_task("icar_enso", cmip[0]).dataset("test")
        message = str(caught.value)
        assert (
            "CMIP_train.nc: sst (year, month, lat, lon): expected (4645, 36, 24, 72), found (111, 36, 24, 72)"
            in message
        )
        assert "CMIP_label.nc: nino (year, month): expected (4645, 36), found (111, 36)" in message

    def test_another_grid_and_missing_variables_are_refused(self, tmp_path: Path) -> None:
        write_tree(tmp_path, "SODA", [2])
        write_arrays(
            tmp_path / "SODA_train.nc", sst=np.zeros((2, 36, 24, 72)), lat=LAT[::-1], lon=np.arange(-180, 180, 5)
        )
        with pytest.raises(
            DataError, match=r"lat: expected -55\.\.60.*\n.*lon: expected 0\.\.355.*found 72 values -180"
        ):
            small_task(tmp_path).dataset("all")
        write_arrays(tmp_path / "SODA_train.nc", t300=np.zeros(3))
        with pytest.raises(DataError, match=r"SODA_train.nc: expected a variable 'sst', found t300"):
            small_task(tmp_path).dataset("all")

    def test_missing_values_in_the_crop_are_refused(self, cmip, tmp_path: Path) -> None:
        def dig(file: h5py.File) -> None:
            file["sst"][-1, 20, 0, 20:23] = np.nan
            file["sst"][0, 0, 0, 0] = np.nan  # outside the crop

        root = changed_copy(cmip[0], tmp_path / "holes", "CMIP_train.nc", dig)
        with pytest.raises(DataError, match=r"expected finite sst, found 3 others in record CMIP5-16"):
            small_task(root).dataset("test")
        assert len(small_task(root).dataset("train"))

    def test_records_shorter_than_a_window_are_refused(self, cmip) -> None:
        with pytest.raises(ConfigError, match="60 months; t_in=40 and t_out=26 need 66"):
            small_task(cmip[0], t_in=40, t_out=26).dataset("test")


class TestReport:
    def test_info_reports_the_records(self, cmip) -> None:
        task = small_task(cmip[0], train_gap=7)
        seen: list[tuple[int, int]] = []
        report = task.describe_data(read_everything=True, advance=lambda done, total: seen.append((done, total)))
        assert report.problems == [] and report.facts["events"] == 32 and seen[-1] == (32, 32)
        counts = {split: count["sequences"] for split, count in report.facts["splits"].items()}
        assert counts == {split: len(task.dataset(split)) for split in ("train", "val", "test", "all")}
        assert any("32 records of 60 and 72 months" in line for line in report.lines)
        # what a task without a report of its own says is the same, from its splits
        plain = Task.describe_data(task)
        assert plain.facts["splits"] == report.facts["splits"] and plain.facts["events"] == 32

    def test_check_finds_contradicting_rows_and_missing_values(self, cmip, tmp_path: Path) -> None:
        def spoil(file: h5py.File) -> None:
            file["sst"][1, 30] += 1  # the first CMIP6 model: rows 1 and 2 share the month
            file["sst"][110, 35, 3, 3] = np.nan

        root = changed_copy(cmip[0], tmp_path / "spoilt", "CMIP_train.nc", spoil)
        assert small_task(root).describe_data().problems == []
        problems = small_task(root).describe_data(read_everything=True).problems
        assert len(problems) == 2
        assert "CMIP6-00: 1 rows disagree" in problems[0] and "first rows 1 and 2" in problems[0]
        assert "found 1 others in record CMIP5-16, the first at row 2, month 35" in problems[1]

    def test_check_finds_wrong_rows_per_model(self, tmp_path: Path) -> None:
        write_tree(tmp_path, "CMIP", [20] * 15 + [1] * 17)
        for cmip6, cmip5, right in ((20, 1, True), (3, 16, False)):  # 317 rows both times
            report = small_task(tmp_path, cmip6_rows=cmip6, cmip5_rows=cmip5).describe_data(read_everything=True)
            assert (not report.problems) is right

    def test_check_fails_on_the_command_line(self, cmip, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ((_, _),) = write_tree(tmp_path, "SODA", [5])
        assert main(["data", "info", "icar_enso", "--root", str(tmp_path)]) == 0
        assert "1 record of 84 months" in capsys.readouterr().out
        assert main(["data", "check", "icar_enso", "--root", str(tmp_path)]) == 0
        assert "no problems: 1 event read" in capsys.readouterr().out
        assert main(["data", "check", "icar_enso", "--root", str(cmip[0])]) == 2
        assert "expected (4645, 36, 24, 72)" in capsys.readouterr().err


class TestObservedData:
    @pytest.fixture
    def task(self, observed: Path) -> Task:
        return bench.load_task("icar_enso", observed / "enso")

    def test_rows_rebuild_the_continuous_series(self, task: Task, observed: Path) -> None:
        source = task.dataset("all").source
        with h5py.File(observed / "enso" / "ersst_v3b_5deg_196001-199912.nc") as file:
            series = np.nan_to_num(file["sst_anomaly"][..., 19:67])
        assert source.sst[0].shape == (480, 24, 48)
        assert np.array_equal(source.sst[0], series)

    def test_labels_are_the_box_mean(self, task: Task) -> None:
        data = task.dataset("all")
        assert len(data) == 455
        worst = max(
            float((nino34_index(t[None])[0] - label).abs().max()) for _, t, label in map(data.stored, range(455))
        )
        assert worst <= 2.4e-7

    def test_the_index_agrees_with_the_climate_prediction_center(self, task: Task, observed: Path) -> None:
        import pandas as pd

        table = pd.read_csv(observed / "enso" / "nino34_check_196001-199912.csv")[:480]
        box = task.dataset("all").source.sst[0][:, 10:13, 19:30].astype(np.float64).mean((1, 2))
        assert np.abs(box - table["v3b_5deg_upstream_box_anom"]).max() <= 5.1e-5, "of four decimals"
        # Rows reach 7.5 degrees from the equator and the data versions differ: no closer than this.
        theirs = table["cpc_nino34_anom_6190"]
        assert np.corrcoef(box, theirs)[0, 1] > 0.99 and np.sqrt(np.square(box - theirs).mean()) < 0.2

    def test_persistence_loses_skill_with_lead_time(self, task: Task) -> None:
        record = bench.evaluate("persistence", task, split="all", batch_size=64)
        per_lead = record.scores_per_lead["c_nino34"]
        assert per_lead[0] > 0.85 and all(a > b for a, b in pairwise(per_lead))
        assert 0.2 < record.scores["c_nino34_m"] < 0.4 and 3e-4 < record.scores["mse"] < 6e-4
