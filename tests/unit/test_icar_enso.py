"""ICAR-ENSO: records merged from overlapping rows, splits by climate model, labels that travel to the metric."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.io import netcdf_file

import bench
from bench.cli.main import main
from bench.config import compose
from bench.data.icar_enso import Member, cmip_members, merged
from bench.data.loading import evaluation_loader
from bench.errors import ConfigError, DataError
from bench.metrics.nino import nino34_index
from bench.running.pipeline import run
from bench.tables.durations import duration
from bench.tables.pictures import draw_forecasts
from bench.tasks.task import Task

ROWS = {"cmip6_rows": 4, "cmip5_rows": 3}
LAT, LON = np.arange(-55, 61, 5.0), np.arange(0, 356, 5.0)
Change = Callable[[h5py.File], None]


def _series(months: int, seed: int) -> np.ndarray:
    """Months of a field with a slow oscillation in the Nino3.4 box, `(months, 24, 72)` K."""
    random = np.random.default_rng(seed)
    field = random.normal(0, 0.3, (months, 24, 72)).astype(np.float32)
    field[:, 10:13, 38:49] += np.sin(np.arange(months) / 7 + seed)[:, None, None].astype(np.float32)
    return field


def _labels(field: np.ndarray) -> np.ndarray:
    box = field[:, 10:13, 38:49].astype(np.float64).mean((1, 2))
    return np.array([box[m : m + 3].mean() for m in range(len(box) - 2)], np.float32)


def _rows(series: np.ndarray, rows: int) -> np.ndarray:
    return np.stack([series[12 * row : 12 * row + 36] for row in range(rows)])


def _write(path: Path, **arrays: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def _tree(root: Path, family: str, rows: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Writes a tree in the layout of ICAR-ENSO and returns each model's months and labels before they were folded."""
    root.mkdir(parents=True, exist_ok=True)
    fields, labels, models = [], [], []
    for seed, count in enumerate(rows):
        field = _series(12 * count + 26, seed)  # two months more than the rows show: the last labels look ahead
        index = _labels(field)
        models.append((field[:-2], index))
        fields.append(_rows(field, count))
        labels.append(_rows(index, count))
    _write(root / f"{family}_train.nc", sst=np.concatenate(fields), lat=LAT.astype("f4"), lon=LON.astype("f4"))
    _write(root / f"{family}_label.nc", nino=np.concatenate(labels))
    return models


@pytest.fixture(scope="module")
def cmip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[np.ndarray, np.ndarray]]]:
    root = tmp_path_factory.mktemp("enso") / "cmip"
    return root, _tree(root, "CMIP", [ROWS["cmip6_rows"]] * 15 + [ROWS["cmip5_rows"]] * 17)


def _task(root: Path, **options) -> Task:
    return bench.load_task("icar_enso", root, **{**ROWS, **options})


def _copy(root: Path, to: Path, name: str, change: Change) -> Path:
    shutil.copytree(root, to)
    with h5py.File(to / name, "r+") as file:
        change(file)
    return to


def test_shapes_and_metrics_need_no_data() -> None:
    task = bench.load_task("icar_enso")
    assert task.input_shape == (12, 24, 48, 1) and task.target_shape == (14, 24, 48, 1)
    assert bench.load_task("icar_enso", t_out=26).target_shape == (26, 24, 48, 1)
    assert duration(task.cadence_minutes) == "1 month"
    assert set(task.metrics) == {"enso", "mse", "mae"}
    with pytest.raises(ConfigError, match="t_out"):
        bench.load_task("icar_enso", t_out=2)


@pytest.mark.parametrize("rows", range(1, 9))
def test_overlapping_rows_merge_into_the_months_they_were_cut_from(rows: int) -> None:
    series = np.arange(12 * rows + 24, dtype=np.float32)
    before = np.full((3, 36), -1, np.float32)
    folded = np.concatenate([before, _rows(series, rows), before])
    member = Member("x", 3, 3 + rows)
    assert member.months == len(series) and np.array_equal(merged(folded, member), series)


def test_models_lie_in_the_rows_of_the_official_files() -> None:
    members = cmip_members(151, 140)
    assert len(members) == 32 and members[-1].last_row == 4645 and members[15].first_row == 2265
    assert {m.months for m in members[:15]} == {1836} and {m.months for m in members[15:]} == {1704}


