"""Blurred forecasts: each lead time is smoothed by the width that minimises its error.

Small scales become unpredictable first. Squared error punishes a forecast that keeps them twice, so smoothing scores
far better.  A network trained on squared error gains over persistence in the same way, so a model has learnt more than
to smooth only if it beats the best blur.

Sources: Germann and Zawadzki 2002, Mon. Wea. Rev. 130, 2859-2873 (predictability by scale); Knutsson and Westin 1993,
CVPR, 515-523 (normalised convolution, which leaves out missing pixels and what is beyond the border).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines.masking import filled
from baselines.shapes import checked_shapes

# Standard deviations in pixels: 0, then 1/2 to 64 in steps of a factor sqrt(2).
_WIDTHS = (0.0, *(2 ** (step / 2) for step in range(-2, 13)))
# Neighbouring pixels have similar errors: in larger frames, about this many rows and columns choose the widths.
_LATTICE = 128
# As a share of the weight of the central pixel: pixels five widths away or further do not count.
_LEAST_WEIGHT = 1e-6


class Blurred(nn.Module):
    """A forecast smoothed by a Gaussian whose width, one per lead time, is fitted in one pass.

    The widths minimise the squared error among a fixed set from 0 to 64 pixels. On frames of more than 128 pixels a
    side, the error is that of every second row and column, or third, and so on.  An unfitted model does not smooth.

    Args:
        forecast: Function from a context `(B, T_in, H, W, C)` to a forecast `(B, T_out, H, W, C)`, or
            `(B, 1, H, W, C)` if all lead times are the same; it has no parameters.
        t_out: Number of lead times.
        width_per_lead: Whether each lead time has its own width; otherwise all share the one that is best overall.
    """

    fitted_on: ClassVar[str] = "val"
    width: Tensor

    def __init__(self, forecast: Callable[[Tensor], Tensor], t_out: int, *, width_per_lead: bool = True) -> None:
        super().__init__()
        self.sharp = forecast
        self.width_per_lead = width_per_lead
        self.register_buffer("width", torch.zeros(t_out))

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Chooses the widths; pixels that are missing in the target or in the last frame do not count.

        Args:
            batches: Contexts `(B, T_in, H, W, C)` and targets `(B, T_out, H, W, C)`.
        """
        errors = torch.zeros(len(_WIDTHS), len(self.width), dtype=torch.float64)
        for context, target in batches:
            sharp = self.sharp(context)
            every = -(-max(target.shape[2:4]) // _LATTICE)
            truth = target[:, :, ::every, ::every]
            known = ~(torch.isnan(context[:, -1:, ::every, ::every]) | torch.isnan(truth))
            for total, width in zip(errors, _WIDTHS, strict=True):
                error = blurred(sharp, self.width.new_tensor([width]), every=every) - truth
                total += error.masked_fill(~known, 0).double().square().sum((0, 2, 3, 4)).cpu()
        if not self.width_per_lead:
            errors = errors.sum(1, keepdim=True)
        self.width.copy_(torch.tensor(_WIDTHS)[errors.argmin(0)].expand_as(self.width))

    def forward(self, context: Tensor) -> Tensor:
        """Returns `(B, T_out, H, W, C)` for a context `(B, T_in, H, W, C)`."""
        return blurred(self.sharp(context), self.width)


class BlurredPersistence(Blurred):
    """The last frame of the context, blurred by a Gaussian with one width per lead time; fitted in one pass.

    Args:
        input_shape: `(T_in, H, W, C)`.
        target_shape: `(T_out, H, W, C)`, with the same H, W and C.
        width_per_lead: Whether each lead time has its own width; otherwise all share one.

    Raises:
        ValueError: frames of context and target differ in shape.
    """

    trivial: ClassVar[bool] = True

    def __init__(
        self,
        input_shape: tuple[int, int, int, int],
        target_shape: tuple[int, int, int, int],
        *,
        width_per_lead: bool = True,
    ) -> None:
        _, (t_out, *_) = checked_shapes("blurred_persistence", input_shape, target_shape, feeds_back=True)
        super().__init__(_last_frame, t_out, width_per_lead=width_per_lead)


def _last_frame(context: Tensor) -> Tensor:
    return context[:, -1:]


def blurred(frames: Tensor, width: Tensor, *, every: int = 1) -> Tensor:
    """Returns frames smoothed by Gaussians, or a subset of their rows and columns.

    Each value is a weighted mean of the known pixels of the frame: missing ones (NaN) have no weight.  It is 0 if no
    known pixel is near enough.

    Args:
        frames: `(B, T, H, W, C)`, or `(B, 1, H, W, C)` for one frame to be smoothed by all widths.
        width: Standard deviations `(T,)` in pixels, or `(1,)` for all frames.
        every: Rows and columns 0, `every`, 2 `every`, ... are computed.
    """
    known = ~torch.isnan(frames)
    if known.all():
        known = known[:1, :1, :, :, :1]
    rows, columns = (_kernels(width.to(frames), size)[:, ::every] for size in frames.shape[2:4])

    def summed(values: Tensor) -> Tensor:
        return (rows @ values.to(frames).movedim(-1, 1) @ columns.transpose(-2, -1)).movedim(1, -1)

    values, weights = summed(filled(frames)), summed(known)
    return torch.where(weights > _LEAST_WEIGHT, values / weights.clamp(min=_LEAST_WEIGHT), 0)


def _kernels(width: Tensor, size: int) -> Tensor:
    """Returns the weights `(T, size, size)` of the pixels along an axis; the identity matrix for width 0."""
    place = torch.arange(size, device=width.device, dtype=width.dtype)
    distance = (place[:, None] - place).square()
    return (-distance / (2 * width.square().clamp(min=1e-6)[:, None, None])).exp()
