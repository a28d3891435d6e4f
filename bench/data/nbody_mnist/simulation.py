"""N-body MNIST: digits that attract one another, as a simulation and as frames.

Source: Gao et al. 2022, Earthformer; its generator's settings are the constants here.  The law is
`a_i = G sum_j m_j (x_j - x_i) / (|x_j - x_i|^2 + d^2)^((r+1)/2)` between top-left corners, with r = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

CANVAS = 128
"""Height and width that are simulated, in pixels; frames have half of it."""
FRAME = CANVAS // 2
FRAMES = 20
SUB_STEPS = 5
"""Sub-steps between two frames."""
DIGITS = 3
GRAVITY, SOFTENING, EXPONENT = 0.05, 10.0, 0
MAX_SPEED = 2.0
"""Pixels of the canvas per sub-step: limit of the initial speed, and of each component later."""
MARGIN = 10
"""A digit's centre stays this far from the canvas' border."""
_MIN_CANVAS = 32  # a digit's image has 28 pixels

# Bicubic interpolation (a = -0.75) half-way between two pixels: the weights of the outer and inner two of four pixels.
_OUTER, _INNER = np.float32(-0.09375), np.float32(0.59375)


@dataclass(frozen=True)
class System:
    """The simulated system and its frames; the defaults are the paper's.

    Raises:
        ValueError: a number is out of range, or `pool` does not divide the canvas.
    """

    digit_count: int = DIGITS
    canvas: int = CANVAS
    """Height and width that are simulated, in pixels."""
    sub_steps: int = SUB_STEPS
    """Sub-steps between two frames."""
    frame_count: int = FRAMES
    pool: int = 0
    """Frames are means over squares of `pool` x `pool` pixels, rounded to bytes; 0 for the authors' bicubic halves."""

    def __post_init__(self) -> None:
        least = {"digit_count": 1, "canvas": _MIN_CANVAS, "sub_steps": 1, "frame_count": 2, "pool": 0}
        for field in fields(self):
            if getattr(self, field.name) < least[field.name]:
                raise ValueError(
                    f"{field.name}: expected {least[field.name]} or more, found {getattr(self, field.name)}"
                )
        if self.canvas % (self.pool or 2):
            raise ValueError(f"canvas: expected a multiple of {self.pool or 2}, found {self.canvas}")

    @property
    def frame_size(self) -> int:
        """Returns height and width of a frame."""
        return self.canvas // (self.pool or 2)

    def __str__(self) -> str:
        frames = f"means of {self.pool}x{self.pool}" if self.pool else "bicubic halves"
        return (
            f"{self.digit_count} digits on {self.canvas}x{self.canvas}, {self.frame_count} frames of "
            f"{self.frame_size}x{self.frame_size} ({frames}) every {self.sub_steps} sub-steps"
        )


@dataclass(frozen=True)
class Motion:
    """The state of the digits of n sequences at each of F frames, in pixels of the canvas and per sub-step."""

    corners: np.ndarray
    """Top-left corners (x, y), `(n,F,D,2)`, float64."""
    velocities: np.ndarray
    """`(n,F,D,2)`, float64."""

    def energy(self) -> np.ndarray:
        """Returns the energy of each frame, `(n,F)`; see `energy`."""
        return energy(self.corners, self.velocities)


