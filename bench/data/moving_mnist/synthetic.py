"""Generator of MovingMNIST: two digits that move in straight lines between walls.

Source: Srivastava, Mansimov and Salakhutdinov 2015, Unsupervised Learning of Video Representations using LSTMs: two
digits of 28x28 pixels on 64x64, a tenth of the free way per frame in a random direction, turned at the walls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEP = 0.1
"""Share of the distance from wall to wall that a digit moves per frame."""


@dataclass(frozen=True)
class Scene:
    """Number of digits, canvas and frames; the defaults are Srivastava et al.'s."""

    digit_count: int = 2
    canvas: int = 64
    """Height and width that digits move on, in pixels."""
    frame_count: int = 20
    pool: int = 1
    """Frames are rounded means over squares of `pool` x `pool` pixels."""

    def __str__(self) -> str:
        size = self.canvas // self.pool
        return f"{self.digit_count} digits on {self.canvas}x{self.canvas}, {self.frame_count} frames of {size}x{size}"


def trajectories(count: int, generator: np.random.Generator, scene: Scene) -> np.ndarray:
    """Returns digit positions as shares (y, x) of the distance from wall to wall, `(frames,count,digits,2)`."""
    place = generator.random((count, scene.digit_count, 2))
    angle = generator.uniform(0, 2 * np.pi, (count, scene.digit_count))
    step = STEP * np.stack([np.sin(angle), np.cos(angle)], -1)
    places = np.empty((scene.frame_count, *place.shape))
    for frame in range(scene.frame_count):
        places[frame] = place
        place = place + step
        step = np.where((place < 0) | (place > 1), -step, step)
        place = np.clip(place, 0, 1)
    return places


def render_moving(
    images: np.ndarray, digits: range, count: int, generator: np.random.Generator, scene: Scene
) -> np.ndarray:
    """Returns sequences `(T,count,H,W)`, uint8: the brightest of the digits at each pixel.

    Args:
        images: Digits `(N,h,w)`, uint8.
        digits: Which of them to draw from.
        count: Number of sequences.
        generator: The source of every random draw.
        scene: How many digits, frames and pixels.
    """
    which = generator.integers(digits.start, digits.stop, (count, scene.digit_count))
    places = trajectories(count, generator, scene)
    height, width = images.shape[1:]
    corners = (places * (scene.canvas - height, scene.canvas - width)).astype(np.int64)
    frames = np.zeros((scene.frame_count, count, scene.canvas, scene.canvas), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(frames, (height, width), axis=(2, 3), writeable=True)
    sequence = np.arange(count)
    for frame in range(scene.frame_count):
        for digit in range(scene.digit_count):
            y, x = corners[frame, :, digit].T
            place = frame, sequence, y, x
            windows[place] = np.maximum(windows[place], images[which[:, digit]])
    if scene.pool == 1:
        return frames
    size = scene.canvas // scene.pool
    blocks = frames.reshape(*frames.shape[:2], size, scene.pool, size, scene.pool)
    return np.rint(blocks.mean((3, 5), dtype=np.float32)).astype(np.uint8)
