"""What tells a network the diffusion step: its embedding, and residual blocks of 3-D convolutions that take it.

Source: PreDiff, section 3.2, after the residual blocks of Dhariwal and Nichol 2021; names as in the authors'
checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from earthformer.layers import init_linear

_MOST_GROUPS = 32
_LONGEST_PERIOD = 10_000.0


def group_norm(channels: int) -> nn.GroupNorm:
    """Returns a norm over 32 groups of channels, or over each channel where 32 do not divide them.

    Its statistics are taken over all of T, H and W.
    """
    return nn.GroupNorm(_MOST_GROUPS if channels % _MOST_GROUPS == 0 else channels, channels)


def step_sinusoids(t: Tensor, channels: int) -> Tensor:
    """Returns the embedding (B, channels) of diffusion steps `t` (B,): cosines, then sines, of falling frequency."""
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * exponent)
    missing = angles.new_zeros(len(t), channels % 2)
    return torch.cat((angles.cos(), angles.sin(), missing), dim=1)


class StepEmbedding(nn.Module):
    """Sinusoids of the diffusion step through two linear layers."""

    def __init__(self, base_channels: int, channels: int) -> None:
        """Makes the layers from `base_channels` sinusoids to `channels`; they keep torch's initialisation."""
        super().__init__()
        self.base_channels = base_channels
        self.layer = nn.Sequential(nn.Linear(base_channels, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, t: Tensor) -> Tensor:
        """Returns the embedding (B, channels) of diffusion steps `t` (B,)."""
        embedded: Tensor = self.layer(step_sinusoids(t, self.base_channels))
        return embedded


class ResidualBlock(nn.Module):
    """Two 3-D convolutions with group norms and a residual; between them the diffusion step's embedding enters."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        embed_channels: int | None = None,
        dropout: float = 0.0,
        scale_shift: bool = False,
    ) -> None:
        """Makes the block; it starts as the identity, or the convolution 1x1x1 that changes the channels.

        Args:
            channels: of the input.
            out_channels: of the output.
            embed_channels: of the step's embedding; None for a block that does not take it.
            dropout: before the second convolution.
            scale_shift: the embedding scales and shifts the second norm rather than being added before it.
        """
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv3d(channels, out_channels, 3, padding=1))
        if embed_channels is not None:
            linear = nn.Linear(embed_channels, (2 if scale_shift else 1) * out_channels)
            init_linear(linear)
            self.emb_layers = nn.Sequential(nn.SiLU(), linear)
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
        )
        for parameter in self.out_layers[-1].parameters():
            nn.init.zeros_(parameter)
        same = channels == out_channels
        self.skip_connection: nn.Module = nn.Identity() if same else nn.Conv3d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedded: Tensor | None = None) -> Tensor:
        """Returns (B, T, H, W, C_out) for `x` (B, T, H, W, C) and the step's embedding (B, E) if it takes one."""
        x = x.permute(0, 4, 1, 2, 3)
        h = self.in_layers(x)
        if embedded is not None:
            change = self.emb_layers(embedded)[:, :, None, None, None]
            if self.scale_shift:
                scale, shift = change.chunk(2, dim=1)
                h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
            else:
                h = self.out_layers(h + change)
        else:
            h = self.out_layers(h)
        out: Tensor = self.skip_connection(x) + h
        return out.permute(0, 2, 3, 4, 1)
