"""Persistence: the last observed frame at every lead time."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class Persistence(nn.Module):
    """The last frame of the context repeated for every lead time; nothing to train.

    Source: the baseline of every nowcasting paper, e.g. Gao et al. 2022 (Earthformer), rows 'Persistence'.

    Args:
        input_shape: `(T_in, H, W, C)`.
        target_shape: `(T_out, H, W, C)`, with the same H, W and C.

    Raises:
        ValueError: frames of context and target differ in shape.
    """

    trivial: ClassVar[bool] = True

    def __init__(self, input_shape: tuple[int, int, int, int], target_shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        if tuple(input_shape[1:]) != tuple(target_shape[1:]):
            raise ValueError(f"context frames {input_shape[1:]} and target frames {target_shape[1:]} must be equal")
        self.t_out = target_shape[0]

    def forward(self, context: Tensor) -> Tensor:
        """Returns `(B, T_out, H, W, C)` for a context `(B, T_in, H, W, C)`."""
        return context[:, -1:].repeat(1, self.t_out, 1, 1, 1)