def simulate(
    corners: np.ndarray,
    velocities: np.ndarray,
    sizes: np.ndarray,
    *,
    frames: int = FRAMES,
    sub_steps: int = SUB_STEPS,
    canvas: int = CANVAS,
    gravity: float = GRAVITY,
    softening: float = SOFTENING,
    exponent: int = EXPONENT,
    masses: np.ndarray | float = 1.0,
) -> Motion:
    """Returns the motion of digits under mutual attraction between walls; frame 0 is the start.

    Semi-implicit Euler steps of length 1: the acceleration is added to the velocity, each component is clipped to
    `MAX_SPEED`, then the corner moves; a centre beyond a wall is moved onto the wall and its velocity reversed.

    Args:
        corners: Top-left corners (x, y) at the start, `(n,D,2)` pixels.
        velocities: `(n,D,2)` pixels per sub-step.
        sizes: Width and height of each digit, `(n,D,2)` pixels.
        frames: Frames to keep.
        sub_steps: Steps from one frame to the next.
        canvas: Height and width between the walls and their margins, pixels.
        gravity: G of the law.
        softening: d of the law, pixels.
        exponent: r of the law.
        masses: m of the law: one number, or `(n,D)`.
    """
    x, v = (np.array(part, np.float64) for part in (corners, velocities))
    low = MARGIN - np.asarray(sizes, np.float64) / 2
    high = low + (canvas - 2 * MARGIN)
    kept_x, kept_v = (np.empty((len(x), frames, *x.shape[1:])) for _ in range(2))
    for frame in range(frames):
        kept_x[:, frame], kept_v[:, frame] = x, v
        for _ in range(sub_steps if frame < frames - 1 else 0):
            v += acceleration(x, gravity=gravity, softening=softening, exponent=exponent, masses=masses)
            np.clip(v, -MAX_SPEED, MAX_SPEED, out=v)
            x += v
            beyond = (x < low) | (x > high)
            np.clip(x, low, high, out=x)
            v[beyond] *= -1
    return Motion(kept_x, kept_v)


def acceleration(
    corners: np.ndarray,
    *,
    gravity: float = GRAVITY,
    softening: float = SOFTENING,
    exponent: int = EXPONENT,
    masses: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Returns the acceleration of each digit by the others, `(...,D,2)`, for top-left corners `(...,D,2)`."""
    m = np.broadcast_to(np.asarray(masses, np.float64), corners.shape[:-1])[..., None, :, None]
    gap = corners[..., None, :, :] - corners[..., :, None, :]  # [i, j]: from digit i to digit j
    distance = (gap**2).sum(-1, keepdims=True) + softening**2
    pulls: np.ndarray = gravity * (m * gap * distance ** (-(exponent + 1) / 2)).sum(-2)
    return pulls


def energy(
    corners: np.ndarray,
    velocities: np.ndarray,
    *,
    gravity: float = GRAVITY,
    softening: float = SOFTENING,
    exponent: int = EXPONENT,
    masses: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Returns kinetic and potential energy together, `(...)`, for corners and velocities `(...,D,2)`.

    The potential of a pair at distance l is `G m_i m_j U(s)`, s = l^2 + d^2, with U = sqrt(s) for r = 0, ln(s)/2 for
    r = 1 and -1/sqrt(s) for r = 2.  The simulation does not conserve it exactly, since speeds are clipped and walls are
    hard.

    Raises:
        ValueError: another exponent.
    """
    potentials: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        0: np.sqrt,
        1: lambda s: np.log(s) / 2,
        2: lambda s: -1 / np.sqrt(s),
    }
    if exponent not in potentials:
        raise ValueError(f"exponent {exponent!r}; expected 0, 1 or 2")
    m = np.broadcast_to(np.asarray(masses, np.float64), corners.shape[:-1])
    kinetic = (m * (velocities**2).sum(-1)).sum(-1) / 2
    first, second = np.triu_indices(corners.shape[-2], 1)
    gap = corners[..., first, :] - corners[..., second, :]
    pairs = potentials[exponent]((gap**2).sum(-1) + softening**2)
    return kinetic + gravity * (m[..., first] * m[..., second] * pairs).sum(-1)


