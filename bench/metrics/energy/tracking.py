"""Tracking of known digits from frame to frame, by the position that explains each frame best."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = 2
"""Frames have half the height and width of the canvas, whose pixels corners are given in."""
_EDGE = 2
"""Margin around a template in pixels, because interpolation spreads it."""
_ADDED = 2
"""Pixels of a frame that a digit may move beyond its full speed, because of attraction."""
_SWEEPS = 2
# In a frame without the digit, no position is best: this keeps it where it was.
_INERTIA = 1e-3
_STAR = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))


def track(frames: Tensor, crops: Tensor, corners: Tensor, *, farthest: float) -> Tensor:
    """Returns the top-left corners of digits in each frame, `(B,T,D,2)` float64, (x, y) in pixels of the canvas.

    In each frame, a digit is searched around its previous position for the least squared error, refined by a parabola.
    Pixels covered by other digits carry no information and are charged this digit's average misfit elsewhere, so that
    an invisible digit does not hide behind another.  The digits take turns.

    Args:
        frames: `(B,T,H,W)`, 0..255.
        crops: The digits at the top left of their images, `(B,D,h,w)`, 0..255, in pixels of the canvas.
        corners: Their positions just before the first frame, `(B,D,2)`.
        farthest: Pixels of the canvas that a digit moves per frame at full speed.
    """
    reach = math.ceil(farthest / _HALF) + _ADDED
    frames, crops = frames.float() / 255, crops.float() / 255
    spread = F.pad(crops, (_HALF * _EDGE,) * 4)
    templates = F.interpolate(spread, scale_factor=1 / _HALF, mode="bicubic", align_corners=False).clamp(0, 1)
    squared = templates**2
    digits = _Digits(templates, squared, squared.sum((2, 3)))
    places = corners.double() / _HALF - _EDGE
    steps = torch.arange(-reach, reach + 1, device=frames.device, dtype=frames.dtype) / reach
    inertia = _INERTIA * digits.size[..., None, None] * (steps[:, None] ** 2 + steps[None, :] ** 2)
    star = torch.tensor(_STAR).to(frames.device, non_blocking=True)
    found = []
    for frame in frames.unbind(1):
        places = _locate(frame, digits, places, inertia, star)
        found.append((places + _EDGE) * _HALF)
    return torch.stack(found, 1)


class _Digits(NamedTuple):
    """The digits to search for."""

    template: Tensor
    """`(B,D,h,w)`."""
    squared: Tensor
    """The same, squared."""
    size: Tensor
    """The sum of that, `(B,D)`."""

    def flat(self) -> _Digits:
        """Returns all digits of all sequences in a row, `(B x D, ...)`."""
        return _Digits(*(part.flatten(0, 1) for part in self))

    def of(self, digit: int) -> _Digits:
        """Returns one digit of each sequence, `(B, ...)`."""
        return _Digits(*(part[:, digit] for part in self))


def _locate(frame: Tensor, digits: _Digits, before: Tensor, inertia: Tensor, star: Tensor) -> Tensor:
    """Returns the positions `(B,D,2)` of digits in a frame `(B,H,W)`, near their previous ones."""
    count = before.shape[1]
    reach = inertia.shape[-1] // 2
    height, width = (size + 2 * reach for size in digits.template.shape[-2:])
    starts = before.round().long() - reach
    # pixels outside the frame are unknown and do not count
    image, known = _window(frame, starts, height, width)
    # the first sweep ignores the other digits: all in one call, since a GPU's time depends on the number of calls
    unfound = digits.size.new_ones(before[..., 0].numel())
    found, misfits = _best_place(
        image.flatten(0, 1), known.flatten(0, 1), digits.flat(), unfound, inertia.flatten(0, 1), star
    )
    places, misfits = starts + found.view_as(before), misfits.view(-1, count)
    for _ in range(_SWEEPS - 1):
        for digit in range(count):
            others = [other for other in range(count) if other != digit]
            weight = known[:, digit]
            if others:
                shifts = torch.stack([places[:, other] for other in others], 1) - starts[:, digit, None]
                templates = torch.stack([digits.template[:, other] for other in others], 1)
                seen = _drawn(templates.flatten(0, 1), shifts.flatten(0, 1), image.shape[2:])
                weight = weight * (1 - seen.unflatten(0, (-1, len(others))).amax(1).clamp(0, 1))
            place, misfits[:, digit] = _best_place(
                image[:, digit], weight, digits.of(digit), misfits[:, digit], inertia[:, digit], star
            )
            places[:, digit] = starts[:, digit] + place
    return places


def _best_place(
    image: Tensor, weight: Tensor, digit: _Digits, misfit: Tensor, inertia: Tensor, star: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns the position `(N,2)` (x, y) of least squared error of a digit in a window `(N,H,W)`, and its misfit.

    Args:
        image: The window.
        weight: 0 for pixels without information.
        digit: One for each window.
        misfit: 0 for a digit that is found exactly, 1 for one that is absent, `(N,)`.
        inertia: Cost of the distance from the previous position, `(N,s,s)`, over the search range.
        star: Offsets of a position and its four neighbours: lower and upper row, lower and upper column.
    """
    # sum w (f - t)^2 over the window, without the part that is the same for all positions: two correlations
    unseen = misfit[:, None, None] * (1 - weight)
    error = _correlate(weight + unseen, digit.squared) - 2 * _correlate(weight * image, digit.template)
    error = (error + inertia).flatten(1)
    side = inertia.shape[-1]
    best = error.argmin(1)
    at = torch.stack([best // side, best % side], -1)
    near = (at[:, None] + star).clamp(0, side - 1)
    values = error.gather(1, near[..., 0] * side + near[..., 1])
    middle = values[:, :1]
    place = (at + _vertex(values[:, 1::2], middle, values[:, 2::2])).flip(-1).double()
    # t^2 - 2 f t is -t^2 where f = t, and t^2 where f = 0
    found = middle[:, 0] / digit.size.clamp(min=1e-9)
    return place, ((found + 1) / 2).clamp(0, 1)


def _vertex(low: Tensor, middle: Tensor, high: Tensor) -> Tensor:
    """Returns the offset of the minimum of a parabola through three neighbours from the middle, at most half a step."""
    bend = low - 2 * middle + high
    shift = 0.5 * (low - high) / bend
    return torch.where((bend > 0) & (shift.abs() <= 0.5), shift, torch.zeros_like(shift))


def _window(image: Tensor, start: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns parts `(B,D,height,width)` of images `(B,H,W)` from `start` `(B,D,2)` (x, y), and 1 inside them."""
    x = start[..., 0, None] + torch.arange(width, device=image.device)
    y = start[..., 1, None] + torch.arange(height, device=image.device)
    rows, columns = (y >= 0) & (y < image.shape[1]), (x >= 0) & (x < image.shape[2])
    inside = rows[..., :, None] & columns[..., None, :]
    sample = torch.arange(len(image), device=image.device)[:, None, None, None]
    part = image[sample, y.clamp(0, image.shape[1] - 1)[..., None], x.clamp(0, image.shape[2] - 1)[..., None, :]]
    return part * inside, inside.to(image)


def _correlate(images: Tensor, kernels: Tensor) -> Tensor:
    """Returns the correlation of each image `(B,H,W)` with its own kernel `(B,h,w)`."""
    return F.conv2d(images[None], kernels[:, None], groups=len(images))[0]


def _drawn(template: Tensor, place: Tensor, size: torch.Size) -> Tensor:
    """Returns frames `(B,H,W)` with each template at a real-valued place `(B,2)` (x, y), bilinear, 0 elsewhere."""
    height, width = template.shape[-2:]
    y = torch.arange(size[0], device=template.device)[None, :, None] - place[:, 1, None, None].to(template)
    x = torch.arange(size[1], device=template.device)[None, None, :] - place[:, 0, None, None].to(template)
    # grid_sample counts the template from edge to edge as -1..1
    grid = torch.stack(torch.broadcast_tensors((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1)
    return F.grid_sample(template[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
