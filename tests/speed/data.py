"""Speed of making data against the plain way of doing the same, in one run and on one thread.

    python tests/speed/data.py

N-body MNIST: the plain generator loops over sequences, sub-steps and pairs of digits, and moves each digit of each
frame on a separate canvas, which is halved separately.  Both sides are checked to give the same frames and energies.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import shift

from bench.data.mnist import load_digits
from bench.data.nbody_mnist import simulation as nbody

torch.set_num_threads(1)


def plain_sequence(
    corners: np.ndarray, velocities: np.ndarray, crops: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, list[float]]:
    """Frames `(20,64,64)` and energies of one sequence, digit by digit."""
    x, v = [list(row) for row in corners], [list(row) for row in velocities]
    frames, energies = [], []
    for step in range(nbody.FRAMES * nbody.SUB_STEPS):
        if step % nbody.SUB_STEPS == 0:
            canvas = np.zeros((nbody.CANVAS, nbody.CANVAS), np.float32)
            for digit in range(nbody.DIGITS):
                wide = np.zeros_like(canvas)
                width, height = sizes[digit]
                wide[:height, :width] = crops[digit, :height, :width]
                canvas = np.maximum(canvas, shift(wide, (x[digit][1], x[digit][0]), order=1, mode="grid-constant"))
            half = torch.nn.functional.interpolate(
                torch.from_numpy(canvas)[None, None], size=(nbody.FRAME,) * 2, mode="bicubic", align_corners=False
            )
            frames.append(half[0, 0].clamp(0, 255).numpy())
            kinetic = sum(speed**2 for row in v for speed in row) / 2
            pairs = ((0, 1), (0, 2), (1, 2))
            energies.append(
                kinetic
                + nbody.GRAVITY * sum(math.sqrt(math.dist(x[i], x[j]) ** 2 + nbody.SOFTENING**2) for i, j in pairs)
            )
        pulls = []
        for i in range(nbody.DIGITS):
            pull = np.zeros(2)
            for j in range(nbody.DIGITS):
                gap = np.array(x[j]) - np.array(x[i])
                pull += nbody.GRAVITY * gap / np.sqrt((gap**2).sum() + nbody.SOFTENING**2)
            pulls.append(pull)
        for i in range(nbody.DIGITS):
            for axis in range(2):
                v[i][axis] = min(max(v[i][axis] + pulls[i][axis], -nbody.MAX_SPEED), nbody.MAX_SPEED)
                x[i][axis] += v[i][axis]
                centre = x[i][axis] + sizes[i][axis] / 2
                if not nbody.MARGIN <= centre <= nbody.CANVAS - nbody.MARGIN:
                    wall = nbody.MARGIN if centre < nbody.MARGIN else nbody.CANVAS - nbody.MARGIN
                    x[i][axis], v[i][axis] = wall - sizes[i][axis] / 2, -v[i][axis]
    return np.stack(frames), energies


def nbody_generation(digits: np.ndarray, count: int, rounds: int) -> None:
    """`count` sequences from draws to frames."""
    random = np.random.default_rng(0)
    crops, sizes = nbody.cropped(digits[random.integers(0, len(digits), (count, nbody.DIGITS))])
    corners = random.random((count, nbody.DIGITS, 2)) * (nbody.CANVAS - sizes)
    angles, speeds = random.random((2, count, nbody.DIGITS)) * [[[2 * math.pi]], [[nbody.MAX_SPEED]]]
    velocities = speeds[..., None] * np.stack([np.cos(angles), np.sin(angles)], -1)

    def ours() -> tuple[np.ndarray, np.ndarray]:
        motion = nbody.simulate(corners, velocities, sizes)
        return nbody.render(motion.corners, crops, sizes), motion.energy()

    def plain() -> tuple[np.ndarray, np.ndarray]:
        made = [plain_sequence(*parts) for parts in zip(corners, velocities, crops, sizes, strict=True)]
        return np.stack([frames for frames, _ in made]), np.array([energies for _, energies in made])

    ratios, times = [], []
    for number in range(rounds):
        marks = [time.perf_counter()]
        results = []
        for function in (plain, ours):
            results.append(function())
            marks.append(time.perf_counter())
        if number == 0:
            np.testing.assert_allclose(results[1][0], results[0][0], atol=2e-3)
            np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-12)
        times.append([(marks[k + 1] - marks[k]) / count * 1e3 for k in range(2)])
        ratios.append(times[-1][0] / times[-1][1])
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"N-body MNIST, {count} sequences of 20 frames: plain {before:.2f} ms each, ours {after:.2f} ms each, "
        f"{statistics.median(ratios):.1f}x (aim 20x; {min(ratios):.1f}..{max(ratios):.1f} over {rounds} rounds)"
    )


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else "sklearn"
    nbody_generation(load_digits(given), count=40, rounds=7)
