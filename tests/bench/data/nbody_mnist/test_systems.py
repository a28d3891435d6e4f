"""Systems other than the paper's: generated data, their description, and the options that the task takes from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from plain_nbody import plain_motion
from without_values import on_meta

import bench
from bench import registry
from bench.cli.main import main
from bench.data.nbody_mnist.simulation import render
from bench.errors import DataError

_COARSE = ["--digit-count", "2", "--canvas", "64", "--sub-steps", "2", "--frames", "12", "--pool", "4"]
_WITH_PRESET = [
    name for name in registry.names("model") if "nbody_mnist" in registry.find("model", name).card().presets
]
_COUNTS = ["--train", "6", "--val", "3", "--test", "4"]


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nbody") / "coarse"
    assert main(["data", "make", "nbody_mnist", "--out", str(out), *_COUNTS, *_COARSE]) == 0
    return out


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nbody") / "papers"
    assert main(["data", "make", "nbody_mnist", "--out", str(out), *_COUNTS]) == 0
    return out


def test_shapes_follow_the_data(coarse: Path, papers: Path) -> None:
    task = bench.load_task("nbody_mnist", coarse, t_in=6, t_out=5)
    assert (task.input_shape, task.target_shape) == ((6, 16, 16, 1), (5, 16, 16, 1))
    data = task.dataset("test")
    context, target = data[3]
    assert (context.shape, target.shape) == (task.input_shape, task.target_shape) and context.max() <= 1
    assert torch.equal(context, data.stored(3)[0] / 255) and data.source.energy.shape == (4, 12)
    for task in (bench.load_task("nbody_mnist"), bench.load_task("nbody_mnist", papers)):
        assert task.input_shape == (10, 64, 64, 1) and "energy" in task.metrics


def test_pooled_frames_are_block_means(coarse: Path) -> None:
    source = bench.load_task("nbody_mnist", coarse, t_in=6, t_out=6).dataset("val").source
    draws, crops = source.draws, source._crops[source._which]
    sizes = source._sizes[source._which]
    for number in range(3):
        start = draws.places[number] * (64 - sizes[number])
        states, energies = plain_motion(
            start, draws.velocities[number], sizes[number], frames=12, sub_steps=2, canvas=64
        )
        corners = np.array([state[0] for state in states])
        np.testing.assert_allclose(source.energy[number], energies, rtol=1e-12)
        fine = render(corners[None], crops[number][None], sizes[number][None], canvas=64, pool=1)[0]
        expected = fine.reshape(12, 16, 4, 16, 4).mean((2, 4))
        found = torch.cat(source.stored(number)[:2])[..., 0]
        assert found.dtype == torch.uint8
        np.testing.assert_allclose(found, expected, atol=0.5001)


def test_the_system_is_stored_and_part_of_the_identity(coarse: Path, tmp_path: Path) -> None:
    task = bench.load_task("nbody_mnist", coarse, t_in=6, t_out=6)
    identity = task.dataset("test").identity()
    assert identity["event_shape"] == [16, 16, 12]
    assert identity["system"] == {
        "digit_count": 2, "canvas": 64, "sub_steps": 2, "frame_count": 12, "pool": 4,
    }  # fmt: skip
    assert "2 digits on 64x64" in identity["origin"]
    other = [*_COARSE[:5], "3", *_COARSE[6:]]
    for name, options in (("same", _COARSE), ("other", other)):
        assert main(["data", "make", "nbody_mnist", "--out", str(tmp_path / name), *_COUNTS, *options]) == 0
    prints = [
        bench.load_task("nbody_mnist", root, t_in=6, t_out=6).data_fingerprint("test")
        for root in (coarse, tmp_path / "same", tmp_path / "other")
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_papers_system_adds_no_fields_to_its_files(papers: Path) -> None:
    with np.load(papers / "nbody_val.npz") as file:
        assert not {"canvas", "sub_steps", "frame_count", "pool", "frames"} & set(file.files)
    identity = bench.load_task("nbody_mnist", papers).dataset("val").identity()
    assert "system" not in identity and identity["origin"] == "generated N-body MNIST"


def test_energy_is_scored_for_other_sub_steps_but_not_for_pooled_frames(coarse: Path, tmp_path: Path) -> None:
    fine = ["--digit-count", "4", "--canvas", "96", "--sub-steps", "8", "--frames", "6"]
    assert main(["data", "make", "nbody_mnist", "--out", str(tmp_path / "fine"), *_COUNTS, *fine]) == 0
    task = bench.load_task("nbody_mnist", tmp_path / "fine", t_in=3, t_out=3)
    assert task.input_shape == (3, 48, 48, 1) and task.metrics["energy"] == {"t_out": 3, "sub_steps": 8}
    scores = bench.evaluate("persistence", task, device="cpu").scores
    source = task.dataset("test").source
    true = source.energy[:, 3:] - source.energy[:, 2:3]
    assert scores["e_mae_target"] == pytest.approx(np.abs(true).mean(), abs=0.5)
    assert scores["e_mae"] > 2 * scores["e_mae_target"]

    record = bench.evaluate("persistence", bench.load_task("nbody_mnist", coarse, t_in=6, t_out=6), device="cpu")
    assert "e_mse" not in record.scores and record.scores["mse_frame_sum"] > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pool", "3"], "canvas: expected a multiple of 3, found 128"),
        (["--canvas", "20"], "canvas: expected 32 or more, found 20"),
        (["--digit-count", "0"], "digit_count: expected 1 or more, found 0"),
    ],
)
def test_impossible_systems_are_refused(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "make", "nbody_mnist", "--out", str(tmp_path / "no"), *options]) == 2
    said = capsys.readouterr().err
    assert words in said and "Value error" not in said and not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pool": np.int64(5)}, "canvas: expected a multiple of 5"),
        ({"sub_steps": np.zeros(2)}, "one integer each in .* others: sub_steps"),
        ({"frames": np.zeros((3, 12, 8, 8), np.uint8)}, r"frames: expected uint8 \(3, 12, 16, 16\)"),
        ({"canvas": np.int64(128), "pool": np.int64(8)}, "another split there has 2 digits on 64x64"),
    ],
)
def test_damaged_or_mixed_systems_are_refused(coarse: Path, tmp_path: Path, change: dict, words: str) -> None:
    for name in ("mnist.npz", "nbody_train.npz"):
        (tmp_path / name).write_bytes((coarse / name).read_bytes())
    with np.load(coarse / "nbody_val.npz") as file:
        np.savez(tmp_path / "nbody_val.npz", **{**file, **change})
    with pytest.raises(DataError, match=words):
        bench.load_task("nbody_mnist", tmp_path, t_in=6, t_out=6).dataset("val")


@pytest.mark.parametrize("name", _WITH_PRESET)
def test_every_preset_builds_for_small_frames(coarse: Path, name: str) -> None:
    task = bench.load_task("nbody_mnist", coarse, t_in=6, t_out=6)
    with on_meta():
        bench.load_model(name, task)
