"""A tiny VideoGPT for the tests of its parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from baselines.videogpt import VideoGPT

SHAPES = ((4, 8, 16, 1), (3, 8, 16, 1))
CODES = (3, 2, 4)
CONTEXT = torch.rand(5, *SHAPES[0], generator=torch.Generator().manual_seed(3))


def make(shapes: tuple[Any, Any] = SHAPES, **changes: Any) -> VideoGPT:
    """Returns a tiny model with different logits for all codes; an untrained one finds all codes equally likely."""
    torch.manual_seed(0)
    made = VideoGPT(*shapes, **(VideoGPT.presets["tiny"] | changes))
    nn.init.normal_(made.transformer.output.weight, std=0.3)
    return made.eval()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
