"""N-body MNIST: physics against formulas written out, frames against a plain formulation, files and generator."""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_nbody import plain_motion
from scipy.ndimage import shift

import bench
from bench.cli.main import main
from bench.data.mnist import digits_of_splits, load_digits
from bench.data.nbody_mnist.simulation import cropped, energy, render, simulate
from bench.errors import DataError


def _start(seed: int, count: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    sizes = random.integers(3, 29, (count, 3, 2))
    return random.random((count, 3, 2)) * (128 - sizes), random.uniform(-2, 2, (count, 3, 2)), sizes


@given(seed=st.integers(0, 10_000), exponent=st.sampled_from([0, 1, 2]), mass=st.sampled_from([1.0, 2.5]))
def test_the_motion_follows_the_force_law(seed: int, exponent: int, mass: float) -> None:
    x, v, sizes = _start(seed)
    states, energies = plain_motion(x[0], v[0], sizes[0], r=exponent, mass=mass)
    motion = simulate(x, v, sizes, exponent=exponent, masses=mass)
    np.testing.assert_allclose(motion.corners[0], [state[0] for state in states], atol=1e-9)
    np.testing.assert_allclose(motion.velocities[0], [state[1] for state in states], atol=1e-9)
    found = energy(motion.corners, motion.velocities, exponent=exponent, masses=mass)
    np.testing.assert_allclose(found[0], energies, rtol=1e-12)


def test_energy_is_conserved_between_walls_below_the_speed_limit() -> None:
    corners = np.array([[[50.0, 50.0], [70.0, 50.0], [60.0, 70.0]]])
    motion = simulate(corners, np.zeros((1, 3, 2)), np.full((1, 3, 2), 10))
    assert np.ptp(motion.energy()) / motion.energy()[0, 0] < 0.06  # what steps of 1 are good for
    assert (np.abs(motion.velocities) < 2).all() and np.ptp(motion.corners) > 10
    momentum = motion.velocities.sum(2)
    np.testing.assert_allclose(momentum, 0, atol=1e-12)


def test_other_exponents_have_no_potential() -> None:
    with pytest.raises(ValueError, match="expected 0, 1 or 2"):
        energy(np.zeros((1, 3, 2)), np.zeros((1, 3, 2)), exponent=3)


def test_batched_frames_equal_frames_drawn_one_by_one() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (2, 3, 28, 28)) * (random.random((2, 3, 28, 28)) < 0.5)
    images[0, 0] = 0
    images[0, 0, 4:9, 6:20] = 255
    crops, sizes = cropped(images)
    corners = random.uniform(-6, 125, (2, 4, 3, 2))  # over every border
    frames = render(corners, crops, sizes)
    for sequence in range(2):
        for frame in range(4):
            canvas = np.zeros((128, 128))
            for digit in range(3):
                x, y = corners[sequence, frame, digit]
                wide = np.zeros((200, 200))
                wide[20:48, 20:48] = crops[sequence, digit]
                moved = shift(wide, (y, x), order=1, mode="grid-constant")[20:148, 20:148]
                canvas = np.maximum(canvas, moved)
            half = torch.nn.functional.interpolate(
                torch.from_numpy(canvas)[None, None], size=(64, 64), mode="bicubic", align_corners=False
            )
            np.testing.assert_allclose(frames[sequence, frame], half[0, 0].clamp(0, 255), atol=2e-3)


def test_a_digit_is_cropped_to_its_bounding_box() -> None:
    image = np.zeros((2, 28, 28))
    image[0, 5:12, 3:20] = 7
    crops, sizes = cropped(image)
    assert sizes.tolist() == [[17, 7], [0, 0]]  # (width, height); nothing of an empty image
    assert (crops[0, :7, :17] == 7).all() and crops[0].sum() == 7 * 7 * 17


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nbody") / "set"
    assert main(["data", "make", "nbody_mnist", "--out", str(out), "--train", "6", "--val", "3", "--test", "4"]) == 0
    return out


