"""Where known digits are in frames: the place that explains a frame best, from frame to frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_HALF = 2
"""Frames have half the height and width of the canvas that corners are given on."""
_EDGE = 2
"""Pixels around a template, for what interpolation spreads."""
_REACH = 7
"""Pixels of a frame that a digit may be from where it was: 5 at full speed, and what attraction adds."""
_SWEEPS = 2
# A frame without a digit has no best place: it then stays where it was, rather than anywhere.
_INERTIA = 1e-3


def track(frames: Tensor, crops: Tensor, corners: Tensor) -> Tensor:
    """Returns the top-left corners of digits in each frame, `(B,T,D,2)` float64, (x, y) in pixels of the canvas.

    In each frame a digit is looked for around its place in the frame before: the place of least squared error, refined
    by a parabola.  Pixels that the other digits cover at their places tell nothing, and cost what pixels of this digit
    cost elsewhere: where it cannot be seen at all, it is no better hidden.  The digits take turns.

    Args:
        frames: `(B,T,H,W)`, 0..255.
        crops: The digits at the top left of their images, `(B,D,h,w)`, 0..255, in pixels of the canvas.
        corners: Where they are right before the first frame, `(B,D,2)`.
    """
    frames, crops = frames.float() / 255, crops.float() / 255
    spread = F.pad(crops, (_HALF * _EDGE,) * 4)
    templates = F.interpolate(spread, scale_factor=1 / _HALF, mode="bicubic", align_corners=False).clamp(0, 1)
    places = corners.double() / _HALF - _EDGE
    found = []
    for frame in frames.unbind(1):
        places = _locate(frame, templates, places)
        found.append((places + _EDGE) * _HALF)
    return torch.stack(found, 1)


def _locate(frame: Tensor, templates: Tensor, before: Tensor) -> Tensor:
    """Returns the places `(B,D,2)` of templates `(B,D,h,w)` in a frame `(B,H,W)`, each near where it was."""
    places = before.clone()
    height, width = (size + 2 * _REACH for size in templates.shape[-2:])
    starts = before.round().long() - _REACH
    # outside the frame nothing is known, and nothing counts
    windows = [_window(frame, start, height, width) for start in starts.unbind(1)]
    misfits = [torch.ones(len(frame), device=frame.device)] * len(windows)
    for sweep in range(_SWEEPS):
        for digit, (image, known) in enumerate(windows):
            start, weight = starts[:, digit], known
            if sweep:
                others = [other for other in range(len(windows)) if other != digit]
                seen = [_drawn(templates[:, other], places[:, other] - start, image.shape[1:]) for other in others]
                weight = known * (1 - torch.stack(seen).amax(0).clamp(0, 1))
            place, misfits[digit] = _best_place(image, weight, templates[:, digit], misfits[digit])
            places[:, digit] = start + place
    return places


def _best_place(image: Tensor, weight: Tensor, template: Tensor, misfit: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the place `(B,2)` of least squared error of a template `(B,h,w)` in a window `(B,H,W)`, and its misfit.

    Args:
        image: The window.
        weight: 0 where a pixel tells nothing.
        template: The digit.
        misfit: 0 for a digit that was found as it is, 1 for one of which there is nothing, `(B,)`.
    """
    # sum w (f - t)^2 over the window, without the part that no place changes: two correlations
    unseen = misfit[:, None, None] * (1 - weight)
    error = _correlate(weight + unseen, template**2) - 2 * _correlate(weight * image, template)
    steps = torch.arange(-_REACH, _REACH + 1, device=error.device, dtype=error.dtype) / _REACH
    size = (template**2).sum((1, 2))[:, None, None]
    error = error + _INERTIA * size * (steps[:, None] ** 2 + steps[None, :] ** 2)
    side = 2 * _REACH + 1
    best = error.flatten(1).argmin(1)
    row, column = best // side, best % side
    sample = torch.arange(len(best), device=best.device)
    shift_y = _vertex(*(error[sample, (row + k).clamp(0, side - 1), column] for k in (-1, 0, 1)))
    shift_x = _vertex(*(error[sample, row, (column + k).clamp(0, side - 1)] for k in (-1, 0, 1)))
    place = torch.stack([column + shift_x, row + shift_y], -1).double()
    # t^2 - 2 f t is -t^2 where f = t, and t^2 where there is nothing
    found = error[sample, row, column] / size[:, 0, 0].clamp(min=1e-9)
    return place, ((found + 1) / 2).clamp(0, 1)


def _vertex(low: Tensor, middle: Tensor, high: Tensor) -> Tensor:
    """Returns where the parabola through three neighbours is least, from the middle, at most half a step away."""
    bend = low - 2 * middle + high
    shift = 0.5 * (low - high) / bend
    return torch.where((bend > 0) & (shift.abs() <= 0.5), shift, torch.zeros_like(shift))


def _window(image: Tensor, start: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Returns a part `(B,height,width)` of each image `(B,H,W)` from `start` (x, y), and 1 where it lies inside."""
    x = start[:, 0, None] + torch.arange(width, device=image.device)
    y = start[:, 1, None] + torch.arange(height, device=image.device)
    inside = ((y >= 0) & (y < image.shape[1]))[:, :, None] & ((x >= 0) & (x < image.shape[2]))[:, None, :]
    sample = torch.arange(len(image), device=image.device)[:, None, None]
    part = image[sample, y.clamp(0, image.shape[1] - 1)[:, :, None], x.clamp(0, image.shape[2] - 1)[:, None, :]]
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
