"""Losses over known pixels: a missing pixel of the truth is NaN, has no error, and is read as 0.

A loss is the sum over the known pixels divided by their number, so that missing pixels do not change it.
Nothing here synchronises with the device.
"""

import torch
from torch import Tensor


def filled(frames: Tensor) -> Tensor:
    """Returns frames that a network can read: missing pixels are 0, as in the contexts of radar tasks."""
    return frames.masked_fill(torch.isnan(frames), 0)


def joined_truth(context: Tensor, target: Tensor, context_known: Tensor | None) -> Tensor:
    """Returns the truth (B, T_in + T_out, H, W, C) of all steps, NaN where it is missing.

    Args:
        context: Context (B, T_in, H, W, C), filled where it was missing.
        target: Target (B, T_out, H, W, C), NaN where it is missing.
        context_known: Where the context was observed; None for everywhere.
    """
    if context_known is not None:
        context = context.masked_fill(~context_known, torch.nan)
    return torch.cat((context, target), dim=1)


def known_error(forecast: Tensor, truth: Tensor) -> Tensor:
    """Returns forecast - truth, with 0 and no gradient where the truth is missing."""
    return (forecast - truth).masked_fill(torch.isnan(truth), 0)


def known_mse(forecast: Tensor, truth: Tensor) -> Tensor:
    """Returns the mean squared error over the known pixels of a batch; 0 if there are none."""
    return known_error(forecast, truth).square().sum() / (~torch.isnan(truth)).sum().clamp(min=1)
