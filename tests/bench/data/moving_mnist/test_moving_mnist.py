"""MovingMNIST: the authors' splits of the one file, generated files, and wrong files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import bench
from bench.cli.main import main
from bench.data.moving_mnist.dataset import numbers_of_split
from bench.data.moving_mnist.synthetic import Scene, trajectories
from bench.errors import DataError


def test_the_official_split_is_scikit_learns() -> None:
    model_selection = pytest.importorskip("sklearn.model_selection")
    train, val = model_selection.train_test_split(np.arange(9000), test_size=0.1, random_state=123)
    path = Path("mnist_test_seq.npy")
    assert np.array_equal(numbers_of_split(path, 10_000, "train", 1000), train)
    assert np.array_equal(numbers_of_split(path, 10_000, "val", 1000), val)
    assert np.array_equal(numbers_of_split(path, 10_000, "test", 1000), np.arange(9000, 10_000))


def test_a_single_file_is_split(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 30, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "mnist_test_seq.npy", frames)
    task = bench.load_task("moving_mnist", tmp_path, test_count=10)
    assert task.input_shape == (10, 8, 8, 1)
    parts = {split: task.dataset(split) for split in ("train", "val", "test", "all")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 18, "val": 2, "test": 10, "all": 30}
    assert len({name for split in ("train", "val", "test") for name in parts[split].ids}) == 30
    context, target = parts["test"].stored(3)
    assert np.array_equal(np.concatenate([context, target])[..., 0], frames[:, 23])
    assert float(parts["test"][3][0][2, 1, 1, 0]) == pytest.approx(frames[2, 23, 1, 1] / 255)
    with pytest.raises(DataError, match="nothing is left to train on"):
        bench.load_task("moving_mnist", tmp_path).dataset("train")
    with pytest.raises(DataError, match="expected 25 frames or more, found 20"):
        bench.load_task("moving_mnist", tmp_path, t_out=15, test_count=10).dataset("test")


def test_generated_files_are_read(tmp_path: Path) -> None:
    command = ["data", "make", "moving_mnist", "--train", "12", "--val", "4", "--test", "5"]
    for name in ("one", "two"):
        assert main([*command, "--out", str(tmp_path / name)]) == 0
    task = bench.load_task("moving_mnist", tmp_path / "one")
    assert [len(task.dataset(split)) for split in ("train", "val", "test", "all")] == [12, 4, 5, 21]
    assert task.data_fingerprint("test") == bench.load_task("moving_mnist", tmp_path / "two").data_fingerprint("test")
    context, target = task.dataset("test").stored(0)
    light = np.concatenate([context, target]).astype(float).sum((1, 2, 3))
    assert light.min() > 0.4 * light.max(), "digits stay inside"
    record = bench.evaluate("persistence", task, device="cpu")
    assert record.scores["mse_frame_sum"] == pytest.approx(record.scores["mse"] * 4096)


def test_other_digit_counts_and_canvases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "make", "moving_mnist", "--train", "3", "--val", "2", "--test", "2"]
    options = ["--digit-count", "3", "--canvas", "48", "--frames", "8"]
    for name, pool in (("fine", "1"), ("coarse", "4")):
        assert main([*command, "--out", str(tmp_path / name), *options, "--pool", pool]) == 0
    fine, coarse = (bench.load_task("moving_mnist", tmp_path / name, t_in=4, t_out=4) for name in ("fine", "coarse"))
    assert fine.input_shape == (4, 48, 48, 1) and coarse.target_shape == (4, 12, 12, 1)
    for number in range(2):
        parts = fine.dataset("test").stored(number)[0].double(), coarse.dataset("test").stored(number)[0].double()
        means = torch.nn.functional.avg_pool2d(parts[0][..., 0], 4)
        assert float((means - parts[1][..., 0]).abs().max()) <= 0.5
    assert "3 digits on 48x48" in coarse.dataset("test").identity()["origin"]
    assert main([*command, "--out", str(tmp_path / "no"), "--pool", "3"]) == 2
    assert "canvas: expected a multiple of 3, found 64" in capsys.readouterr().err


def test_digits_move_straight_and_bounce_off_walls() -> None:
    places = trajectories(50, np.random.default_rng(0), Scene())
    assert places.min() >= 0 and places.max() <= 1
    steps = np.diff(places, axis=0)
    inside = ((places[:-2] > 0.11) & (places[:-2] < 0.89) & (places[2:] > 0.11) & (places[2:] < 0.89)).all(-1)
    np.testing.assert_allclose(np.hypot(*np.moveaxis(steps[:-1], -1, 0))[inside], 0.1, rtol=1e-9)
    np.testing.assert_allclose(steps[:-1][inside], steps[1:][inside], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY cut", "float", "flat"])
def test_files_of_another_format_are_refused(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "mnist_test_seq.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, np.zeros((20, 30, 8, 8)) if content == "float" else np.zeros((20, 30), np.uint8))
    with pytest.raises(DataError, match=r"mnist_test_seq.npy"):
        bench.load_task("moving_mnist", tmp_path).dataset("test")


def test_a_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected mnist_test_seq.npy, or moving_mnist_val.npy"):
        bench.load_task("moving_mnist", tmp_path).dataset("val")


def test_a_frame_never_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "moving_mnist_test.npy"
    frames = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(20, 4, 8, 8))
    frames[:, :2] = np.random.default_rng(0).integers(1, 256, (20, 2, 8, 8))
    frames[:15, 2] = 7
    frames.flush()
    data = bench.load_task("moving_mnist", tmp_path).dataset("test")
    data.stored(1)
    for number in (2, 3):
        with pytest.raises(DataError, match=f"test.npy: sequence {number} has a frame that is 0 throughout"):
            data.stored(number)


@pytest.mark.parametrize("count", [2, 20, 60])
def test_sequences_first_is_refused(tmp_path: Path, count: int) -> None:
    command = ["data", "make", "moving_mnist", "--train", str(count), "--val", "1", "--test", "1"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    path = tmp_path / "moving_mnist_train.npy"
    frames = np.load(path)
    assert len(bench.load_task("moving_mnist", tmp_path).dataset("train")) == count
    turned = tmp_path / "turned"
    turned.mkdir()
    np.save(turned / path.name, np.concatenate([frames, frames]).swapaxes(0, 1))
    with pytest.raises(DataError, match=r"the second axis of .* looks like time; expected \(T, N, H, W\)"):
        bench.load_task("moving_mnist", turned, t_in=1, t_out=1).dataset("train")


@pytest.mark.parametrize("shape", [(10**6, 10**6, 64, 64), (10**9,) * 4])
def test_a_truncated_file_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with (tmp_path / "mnist_test_seq.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.write(bytes(64))
    with pytest.raises(DataError, match=r"mnist_test_seq.npy: not readable"):
        bench.load_task("moving_mnist", tmp_path).dataset("test")
