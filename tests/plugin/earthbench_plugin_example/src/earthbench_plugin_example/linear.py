"""A model: the trend of the last two frames, with one trainable weight."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class LinearExtrapolation(nn.Module):
    """The last frame plus a learned share of the last change, at every lead time.

    Args:
        input_shape: `(T_in, H, W, C)` with T_in >= 2.
        target_shape: `(T_out, H, W, C)`.
        damping: Initial value of the share.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {"tiny": {"damping": 0.1}}

    def __init__(self, input_shape: tuple, target_shape: tuple, *, damping: float = 0.5) -> None:
        super().__init__()
        if input_shape[0] < 2:
            raise ValueError(f"T_in is {input_shape[0]}; a trend needs 2 frames")
        self.share = nn.Parameter(torch.tensor(damping))
        self.register_buffer("lead", torch.arange(1, target_shape[0] + 1).view(1, -1, 1, 1, 1))

    def forward(self, context: Tensor) -> Tensor:
        """Returns `(B, T_out, H, W, C)`."""
        last, change = context[:, -1:], context[:, -1:] - context[:, -2:-1]
        return last + self.share * self.lead * change