class TestFiles:
    def test_the_authors_files_are_read(self, tmp_path: Path) -> None:
        random = np.random.default_rng(1)
        digits = random.integers(0, 256, (5, 784)).astype(np.uint8)
        np.savez(tmp_path / "mnist.npz", X=digits, Y=np.zeros(5), X_test=digits[:1], Y_test=np.zeros(1))
        draws = {
            "digit_indices": random.integers(0, 5, (2, 3)),
            "affine_transforms_multipliers": random.random((2, 3, 2)),
            "init_velocity_angle": random.uniform(0, 2 * math.pi, (2, 3)),
            "init_velocity_magnitude": random.uniform(0, 2, (2, 3)),
            "appearance_mult": np.ones(2), "scale_variation": np.ones((2, 3)), "base_rotation_angle": np.zeros((2, 3)),
            "random_acceleration_angle": random.random(2), "random_acceleration_magnitude": np.zeros((2, 3)),
            "distractor_seeds": np.zeros((2, 100, 0, 5)),
        }  # fmt: skip
        np.savez(tmp_path / "nbody_test.npz", **draws)
        data = bench.load_task("nbody_mnist", tmp_path).dataset("test")
        images = digits.reshape(5, 28, 28)[draws["digit_indices"]]  # no zero rows: the box is the whole image
        start = draws["affine_transforms_multipliers"] * 100
        angle, speed = draws["init_velocity_angle"], draws["init_velocity_magnitude"]
        velocity = speed[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        states, energies = plain_motion(start[1], velocity[1], np.full((3, 2), 28))
        expected = render(np.array([[s[0] for s in states]]), images[1:].astype(np.float32), np.full((1, 3, 2), 28))[0]
        context, target = data[1]
        np.testing.assert_allclose(np.concatenate([context, target])[..., 0], expected / 255, atol=1e-5)
        np.testing.assert_allclose(data.source.energy[1], energies, rtol=1e-12)
        assert context.dtype == torch.float32 and context.shape == target.shape == (10, 64, 64, 1)

        for key, value in {
            "appearance_mult": np.full(2, 0.5), "random_acceleration_magnitude": np.full((2, 3), 0.1),
            "distractor_seeds": np.zeros((2, 100, 1, 5)), "digit_indices": draws["digit_indices"][:, :2],
            "init_velocity_angle": np.full((2, 3), np.nan),
        }.items():  # fmt: skip
            np.savez(tmp_path / "nbody_test.npz", **{**draws, key: value})
            with pytest.raises(DataError, match=rf"nbody_test.npz has .*\n.*{key}"):
                bench.load_task("nbody_mnist", tmp_path).dataset("test")
        np.savez(tmp_path / "nbody_test.npz", **{**draws, "digit_indices": draws["digit_indices"] + 3})
        with pytest.raises(DataError, match=r"uses digits .*\.npz has 5"):
            bench.load_task("nbody_mnist", tmp_path).dataset("test")

    @pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", "other"])
    def test_missing_and_invalid_files_are_refused(
        self, made: Path, tmp_path: Path, content: bytes | str | None
    ) -> None:
        (tmp_path / "mnist.npz").write_bytes((made / "mnist.npz").read_bytes())
        path = tmp_path / "nbody_val.npz"
        if content == "other":
            np.savez(path, frames=np.zeros(3))
        elif isinstance(content, bytes):
            path.write_bytes(content)
        with pytest.raises(DataError, match=r"nbody_val.npz"):
            bench.load_task("nbody_mnist", tmp_path).dataset("val")

    @pytest.mark.parametrize("shape", [(10**12,), (2**40, 2**40)])
    def test_a_truncated_archive_is_refused(self, made: Path, tmp_path: Path, shape: tuple) -> None:
        (tmp_path / "mnist.npz").write_bytes((made / "mnist.npz").read_bytes())
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(tmp_path / "nbody_val.npz", "w") as archive, np.load(made / "nbody_val.npz") as draws:
            for name in draws.files:
                content = header if name == "init_velocity_angle" else io.BytesIO()
                if content is not header:
                    np.save(content, draws[name])
                archive.writestr(f"{name}.npy", content.getvalue())
        with pytest.raises(DataError, match=r"nbody_val.npz: init_velocity_angle declares float64 .* of which"):
            bench.load_task("nbody_mnist", tmp_path).dataset("val")

    @pytest.mark.parametrize("scale", [1 / 255, -1.0, 300.0, np.nan])
    def test_digits_on_another_scale_are_refused(self, made: Path, tmp_path: Path, scale: float) -> None:
        with np.load(made / "mnist.npz") as digits:
            np.savez(tmp_path / "mnist.npz", X=digits["X"] * scale)
        (tmp_path / "nbody_val.npz").write_bytes((made / "nbody_val.npz").read_bytes())
        with pytest.raises(DataError, match=r"mnist.npz: X: expected numbers from 0 to 255, found float"):
            bench.load_task("nbody_mnist", tmp_path).dataset("val")

    def test_more_frames_than_stored_are_refused(self, made: Path) -> None:
        with pytest.raises(DataError, match=r"expected 25 frames or more, found 20\. Set task.t_in"):
            bench.load_task("nbody_mnist", made, t_in=15).dataset("val")


class TestGenerator:
    def test_no_digit_and_no_sequence_is_in_two_splits(self, made: Path) -> None:
        task = bench.load_task("nbody_mnist", made)
        parts = [task.dataset(split) for split in ("train", "val", "test")]
        assert [len(part) for part in parts] == [6, 3, 4] and len(task.dataset("all")) == 13
        for name in ("ids", "digits"):
            sets = [set(part.ids if name == "ids" else part.source.digits_used) for part in parts]
            assert len(set.union(*sets)) == sum(map(len, sets))
        report = task.describe_data()
        assert not report.problems and not report.remarks and report.facts["events"] == 13
        assert parts[0].identity()["origin"] == "generated N-body MNIST"

    def test_shared_digits_are_reported(self, made: Path, tmp_path: Path) -> None:
        for name in ("mnist.npz", "nbody_train.npz", "nbody_val.npz"):
            (tmp_path / name).write_bytes((made / name).read_bytes())
        (tmp_path / "nbody_test.npz").write_bytes((made / "nbody_train.npz").read_bytes())
        report = bench.load_task("nbody_mnist", tmp_path).describe_data()
        assert any("train and test share" in remark for remark in report.remarks)

    def test_data_are_deterministic_for_a_seed(self, made: Path, tmp_path: Path) -> None:
        options = ["--train", "6", "--val", "3", "--test", "4"]
        for name, seed in (("same", "0"), ("other", "1")):
            assert main(["data", "make", "nbody_mnist", "--out", str(tmp_path / name), *options, "--seed", seed]) == 0
        prints = [
            bench.load_task("nbody_mnist", root).data_fingerprint("test")
            for root in (made, tmp_path / "same", tmp_path / "other")
        ]
        assert prints[0] == prints[1] != prints[2]

    def test_nothing_is_overwritten(self, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["data", "make", "nbody_mnist", "--out", str(made)]) == 2
        assert "is not empty" in capsys.readouterr().err

    def test_models_see_the_chosen_scale(self, made: Path) -> None:
        small, large = (bench.load_task("nbody_mnist", made, rescale_01=scale) for scale in (True, False))
        context, _ = small.dataset("val")[0]
        torch.testing.assert_close(large.dataset("val")[0][0], context * 255)
        assert 0.5 < float(context.max()) <= 1
        for task in (small, large):
            torch.testing.assert_close(task.denormalise(task.dataset("val")[0][0]), task.dataset("val").stored(0)[0])

    def test_items_pickle_to_worker_processes(self, made: Path) -> None:
        data = bench.load_task("nbody_mnist", made).dataset("val").source
        assert torch.equal(pickle.loads(pickle.dumps(data)).stored(2)[1], data.stored(2)[1])
        with pytest.raises(IndexError):
            data.stored(3)


class TestDigits:
    def test_splits_of_digits_are_complete_and_disjoint(self) -> None:
        for count in (10, 1797, 10_000, 60_000):
            ranges = digits_of_splits(count).values()
            assert sorted(number for part in ranges for number in part) == list(range(count))
        with pytest.raises(DataError, match="too few"):
            digits_of_splits(3)

    def test_scikit_learns_digits_look_like_mnist(self) -> None:
        digits = load_digits("sklearn")
        assert digits.shape == (1797, 28, 28) and digits.dtype == np.uint8 and digits.max() == 255
        assert not digits[:, :4].any() and not digits[:, :, -4:].any()

    def test_idx_files_are_read(self, observed: Path, tmp_path: Path) -> None:
        digits = load_digits(observed / "mnist")
        assert digits.shape == (10_000, 28, 28) and digits.max() == 255
        assert np.array_equal(load_digits(observed / "mnist" / "t10k-images-idx3-ubyte.gz"), digits)
        # LeCun's test set begins with a seven: a bar above, a stroke to the lower left
        rows = digits[0].sum(1)
        assert rows[7:10].max() == rows.max() and digits[0, 20:26, :14].sum() > digits[0, 20:26, 14:].sum()

    @pytest.mark.parametrize("content", [b"", b"\x1f\x8bcut", b"\x00\x00\x08\x01" + bytes(12), bytes(900)])
    def test_files_that_are_not_images_are_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x-images-idx3-ubyte").write_bytes(content)
        with pytest.raises(DataError, match="x-images-idx3-ubyte"):
            load_digits(tmp_path)
        with pytest.raises(DataError, match="found no such file"):
            load_digits(tmp_path / "nothing")


def test_persistence_is_scored_with_frames_and_energy(made: Path) -> None:
    record = bench.evaluate("persistence", bench.load_task("nbody_mnist", made), device="cpu")
    assert {"mse_frame_sum", "mae_frame_sum", "ssim", "e_mse", "e_mae", "e_mse_target"} <= set(record.scores)
    assert len(record.scores_per_lead["e_mse"]) == 10
    assert record.scores["mse_frame_sum"] == pytest.approx(record.scores["mse"] * 4096)
