"""Two digits that move straight on between walls: MovingMNIST, made here.

Source: Srivastava, Mansimov and Salakhutdinov 2015, Unsupervised Learning of Video Representations using LSTMs: two
digits of 28x28 pixels on 64x64, a tenth of the free way per frame in a random direction, turned at the walls.
"""

from __future__ import annotations

import numpy as np

FRAME = 64
FRAMES = 20
DIGITS = 2
STEP = 0.1
"""Share of the way from wall to wall that a digit goes in one frame."""


def trajectories(count: int, generator: np.random.Generator, *, frames: int = FRAMES) -> np.ndarray:
    """Returns where digits are, as shares (y, x) of the way from wall to wall, `(frames,count,DIGITS,2)`."""
    place = generator.random((count, DIGITS, 2))
    angle = generator.uniform(0, 2 * np.pi, (count, DIGITS))
    step = STEP * np.stack([np.sin(angle), np.cos(angle)], -1)
    places = np.empty((frames, *place.shape))
    for frame in range(frames):
        places[frame] = place
        place = place + step
        step = np.where((place < 0) | (place > 1), -step, step)
        place = np.clip(place, 0, 1)
    return places


def render_moving(images: np.ndarray, digits: range, count: int, generator: np.random.Generator) -> np.ndarray:
    """Returns sequences `(20,count,64,64)`, uint8: the brighter of two digits at each pixel.

    Args:
        images: Digits `(N,h,w)`, uint8.
        digits: Which of them to draw from.
        count: Number of sequences.
        generator: The source of every random draw.
    """
    which = generator.integers(digits.start, digits.stop, (count, DIGITS))
    places = trajectories(count, generator)
    height, width = images.shape[1:]
    corners = (places * (FRAME - height, FRAME - width)).astype(np.int64)
    frames = np.zeros((FRAMES, count, FRAME, FRAME), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(frames, (height, width), axis=(2, 3), writeable=True)
    sequence = np.arange(count)
    for frame in range(FRAMES):
        for digit in range(DIGITS):
            y, x = corners[frame, :, digit].T
            place = frame, sequence, y, x
            windows[place] = np.maximum(windows[place], images[which[:, digit]])
    return frames
