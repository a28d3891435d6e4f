"""ICAR-ENSO: records merged from overlapping rows, splits by climate model, labels passed to the metric."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from enso_trees import LAT, LON, ROWS, changed_copy, rows_of, small_task, write_arrays, write_tree

import bench
from bench.cli.main import main
from bench.config import compose
from bench.data.icar_enso.dataset import Member, cmip_members, merged
from bench.data.loading import evaluation_loader
from bench.engine.run import run
from bench.errors import ConfigError
from bench.tables.durations import TimeAxis
from bench.tables.look import Look
from bench.tables.pictures import draw_forecasts


@pytest.fixture(scope="module")
def cmip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[np.ndarray, np.ndarray]]]:
    root = tmp_path_factory.mktemp("enso") / "cmip"
    return root, write_tree(root, "CMIP", [ROWS["cmip6_rows"]] * 15 + [ROWS["cmip5_rows"]] * 17)


def test_shapes_and_metrics_are_known_without_data() -> None:
    task = bench.load_task("icar_enso")
    assert task.input_shape == (12, 24, 48, 1) and task.target_shape == (14, 24, 48, 1)
    assert bench.load_task("icar_enso", t_out=26).target_shape == (26, 24, 48, 1)
    assert TimeAxis.of(task.cadence_minutes).text() == "1 month"
    assert set(task.metrics) == {"enso", "mse", "mae"}
    with pytest.raises(ConfigError, match="t_out"):
        bench.load_task("icar_enso", t_out=2)


@pytest.mark.parametrize("rows", range(1, 9))
def test_overlapping_rows_merge_into_the_original_months(rows: int) -> None:
    series = np.arange(12 * rows + 24, dtype=np.float32)
    before = np.full((3, 36), -1, np.float32)
    folded = np.concatenate([before, rows_of(series, rows), before])
    member = Member("x", 3, 3 + rows)
    assert member.months == len(series) and np.array_equal(merged(folded[3 : 3 + rows], member), series)


def test_models_occupy_the_rows_of_the_official_files() -> None:
    members = cmip_members(151, 140)
    assert len(members) == 32 and members[-1].last_row == 4645 and members[15].first_row == 2265
    assert {m.months for m in members[:15]} == {1836} and {m.months for m in members[15:]} == {1704}


@pytest.fixture(scope="module")
def official_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with the official shape but without written values: zeros that need no space."""
    root = tmp_path_factory.mktemp("enso") / "official"
    root.mkdir()
    write_arrays(root / "CMIP_train.nc", lat=LAT, lon=LON)
    write_arrays(root / "CMIP_label.nc", nino=np.zeros((4645, 36), np.float32))
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
    task = small_task(cmip[0])
    ids = {split: task.dataset(split).ids for split in ("train", "val", "test", "all")}
    assert ids["val"] == ("CMIP5-15",) and ids["test"] == ("CMIP5-16",)
    assert ids["train"] == ids["all"][:-2] and len(ids["all"]) == len(set(ids["all"])) == 32
    assert ids["all"][:1] == ("CMIP6-00",) and ids["all"][15] == "CMIP5-00"


@pytest.mark.parametrize(("gap", "t_out"), [(1, 14), (5, 14), (7, 26)])
def test_windows_are_the_months_and_labels_of_their_model(cmip, gap: int, t_out: int) -> None:
    root, models = cmip
    data = small_task(root, t_out=t_out, train_gap=gap).dataset("train")
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
    task = small_task(cmip[0])
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


def test_loaders_return_labels_and_items_are_copies(cmip) -> None:
    data = small_task(cmip[0]).dataset("test")
    for workers in (0, 2):
        batch = next(iter(evaluation_loader(data, batch_size=4, num_workers=workers, limit=None)))
        shapes = [tuple(part.shape) for part in (batch.context, batch.target, *batch.labels)]
        assert shapes == [(4, 12, 24, 48, 1), (4, 14, 24, 48, 1), (4, 12)] and batch.index.tolist() == [0, 1, 2, 3]
        assert torch.equal(batch.labels[0][1], data.stored(1)[2])
    before = data.stored(0)[0].clone()
    for part in data.stored(0):
        part.fill_(9)
    assert torch.equal(data.stored(0)[0], before)
    again = pickle.loads(pickle.dumps(data.source))
    assert torch.equal(again.stored(5)[1], data.stored(5)[1])


