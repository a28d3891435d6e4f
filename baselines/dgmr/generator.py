"""DGMR's generator: a context stack, a latent stack and a recurrent sampler of four levels.

Adapted from DeepMind's pseudocode of DGMR, copyright 2021 DeepMind Technologies Limited, licensed under CC BY 4.0
(creativecommons.org/licenses/by/4.0); see `baselines.dgmr.blocks`. Changes: rewritten in PyTorch; any number of
frames, levels and channels; every sequence of a batch has its own latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.dgmr.blocks import NORM_MOMENTUM, SAMPLER_EPS, Attention, ConvGRUCell, DBlock, GBlock, LBlock, conv
from baselines.shapes import Shape

_NOISE_CHANNELS = 8


class ContextStack(nn.Module):
    """Computes the initial states of the sampler's levels from all frames of the context, at each level's scale.

    Args:
        input_shape: (T_in, H, W, C).
        channels: Channels of the states, from the finest level (a quarter of the grid) to the coarsest.
        frame_channels: Channels of each frame at these levels.
    """

    def __init__(self, input_shape: Shape, channels: Sequence[int], frame_channels: Sequence[int]) -> None:
        super().__init__()
        t_in, _, _, c_in = input_shape
        inputs = [4 * c_in, *frame_channels[:-1]]
        self.blocks = nn.ModuleList(DBlock(i, o) for i, o in zip(inputs, frame_channels, strict=True))
        self.joins = nn.ModuleList(conv(t_in * i, o, 3) for i, o in zip(frame_channels, channels, strict=True))

    def forward(self, context: Tensor) -> list[Tensor]:
        """Returns states (B, C, h, w), finest first, for a context (B, T_in, H, W, C)."""
        x = F.pixel_unshuffle(context.flatten(0, 1).permute(0, 3, 1, 2), 2)
        states = []
        for block, join in zip(self.blocks, self.joins, strict=True):
            x = block(x)
            states.append(F.relu(join(x.unflatten(0, context.shape[:2]).flatten(1, 2))))
        return states


class LatentStack(nn.Module):
    """Turns noise into the latent that the sampler's coarsest level reads at every step.

    Args:
        widths: Channels of the blocks before the attention.
        channels: Channels of the latent.
    """

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        inputs = [_NOISE_CHANNELS, *widths[:-1]]
        self.layers = nn.Sequential(
            conv(_NOISE_CHANNELS, _NOISE_CHANNELS, 3),
            *(LBlock(i, o) for i, o in zip(inputs, widths, strict=True)),
            Attention(widths[-1]),
            LBlock(widths[-1], channels),
        )

    def forward(self, noise: Tensor) -> Tensor:
        """Returns latents (B, C, h, w) for noise (B, 8, h, w)."""
        latent: Tensor = self.layers(noise)
        return latent


class SamplerLevel(nn.Module):
    """One level of the sampler: a recurrent cell and the blocks that upsample its states.

    Args:
        channels: Channels of its states; its input has twice as many.
        c_out: Channels of its output.
    """

    def __init__(self, channels: int, c_out: int) -> None:
        super().__init__()
        self.cell = ConvGRUCell(2 * channels, channels)
        self.enlarge = nn.Sequential(
            conv(channels, 2 * channels, 1, eps=SAMPLER_EPS),
            GBlock(2 * channels, 2 * channels),
            GBlock(2 * channels, c_out, up=True),
        )

    def forward(self, inputs: Sequence[Tensor], state: Tensor) -> list[Tensor]:
        """Returns the outputs (B, C', 2h, 2w) of all steps for their inputs and the initial state (B, C, h, w).

        Each step is a separate call, so that batch statistics are those of one lead time.
        """
        outputs = []
        for x in inputs:
            state = self.cell(x, state)
            outputs.append(self.enlarge(state))
        return outputs


class Sampler(nn.Module):
    """Turns latents and states into frames, from the coarsest level to the finest.

    Args:
        target_shape: (T_out, H, W, C).
        channels: Channels of the states, finest first.
    """

    def __init__(self, target_shape: Shape, channels: Sequence[int]) -> None:
        super().__init__()
        self.t_out, c_out = target_shape[0], target_shape[3]
        finest = channels[0]
        outputs = [finest, *(2 * width for width in channels[:-1])]
        self.levels = nn.ModuleList(SamplerLevel(i, o) for i, o in zip(channels, outputs, strict=True))
        self.norm = nn.BatchNorm2d(finest, momentum=NORM_MOMENTUM)
        self.head = conv(finest, 4 * c_out, 1, eps=SAMPLER_EPS)

    def forward(self, latent: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Returns frames (B, T_out, H, W, C) for latents (B, C, h, w) and states (B, C, h, w), finest first."""
        steps = [latent] * self.t_out
        for level, state in zip(reversed(self.levels), reversed(states), strict=True):
            steps = level(steps, state)
        frames = [F.pixel_shuffle(self.head(F.relu(self.norm(x))), 2) for x in steps]
        return torch.stack(frames, dim=1).permute(0, 1, 3, 4, 2)


class Generator(nn.Module):
    """Generates a forecast from a context and noise.

    Args:
        input_shape: (T_in, H, W, C).
        target_shape: (T_out, H, W, C); H and W are multiples of 2^(levels + 1).
        channels: Channels of the states, finest first.
        context_channels: Channels of each context frame at these levels.
        latent_widths: Channels of the latent stack's blocks, rising.
    """

    def __init__(
        self,
        input_shape: Shape,
        target_shape: Shape,
        *,
        channels: Sequence[int],
        context_channels: Sequence[int],
        latent_widths: Sequence[int],
    ) -> None:
        super().__init__()
        scale = 2 ** (len(channels) + 1)
        self.noise_shape = (_NOISE_CHANNELS, input_shape[1] // scale, input_shape[2] // scale)
        self.context = ContextStack(input_shape, channels, context_channels)
        self.latent = LatentStack(latent_widths, 2 * channels[-1])
        self.sampler = Sampler(target_shape, channels)

    def forward(self, context: Tensor, noise: Tensor) -> Tensor:
        """Returns forecasts (B, T_out, H, W, C) for contexts (B, T_in, H, W, C) and noise (B, 8, h, w)."""
        return self.from_states(self.context(context), noise)

    def from_states(self, states: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Returns forecasts (B, T_out, H, W, C) for the context stack's states and noise (B, 8, h, w)."""
        frames: Tensor = self.sampler(self.latent(noise), states)
        return frames