@pytest.fixture(scope="module")
def official_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the official shape whose values were never written: zeros that take no space."""
    root = tmp_path_factory.mktemp("enso") / "official"
    root.mkdir()
    _write(root / "CMIP_train.nc", lat=LAT, lon=LON)
    _write(root / "CMIP_label.nc", nino=np.zeros((4645, 36), np.float32))
    with h5py.File(root / "CMIP_train.nc", "r+") as file:
        file.create_dataset("sst", (4645, 36, 24, 72), "f4", chunks=(1, 36, 24, 72))
    return root


def test_the_official_files_give_the_published_numbers_of_sequences(official_size: Path) -> None:
    task = bench.load_task("icar_enso", official_size)
    assert {split: len(task.dataset(split)) for split in ("train", "val", "test")} == task.published_sequences
    paper = bench.load_task("icar_enso", official_size, t_out=26, train_gap=10, eval_gap=1)
    assert len(paper.dataset("train")) == 5_205 and len(paper.dataset("test")) == 1_667
    assert len(bench.load_task("icar_enso", official_size, t_out=26, eval_gap=5).dataset("val")) == 334


def test_splits_are_by_climate_model(cmip) -> None:
    task = _task(cmip[0])
    ids = {split: task.dataset(split).ids for split in ("train", "val", "test", "all")}
    assert ids["val"] == ("CMIP5-15",) and ids["test"] == ("CMIP5-16",)
    assert ids["train"] == ids["all"][:-2] and len(ids["all"]) == len(set(ids["all"])) == 32
    assert ids["all"][:1] == ("CMIP6-00",) and ids["all"][15] == "CMIP5-00"


@pytest.mark.parametrize(("gap", "t_out"), [(1, 14), (5, 14), (7, 26)])
def test_windows_are_the_months_and_labels_of_their_model(cmip, gap: int, t_out: int) -> None:
    root, models = cmip
    data = _task(root, t_out=t_out, train_gap=gap).dataset("train")
    index = 0
    for months, labels in models[:-2]:
        for first in range(0, len(months) - (12 + t_out - 1), gap):
            if index % 11 == 0 or first == 0:
                context, target, nino = data.stored(index)
                cropped = months[:, :, 19:67, None]
                assert np.array_equal(context.numpy(), cropped[first : first + 12])
                assert np.array_equal(target.numpy(), cropped[first + 12 : first + 12 + t_out])
                assert np.array_equal(nino.numpy(), labels[first + 12 : first + 12 + t_out - 2])
            index += 1
    assert index == len(data)
    assert torch.equal(data.stored(-1)[0], data.stored(index - 1)[0])
    with pytest.raises(IndexError):
        data.stored(index)


def test_items_are_pairs_on_the_unit_scale(cmip) -> None:
    task = _task(cmip[0])
    data = task.dataset("test")
    context, target = data[3]
    stored = data.stored(3)
    assert context.dtype == target.dtype == torch.float32
    span = 10.198975563049316 + 16.549121856689453
    expected = (stored[1].double() + 16.549121856689453) / span
    assert torch.allclose(target.double(), expected, atol=1e-7)
    assert torch.allclose(task.denormalise(target), stored[1], atol=3e-6)
    ends = task.normalise(torch.tensor([-16.549121856689453, 10.198975563049316]))
    assert ends.tolist() == [0.0, 1.0]


def test_loaders_carry_the_labels_and_no_item_is_a_view_of_the_record(cmip) -> None:
    data = _task(cmip[0]).dataset("test")
    for workers in (0, 2):
        batch = next(iter(evaluation_loader(data, batch_size=4, num_workers=workers, limit=None)))
        assert [tuple(part.shape) for part in batch] == [(4, 12, 24, 48, 1), (4, 14, 24, 48, 1), (4, 12)]
        assert torch.equal(batch[2][1], data.stored(1)[2])
    before = data.stored(0)[0].clone()
    for part in data.stored(0):
        part.fill_(9)
    assert torch.equal(data.stored(0)[0], before)
    again = pickle.loads(pickle.dumps(data.source))
    assert torch.equal(again.stored(5)[1], data.stored(5)[1])


def test_the_labels_reach_the_metric(cmip, tmp_path: Path) -> None:
    def shuffle(file: h5py.File) -> None:
        file["nino"][...] = np.random.default_rng(0).normal(size=file["nino"].shape)

    other = _copy(cmip[0], tmp_path / "other", "CMIP_label.nc", shuffle)
    scores = [bench.evaluate("persistence", _task(root), batch_size=5).scores for root in (cmip[0], other)]
    assert scores[0]["mse"] == scores[1]["mse"]
    assert abs(scores[0]["c_nino34_m"] - scores[1]["c_nino34_m"]) > 0.05


def test_scores_do_not_depend_on_the_batch_size(cmip) -> None:
    records = [bench.evaluate("persistence", _task(cmip[0]), batch_size=size) for size in (1, 7, 64)]
    assert all(r.scores["c_nino34_wm"] == pytest.approx(records[0].scores["c_nino34_wm"], rel=1e-12) for r in records)
    record = records[0]
    assert record.scope == "full" and record.data is not None and record.data.sequence_count == 35
    assert len(record.scores_per_lead["c_nino34"]) == 12 and len(record.scores_per_lead["mse"]) == 14


def test_the_fingerprint_is_of_every_month(cmip, tmp_path: Path) -> None:
    def touch(file: h5py.File) -> None:
        file["sst"][-1, -1, 0, 20] += 1  # the last month of the test model

    same = shutil.copytree(cmip[0], tmp_path / "same")
    other = _copy(cmip[0], tmp_path / "other", "CMIP_train.nc", touch)
    prints = [_task(root).data_fingerprint("test") for root in (cmip[0], same, other)]
    assert prints[0] == prints[1] != prints[2]
    assert _task(other).data_fingerprint("val") == _task(cmip[0]).data_fingerprint("val")


@pytest.mark.slow
def test_a_run_trains_selects_by_correlation_and_draws(cmip, tmp_path: Path) -> None:
    config = compose([
        "task=icar_enso", "task.cmip6_rows=4", "task.cmip5_rows=3", "model=unet", "model.channels=[4]",
        "data.batch_size=8", "train.max_epochs=1", "train.max_steps=2", "train.limit=16", "train.loggers=[csv]",
        "train.early_stopping.monitor=val/c_nino34_m", "train.early_stopping.mode=max", "progress=false", "device=cpu",
        f"data.root={cmip[0]}", f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}",
    ])  # fmt: skip
    outcome = run(config, training=True, say=lambda line: None)
    assert outcome.record.training is not None and outcome.record.training.monitor == "val/c_nino34_m"
    assert outcome.record.conventions["enso"]["convention"] == "upstream"
    assert outcome.picture_path is not None and outcome.picture_path.stat().st_size > 10_000


def test_a_picture_without_levels_spans_what_is_drawn(tmp_path: Path) -> None:
    for frames in (np.zeros((2, 4, 4)), np.full((2, 4, 4), np.nan), np.random.default_rng(0).random((2, 4, 4))):
        path = draw_forecasts(
            tmp_path / "x.png", context=frames, target=frames, forecasts={}, palette=Task.palette, units="K",
            cadence_minutes=43_829.1, title="",
        )  # fmt: skip
        assert path.stat().st_size > 1000


@pytest.mark.parametrize(
    ("minutes", "text", "signed"),
    [(5, "5 min", "+5 min"), (0, "0 min", "0 min"), (43_829.1, "1 month", "+1 month"),
     (-11 * 43_829.1, "-11 months", "-11 months"), (43_830, "43830 min", "+43830 min")],
)  # fmt: skip
def test_durations(minutes: float, text: str, signed: str) -> None:
    assert duration(minutes) == text and duration(minutes, sign=True) == signed


class TestObservedNames:
    def test_one_record_has_the_split_all(self, tmp_path: Path) -> None:
        ((months, labels),) = _tree(tmp_path, "SODA", [5])
        task = _task(tmp_path)
        data = task.dataset("all")
        assert data.ids == ("SODA",) and len(data) == 84 - 25
        assert np.array_equal(data.stored(58)[1].numpy(), months[-14:, :, 19:67, None])
        assert np.array_equal(data.stored(58)[2].numpy(), labels[-14:-2])
        assert data.identity()["origin"] != "files", "no row of a published table is made of observations"
        for split in ("train", "val", "test"):
            with pytest.raises(DataError, match=r"CMIP_train\.nc.*split=all"):
                task.dataset(split)

    def test_the_classic_format_reads_the_same(self, tmp_path: Path) -> None:
        _tree(tmp_path / "new", "SODA", [3])
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
        new, old = (_task(tmp_path / root).dataset("all") for root in ("new", "old"))
        assert new.identity() == old.identity()
        assert torch.equal(new.stored(7)[0], old.stored(7)[0])


class TestWrongData:
    def test_an_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "CATALOG.csv").touch()
        with pytest.raises(DataError, match=r"expected CMIP_train.nc.*found CATALOG.csv"):
            _task(tmp_path).dataset("test")

    def test_labels_that_are_missing(self, tmp_path: Path) -> None:
        _tree(tmp_path, "SODA", [2])
        (tmp_path / "SODA_label.nc").unlink()
        with pytest.raises(DataError, match=r"SODA_label.nc: file is missing"):
            _task(tmp_path).dataset("all")

    @pytest.mark.parametrize("content", [b"", b"id,file_name\n", b"CDF\x01garbage", b"\x89HDF\r\n\x1a\n", "cut"])
    @pytest.mark.parametrize("name", ["SODA_train.nc", "SODA_label.nc"])
    def test_files_of_another_format(self, tmp_path: Path, name: str, content: bytes | str) -> None:
        _tree(tmp_path, "SODA", [2])
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if isinstance(content, str) else content)
        with pytest.raises(DataError, match=rf"{name}.*not readable"):
            _task(tmp_path).dataset("all")

    def test_rows_that_are_not_those_of_the_models(self, cmip) -> None:
        with pytest.raises(DataError) as caught:
            bench.load_task("icar_enso", cmip[0]).dataset("test")
        message = str(caught.value)
        assert (
            "CMIP_train.nc: sst (year, month, lat, lon): expected (4645, 36, 24, 72), found (111, 36, 24, 72)"
            in message
        )
        assert "CMIP_label.nc: nino (year, month): expected (4645, 36), found (111, 36)" in message

    def test_another_grid_and_missing_variables(self, tmp_path: Path) -> None:
        _tree(tmp_path, "SODA", [2])
        _write(tmp_path / "SODA_train.nc", sst=np.zeros((2, 36, 24, 72)), lat=LAT[::-1], lon=np.arange(-180, 180, 5))
        with pytest.raises(
            DataError, match=r"lat: expected -55\.\.60.*\n.*lon: expected 0\.\.355.*found 72 values -180"
        ):
            _task(tmp_path).dataset("all")
        _write(tmp_path / "SODA_train.nc", t300=np.zeros(3))
        with pytest.raises(DataError, match=r"SODA_train.nc: expected a variable 'sst', found t300"):
            _task(tmp_path).dataset("all")

    def test_holes(self, cmip, tmp_path: Path) -> None:
        def dig(file: h5py.File) -> None:
            file["sst"][-1, 20, 0, 20:23] = np.nan
            file["sst"][0, 0, 0, 0] = np.nan  # outside the crop

        root = _copy(cmip[0], tmp_path / "holes", "CMIP_train.nc", dig)
        with pytest.raises(DataError, match=r"expected finite sst, found 3 others in record CMIP5-16"):
            _task(root).dataset("test")
        assert len(_task(root).dataset("train"))

    def test_records_shorter_than_a_window(self, cmip) -> None:
        with pytest.raises(ConfigError, match="60 months; t_in=40 and t_out=26 need 66"):
            _task(cmip[0], t_in=40, t_out=26).dataset("test")


class TestReport:
    def test_what_is_there(self, cmip) -> None:
        task = _task(cmip[0], train_gap=7)
        seen: list[tuple[int, int]] = []
        report = task.describe_data(read_everything=True, advance=lambda done, total: seen.append((done, total)))
        assert report.problems == [] and report.facts["events"] == 32 and seen[-1] == (32, 32)
        counts = {split: count["sequences"] for split, count in report.facts["splits"].items()}
        assert counts == {split: len(task.dataset(split)) for split in ("train", "val", "test", "all")}
        assert any("32 records of 60 and 72 months" in line for line in report.lines)
        # what a task without a report of its own says is the same, from its splits
        plain = Task.describe_data(task)
        assert plain.facts["splits"] == report.facts["splits"] and plain.facts["events"] == 32

    def test_rows_that_disagree_and_holes_are_all_found(self, cmip, tmp_path: Path) -> None:
        def spoil(file: h5py.File) -> None:
            file["sst"][1, 30] += 1  # the first CMIP6 model: rows 1 and 2 share the month
            file["sst"][110, 35, 3, 3] = np.nan

        root = _copy(cmip[0], tmp_path / "spoilt", "CMIP_train.nc", spoil)
        assert _task(root).describe_data().problems == []
        problems = _task(root).describe_data(read_everything=True).problems
        assert len(problems) == 2
        assert "CMIP6-00: 1 rows disagree" in problems[0] and "first rows 1 and 2" in problems[0]
        assert "CMIP5-16 has 1 values that are not finite" in problems[1]

    def test_the_wrong_rows_per_model_are_found(self, tmp_path: Path) -> None:
        _tree(tmp_path, "CMIP", [20] * 15 + [1] * 17)
        for cmip6, cmip5, right in ((20, 1, True), (3, 16, False)):  # 317 rows both times
            report = _task(tmp_path, cmip6_rows=cmip6, cmip5_rows=cmip5).describe_data(read_everything=True)
            assert (not report.problems) is right

    def test_the_command_line_says_it(self, cmip, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        ((_, _),) = _tree(tmp_path, "SODA", [5])
        assert main(["data", "info", "icar_enso", "--root", str(tmp_path)]) == 0
        assert "1 record of 84 months" in capsys.readouterr().out
        assert main(["data", "check", "icar_enso", "--root", str(tmp_path)]) == 0
        assert "no problems: 1 events read" in capsys.readouterr().out
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

    def test_the_index_agrees_with_that_of_the_climate_prediction_center(self, task: Task, observed: Path) -> None:
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