def test_the_labels_reach_the_metric(cmip, tmp_path: Path) -> None:
    def shuffle(file: h5py.File) -> None:
        file["nino"][...] = np.random.default_rng(0).normal(size=file["nino"].shape)

    other = changed_copy(cmip[0], tmp_path / "other", "CMIP_label.nc", shuffle)
    scores = [bench.evaluate("persistence", small_task(root), batch_size=5).scores for root in (cmip[0], other)]
    assert scores[0]["mse"] == scores[1]["mse"]
    assert abs(scores[0]["c_nino34_m"] - scores[1]["c_nino34_m"]) > 0.05


def test_scores_do_not_depend_on_the_batch_size(cmip) -> None:
    records = [bench.evaluate("persistence", small_task(cmip[0]), batch_size=size) for size in (1, 7, 64)]
    assert all(r.scores["c_nino34_wm"] == pytest.approx(records[0].scores["c_nino34_wm"], rel=1e-12) for r in records)
    record = records[0]
    assert record.scope == "full" and record.data is not None and record.data.sequence_count == 35
    assert len(record.scores_per_lead["c_nino34"]) == 12 and len(record.scores_per_lead["mse"]) == 14


def test_the_fingerprint_covers_every_month(cmip, tmp_path: Path) -> None:
    def touch(file: h5py.File) -> None:
        file["sst"][-1, -1, 0, 20] += 1  # the last month of the test model

    same = shutil.copytree(cmip[0], tmp_path / "same")
    other = changed_copy(cmip[0], tmp_path / "other", "CMIP_train.nc", touch)
    prints = [small_task(root).data_fingerprint("test") for root in (cmip[0], same, other)]
    assert prints[0] == prints[1] != prints[2]
    assert small_task(other).data_fingerprint("val") == small_task(cmip[0]).data_fingerprint("val")


@pytest.mark.slow
def test_a_run_trains_selects_by_correlation_and_plots(cmip, tmp_path: Path) -> None:
    config = compose([
        "task=icar_enso", "task.cmip6_rows=4", "task.cmip5_rows=3", "model=unet", "model.channels=[4]",
        "data.batch_size=8", "train.max_epochs=1", "train.max_steps=2", "train.limit=16", "train.loggers=[csv]",
        "train.early_stopping.monitor=val/c_nino34_m", "train.early_stopping.mode=max", "progress=false", "device=cpu",
        f"data.root={cmip[0]}", f"results.root={tmp_path / 'results'}", f"work={tmp_path / 'work'}",
    ])  # fmt: skip
    outcome = run(config, training=True)
    assert outcome.record.training is not None and outcome.record.training.monitor == "val/c_nino34_m"
    assert outcome.record.conventions["enso"]["convention"] == "upstream"
    assert outcome.picture_path is not None and outcome.picture_path.stat().st_size > 10_000


def test_a_picture_without_levels_spans_its_values(tmp_path: Path) -> None:
    for frames in (np.zeros((2, 4, 4)), np.full((2, 4, 4), np.nan), np.random.default_rng(0).random((2, 4, 4))):
        path = draw_forecasts(
            tmp_path / "x.png", context=frames, target=frames, forecasts={}, look=Look(units="K"),
            cadence_minutes=43_829.1, title="",
        )  # fmt: skip
        assert path.stat().st_size > 1000


def test_cells_that_are_always_zero_are_land(cmip: tuple, tmp_path: Path) -> None:
    def dry(file: h5py.File) -> None:
        file["sst"][:, :, 3, 30] = 0

    root = changed_copy(cmip[0], tmp_path / "land", "CMIP_train.nc", dry)
    task = small_task(root)
    ocean = task.cell_weights()["ocean"]
    assert ocean[3, 30 - 19] == 0 and ocean.sum() == 24 * 48 - 1
    options = [f"task.{name}={value}" for name, value in ROWS.items()]
    words = ["task=icar_enso", *options, f"data.root={root}", "model=persistence", f"results.root={tmp_path}"]
    added = "evaluate.metrics.ocean={metric: mse, weights: [area, ocean]}"
    assert main(["evaluate", *words, "progress=false", "picture=false", f"work={tmp_path}", added]) == 0
    (record,) = tmp_path.glob("runs/icar_enso/persistence/*.json")
    scores = json.loads(record.read_text())["scores"]
    assert 0 < scores["mse_ocean"] != scores["mse"]