def cropped(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns digits moved to the top left corner of their images, and their sizes.

    Args:
        images: `(...,h,w)`, 0 outside the digit.

    Returns:
        The images, float32, and width and height of each digit's bounding box, `(...,2)`, int64.
    """
    flat = np.asarray(images, np.float32).reshape(-1, *images.shape[-2:])
    moved, sizes = np.zeros_like(flat), np.empty((len(flat), 2), np.int64)
    # tolerance as in generators that scale to 0..1 first: 5 / 255 of the maximum 1
    inside = flat > 5 / 255
    for number, (image, mask) in enumerate(zip(flat, inside, strict=True)):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            sizes[number] = 0
            continue
        box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        moved[number, : box.shape[0], : box.shape[1]] = box
        sizes[number] = box.shape[1], box.shape[0]
    return moved.reshape(images.shape), sizes.reshape(*images.shape[:-2], 2)


def render(
    corners: np.ndarray, crops: np.ndarray, sizes: np.ndarray, *, canvas: int = CANVAS, pool: int = 0
) -> np.ndarray:
    """Returns frames `(n,F,H,W)`, float32, 0..255: the brightest of the digits at each pixel, on a coarser grid.

    Digits are moved by real-valued distances with bilinear weights, 0 outside.  The canvas is halved with bicubic
    weights (a = -0.75, pixel centres, no smoothing) and clipped to 0..255, as the authors do, or averaged.

    Args:
        corners: Top-left corners (x, y) on the canvas, `(n,F,D,2)`.
        crops: Digits at the top left of their images, `(n,D,h,w)`, float32, 0..255.
        sizes: Width and height of each digit, `(n,D,2)`.
        canvas: Height and width of the canvas, pixels.
        pool: Height and width of the squares that are averaged; 0 for bicubic halves.
    """
    size = canvas // (pool or 2)
    frames = np.empty((*corners.shape[:2], size, size), np.float32)
    # One sequence at a time, whose canvases fit the cache; the overhead of the loop is negligible.
    for sequence in range(len(corners)):
        drawn, room = _canvas(corners[sequence], crops[sequence], sizes[sequence], canvas)
        frames[sequence] = _block_means(drawn, room, pool) if pool else _halved(drawn, room)
    return frames


def _canvas(corners: np.ndarray, crops: np.ndarray, sizes: np.ndarray, side: int) -> tuple[np.ndarray, int]:
    """Returns the canvases of one sequence `(F,side+2*room,side+2*room)`, with room for pixels outside the border."""
    whole = np.floor(corners).astype(np.int64)
    part = (corners - whole).astype(np.float32)
    over = int((whole + sizes).max()) + 1 - side
    room = max(1, over, -int(whole.min()))
    canvas = np.zeros((len(corners), side + 2 * room, side + 2 * room), np.float32)
    places = (whole + room).tolist()
    for digit, (width, height) in enumerate(sizes.tolist()):
        moved = _shifted(crops[digit, :height, :width], part[:, digit])
        for frame, image in enumerate(moved):
            x, y = places[frame][digit]
            window = canvas[frame, y : y + height + 1, x : x + width + 1]
            np.maximum(window, image, out=window)
    return canvas, room


def _block_means(canvas: np.ndarray, room: int, pool: int) -> np.ndarray:
    """Returns the means of canvases over squares, `(F,side/pool,side/pool)`, without pixels outside the border."""
    inside = canvas[:, room:-room, room:-room]
    blocks = len(inside[0]) // pool
    means: np.ndarray = inside.reshape(-1, blocks, pool, blocks, pool).mean((2, 4))
    return means


def _shifted(image: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Returns an image `(h,w)` moved right and down by parts of a pixel `(F,2)`: `(F,h+1,w+1)`, bilinear."""
    x, y = part[:, 0, None, None], part[:, 1, None, None]
    wide = np.pad(image, 1)
    columns = wide[:, 1:] + x * (wide[:, :-1] - wide[:, 1:])
    moved: np.ndarray = columns[:, 1:] + y * (columns[:, :-1] - columns[:, 1:])
    return moved


def _halved(canvas: np.ndarray, room: int) -> np.ndarray:
    """Returns canvases at half the size, `(F,h,h)`: the border is repeated outwards, pixels outside it are not used."""
    first, last = room - 1, canvas.shape[1] - room
    canvas[:, first], canvas[:, last] = canvas[:, first + 1], canvas[:, last - 1]
    canvas[:, :, first], canvas[:, :, last] = canvas[:, :, first + 1], canvas[:, :, last - 1]
    inside = canvas[:, first : last + 1, first : last + 1]
    halved = _between_pairs(_between_pairs(inside).transpose(0, 2, 1)).transpose(0, 2, 1)
    return np.clip(halved, 0, 255, out=halved)


def _between_pairs(rows: np.ndarray) -> np.ndarray:
    """Returns the values half-way between rows 1 and 2, 3 and 4, ... of `(F,2k+2,w)`: `(F,k,w)`, bicubic."""
    inner = rows[:, 1:-2:2] + rows[:, 2:-1:2]
    inner *= _INNER
    outer = rows[:, :-3:2] + rows[:, 3::2]
    outer *= _OUTER
    inner += outer
    return inner
