"""DGMR's two discriminators: one sees single frames of the forecast, one the whole sequence in a random window.

Adapted from DeepMind's pseudocode of DGMR, copyright 2021 DeepMind Technologies Limited, licensed under CC BY 4.0
(creativecommons.org/licenses/by/4.0); see `baselines.dgmr.blocks`. Changes: rewritten in PyTorch; any number of
frames; the last blocks keep grids that are too small to be halved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.dgmr.blocks import DBlock, MeanNorm, normed

VOLUME_HALVINGS = 2
"""Blocks of the temporal discriminator that halve time, too."""
_FRAMES_SEEN = 8


class Head(nn.Module):
    """Scores a grid of features.

    Args:
        channels: Channels of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = MeanNorm(channels)
        self.score = normed(nn.Linear(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, 1) for (N, C, H, W)."""
        scores: Tensor = self.score(self.norm(F.relu(x).sum((2, 3))))
        return scores


class SpatialDiscriminator(nn.Module):
    """Scores up to eight frames of a forecast, one by one, at half resolution.

    Args:
        c_in: Channels of the frames.
        channels: Channels of its blocks.
        halvings: Number of blocks that halve the grid; one more block keeps it.
    """

    def __init__(self, c_in: int, channels: Sequence[int], halvings: int) -> None:
        super().__init__()
        widths = [4 * c_in, *channels, channels[-1]]
        self.blocks = nn.Sequential(
            *(DBlock(widths[k], widths[k + 1], first=k == 0, down=k < halvings) for k in range(len(widths) - 1))
        )
        self.head = Head(channels[-1])

    def forward(self, future: Tensor) -> Tensor:
        """Returns scores (N, 1), summed over frames drawn at random, for forecasts (N, T_out, H, W, C)."""
        count, t_out = future.shape[:2]
        order = torch.rand(count, t_out).argsort(1)[:, :_FRAMES_SEEN].to(future.device, non_blocking=True)
        frames = future[torch.arange(count, device=future.device)[:, None], order]
        x = frames.flatten(0, 1).permute(0, 3, 1, 2)
        scores: Tensor = self.head(self.blocks(F.pixel_unshuffle(F.avg_pool2d(x, 2), 2)))
        return scores.unflatten(0, frames.shape[:2]).sum(1)


class TemporalDiscriminator(nn.Module):
    """Scores a whole sequence in a random window of half its height and width.

    Args:
        c_in: Channels of the frames.
        channels: Channels of its blocks; the first two halve time as well.
        halvings: Number of blocks that halve the grid; one more block keeps it.
    """

    def __init__(self, c_in: int, channels: Sequence[int], halvings: int) -> None:
        super().__init__()
        widths = [4 * c_in, *channels, channels[-1]]
        self.volumes = nn.Sequential(
            *(DBlock(widths[k], widths[k + 1], first=k == 0, volume=True) for k in range(VOLUME_HALVINGS))
        )
        self.blocks = nn.Sequential(
            *(DBlock(widths[k], widths[k + 1], down=k < halvings) for k in range(VOLUME_HALVINGS, len(widths) - 1))
        )
        self.head = Head(channels[-1])

    def forward(self, sequence: Tensor) -> Tensor:
        """Returns scores (N, 1), summed over steps, for sequences (N, T_in + T_out, H, W, C)."""
        x = F.pixel_unshuffle(_random_window(sequence).movedim(-1, 2), 2)  # (N, T, 4C, H/4, W/4)
        x = self.volumes(x.movedim(2, 1)).movedim(2, 1)
        scores: Tensor = self.head(self.blocks(x.flatten(0, 1)))
        return scores.unflatten(0, x.shape[:2]).sum(1)


def _random_window(sequence: Tensor) -> Tensor:
    """Returns random windows (N, T, H/2, W/2, C), drawn independently for each sequence."""
    count, _, height, width, _ = sequence.shape
    device = sequence.device
    top, left = (
        torch.randint(size - size // 2 + 1, (count, 1, 1)).to(device, non_blocking=True) for size in (height, width)
    )
    rows = top + torch.arange(height // 2, device=device)[:, None]
    columns = left + torch.arange(width // 2, device=device)
    each = torch.arange(count, device=device)[:, None, None]
    return sequence[each, :, rows, columns].movedim(3, 1)


class Discriminators(nn.Module):
    """Both discriminators, whose scores are returned separately.

    Args:
        c_in: Channels of the frames.
        channels: Channels of the blocks of each.
        halvings: Number of blocks that halve the grid.
    """

    def __init__(self, c_in: int, channels: Sequence[int], halvings: int) -> None:
        super().__init__()
        self.spatial = SpatialDiscriminator(c_in, channels, halvings)
        self.temporal = TemporalDiscriminator(c_in, channels, halvings)

    def forward(self, context: Tensor, future: Tensor) -> Tensor:
        """Returns scores (N, 2), spatial and temporal, of futures (N, T_out, H, W, C) after contexts."""
        return torch.cat((self.spatial(future), self.temporal(torch.cat((context, future), dim=1))), dim=1)

    def compared(self, context: Tensor, real: Tensor, made: Tensor, *, frozen: bool = False) -> tuple[Tensor, Tensor]:
        """Returns the scores (B, 2) of real and of generated futures, both (B, T_out, H, W, C), of the same contexts.

        Both pass as one batch: the head subtracts the batch mean, so the mean score of generated futures alone would
        be the same whatever they look like.

        Args:
            context: (B, T_in, H, W, C).
            real: Observed futures.
            made: Forecasts.
            frozen: Whether gradients reach only the forecasts, not the discriminators.
        """
        pair = (torch.cat((context, context)), torch.cat((real, made)))
        if frozen:
            weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
            scores: Tensor = torch.func.functional_call(self, weights, pair)
        else:
            scores = self(*pair)
        of_real, of_made = scores.chunk(2)
        return of_real, of_made
