"""Losses over known pixels: a missing pixel of the true frames is NaN; networks read 0 there, losses leave it out.

What is not of single pixels (a latent, a frame's measure, the verdict on an image) weighs by its share of known pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def joined_truth(context: Tensor, target: Tensor, context_known: Tensor | None) -> Tensor:
    """Returns contexts and targets as one (B, T, H, W, C), NaN where they are missing.

    Args:
        context: (B, T_in, H, W, C), filled where it was missing.
        target: (B, T_out, H, W, C), NaN where it is missing.
        context_known: where the context was observed; None for everywhere.
    """
    if context_known is not None:
        context = context.masked_fill(~context_known, torch.nan)
    return torch.cat((context, target), dim=1)


def filled(frames: Tensor) -> Tensor:
    """Returns frames with 0 where they are missing."""
    return frames.masked_fill(torch.isnan(frames), 0)


def known_share(frames: Tensor, *, keep: int = 1) -> Tensor:
    """Returns the share of known pixels, by the first `keep` axes of the frames."""
    return (~torch.isnan(frames)).float().flatten(keep).mean(-1)


def latent_share(frames: Tensor, latents: Tensor) -> Tensor:
    """Returns the share of known pixels (B, T, h, w, 1) of what each latent (B, T, h, w, C) stands for."""
    height, width = latents.shape[2:4]
    known = (~torch.isnan(frames)).float().mean(-1)
    return known.unflatten(3, (width, -1)).unflatten(2, (height, -1)).mean((3, 5)).unsqueeze(-1)


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Returns the mean of `values` with weights of that shape: 0 if all weights are 0, the plain mean without any."""
    if weight is None:
        return values.mean()
    total = weight.sum()
    return (values * weight).sum() / total.masked_fill(total == 0, 1)
