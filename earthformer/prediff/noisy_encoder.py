"""The alignment network: what it says of a noised latent sequence is what a constraint measures of the true frames.

Source: PreDiff, section 3.3; attention pooling after Radford et al. 2021 (CLIP); names as in the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from earthformer.prediff.down_path import DownPath, Levels, checked_shape
from earthformer.prediff.residual import group_norm


class AttentionPool(nn.Module):
    """One query, the mean of a frame's tokens, attends to them all and to itself; its answer is projected."""

    def __init__(self, tokens: int, channels: int, num_heads: int, out_channels: int) -> None:
        """Makes the layer for frames of `tokens` tokens of `channels` channels.

        Raises:
            ValueError: heads that do not divide the channels.
        """
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"num_heads: expected a divisor of {channels} channels, found {num_heads}")
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, tokens + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_channels) for frames `x` (N, C, S)."""
        x = torch.cat((x.mean(dim=-1, keepdim=True), x), dim=-1) + self.positional_embedding
        heads = self.qkv_proj(x).unflatten(1, (3, self.num_heads, -1))
        q, k, v = heads.unbind(1)  # each (N, h, d, S)
        weights = torch.softmax(q[..., :1].transpose(-2, -1) @ k * q.shape[2] ** -0.5, dim=-1)
        answer = (v @ weights.transpose(-2, -1)).flatten(1, 2)
        pooled: Tensor = self.c_proj(answer)[..., 0]
        return pooled


class NoisyEncoder(DownPath):
    """Estimates, per frame, what a constraint measures of the frames behind a noised latent sequence."""

    def __init__(self, input_shape: Sequence[int], *, out_channels: int = 1, **levels: Any) -> None:
        """Makes the network for latents of `input_shape` (T, H, W, C) and `out_channels` values per frame.

        Raises:
            ValueError: shapes or hyperparameters that do not fit.
        """
        shape = checked_shape("input_shape", input_shape)
        released: dict[str, Any] = {"base_units": 128, "depth": (1, 1)}
        super().__init__(shape, Levels(**{**released, **levels}))
        self.input_shape = shape
        frames, height, width, channels = self.shapes[-1]
        if frames != shape[0]:
            raise ValueError(f"downsample: expected to leave {shape[0]} frames as they are, found {frames} left")
        pool = AttentionPool(height * width, channels, self.levels.num_heads, out_channels)
        self.out = nn.Sequential(group_norm(channels), nn.SiLU(), pool)

    def forward(self, zt: Tensor, t: Tensor, y: Tensor | None = None, zc: Tensor | None = None) -> Tensor:
        """Returns the estimates (B, T, out_channels).

        Args:
            zt: noised latents (B, T, H, W, C).
            t: diffusion steps (B,).
            y: the context; taken and not used, as in the authors' code.
            zc: its latents; likewise.

        Raises:
            ValueError: latents of another shape than the network was made for.
        """
        if tuple(zt.shape[1:]) != self.input_shape:
            raise ValueError(
                f"alignment: expected latents (B, T, H, W, C) with {self.input_shape} behind B, found {tuple(zt.shape)}"
            )
        tokens = self.descend(zt, self.time_embed(t))[-1]
        frames = tokens.flatten(0, 1).flatten(1, 2).transpose(1, 2)
        estimates: Tensor = self.out(frames).unflatten(0, (-1, self.input_shape[0]))
        return estimates
